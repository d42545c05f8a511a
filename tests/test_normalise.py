"""Normalisers: what training and inference see, what becomes of running statistics, gradients."""

from typing import Any

import numpy as np
import pytest
import reference
from problems import (
    DTYPES,
    Problem,
    as_members,
    assert_close,
    assert_same_bits,
    draw,
    solve,
    with_statistics,
)

import fastgru
from fastgru.kernels.cells import CELLS
from fastgru.kernels.layout import folded_weights

CELL = "toy_batch_norm"
RUNNING = "running_mean", "running_var"
LENGTHS = [2, 0, 4]


def drawn(*args: Any, **options: Any) -> Problem:
    """A problem with running statistics of its own."""
    return with_statistics(draw(CELL, *args, **options))


def input_parts(x: Any, weights: fastgru.Weights, lengths: Any) -> Any:
    """W x of all valid steps, (steps, gates * H)."""
    return (x @ weights.weight_ih.T)[reference.valid_steps(x, lengths)]


# --- running statistics ---------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics_after_a_batch(dtype: str, lengths: Any) -> None:
    """Of every layer and direction: of the valid steps, with the unbiased variance."""
    problem = drawn(L=2, D=2, lengths=lengths, dtype=dtype)
    momentum = CELLS[CELL].norm.momentum  # type: ignore[union-attr]
    lower = problem._replace(
        params=fastgru.Params(CELL, problem.params.layers[:1]),
        h0=tuple(h[:2] for h in problem.h0 or ()),
    )
    inputs = problem.x, lower.forward_train()[0]
    _, _, saved = problem.forward_train()
    tolerance = 32 * float(np.finfo(dtype).eps)
    for x, layer, updated in zip(inputs, problem.params.layers, saved.params.layers, strict=True):
        for weights, after in zip(layer, updated, strict=True):
            parts = input_parts(x, weights, lengths).astype("float64")
            for name, new in zip(RUNNING, (parts.mean(0), parts.var(0, ddof=1)), strict=True):
                before, got = getattr(weights, name), getattr(after, name)
                assert got.dtype == dtype
                assert_close(got, (1 - momentum) * before + momentum * new, tolerance)
            for name, array in weights.items():
                assert (getattr(after, name) is array) == (name not in RUNNING)


def test_statistics_of_many_rows_far_from_zero() -> None:
    """Sums of squares would lose the variance: 10^6 times the deviation is in the mean."""
    rng = np.random.default_rng(0)
    problem = draw(CELL, (300, 5, 3, 5), lengths=rng.integers(0, 6, 300))
    weights = problem.params.layers[0][0]
    x = problem.x + 1e6 * rng.standard_normal(3)
    _, _, saved = problem._replace(x=x).forward_train()
    parts = input_parts(x, weights, problem.lengths)
    got = saved.params.layers[0][0]
    momentum = CELLS[CELL].norm.momentum  # type: ignore[union-attr]
    variance = (got.running_var - (1 - momentum) * weights.running_var) / momentum
    np.testing.assert_allclose(variance, parts.var(0, ddof=1), rtol=1e-8)


@pytest.mark.parametrize("sizes", [(3, 0, 3, 5), (0, 4, 3, 5), (3, 4, 3, 5)])
def test_no_valid_step_leaves_running_statistics(sizes: tuple[int, int, int, int]) -> None:
    problem = drawn(sizes, L=2, lengths=[0] * sizes[0])
    _, h_n, saved = problem.forward_train()
    assert_same_bits(saved.params, problem.params)
    assert_same_bits(as_members(h_n), problem.h0)


def test_forward_and_step_leave_running_statistics_and_use_them() -> None:
    problem = drawn(L=2)
    before = problem.params.map(np.copy)
    y, _ = problem.forward()
    problem.step(0)
    assert_same_bits(problem.params, before)
    other = with_statistics(problem, seed=2)
    assert (other.forward()[0] != y).all()
    assert_same_bits(solve(other)[0], solve(problem)[0])  # but training does not


@pytest.mark.parametrize("layout", ["one row", "lengths", "without samples"])
def test_a_batch_of_one_valid_step_is_refused(layout: str) -> None:
    """It has no variance. Inference takes it, and training takes two."""
    problem = drawn((1, 1, 3, 5)) if layout == "one row" else drawn((3, 4, 3, 5))
    if layout == "lengths":
        problem = problem._replace(lengths=[0, 1, 0])
    message = rf"^x: expected at least two valid steps to train cell '{CELL}', .* got one$"
    x = problem.x[0, :1] if layout == "without samples" else problem.x
    with pytest.raises(ValueError, match=message):
        fastgru.forward_train(x, problem.params, lengths=problem.lengths)
    problem.forward()
    two = drawn((1, 2, 3, 5))
    assert all(np.isfinite(a).all() for a in solve(two)[2].params.to_dict().values())


# --- inference ------------------------------------------------------------------------------------


def test_inference_is_that_of_the_folded_weights() -> None:
    """``W' x + b'`` takes the place of the norm: against the specification without one."""
    problem = drawn(lengths=LENGTHS)
    weights = dict(problem.params.layers[0][0].items())
    folded = folded_weights(CELLS[CELL], weights, None)
    (shift,) = (array for name, array in folded.items() if name not in weights)
    normalised = problem.x @ folded["weight_ih"].T + shift
    y, h_n = problem.forward()
    state = tuple(member[0] for member in problem.h0 or ())
    for t in range(4):
        rows = reference.valid_steps(problem.x, LENGTHS)[:, t]
        after = reference.CELLS[CELL].step(normalised[:, t], state, weights)
        state = tuple(
            np.where(rows[:, None], new, old) for new, old in zip(after, state, strict=True)
        )
        assert_close(y[rows, t], state[0][rows], 1e-14)
    assert_close(as_members(h_n)[0][0], state[0], 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inference_of_equivalent_params(dtype: str) -> None:
    """A mean can be in the shift, and a variance in the scale."""
    problem = drawn((5, 4, 3, 17), dtype=dtype)
    weights = problem.params.to_dict()
    eps = CELLS[CELL].norm.eps  # type: ignore[union-attr]
    ratio = np.sqrt((1 + eps) / (weights["running_var_l0"] + eps))
    scale = weights["norm_weight_l0"] * ratio
    factor = scale / np.sqrt(1 + eps)
    other = {
        "norm_weight_l0": scale,
        "norm_bias_l0": weights["norm_bias_l0"] - factor * weights["running_mean_l0"],
        "running_mean_l0": np.zeros(34),
        "running_var_l0": np.ones(34),
    }
    other = {name: array.astype(dtype) for name, array in other.items()}
    params = fastgru.Params.from_dict(weights | other, cell=CELL)
    (y, _), (want, _) = problem.forward(params), problem.forward()
    assert_close(y, want, 64 * float(np.finfo(dtype).eps))


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradients_of_input_parts_sum_to_zero_over_a_batch(lengths: Any) -> None:
    """A constant input adds the same to all of them, which the norm takes away again."""
    problem = drawn(D=2, lengths=lengths)
    problem.x[:, :, 1] = 3.0
    _, _, gradients = solve(problem)
    for weights in gradients.params.layers[0]:
        largest = np.abs(weights.weight_ih).max()
        assert largest > 0.01
        assert np.abs(weights.weight_ih[:, 1]).max() < 1e-13 * largest


def test_gradients_of_one_row_depend_on_the_others() -> None:
    problem = drawn()
    _, _, gradients = solve(problem)
    problem.dy[0] = 0
    problem.dh_n[0][:, 0] = 0
    _, _, of_others = solve(problem)
    assert of_others.x[0].any()
    assert (of_others.x != gradients.x).all()


def test_params_take_steps_with_gradients_that_lack_running_statistics() -> None:
    """And keep those of the batch, as training goes on with `saved.params`."""
    problem = drawn(L=2, D=2)
    _, _, saved = problem.forward_train()
    gradients = problem.backward(saved)
    named, of_loss = saved.params.to_dict(), gradients.params.to_dict()
    assert named.keys() - of_loss.keys() == {key for key in named if key.startswith("running")}
    assert gradients.params.num_parameters == saved.params.num_parameters
    stepped = saved.params.map(lambda w, g: w - 0.1 * g, gradients.params).to_dict()
    assert list(stepped) == list(named)
    for key, array in stepped.items():
        if key in of_loss:
            assert_same_bits(array, named[key] - 0.1 * of_loss[key])
        else:
            assert array is named[key]
    # Moments of gradients are gradients.
    moments = gradients.params.map(lambda g: 0.5 * g).map(lambda m, g: m + g, gradients.params)
    assert list(moments.to_dict()) == list(of_loss)
    again = problem._replace(params=fastgru.Params.from_dict(stepped, cell=CELL))
    assert np.isfinite(solve(again)[0]).all()


def test_gradients_are_no_weights_for_inference() -> None:
    problem = drawn()
    _, _, gradients = solve(problem)
    message = rf"^params: expected running statistics for cell '{CELL}', got none"
    with pytest.raises(ValueError, match=message):
        problem.forward(gradients.params)
    with pytest.raises(ValueError, match=message):
        fastgru.pack(gradients.params)


# --- of a row -------------------------------------------------------------------------------------


def test_the_norm_of_a_row_takes_gates_and_units_together() -> None:
    """Recurrent sums that are all larger by the same give the same; of one gate alone, not."""
    problem = draw("toy_layer_norm")
    y, _ = problem.forward()
    for gates, is_same in ((slice(None), True), (slice(5), False)):
        weights = problem.params.to_dict()
        bias = weights["bias_hh_l0"].copy()
        bias[gates] += 1.0
        moved = fastgru.Params.from_dict(weights | {"bias_hh_l0": bias}, cell="toy_layer_norm")
        assert np.allclose(problem.forward(moved)[0], y, rtol=0, atol=1e-13) == is_same
