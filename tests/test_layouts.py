"""Layouts and strides: how arrays may come in, and how results come out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from problems import (
    as_members,
    as_state,
    assert_same_bits,
    draw,
    each_cell,
    everywhere,
    solve,
)

import fastgru
from fastgru.kernels.cells import CELLS

N, T, I, H = 3, 4, 3, 5  # the sizes that `draw` gives
LENGTHS = [2, 0, 4]


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [1, 2])
@everywhere
def test_time_major_takes_and_gives_the_time_axis_first(cell: str, dtype: str, D: int) -> None:
    problem = draw(cell, L=2, D=D, lengths=LENGTHS, dtype=dtype)
    x, dy = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (problem.x, problem.dy))
    attention = None if problem.attention is None else np.ascontiguousarray(problem.attention.T)
    args = (x, problem.params, problem.state)
    options = {"lengths": LENGTHS, "attention": attention, "time_major": True}
    y, h_n, saved = fastgru.forward_train(*args, **options)
    gradients = fastgru.backward(saved, dy, as_state(problem.dh_n))
    assert y.shape == (T, N, D * H)
    assert gradients.x.shape == (T, N, I)
    assert y.flags.c_contiguous
    assert gradients.x.flags.c_contiguous
    dattention = gradients.attention
    if attention is not None:
        assert dattention.shape == (T, N)
        dattention = dattention.T
    gradients = fastgru.Gradients(
        gradients.x.swapaxes(0, 1), gradients.h0, gradients.params, dattention
    )
    assert_same_bits((y.swapaxes(0, 1), h_n, gradients), solve(problem))
    inferred = fastgru.forward(*args, **options)
    assert inferred[0].flags.c_contiguous
    assert_same_bits((inferred[0].swapaxes(0, 1), inferred[1]), problem.forward())


@pytest.mark.parametrize("D", [1, 2])
@everywhere
def test_unbatched_sequence_gives_unbatched_results(cell: str, dtype: str, D: int) -> None:
    problem = draw(cell, (1, T, I, H), L=2, D=D, dtype=dtype)
    x, params, h0, _, dy, dh_n, attention = problem
    h0, dh_n = (as_state(tuple(h[:, 0] for h in state)) for state in (h0, dh_n))
    attention = None if attention is None else attention[0]
    y, h_n, saved = fastgru.forward_train(x[0], params, h0, attention=attention)
    gradients = fastgru.backward(saved, dy[0], dh_n)
    assert y.shape == (T, D * H)
    assert gradients.x.shape == (T, I)
    assert {h.shape for h in (*as_members(h_n), *as_members(gradients.h0))} == {(2 * D, H)}
    want_y, want_h, want = solve(problem)
    want_states = (h[:, 0] for h in (*as_members(want_h), *as_members(want.h0)))
    dattention = None if attention is None else want.attention[0]
    assert_same_bits(
        (y, h_n, gradients.h0, gradients.x, gradients.params, gradients.attention),
        (want_y[0], *want_states, want.x[0], want.params, dattention),
    )
    inferred, inferred_h = problem.forward()
    assert_same_bits(
        fastgru.forward(x[0], params, h0, attention=attention),
        (inferred[0], *(h[:, 0] for h in as_members(inferred_h))),
    )


@each_cell
def test_time_major_has_no_effect_without_samples(cell: str) -> None:
    x, params, _, _, dy, _, attention = draw(cell, (1, T, I, H), D=2)
    results = []
    for time_major in (False, True):
        options = {"time_major": time_major}
        if attention is not None:
            options["attention"] = attention[0]
        y, h_n, saved = fastgru.forward_train(x[0], params, **options)
        inferred = fastgru.forward(x[0], params, **options)
        results.append((y, h_n, fastgru.backward(saved, dy[0]), inferred))
    assert_same_bits(*results)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("D", [1, 2])
@everywhere
def test_outputs_of_all_layers_are_those_of_lower_stacks(
    cell: str, dtype: str, D: int, lengths: Any
) -> None:
    problem = draw(cell, L=3, D=D, lengths=lengths, dtype=dtype)
    x, params, state = problem.x, problem.params, problem.state
    outputs, h_n = fastgru.forward(x, params, state, **problem.options, all_layers=True)
    assert type(outputs) is tuple
    assert_same_bits((outputs[-1], h_n), problem.forward())
    for number, y in enumerate(outputs, 1):
        lower = fastgru.Params(cell, params.layers[:number])
        assert problem.h0 is not None
        h0 = as_state(tuple(h[: number * D] for h in problem.h0))
        assert_same_bits(y, fastgru.forward(x, lower, h0, **problem.options)[0])
    attention = None if problem.attention is None else problem.attention.T
    turned, _ = fastgru.forward(
        x.swapaxes(0, 1), params, state, lengths=lengths, attention=attention, time_major=True,
        all_layers=True,
    )  # fmt: skip
    assert_same_bits(tuple(y.swapaxes(0, 1) for y in turned), outputs)


def test_lengths_are_refused_without_samples() -> None:
    x, params, *_ = draw("gru")
    with pytest.raises(ValueError, match="lengths"):
        fastgru.forward(x[0], params, lengths=[2])


@each_cell
def test_shapes_follow_layers_and_directions(cell: str) -> None:
    for L, D in ((1, 1), (1, 2), (3, 1), (2, 2)):
        y, h_n, gradients = solve(draw(cell, L=L, D=D))
        assert y.shape == (N, T, D * H)
        for state in (h_n, gradients.h0):
            assert isinstance(state, tuple) == (len(CELLS[cell].states) > 1)
            assert [h.shape for h in as_members(state)] == [(L * D, N, H)] * len(as_members(state))


# --- strides --------------------------------------------------------------------------------------


def _every_other(a: Any) -> Any:
    spread = np.full([2 * n for n in a.shape], np.nan, a.dtype)
    spread[(slice(None, None, 2),) * a.ndim] = a
    return spread[(slice(None, None, 2),) * a.ndim]


def _unaligned(a: Any) -> Any:
    records = np.zeros(a.shape, np.dtype([("before", "u1"), ("value", a.dtype)]))
    records["value"] = a
    return records["value"]


def _read_only(a: Any) -> Any:
    a = a.copy()
    a.flags.writeable = False
    return a


MEMORY: dict[str, Callable[[Any], Any]] = {
    "fortran": np.asfortranarray,
    "transposed": lambda a: a.swapaxes(0, 1).copy().swapaxes(0, 1) if a.ndim > 1 else a,
    "backward": lambda a: np.flip(np.flip(a).copy()),
    "every_other": _every_other,
    "zero_strides": lambda a: np.broadcast_to(a[:1], a.shape),
    "all_zero_strides": lambda a: np.broadcast_to(a.ravel()[0], a.shape),
    "overlapping": lambda a: np.lib.stride_tricks.as_strided(
        a.ravel(), a.shape, [a.itemsize] * a.ndim, writeable=False
    ),
    "unaligned": _unaligned,
    "read_only": _read_only,
}


def test_arrays_of_the_memory_table_are_what_they_are_called() -> None:
    a = np.arange(24.0).reshape(2, 3, 4)
    placed = {name: place(a) for name, place in MEMORY.items()}
    assert placed["fortran"].flags.f_contiguous
    assert placed["transposed"].strides == (32, 64, 8)
    assert placed["backward"].strides == (-96, -32, -8)
    assert placed["every_other"].strides == (768, 128, 16)
    assert placed["zero_strides"].strides == (0, 32, 8)
    assert placed["all_zero_strides"].strides == (0, 0, 0)
    assert placed["overlapping"].strides == (8, 8, 8)
    assert not placed["unaligned"].flags.aligned
    assert not placed["read_only"].flags.writeable
    for name in MEMORY.keys() - {"zero_strides", "all_zero_strides", "overlapping"}:
        assert_same_bits(placed[name], a)


@pytest.mark.parametrize("memory", MEMORY)
@everywhere
def test_any_strides_give_the_bits_of_contiguous_ones(cell: str, dtype: str, memory: str) -> None:
    placed = draw(cell, L=2, D=2, lengths=LENGTHS, dtype=dtype).map(MEMORY[memory])
    contiguous = placed.map(np.ascontiguousarray)
    assert_same_bits((solve(placed), placed.forward()), (solve(contiguous), contiguous.forward()))
    placed = draw(cell, dtype=dtype).map(MEMORY[memory])
    assert_same_bits(placed.step(1), placed.map(np.ascontiguousarray).step(1))
