"""Optimisers: their updates against formulas written array by array, and against PyTorch's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import assert_same_bits

import fastgru
from fastgru import training
from fastgru.training import SGD, Adam, AdamW, Optimizer, RMSprop

STEPS = 100


def sgd(w: Any, g: Any, kept: dict[str, Any], rate: float, o: SGD) -> Any:
    g = g + o.weight_decay * w
    if o.momentum:
        kept["v"] = o.momentum * kept.get("v", 0 * w) + g
        g = g + o.momentum * kept["v"] if o.nesterov else kept["v"]
    return w - rate * g


def adam(w: Any, g: Any, kept: dict[str, Any], rate: float, o: Adam) -> Any:
    if isinstance(o, AdamW):
        w = w * (1 - rate * o.weight_decay)
    else:
        g = g + o.weight_decay * w
    (first, second), t = o.betas, kept.get("t", 0) + 1
    m = first * kept.get("m", 0 * w) + (1 - first) * g
    v = second * kept.get("v", 0 * w) + (1 - second) * g * g
    kept.update(t=t, m=m, v=v)
    return w - rate * (m / (1 - first**t)) / (np.sqrt(v / (1 - second**t)) + o.eps)


def rmsprop(w: Any, g: Any, kept: dict[str, Any], rate: float, o: RMSprop) -> Any:
    g = g + o.weight_decay * w
    v = kept["v"] = o.alpha * kept.get("v", 0 * w) + (1 - o.alpha) * g * g
    if o.centered:
        mean = kept["m"] = o.alpha * kept.get("m", 0 * w) + (1 - o.alpha) * g
        v = v - mean * mean
    move = g / (np.sqrt(v) + o.eps)
    if o.momentum:
        move = kept["b"] = o.momentum * kept.get("b", 0 * w) + move
    return w - rate * move


# What makes an optimiser, its formula, and PyTorch's name and options for the same.
KINDS: dict[str, tuple[Callable[[], Any], Callable[..., Any], str, dict[str, Any]]] = {
    "sgd": (lambda: SGD(0.1), sgd, "SGD", {"lr": 0.1}),
    "momentum": (
        lambda: SGD(0.05, momentum=0.9, weight_decay=0.01), sgd,
        "SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    ),
    "nesterov": (
        lambda: SGD(0.05, momentum=0.9, nesterov=True), sgd,
        "SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    ),
    "adam": (lambda: Adam(0.01), adam, "Adam", {"lr": 0.01}),
    "adam decay": (
        lambda: Adam(0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1), adam,
        "Adam", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1},
    ),
    "adamw": (
        lambda: AdamW(0.01, weight_decay=0.1), adam, "AdamW", {"lr": 0.01, "weight_decay": 0.1},
    ),
    "rmsprop": (lambda: RMSprop(0.01), rmsprop, "RMSprop", {"lr": 0.01}),
    "rmsprop all": (
        lambda: RMSprop(0.01, momentum=0.9, centered=True, weight_decay=0.1), rmsprop,
        "RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1},
    ),
}  # fmt: skip


def draw(rng: np.random.Generator, dtype: str = "float64") -> dict[str, Any]:
    """A tree of every kind of node."""
    parts = rng.normal(size=(5, 3)), rng.normal(size=7), rng.normal(size=(2, 2, 2))
    a, b, c = (part.astype(dtype) for part in parts)
    return {"a": a, "b": [b, (c,)]}


def leaves(tree: Any) -> tuple[Any, ...]:
    return tree["a"], tree["b"][0], tree["b"][1][0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_steps_are_those_of_the_formula(kind: str) -> None:
    make, formula, _, _ = KINDS[kind]
    optimizer, rng = make(), np.random.default_rng(0)
    tree = draw(rng)
    expected, kept = [*leaves(tree)], [dict[str, Any]() for _ in range(3)]
    for _ in range(STEPS):
        gradients = draw(rng)
        tree = optimizer.step(tree, gradients)
        expected = [
            formula(w, g, of, optimizer.learning_rate, optimizer)
            for w, g, of in zip(expected, leaves(gradients), kept, strict=True)
        ]
    for got, want in zip(leaves(tree), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_steps_are_those_of_pytorch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    make, _, name, options = KINDS[kind]
    optimizer, rng = make(), np.random.default_rng(0)
    tree = draw(rng)
    theirs = [torch.tensor(array, requires_grad=True) for array in leaves(tree)]
    other = getattr(torch.optim, name)(theirs, **options)
    for _ in range(STEPS):
        gradients = draw(rng)
        tree = optimizer.step(tree, gradients)
        for tensor, gradient in zip(theirs, leaves(gradients), strict=True):
            tensor.grad = torch.tensor(gradient)
        other.step()
    for got, tensor in zip(leaves(tree), theirs, strict=True):
        np.testing.assert_allclose(got, tensor.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_is_kept_goes_on_with_the_same_bits(kind: str) -> None:
    make, rng = KINDS[kind][0], np.random.default_rng(0)
    optimizer, tree = make(), draw(rng, "float32")
    for _ in range(3):
        tree = optimizer.step(tree, draw(rng, "float32"))
    again, gradients = make(), draw(rng, "float32")
    again.load_state_dict(optimizer.state_dict())
    first, second = optimizer.step(tree, gradients), again.step(tree, gradients)
    assert_same_bits(leaves(first), leaves(second))
    assert leaves(first)[0].dtype == np.float32
    assert again.steps == 4


def test_weights_and_gradients_are_not_changed() -> None:
    for make, *_ in KINDS.values():
        tree, gradients = draw(np.random.default_rng(0)), draw(np.random.default_rng(1))
        before = tuple(array.copy() for array in (*leaves(tree), *leaves(gradients)))
        optimizer = make()
        made = optimizer.step(optimizer.step(tree, gradients), gradients)
        assert_same_bits(before, (*leaves(tree), *leaves(gradients)))
        for array in leaves(made):
            assert not any(np.shares_memory(array, other) for other in leaves(tree))


def test_params_keep_their_running_statistics() -> None:
    params = fastgru.init_params(3, 4, cell="ligru", rng=0)
    x = np.random.default_rng(0).normal(size=(5, 6, 3)).astype("float32")
    y, _, saved = fastgru.forward_train(x, params)
    made = Adam().step(saved.params, fastgru.backward(saved, y).params).to_dict()
    for name, array in saved.params.to_dict().items():
        assert (made[name] == array).all() == name.startswith("running")


def test_a_rate_of_one_step() -> None:
    optimizer = SGD(1.0)
    assert optimizer.step(np.zeros(2), np.ones(2), learning_rate=0.25).tolist() == [-0.25, -0.25]
    assert optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SGD(-1), ValueError, "learning_rate: expected a number of at least 0, got -1"),
        (lambda: SGD("1"), TypeError, "learning_rate: expected a number of at least 0, got str"),
        (lambda: SGD(1, momentum=1), ValueError, "momentum: expected .* below 1, got 1"),
        (lambda: SGD(1, nesterov=True), ValueError, "nesterov: expected a momentum above 0"),
        (lambda: SGD(1, nesterov=1), ValueError, "nesterov: expected one of False, True, got 1"),
        (lambda: Adam(betas=(0.9, 1.0)), ValueError, r"betas\[1\]: expected"),
        (lambda: Adam(betas=0.9), TypeError, "betas: expected a sequence of two numbers"),  # type: ignore[arg-type]
        (lambda: Adam(betas=(0.9,)), ValueError, "betas: expected two numbers"),  # type: ignore[arg-type]
        (
            lambda: SGD().step(np.ones(2), np.ones(2), learning_rate=float("nan")), ValueError,
            "learning_rate: expected a number of at least 0, got nan",
        ),
        (
            lambda: Adam().load_state_dict({"steps": 5}), ValueError,
            "expected the state of Adam: steps and mean, square; got steps",
        ),
        (lambda: SGD().step({"a": np.ones(2)}, {"a": [np.ones(2)]}), ValueError, "same structure"),
        (lambda: SGD().step({"a": np.ones(2)}, {"a": None}), ValueError, "same structure"),
        (lambda: SGD().step({"a": np.ones(2)}, [np.ones(2)]), ValueError, "same structure"),
        (lambda: SGD().step([np.ones(2)], np.ones((1, 2))), ValueError, "same structure"),
        (
            lambda: SGD().step(training.init_model(1, 2, 1), fastgru.init_params(1, 2)), TypeError,
            "others: expected Model, got Params",
        ),
        (lambda: Adam(float("nan")), ValueError, "learning_rate: expected"),
        (lambda: RMSprop(alpha=-0.1), ValueError, "alpha: expected"),
        (lambda: SGD().step("w", "g"), TypeError, "expected a tree of arrays .* got str"),
        (lambda: SGD().step({"a": np.ones(2)}, {"b": np.ones(2)}), ValueError, "same structure"),
        (
            lambda: SGD().step(np.ones(2), np.ones(3)), ValueError,
            r"shaped like the weights, \(2,\), got \(3,\)",
        ),
        (
            lambda: SGD().step([np.ones(2), np.ones(3)], [np.ones(3), np.ones(2)]), ValueError,
            r"shaped like the weights, \(2,\), got \(3,\)",
        ),
        (lambda: training.clip_by_norm(np.ones(2), -1.0), ValueError, "limit: expected .* got -1"),
        (
            lambda: SGD().step(np.ones(2), np.ones(2, "float32")), TypeError,
            "one library and dtype, got numpy float32, numpy float64",
        ),
        (
            lambda: SGD().load_state_dict(Adam().state_dict() | {"mean": np.ones(1)}), ValueError,
            "expected the state of SGD",
        ),
    ],
)  # fmt: skip
def test_refusals(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_weights_of_another_size_need_another_optimiser() -> None:
    optimizer = Adam()
    optimizer.step(np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="expected 2 weights of float64, as in earlier steps"):
        optimizer.step(np.ones(3), np.ones(3))


def test_weights_of_another_dtype_are_computed_in_it() -> None:
    optimizer = SGD(0.1)
    optimizer.step(np.ones(1, "float32"), np.ones(1, "float32"))
    assert optimizer.step(np.zeros(1), np.ones(1) / 3) == pytest.approx(-0.1 / 3, rel=1e-15)


def test_weights_may_be_memory_maps(tmp_path: Path) -> None:
    weights = np.memmap(tmp_path / "weights", "float64", "w+", shape=2)
    assert SGD(0.5).step(weights, np.ones(2)).tolist() == [-0.5, -0.5]
    assert weights.tolist() == [0, 0]


def test_clipping_leaves_directions_and_small_gradients() -> None:
    tree = draw(np.random.default_rng(0), "float32")
    norm = float(np.sqrt(sum((array.astype("f8") ** 2).sum() for array in leaves(tree))))
    assert training.norm_of(tree) == pytest.approx(norm, rel=1e-6)
    clipped, before = training.clip_by_norm(tree, norm / 2)
    assert before == pytest.approx(norm, rel=1e-6)
    for got, array in zip(leaves(clipped), leaves(tree), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, array / 2, rtol=1e-6)
    assert training.clip_by_norm(tree, 2 * norm)[0] is tree
    assert issubclass(Adam, Optimizer)
