"""One time step at a time: what `step` promises, and how it agrees with `forward`."""

from typing import Any

import numpy as np
import pytest
from problems import (
    SHIPPED_CELLS,
    as_members,
    as_state,
    assert_close,
    assert_own_memory,
    assert_same_bits,
    draw,
    each_cell,
    everywhere,
    flatten,
)

import fastgru
from fastgru.kernels.cells import CELLS

N, T, I, H = 3, 4, 3, 5  # the sizes that `draw` gives


@everywhere
@pytest.mark.parametrize(("rows", "layers"), [(1, 1), (1, 2), (5, 1), (5, 2)])
def test_repeated_step_agrees_with_forward(cell: str, dtype: str, rows: int, layers: int) -> None:
    problem = draw(cell, (rows, 7, 3, 17), L=layers, dtype=dtype)
    want = problem.forward()
    for weights in (problem.params, fastgru.pack(problem.params)):
        h, outputs = problem.state, []
        for t in range(7):
            y_t, h = problem.step(t, weights, h)
            outputs.append(y_t)
        assert_same_bits((np.stack(outputs, axis=1), h), want)


@each_cell
def test_step_gives_the_output_of_the_top_layer_and_the_state(cell: str) -> None:
    problem = draw(cell, L=3)
    members = len(CELLS[cell].states)
    y_t, h = problem.step(0)
    assert y_t.shape == (N, H)
    assert [member.shape for member in as_members(h)] == [(3, N, H)] * members
    assert isinstance(h, tuple) == (members > 1)
    assert_same_bits(y_t, as_members(h)[0][2])


@each_cell
def test_step_without_state_starts_from_zeros(cell: str) -> None:
    problem = draw(cell, L=2)
    zeros = as_state(tuple(np.zeros_like(h) for h in problem.h0))
    assert_same_bits(problem._replace(h0=None).step(0), problem.step(0, state=zeros))


@each_cell
def test_steps_of_one_sequence_without_samples(cell: str) -> None:
    """(I,) and the states of an unbatched forward, which has (L, H)."""
    problem = draw(cell, L=2)
    x, params = problem.x[0], problem.params
    attention = None if problem.attention is None else problem.attention[0]

    def run(steps: slice, h: Any) -> Any:
        part = None if attention is None else attention[steps]
        return fastgru.forward(x[steps], params, h, attention=part)

    def step(t: int, h: Any) -> Any:
        part = None if attention is None else attention[t : t + 1]
        return fastgru.step(x[t], params, h, attention=part)

    h0 = as_state(tuple(member[:, 0] for member in problem.h0))
    y, h_n = run(slice(None), h0)
    _, h = run(slice(1), h0)
    for t in range(1, T):
        y_t, h = step(t, h)
        assert_same_bits(y_t, y[t])
    assert_same_bits(as_members(h), as_members(h_n))
    assert_same_bits(step(0, None)[0], run(slice(1), None)[0][0])


# What a step rounds, in units of eps (sqrt(I + H) + max |a|) max(1, |h|): sums round in proportion
# to their terms, so pre-activations of 100, as trained networks have, round more than those of 1.
# The worst of 18 cells and 8 seeds, weights up to 80 times the initial ones, was 1.2.
STEP_K = 2.0


@pytest.mark.parametrize("scale", [1.0, 8.0, 40.0])
@pytest.mark.parametrize("cell", SHIPPED_CELLS)
def test_rounding_of_a_step_grows_with_its_pre_activations(cell: str, scale: float) -> None:
    if CELLS[cell].norm is not None:
        pytest.skip("its sums are divided by their deviation")
    shape = 40, 1, 64, 96
    problem = draw(cell, shape, dtype="float64").map(lambda a: a.astype("f4").astype("f8"))
    params = problem.params.map(lambda w: (w * scale).astype("f4").astype("f8"))
    exact = problem._replace(params=params)
    y, h = exact.step(0)
    rounded = exact.astype("float32").step(0)
    arrays = params.to_dict()
    assert exact.h0 is not None
    previous = exact.h0[0][0]
    largest = np.abs(exact.x[:, 0] @ arrays["weight_ih_l0"].T).max()
    if "weight_hh_l0" in arrays:
        largest += np.abs(previous @ arrays["weight_hh_l0"].T).max()
    if "diag_hh_l0" in arrays:
        largest += np.abs(previous).max() * np.abs(arrays["diag_hh_l0"]).max()
    bound = STEP_K * np.finfo("float32").eps * (np.sqrt(64 + 96) + largest)
    for got, want in zip(flatten(rounded), flatten((y, h)), strict=True):
        assert_close(got, want, bound)


def test_step_refuses_bidirectional_params() -> None:
    x, params, *_ = draw("gru", D=2)
    for weights in (params, fastgru.pack(params)):
        with pytest.raises(ValueError, match="direction"):
            fastgru.step(x[:, 0], weights)


@everywhere
def test_no_samples_give_empty_results(cell: str, dtype: str) -> None:
    y_t, h = draw(cell, (0, 1, I, H), L=2, dtype=dtype).step(0)
    assert y_t.shape == (0, H)
    assert {member.shape for member in as_members(h)} == {(2, 0, H)}


@each_cell
@pytest.mark.parametrize(("rows", "layers"), [(1, 1), (3, 2)])
def test_results_share_no_memory_but_y_with_h(cell: str, rows: int, layers: int) -> None:
    problem = draw(cell, (rows, 4, 3, 5), L=layers)
    y_t, h = problem.step(0)
    assert_own_memory(h, *problem)
    assert_own_memory(y_t, *problem)
