"""Cells without a recurrent product: very long sequences, and units that do not meet."""

from typing import Any

import numpy as np
import pytest
from problems import SHIPPED_CELLS, Problem, assert_close, assert_same_bits, draw, solve

import fastgru
from fastgru.kernels.cells import CELLS

SCANS = ("mingru", "minlstm")
APART = (*SCANS, "paragru", "indrnn")  # units read no other units
EPS32 = float(np.finfo(np.float32).eps)

each_apart = pytest.mark.parametrize("cell", APART)


def test_these_are_all_shipped_cells_without_a_product() -> None:
    assert {name for name in SHIPPED_CELLS if not CELLS[name].recurrent_gates} == set(APART)


# --- 65 536 steps in float32 ----------------------------------------------------------------------

LONG = 1 << 16
BIASES = (0.0, -4.0, -8.0, -11.0)


def long_problem(cell: str, bias: float) -> Problem:
    """Random steps, with this bias on the gate that takes new values in; in float32."""
    H = 8
    problem = draw(cell, (1, LONG, 4, H), dtype="float32")
    own = problem.params.layers[0][0].bias.copy()
    if cell == "mingru":
        own[:H] += np.float32(bias)
    else:  # with a_f = -a_i, i / (f + i) is sigmoid(a_i)
        own[:H] -= np.float32(bias)
        own[H : 2 * H] += np.float32(bias)
    arrays = problem.params.to_dict() | {"bias_l0": own}
    return problem._replace(params=fastgru.Params.from_dict(arrays, cell=cell))


def mean_gate(cell: str, problem: Problem) -> float:
    """The least share of new values that a unit takes in a step, on average."""
    (weights,) = problem.params.layers[0]
    a = problem.x[0] @ weights.weight_ih.T + weights.bias
    *gates, _ = np.split(a.astype("float64"), len(CELLS[cell].gates), axis=1)
    shares = [1 / (1 + np.exp(-gate)) for gate in gates]
    share = shares[0] if cell == "mingru" else shares[1] / (shares[0] + shares[1])
    return float(share.mean(axis=0).min())


def allowed(share: float) -> float:
    """The error that float32 makes, relative to the largest state.

    The state is float32, and h + z (n - h) rounds once a step: by at most eps / 2, some 0.2 eps in
    the root mean square; and of a state that is half the largest, as most are, half of that. A step
    forgets a share z of all errors before it, so they add up like a random walk over 1 / (2 z)
    steps. Half a million such walks stay within 5 deviations: 0.1 * 5. The gates' own errors are
    those of one step, a few eps, as shares of them sum to 1. Measured was at most 0.6 of it.
    """
    return EPS32 * (4 + 0.1 * 5 * float(np.sqrt(0.5 / share)))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("cell", SCANS)
def test_long_sequences_in_float32(cell: str, bias: float) -> None:
    problem = long_problem(cell, bias)
    exact = problem.astype("float64")
    (y, _, gradients), (want_y, _, want) = solve(problem), solve(exact)
    bound = allowed(mean_gate(cell, problem))
    assert bound < 1.5e-5
    assert np.abs(y - want_y).max() <= bound * np.abs(want_y).max()
    # Backward sums what later steps say in the same way. But it multiplies by minlstm's f, which is
    # a quotient and errs by three times as much as 1 - z; measured was at most 3.2 of the bound.
    of_gradients = {"mingru": bound, "minlstm": 8 * bound}[cell]
    assert np.abs(gradients.x - want.x).max() <= of_gradients * np.abs(want.x).max()


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("cell", SCANS)
def test_scans_of_any_length(cell: str, T: int) -> None:
    """Against the recurrence written out, in float64; no block of steps is treated otherwise."""
    problem = draw(cell, (2, T, 3, 5))
    y, _ = fastgru.forward(problem.x, problem.params, *problem.h0)
    (weights,) = problem.params.layers[0]
    a = problem.x @ weights.weight_ih.T + weights.bias
    *gates, a_n = np.split(a, len(CELLS[cell].gates), axis=2)
    shares = [1 / (1 + np.exp(-gate)) for gate in gates]
    z = shares[0] if cell == "mingru" else shares[1] / (shares[0] + shares[1])
    n = np.where(a_n >= 0, a_n + 0.5, 1 / (1 + np.exp(-a_n)))
    h = problem.h0[0][0]
    for t in range(T):
        h = (1 - z[:, t]) * h + z[:, t] * n[:, t]
        assert_close(y[:, t], h, 1e-14)


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gates_of_minlstm_that_both_underflow(dtype: str) -> None:
    """f / (f + i) as printed is 0 / 0; the logarithm of its ratio is a_f - a_i there."""
    a = np.array([-2000.0, -800.0, -105.0, -40.0, 0.0, 40.0, 105.0, 800.0, 2000.0])
    a_f, a_i = (grid.ravel() for grid in np.meshgrid(a, a + 0.75))
    H = a_f.size
    arrays = {
        "weight_ih_l0": np.zeros((3 * H, 1)),
        "bias_l0": np.concatenate([a_f, a_i, np.full(H, -0.5)]),
    }
    params = fastgru.Params.from_dict(arrays, cell="minlstm").map(lambda w: w.astype(dtype))
    h0 = np.full((1, 1, H), 3.0, dtype)
    y, _, saved = fastgru.forward_train(np.ones((1, 1, 1), dtype), params, h0)

    def log_sigmoid(v: Any) -> Any:
        return -np.logaddexp(0, -v)

    with np.errstate(over="ignore"):
        f = 1 / (1 + np.exp(log_sigmoid(a_i) - log_sigmoid(a_f)))
    n = 1 / (1 + np.exp(0.5))
    eps = float(np.finfo(dtype).eps)
    assert_close(y[0, 0], f * 3 + (1 - f) * n, 8 * eps)
    # A share that is all but 0 is right to its last digits: h + i (n - h) keeps none of them here.
    gradients = fastgru.backward(saved, np.ones_like(y))
    smallest = float(np.finfo(dtype).tiny)
    np.testing.assert_allclose(gradients.h0[0, 0], f, rtol=64 * eps, atol=smallest)
    assert all(np.isfinite(g).all() for g in gradients.params.to_dict().values())


@pytest.mark.parametrize("cell", SCANS)
def test_the_initial_state_is_a_state(cell: str) -> None:
    """Nothing is applied to it: with shut gates a negative one comes out again."""
    H, of_gate = 4, {"mingru": [-80.0], "minlstm": [40.0, -40.0]}[cell]
    bias = np.concatenate([*(np.full(H, b) for b in of_gate), np.zeros(H)])
    arrays = {"weight_ih_l0": np.zeros((bias.size, 2)), "bias_l0": bias}
    params = fastgru.Params.from_dict(arrays, cell=cell)
    h0 = np.array([-3.0, -0.5, 0.25, 7.0]).reshape(1, 1, H)
    y, h_n = fastgru.forward(np.ones((1, 5, 2)), params, h0)
    np.testing.assert_array_equal(y, np.broadcast_to(h0, (1, 5, H)))
    np.testing.assert_array_equal(h_n, h0)


# --- units and rows on their own ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_apart
def test_steps_are_forward_to_the_bit(cell: str, dtype: str) -> None:
    problem = draw(cell, (3, 40, 4, 19), L=2, dtype=dtype)
    packed = fastgru.pack(problem.params)
    y, h_n = fastgru.forward(problem.x, problem.params, *problem.h0)
    (h,) = problem.h0
    for t in range(40):
        y_t, h = fastgru.step(problem.x[:, t], packed, h)
        assert_same_bits(y_t, y[:, t].copy())
    assert_same_bits(h, h_n)
    # In pieces as well.
    first, middle = fastgru.forward(problem.x[:, :17], problem.params, *problem.h0)
    second, end = fastgru.forward(problem.x[:, 17:], problem.params, middle)
    assert_same_bits((np.concatenate([first, second], axis=1), end), (y, h_n))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_apart
def test_units_do_not_meet(cell: str, dtype: str) -> None:
    """Each unit is a network of its own, to the bit; so are a garbled one and its neighbours."""
    H = 19
    problem = draw(cell, (3, 9, 4, H), dtype=dtype)
    y, h_n, gradients = solve(problem)

    def unit(number: int, array: Any) -> Any:
        """Its rows of the gates."""
        return array.reshape(-1, H, *array.shape[1:])[:, number]

    for number in (0, 7, H - 1):
        weights = {k: unit(number, a) for k, a in problem.params.to_dict().items()}
        at = slice(number, number + 1)
        alone = problem._replace(
            params=fastgru.Params.from_dict(weights, cell=cell),
            h0=tuple(m[..., at] for m in problem.h0),
            dy=problem.dy[..., at],
            dh_n=tuple(m[..., at] for m in problem.dh_n),
        )
        own_y, own_h, own = solve(alone)
        assert_same_bits((own_y, own_h), (y[..., at].copy(), h_n[..., at].copy()))
        assert_same_bits(own.h0, gradients.h0[..., at].copy())
        for key, gradient in own.params.to_dict().items():
            assert_same_bits(gradient, unit(number, gradients.params.to_dict()[key]).copy())

    h0 = problem.h0[0].copy()
    h0[..., 7] = np.nan
    garbled, _ = fastgru.forward(problem.x, problem.params, h0)
    others = np.arange(H) != 7
    assert_same_bits(garbled[..., others], y[..., others])
    assert np.isnan(garbled[..., 7]).any()


@each_apart
def test_rows_do_not_meet(cell: str) -> None:
    problem = draw(cell, (5, 9, 4, 19), lengths=[9, 3, 0, 7, 9])
    y, h_n, gradients = solve(problem)
    for row in range(5):
        at = slice(row, row + 1)
        alone = problem._replace(
            x=problem.x[at],
            h0=tuple(m[:, at] for m in problem.h0),
            lengths=problem.lengths[at],
            dy=problem.dy[at],
            dh_n=tuple(m[:, at] for m in problem.dh_n),
        )
        own_y, own_h, own = solve(alone)
        assert_same_bits((own_y, own_h), (y[at], h_n[:, at].copy()))
        assert_same_bits((own.x, own.h0), (gradients.x[at], gradients.h0[:, at].copy()))
