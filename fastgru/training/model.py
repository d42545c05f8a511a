"""A model: recurrent layers, and a linear read-out of what they put out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..check import check_rng, check_size, check_type
from ..check_calls import check_lengths
from ..ops import backward, forward, forward_train
from ..params import Params, init_params
from ..saved import Saved
from .check import check_choice, check_sequences
from .tree import library_of


class Pooled(NamedTuple):
    """What a read-out reads of a batch, and what leads its gradient back."""

    features: Any  # (N, F) or (N, T, F)
    back: Callable[[Any], tuple[Any, Any]]  # gradient of the features -> dy, dh_n


class Model:
    """Recurrent layers with a linear read-out; immutable, like `Params`.

    Parameters
    ----------
    params : Params
        Of the recurrent layers.
    weight : (K, D * H) array
        Of the read-out, for K outputs; D directions of H units.
    bias : (K,) array
    pooling : {"last", "steps", "mean", "max"}
        What the read-out reads: the state after the last valid step, of both directions; every
        step; the mean or the maximum over the valid steps.

    Attributes
    ----------
    params, weight, bias, pooling
        As above.

    Raises
    ------
    TypeError
        If the arrays are not of the library and dtype of `params`.
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> model = training.init_model(3, 16, 2, cell="gru", rng=0)
    >>> model
    Model(cell='gru', input_size=3, hidden_size=16, num_layers=1, bidirectional=False,
        pooling='last', output_size=2, dtype=float32)
    >>> model.predict(np.ones((8, 50, 3), np.float32)).shape
    (8, 2)
    """

    params: Params
    weight: Any
    bias: Any
    pooling: str

    def __init__(self, params: Params, weight: Any, bias: Any, pooling: str = "last") -> None:
        check_type("params", params, Params)
        check_choice("pooling", pooling, tuple(_POOLINGS))
        features = params.num_directions * params.hidden_size
        if getattr(weight, "ndim", None) != 2 or weight.shape[1] != features:
            raise ValueError(
                f"weight: expected shape (outputs, {features}), got "
                f"{getattr(weight, 'shape', weight)}"
            )
        if getattr(bias, "shape", None) != (len(weight),):
            raise ValueError(
                f"bias: expected shape ({len(weight)},), got {getattr(bias, 'shape', bias)}"
            )
        for name, array in (("weight", weight), ("bias", bias)):
            library = type(array).__module__.partition(".")[0]
            if (library, array.dtype) != (params.library, params.dtype):
                raise TypeError(
                    f"{name}: expected {params.library} and {params.dtype}, as params, got "
                    f"{library} and {array.dtype}"
                )
        vars(self).update(params=params, weight=weight, bias=bias, pooling=pooling)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Model is immutable; Model.map makes a new one")

    @property
    def input_size(self) -> int:
        """Features of the input."""
        return self.params.input_size

    @property
    def output_size(self) -> int:
        """Numbers that it puts out for a sample or step."""
        return len(self.weight)

    @property
    def num_parameters(self) -> int:
        """How many trainable numbers there are, those of the read-out too."""
        return self.params.num_parameters + int(self.weight.size + self.bias.size)

    def __repr__(self) -> str:
        p = self.params
        return (
            f"Model(cell={p.cell!r}, input_size={p.input_size}, hidden_size={p.hidden_size}, "
            f"num_layers={p.num_layers}, bidirectional={p.bidirectional},\n"
            f"    pooling={self.pooling!r}, output_size={self.output_size}, dtype={p.dtype.name})"
        )

    def map(self, function: Callable[..., Any], *others: Model) -> Model:
        """Apply a function array by array, as `Params.map` does.

        Parameters
        ----------
        function : callable
        *others : Model
            Of the same structure, or gradients of one.

        Returns
        -------
        Model

        Raises
        ------
        TypeError, ValueError
            If `others` differ in structure, or as for `Model`.
        """
        for other in others:
            check_type("others", other, Model)
        return Model(
            self.params.map(function, *(other.params for other in others)),
            function(self.weight, *(other.weight for other in others)),
            function(self.bias, *(other.bias for other in others)),
            self.pooling,
        )

    def predict(self, x: Any, *, lengths: Any = None, batch_size: int | None = None) -> Any:
        """Outputs for sequences.

        Parameters
        ----------
        x : (N, T, I) array
        lengths : (N,) sequence of int, optional
            Valid steps of each sample.
        batch_size : int, optional
            Samples that are computed at once; all by default. Memory for all steps' outputs of so
            many is needed.

        Returns
        -------
        (N, K) array, or (N, T, K) for outputs of steps
            Of samples without a valid step: what the read-out makes of a state of zeros.

        Raises
        ------
        TypeError, ValueError
            As for `fastgru.forward`.
        """
        check_sequences("x", x)
        count = len(x)
        if lengths is not None:
            lengths = check_lengths(lengths, True, *x.shape[:2])
        size = count if batch_size is None else check_size("batch_size", batch_size)
        parts = []
        for first in range(0, max(count, 1), max(size, 1)):
            rows = slice(first, first + size)
            of_rows = None if lengths is None else lengths[rows]
            y, h_n = forward(x[rows], self.params, lengths=of_rows)
            parts.append(self.readout(self.pooled(y, h_n, of_rows).features))
        return parts[0] if len(parts) == 1 else library_of(x).concatenate(parts)

    def pooled(self, y: Any, h_n: Any, lengths: Any) -> Pooled:
        """What the read-out reads of the results of `fastgru.forward`."""
        return _POOLINGS[self.pooling](self.params, y, h_n, lengths)

    def readout(self, features: Any) -> Any:
        """Outputs of features, (..., D * H)."""
        return features @ self.weight.T + self.bias


# --- what a read-out reads ------------------------------------------------------------------------


def _last(params: Params, y: Any, h_n: Any, lengths: Any) -> Pooled:
    h = h_n[0] if isinstance(h_n, tuple) else h_n  # (L * D, N, H)
    D = params.num_directions
    top = h[-D:]
    features = top.transpose(1, 0, 2).reshape(h.shape[1], -1)

    def back(d: Any) -> tuple[Any, Any]:
        xp = library_of(d)
        dh = xp.zeros(h.shape, d.dtype)
        dh[-D:] = d.reshape(len(d), D, -1).transpose(1, 0, 2)
        return None, (dh, *(None for _ in h_n[1:])) if isinstance(h_n, tuple) else dh

    return Pooled(features, back)


def _steps(params: Params, y: Any, h_n: Any, lengths: Any) -> Pooled:
    return Pooled(y, lambda d: (d, None))


def _mean(params: Params, y: Any, h_n: Any, lengths: Any) -> Pooled:
    xp = library_of(y)
    if lengths is None:
        over = xp.full((len(y), 1), 1 / max(1, y.shape[1]), y.dtype)
    else:  # y is 0 where a step is not valid
        over = (1 / xp.maximum(xp.asarray(lengths), 1)).astype(y.dtype)[:, None]

    def back(d: Any) -> tuple[Any, Any]:
        return xp.broadcast_to((d * over)[:, None], y.shape), None

    return Pooled(y.sum(axis=1) * over, back)


def _max(params: Params, y: Any, h_n: Any, lengths: Any) -> Pooled:
    xp = library_of(y)
    if not y.shape[1]:  # no step has a maximum
        return Pooled(y.sum(axis=1), lambda d: (xp.zeros_like(y), None))
    seen = y
    if lengths is not None:
        valid = (xp.arange(y.shape[1]) < xp.asarray(lengths)[:, None])[..., None]
        seen = xp.where(valid, y, -xp.inf)
    at = seen.argmax(axis=1)[:, None]  # (N, 1, F), the first of equal ones
    features = xp.take_along_axis(y, at, axis=1)[:, 0]

    def back(d: Any) -> tuple[Any, Any]:
        steps = xp.arange(y.shape[1])[:, None]
        return xp.where(steps == at, d[:, None], 0).astype(d.dtype), None

    return Pooled(features, back)


_POOLINGS: dict[str, Callable[[Params, Any, Any, Any], Pooled]] = {
    "last": _last,
    "steps": _steps,
    "mean": _mean,
    "max": _max,
}


# --- making and differentiating -------------------------------------------------------------------


def init_model(
    input_size: int,
    hidden_size: int,
    output_size: int,
    *,
    cell: str = "gru",
    num_layers: int = 1,
    bidirectional: bool = False,
    pooling: str = "last",
    dtype: Any = "float32",
    rng: Any = None,
    like: Any = None,
) -> Model:
    """Draw a model's initial weights.

    Parameters
    ----------
    input_size : int
        Features of the input, I.
    hidden_size : int
        Hidden units of each layer and direction, H.
    output_size : int
        Numbers to put out for a sample or step, K.
    cell : str
        One of `fastgru.cells()`.
    num_layers : int
        Recurrent layers, L.
    bidirectional : bool
        Whether every layer has a second direction.
    pooling : str
        As for `Model`.
    dtype : dtype
        float32 or float64.
    rng : None, int or numpy.random.Generator
        Source of randomness, or the seed of one.
    like : array, optional
        Make the arrays with the library of this one.

    Returns
    -------
    Model
        The read-out's weights are uniform between -1/sqrt(D H) and 1/sqrt(D H), as PyTorch's are;
        its biases are 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    Examples
    --------
    >>> from fastgru import training
    >>> training.init_model(3, 16, 1, cell="lstm", rng=0).num_parameters
    1361
    """
    generator = check_rng(rng)
    count = check_size("output_size", output_size)
    params = init_params(
        input_size, hidden_size, cell=cell, num_layers=num_layers, bidirectional=bidirectional,
        dtype=dtype, rng=generator, like=like,
    )  # fmt: skip
    features = params.num_directions * params.hidden_size
    weight = generator.uniform(-1, 1, (count, features)) / features**0.5
    xp = library_of(next(iter(params.to_dict().values())))
    return Model(
        params,
        xp.asarray(weight.astype(params.dtype)),
        xp.zeros(count, params.dtype),
        pooling,
    )


class Pass(NamedTuple):
    """A forward pass for training.

    Attributes
    ----------
    output : array
    h_n : state
    saved : Saved
    pooled : Pooled
    """

    output: Any
    h_n: Any
    saved: Saved
    pooled: Pooled


def forward_pass(model: Model, x: Any, h0: Any = None, *, lengths: Any = None) -> Pass:
    """Outputs of a model, and what `gradients_of` needs."""
    y, h_n, saved = forward_train(x, model.params, h0, lengths=lengths)
    pooled = model.pooled(y, h_n, lengths)
    return Pass(model.readout(pooled.features), h_n, saved, pooled)


def gradients_of(model: Model, done: Pass, doutput: Any) -> Model:
    """Gradients of a loss with respect to all weights, from that with respect to the outputs."""
    features = done.pooled.features
    flat = doutput.reshape(-1, doutput.shape[-1])
    dweight = flat.T @ features.reshape(-1, features.shape[-1])
    dy, dh_n = done.pooled.back(doutput @ model.weight)
    found = backward(done.saved, dy, dh_n)
    return gradient_model(model, found.params, dweight, flat.sum(axis=0))


def gradient_model(model: Model, params: Params, weight: Any, bias: Any) -> Model:
    """A model of gradients, whose params may lack running statistics."""
    made = object.__new__(Model)
    vars(made).update(params=params, weight=weight, bias=bias, pooling=model.pooling)
    return made


def with_statistics(model: Model, done: Pass) -> Model:
    """The model with the running statistics of a pass."""
    return gradient_model(model, done.saved.params, model.weight, model.bias)
