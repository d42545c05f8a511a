"""Reduced precision of products."""

from typing import Any

import numpy as np
import pytest
from gpu_tools import EPS
from problems import (
    NUMPY,
    ROW_CELLS,
    Library,
    as_state,
    assert_close,
    assert_same_bits,
    draw,
    each_cell,
    flatten,
    solve,
)

import fastgru


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 11), ("bf16", 8)])
@each_cell
def test_reduced_precision_rounds_operands_only(
    cell: str, precision: str, bits: int, cupy: Library
) -> None:
    """Errors are of the size of the operands' rounding, and there are some."""
    exact = draw(cell, (3, 6, 16, 32))
    problem = cupy.take(exact.astype("float32"))
    x, params, h0, _, dy, dh_n, _ = problem
    options = problem.options | {"precision": precision}
    y, _, saved = fastgru.forward_train(x, params, as_state(h0), **options)
    gradients = fastgru.backward(saved, dy, as_state(dh_n))
    want_y, _, want = solve(exact)
    error = np.abs(cupy.give(y) - want_y).max()
    assert error < 2.0 ** -(bits - 3)
    if cupy.name != "cupy":  # cuBLAS may compute small products in float32
        assert error > 2.0 ** -(bits + 6)
    for got, right in zip(flatten(cupy.give(gradients)), flatten(want), strict=True):
        scale = np.abs(right).max()
        assert np.abs(got - right).max() < 2.0 ** -(bits - 4) * max(1, scale)
    again, _, _ = fastgru.forward_train(x, params, as_state(h0), **options)
    assert_same_bits(cupy.give((again,)), cupy.give((y,)))
    inference, _ = fastgru.forward(x, params, as_state(h0), **options)
    if cell in ROW_CELLS:
        assert_same_bits(cupy.give((inference,)), cupy.give((y,)))


def test_bias_gradients_are_sums_in_float32(simulated: Library) -> None:
    """With weights of 0 no product rounds: the bias gradients are those of full precision."""
    problem = draw("lstm", (3, 6, 4, 5), dtype="float32")
    params = problem.params.map(lambda w: w if w.ndim == 1 else np.zeros_like(w))
    x, params, h0, _, dy, *_ = simulated.take(problem._replace(params=params))
    found = []
    for precision in (None, "bf16"):
        _, _, saved = fastgru.forward_train(x, params, h0, precision=precision)
        found.append(simulated.give(fastgru.backward(saved, dy)).params.to_dict())
    for name in ("bias_ih_l0", "bias_hh_l0"):
        assert np.isfinite(found[0][name]).all()
        assert_same_bits((found[0][name],), (found[1][name],))


def test_calls_of_a_precision_are_kept(simulated: Library) -> None:
    x, params, h0, *_ = simulated.take(draw("gru", dtype="float32"))
    weights = fastgru.pack(params)
    for precision in (None, "tf32", None, "tf32"):
        fastgru.forward(x, weights, h0[0], precision=precision)
        fastgru.step(x[:, 0], weights, h0[0], precision=precision)
    assert len(fastgru.packed.operands_of(weights).architecture.calls) == 4


def test_precision_of_a_step(cupy: Library) -> None:
    problem = cupy.take(draw("gru", (3, 1, 16, 32), dtype="float32"))
    x, params, h0, *_ = problem
    want, _ = fastgru.forward(x, params, h0[0], precision="bf16")
    got, _ = fastgru.step(x[:, 0], params, h0[0], precision="bf16")
    assert_close(cupy.give(got), cupy.give(want)[:, 0], 8 * EPS)


@pytest.mark.parametrize("precision", ["fp16", "", 32, True])
def test_unknown_precision(precision: Any, cupy: Library) -> None:
    problem = cupy.take(draw("gru", dtype="float32"))
    with pytest.raises(ValueError, match=r"^precision: expected None or 'tf32' or 'bf16' for cupy"):
        fastgru.forward(problem.x, problem.params, precision=precision)


def test_precision_of_float64(cupy: Library) -> None:
    problem = cupy.take(draw("gru"))
    with pytest.raises(ValueError, match=r"^precision: expected None for cupy arrays of float64"):
        fastgru.forward(problem.x, problem.params, precision="tf32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_of_numpy_arrays(dtype: str) -> None:
    x, params = NUMPY.take(draw("gru", dtype=dtype))[:2]
    message = rf"^precision: expected None for numpy arrays of {dtype}, got 'bf16'"
    for call in (fastgru.forward, fastgru.forward_train):
        with pytest.raises(ValueError, match=message):
            call(x, params, precision="bf16")
    with pytest.raises(ValueError, match=message):
        fastgru.step(x[:, 0], params, precision="bf16")
