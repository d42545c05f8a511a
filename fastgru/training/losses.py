"""Losses: their value, and their gradient with respect to what the model puts out.

All are means over the elements that count: weights of samples, and lengths of sequences, decide
which those are. Names and formulas are PyTorch's, where it has the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..check import check_members
from ..check import library_of as check_library
from .check import check_number
from .tree import library_of


class Loss(ABC):
    """What all losses have: they are called with outputs and targets."""

    def __call__(
        self, output: Any, target: Any, *, weight: Any = None, lengths: Any = None
    ) -> tuple[float, Any]:
        """The loss, and its gradient.

        Parameters
        ----------
        output : (N, K) or (N, T, K) array
            What the model puts out, for each sample or each of its time steps.
        target : array
            Shaped like the output, but for losses that say otherwise. Of the library of `output`,
            and of its dtype or of one that it holds.
        weight : (N,) or (N, T) array, optional
            How much each sample, or each of its steps, counts; all the same by default.
        lengths : (N,) array of int, optional
            Valid steps of each sample, for outputs of steps. Others are not looked at.

        Returns
        -------
        value : float
            The weighted mean.
        gradient : array
            Shaped like `output`; 0 where nothing counts.

        Raises
        ------
        TypeError
            If the target's dtype does not fit.
        ValueError
            If shapes do not fit, or nothing counts.
        """
        xp = _checked_library(output, target, weight)
        self._check(output, target)
        counts = _counts(xp, output, weight, lengths)
        if counts is not None:
            # What does not count may be anything, NaN too.
            is_used = counts != 0
            output = xp.where(is_used[..., None], output, xp.zeros_like(output))
            target = _where(xp, is_used, target)
        values, slopes = self._values(xp, output, target)  # (…,), (…, K)
        if counts is None:
            total = float(values.size)
            if not total:
                raise ValueError("output: expected at least one sample and step, got none")
            return float(values.sum(dtype="float64")) / total, slopes / slopes.dtype.type(total)
        total = float(counts.sum(dtype="float64"))
        if not total > 0:
            raise ValueError(f"weight, lengths: expected a sum above 0, got {total:g}")
        value = float((values * counts).sum(dtype="float64")) / total
        return value, slopes * (counts / counts.dtype.type(total))[..., None]

    def _check(self, output: Any, target: Any) -> None:
        """Refuse targets that do not fit."""
        _check_numbers(target, output, output.shape)

    @abstractmethod
    def _values(self, xp: Any, output: Any, target: Any) -> tuple[Any, Any]:
        """The loss of each sample or step, and its gradient with respect to each output."""

    def __repr__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


def _checked_library(output: Any, target: Any, weight: Any) -> Any:
    """The module of the library of what a loss is given, if it is arrays."""
    for name, array in (("output", output), ("target", target), ("weight", weight)):
        if not (array is None and name == "weight"):
            check_library(name, array)
    if output.ndim not in (2, 3):
        raise ValueError(f"output: expected shape (N, K) or (N, T, K), got {output.shape}")
    return library_of(output)


def _check_shape(target: Any, expected: tuple[int, ...]) -> None:
    if tuple(target.shape) != tuple(expected):
        raise ValueError(f"target: expected shape {tuple(expected)}, got {tuple(target.shape)}")


def _check_numbers(target: Any, output: Any, expected: tuple[int, ...]) -> None:
    """Refuse targets of another shape, or whose dtype would make another one of the output's."""
    _check_shape(target, expected)
    if np.result_type(target.dtype, output.dtype) != output.dtype:
        raise TypeError(
            f"target: expected dtype {output.dtype}, as the output, got {target.dtype}; convert it "
            f'by .astype("{output.dtype}")'
        )


def _counts(xp: Any, output: Any, weight: Any, lengths: Any) -> Any:
    """How much each sample or step counts, in the dtype of the output; None for all the same."""
    if weight is None and lengths is None:
        return None
    shape = output.shape[:-1]
    counts = xp.ones(shape, output.dtype)
    if weight is not None:
        if tuple(weight.shape) not in (shape, shape[:1]):
            raise ValueError(f"weight: expected shape {shape} or {shape[:1]}, got {weight.shape}")
        counts *= weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim))
    if lengths is not None:
        if len(shape) != 2:
            raise ValueError("lengths: expected outputs of time steps, (N, T, K)")
        if len(lengths) != shape[0]:
            raise ValueError(f"lengths: expected {shape[0]}, one for each sample, got {lengths!r}")
        counts *= xp.arange(shape[1]) < xp.asarray(lengths)[:, None]
    return counts


def _where(xp: Any, is_used: Any, target: Any) -> Any:
    """A target, and zeros where nothing counts."""
    if target.ndim > is_used.ndim:
        is_used = is_used[..., None]
    return xp.where(is_used, target, xp.zeros_like(target))


class MSELoss(Loss):
    """Mean squared error, ``(output - target) ** 2``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> training.MSELoss()(np.array([[1.0], [3.0]]), np.array([[0.0], [3.0]]))
    (0.5, array([[1.],
           [0.]]))
    """

    def _values(self, xp: Any, output: Any, target: Any) -> tuple[Any, Any]:
        error = output - target
        return (error * error).mean(axis=-1), error * (2 / output.shape[-1])


class L1Loss(Loss):
    """Mean absolute error, ``|output - target|``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> training.L1Loss()(np.array([[1.0]]), np.array([[3.0]]))
    (2.0, array([[-1.]]))
    """

    def _values(self, xp: Any, output: Any, target: Any) -> tuple[Any, Any]:
        error = output - target
        return xp.abs(error).mean(axis=-1), xp.sign(error) / output.shape[-1]


class HuberLoss(Loss):
    """Squared errors up to `delta`, and beyond it absolute ones, which outliers pull less.

    Parameters
    ----------
    delta : float

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> training.HuberLoss(1.0)(np.array([[3.0]]), np.array([[0.0]]))
    (2.5, array([[1.]]))
    """

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = check_number("delta", delta, least=0)
        if not self.delta:
            raise ValueError("delta: expected a number above 0, got 0")

    def _values(self, xp: Any, output: Any, target: Any) -> tuple[Any, Any]:
        error = output - target
        kept = xp.clip(error, -self.delta, self.delta)
        # Where nothing is clipped, error ** 2 / 2; else delta * (|error| - delta / 2).
        values = kept * (error - kept / 2)
        return values.mean(axis=-1), kept / output.shape[-1]


class QuantileLoss(Loss):
    """Pinball loss: outputs become quantiles of the target.

    Targets are (N, M) or (N, T, M); outputs have M times as many columns as there are quantiles,
    for each target its quantiles side by side. The mean is over all of them.

    Parameters
    ----------
    quantiles : sequence of float
        Between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> loss = training.QuantileLoss([0.1, 0.9])
    >>> value, gradient = loss(np.array([[1.0, 5.0]]), np.array([[3.0]]))
    >>> round(value, 4), gradient
    (0.2, array([[-0.05,  0.05]]))
    """

    def __init__(self, quantiles: Sequence[float]) -> None:
        self.quantiles = tuple(
            check_number(f"quantiles[{n}]", q, least=0, below=1)
            for n, q in enumerate(check_members("quantiles", quantiles, "numbers"))
        )
        if not self.quantiles or 0.0 in self.quantiles:
            raise ValueError(f"quantiles: expected numbers between 0 and 1, got {quantiles!r}")

    def _check(self, output: Any, target: Any) -> None:
        count = len(self.quantiles)
        if output.shape[-1] % count:
            raise ValueError(
                f"output: expected a multiple of {count} columns, one for each quantile, got "
                f"{output.shape[-1]}"
            )
        _check_numbers(target, output, (*output.shape[:-1], output.shape[-1] // count))

    def _values(self, xp: Any, output: Any, target: Any) -> tuple[Any, Any]:
        shape = output.shape
        shares = xp.asarray(self.quantiles, output.dtype)
        error = target[..., None] - output.reshape(*target.shape, len(self.quantiles))
        slopes = xp.where(error > 0, -shares, 1 - shares)
        values = -error * slopes
        return values.reshape(shape).mean(axis=-1), slopes.reshape(shape) / shape[-1]


class CrossEntropyLoss(Loss):
    """Cross-entropy of classes, from logits.

    Targets are classes, (N,) or (N, T) of whole numbers, or probabilities shaped like the output.

    Parameters
    ----------
    class_weight : sequence of float, optional
        How much each class counts.

    Notes
    -----
    Weights of classes multiply those of samples: the mean is divided by the sum of both, as in
    PyTorch for targets that are classes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> value, gradient = training.CrossEntropyLoss()(np.array([[0.0, 0.0]]), np.array([1]))
    >>> round(value, 4), gradient
    (0.6931, array([[ 0.5, -0.5]]))
    """

    def __init__(self, class_weight: Sequence[float] | None = None) -> None:
        self.class_weight = None
        if class_weight is not None:
            self.class_weight = tuple(
                check_number(f"class_weight[{n}]", w, least=0)
                for n, w in enumerate(check_members("class_weight", class_weight, "numbers"))
            )

    def __call__(
        self, output: Any, target: Any, *, weight: Any = None, lengths: Any = None
    ) -> tuple[float, Any]:
        xp = _checked_library(output, target, weight)
        self._check(output, target)
        if self.class_weight is None:
            return super().__call__(output, target, weight=weight, lengths=lengths)
        of_class = xp.asarray(self.class_weight, output.dtype)
        if target.ndim == output.ndim:
            raise ValueError("class_weight: expected targets that are classes, got probabilities")
        # What does not count may be any class.
        counts = _counts(xp, output, weight, lengths)
        is_used = True if counts is None else counts != 0
        _check_classes(target, is_used, output.shape[-1])
        own = of_class[xp.where(is_used, target, 0)]
        if counts is not None:
            own = own * counts
        return super().__call__(output, target, weight=own, lengths=lengths)

    def _check(self, output: Any, target: Any) -> None:
        if target.ndim == output.ndim:
            _check_numbers(target, output, output.shape)
            return
        _check_shape(target, output.shape[:-1])
        if target.dtype.kind not in "iu":
            raise TypeError(f"target: expected classes, whole numbers, got {target.dtype}")
        if self.class_weight is not None and len(self.class_weight) != output.shape[-1]:
            raise ValueError(
                f"class_weight: expected {output.shape[-1]} numbers, one for each class, got "
                f"{len(self.class_weight)}"
            )

    def _values(self, xp: Any, output: Any, target: Any) -> tuple[Any, Any]:
        shifted = output - output.max(axis=-1, keepdims=True)
        powers = xp.exp(shifted)
        sums = powers.sum(axis=-1, keepdims=True)
        share = powers / sums
        logs = shifted - xp.log(sums)
        if target.ndim < output.ndim:
            classes = xp.arange(output.shape[-1])
            _check_classes(target, True, len(classes))
            target = (target[..., None] == classes).astype(output.dtype)
        return -(target * logs).sum(axis=-1), share * target.sum(axis=-1, keepdims=True) - target


def _check_classes(target: Any, is_used: Any, count: int) -> None:
    """Refuse what is none of the classes, where it counts."""
    wrong = ((target < 0) | (target >= count)) & is_used
    if bool(wrong.any()):
        raise ValueError(
            f"target: expected classes from 0 to {count - 1}, got {int(target[wrong][0])}"
        )


class BCEWithLogitsLoss(Loss):
    """Binary cross-entropy of independent labels, from logits. Targets are from 0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> value, gradient = training.BCEWithLogitsLoss()(np.array([[0.0]]), np.array([[1.0]]))
    >>> round(value, 4), gradient
    (0.6931, array([[-0.5]]))
    """

    def _values(self, xp: Any, output: Any, target: Any) -> tuple[Any, Any]:
        small = xp.exp(-xp.abs(output))  # no overflow, and no cancellation
        values = xp.maximum(output, 0) - output * target + xp.log1p(small)
        share = xp.where(output >= 0, 1 / (1 + small), small / (1 + small))
        return values.mean(axis=-1), (share - target) / output.shape[-1]


class GaussianNLLLoss(Loss):
    """Negative log likelihood of a normal distribution, whose mean and spread the model puts out.

    Targets are (N, M) or (N, T, M); outputs have twice as many columns: the means, then the
    logarithms of the variances. Constants are left out, as in PyTorch.

    Parameters
    ----------
    least_log_variance : float
        Logarithms below count as this one: no certainty without bound.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> training.GaussianNLLLoss()(np.array([[1.0, 0.0]]), np.array([[3.0]]))
    (2.0, array([[-2. , -1.5]]))
    """

    def __init__(self, least_log_variance: float = -13.8) -> None:
        self.least_log_variance = check_number("least_log_variance", least_log_variance)

    def _check(self, output: Any, target: Any) -> None:
        if output.shape[-1] % 2:
            raise ValueError(
                f"output: expected means and as many log variances, got {output.shape[-1]} columns"
            )
        _check_numbers(target, output, (*output.shape[:-1], output.shape[-1] // 2))

    def _values(self, xp: Any, output: Any, target: Any) -> tuple[Any, Any]:
        count = target.shape[-1]
        error = output[..., :count] - target
        given = output[..., count:]
        logs = xp.maximum(given, self.least_log_variance)
        over = xp.exp(-logs)
        scaled = error * over
        values = ((logs + error * scaled) / 2).mean(axis=-1)
        of_logs = xp.where(given > self.least_log_variance, (1 - error * scaled) / 2, 0)
        slopes = xp.concatenate([scaled, of_logs.astype(output.dtype)], axis=-1)
        return values, slopes / count
