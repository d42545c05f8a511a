"""Losses: values and gradients, what counts, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastgru import training
from fastgru.training import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    GaussianNLLLoss,
    HuberLoss,
    L1Loss,
    Loss,
    MSELoss,
    QuantileLoss,
)

N, T, K = 4, 5, 6
LENGTHS = np.array([5, 1, 0, 3])


def log_softmax(output: Any) -> Any:
    return output - np.log(np.exp(output).sum(axis=-1, keepdims=True))


def pinball(output: Any, target: Any) -> Any:
    error = target[..., None] - output.reshape(*target.shape, 3)
    quantiles = np.array([0.1, 0.5, 0.9])
    return np.maximum(quantiles * error, (quantiles - 1) * error).mean(axis=(-2, -1))


def gaussian(output: Any, target: Any) -> Any:
    mean, log = np.split(output, 2, axis=-1)
    return ((log + (mean - target) ** 2 / np.exp(log)) / 2).mean(axis=-1)


def huber(output: Any, target: Any) -> Any:
    error = np.abs(output - target)
    return np.where(error < 0.7, error**2 / 2, 0.7 * (error - 0.35)).mean(axis=-1)


def of_classes(output: Any, target: Any) -> Any:
    return -np.take_along_axis(log_softmax(output), target[..., None], axis=-1)[..., 0]


def binary(output: Any, target: Any) -> Any:
    share = 1 / (1 + np.exp(-output))
    return -(target * np.log(share) + (1 - target) * np.log(1 - share)).mean(axis=-1)


# A loss, its formula for each sample or step, and its kind of targets.
LOSSES: dict[str, tuple[Loss, Callable[[Any, Any], Any], str]] = {
    "mse": (MSELoss(), lambda o, t: ((o - t) ** 2).mean(axis=-1), "numbers"),
    "l1": (L1Loss(), lambda o, t: np.abs(o - t).mean(axis=-1), "numbers"),
    "huber": (HuberLoss(0.7), huber, "numbers"),
    "quantile": (QuantileLoss([0.1, 0.5, 0.9]), pinball, "a third"),
    "cross-entropy": (CrossEntropyLoss(), of_classes, "classes"),
    "probabilities": (
        CrossEntropyLoss(), lambda o, t: -(t * log_softmax(o)).sum(axis=-1), "shares",
    ),
    "binary": (BCEWithLogitsLoss(), binary, "shares"),
    "gaussian": (GaussianNLLLoss(), gaussian, "a half"),
}  # fmt: skip


def draw(kind: str, shape: tuple[int, ...], seed: int = 0) -> tuple[Any, Any]:
    """Outputs and targets."""
    rng = np.random.default_rng(seed)
    output = rng.normal(size=(*shape, K))
    target = {
        "numbers": lambda: rng.normal(size=(*shape, K)),
        "a third": lambda: rng.normal(size=(*shape, K // 3)),
        "a half": lambda: rng.normal(size=(*shape, K // 2)),
        "classes": lambda: rng.integers(0, K, shape),
        "shares": lambda: rng.dirichlet(np.ones(K), shape),
    }[kind]()
    return output, target


def differences(loss: Loss, output: Any, target: Any, **options: Any) -> Any:
    """The gradient by central differences."""
    found, h = np.zeros_like(output), 1e-6
    for place in np.ndindex(output.shape):
        step = np.zeros_like(output)
        step[place] = h
        above, below = (loss(output + s, target, **options)[0] for s in (step, -step))
        found[place] = (above - below) / (2 * h)
    return found


@pytest.mark.parametrize("shape", [(N,), (N, T)])
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients(name: str, shape: tuple[int, ...]) -> None:
    loss, formula, kind = LOSSES[name]
    output, target = draw(kind, shape)
    value, gradient = loss(output, target)
    assert value == pytest.approx(formula(output, target).mean(), rel=1e-13)
    np.testing.assert_allclose(gradient, differences(loss, output, target), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_weights_and_lengths(name: str) -> None:
    loss, formula, kind = LOSSES[name]
    output, target = draw(kind, (N, T))
    weight = np.random.default_rng(1).random(N)
    options = {"weight": weight, "lengths": LENGTHS}
    value, gradient = loss(output, target, **options)
    counts = weight[:, None] * (np.arange(T) < LENGTHS[:, None])
    expected = (formula(output, target) * counts).sum() / counts.sum()
    assert value == pytest.approx(expected, rel=1e-13)
    slopes = differences(loss, output, target, **options)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-9)

    # What does not count is not looked at.
    padding = np.arange(T) >= LENGTHS[:, None]
    output[padding] = np.nan
    target[padding] = -7 if target.dtype.kind == "i" else np.nan
    again, same = loss(output, target, **options)
    assert again == value
    assert (same == gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_float32_stays_float32(name: str) -> None:
    loss, _, kind = LOSSES[name]
    output, target = draw(kind, (N,))
    exact, slopes = loss(output, target)
    if target.dtype.kind == "f":
        target = target.astype("float32")
    value, gradient = loss(output.astype("float32"), target)
    assert gradient.dtype == np.float32
    assert value == pytest.approx(exact, rel=1e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-6)


def test_weights_of_classes_are_pytorchs() -> None:
    """The mean is divided by the weights that count: sum of w * loss / sum of w."""
    output, target = draw("classes", (N,))
    of_class = np.arange(1.0, K + 1)
    value, gradient = CrossEntropyLoss(of_class.tolist())(output, target)
    weight = of_class[target]
    assert value == pytest.approx((of_classes(output, target) * weight).sum() / weight.sum())
    again, same = CrossEntropyLoss()(output, target, weight=weight)
    assert value == pytest.approx(again)
    np.testing.assert_allclose(gradient, same)


def test_weights_of_classes_do_not_look_at_what_does_not_count() -> None:
    loss, rng = CrossEntropyLoss([1.0, 2.0, 3.0]), np.random.default_rng(0)
    output, target = rng.normal(size=(2, 3, 3)), np.array([[0, 9, -7], [1, 2, 9]])
    value, gradient = loss(output, target, lengths=np.array([1, 2]))
    kept = np.array([[1.0, 0, 0], [1, 1, 0]])
    again, same = loss(output, target, weight=kept)
    rows, classes = output[kept > 0], np.array([0, 1, 2])
    expected, _ = loss(rows, classes)
    assert value == pytest.approx(expected)
    assert again == pytest.approx(expected)
    np.testing.assert_allclose(gradient, same)


@pytest.mark.parametrize("name", ["cross-entropy", "binary"])
def test_large_logits_do_not_overflow(name: str) -> None:
    loss, _, kind = LOSSES[name]
    output, target = draw(kind, (N,))
    if target.dtype.kind == "f":
        target = target.astype("float32")
    value, gradient = loss(1e4 * output.astype("float32"), target)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_a_spread_has_a_least() -> None:
    value, gradient = GaussianNLLLoss(-2.0)(np.array([[1.0, -9.0]]), np.array([[1.0]]))
    assert value == -1.0
    assert gradient.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: MSELoss()(np.ones((4, 2)), np.ones((4, 3))),
            ValueError, r"target: expected shape \(4, 2\), got \(4, 3\)",
        ),
        (lambda: MSELoss()(np.ones((0, 2)), np.ones((0, 2))), ValueError, "output: expected"),
        (
            lambda: MSELoss()(np.ones((4, 2)), np.ones((4, 2)), weight=np.ones(3)),
            ValueError, r"weight: expected shape \(4,\)",
        ),
        (
            lambda: MSELoss()(np.ones((4, 2)), np.ones((4, 2)), lengths=np.ones(4, int)),
            ValueError, "lengths: expected outputs of time steps",
        ),
        (
            lambda: MSELoss()(np.ones((2, 3, 1)), np.ones((2, 3, 1)), lengths=np.zeros(2, int)),
            ValueError, "expected a sum above 0, got 0",
        ),
        (
            lambda: MSELoss()(
                np.ones((2, 3, 1)), np.ones((2, 3, 1)), lengths=np.array([1])
            ),
            ValueError, r"lengths: expected 2, one for each sample, got array\(\[1\]\)",
        ),
        (
            lambda: MSELoss()(np.ones(3), np.ones(3)),
            ValueError, r"output: expected shape \(N, K\) or \(N, T, K\), got \(3,\)",
        ),
        (
            lambda: MSELoss()(np.ones((1, 1)), [[1.0]]),
            TypeError, "target: expected a numpy or cupy ndarray",
        ),
        (
            lambda: MSELoss()(np.ones((1, 1)), np.ones((1, 1)), weight=[1.0]),
            TypeError, "weight: expected a numpy or cupy ndarray",
        ),
        (lambda: QuantileLoss(0.5), TypeError, "quantiles: expected a sequence of numbers"),
        (lambda: CrossEntropyLoss(2), TypeError, "class_weight: expected a sequence of numbers"),
        (lambda: QuantileLoss([]), ValueError, "quantiles: expected numbers between 0 and 1"),
        (lambda: QuantileLoss([1.5]), ValueError, r"quantiles\[0\]: expected"),
        (
            lambda: QuantileLoss([0.1, 0.9])(np.ones((4, 3)), np.ones((4, 1))),
            ValueError, "a multiple of 2 columns, one for each quantile, got 3",
        ),
        (
            lambda: CrossEntropyLoss()(np.ones((2, 3)), np.array([0, 3])),
            ValueError, "classes from 0 to 2, got 3",
        ),
        (
            lambda: CrossEntropyLoss()(np.ones((2, 3)), np.array([0.0, 1.0])),
            TypeError, "target: expected classes, whole numbers, got float64",
        ),
        (
            lambda: CrossEntropyLoss([1, 2])(np.ones((2, 3)), np.array([0, 1])),
            ValueError, "class_weight: expected 3 numbers, one for each class, got 2",
        ),
        (
            lambda: CrossEntropyLoss([1, 2])(np.ones((2, 2)), np.array([0, 9])),
            ValueError, "classes from 0 to 1, got 9",
        ),
        (
            lambda: CrossEntropyLoss([1, 2])(
                np.ones((2, 2)), np.array([0, 1]), lengths=np.array([1, 1])
            ),
            ValueError, "lengths: expected outputs of time steps",
        ),
        (
            lambda: MSELoss()(np.ones((4, 2), "float32"), np.ones((4, 2))),
            TypeError, "target: expected dtype float32, as the output, got float64; convert",
        ),
        (
            lambda: QuantileLoss([0.5])(np.ones((4, 2), "float32"), np.ones((4, 2), int)),
            TypeError, "target: expected dtype float32, as the output, got int64; convert",
        ),
        (lambda: HuberLoss(0), ValueError, "delta: expected a number above 0, got 0"),
        (lambda: HuberLoss(-1), ValueError, "delta: expected a number of at least 0, got -1"),
        (
            lambda: GaussianNLLLoss()(np.ones((2, 3)), np.ones((2, 1))),
            ValueError, "means and as many log variances, got 3 columns",
        ),
    ],
)  # fmt: skip
def test_refusals(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_every_loss_is_tested() -> None:
    exported = {getattr(training, name) for name in training.__all__ if name.endswith("Loss")}
    assert exported - {Loss} == {type(loss) for loss, _, _ in LOSSES.values()}
