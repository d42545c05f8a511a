"""CuPy arrays: strides, sizes, time blocks; simulated, and with -m gpu on a real GPU.

The matrix over cells, layers, directions and lengths is in `tests/test_recurrence.py`, for every
library.
"""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gpu_tools import EPS, LENGTHS, Tune, UseLoops
from problems import (
    Library,
    Problem,
    as_members,
    as_state,
    assert_close,
    assert_same_bits,
    draw,
    each_cell,
    flatten,
    solve,
)

import fastgru


@each_cell
def test_results_are_cupy_arrays(cell: str, cupy: Library) -> None:
    problem = cupy.take(draw(cell, L=2, D=2, lengths=LENGTHS))
    for array in flatten(*solve_in(problem)):
        assert type(array) is type(problem.x)


def solve_in(problem: Problem) -> tuple[Any, ...]:
    """As `solve`, for a problem that is in CuPy arrays and stays there."""
    x, params, h0, _, dy, dh_n, _ = problem
    y, h_n, saved = fastgru.forward_train(x, params, as_state(h0), **problem.options)
    return y, h_n, fastgru.backward(saved, dy, as_state(dh_n))


@each_cell
def test_any_strides(cell: str, cupy: Library) -> None:
    """Reversed, spread and transposed arrays give what their copies give."""
    problem = draw(cell, D=2, lengths=LENGTHS, dtype="float32")
    plain = cupy.take(problem)
    spread = cupy.asarray(np.repeat(problem.x, 2, axis=2)[:, ::-1])[:, ::-1, ::2]
    turned = cupy.asarray(problem.dy.transpose(2, 0, 1).copy()).transpose(1, 2, 0)
    states = tuple(cupy.asarray(h.transpose(1, 0, 2).copy()).transpose(1, 0, 2) for h in plain.h0)
    odd = plain._replace(x=spread, dy=turned, h0=states)
    if problem.attention is not None:
        odd = odd._replace(attention=cupy.asarray(problem.attention.T.copy()).T)
    assert_same_bits(cupy.give(solve_in(odd)), cupy.give(solve_in(plain)))


@each_cell
def test_time_major_and_single_sequences(cell: str, cupy: Library) -> None:
    problem = cupy.take(draw(cell, L=2, D=2, dtype="float32"))
    x, params, h0, _, _, _, attention = problem
    y, h_n = fastgru.forward(x, params, as_state(h0), attention=attention)
    turned, same = fastgru.forward(
        x.transpose(1, 0, 2), params, as_state(h0), time_major=True,
        attention=None if attention is None else attention.transpose(1, 0),
    )  # fmt: skip
    assert_same_bits(cupy.give((turned.transpose(1, 0, 2), same)), cupy.give((y, h_n)))
    first = as_state(tuple(h[:, 0] for h in h0))
    of_first = None if attention is None else attention[0]
    alone, _ = fastgru.forward(x[0], params, first, attention=of_first)
    assert_close(cupy.give(alone), cupy.give(y)[0], 8 * EPS)


def test_outputs_of_all_layers(cupy: Library) -> None:
    problem = draw("gru", L=3, D=2, lengths=LENGTHS)
    on_gpu = cupy.take(problem)
    outputs, _ = fastgru.forward(
        on_gpu.x, on_gpu.params, on_gpu.state, **on_gpu.options, all_layers=True
    )
    expected, _ = fastgru.forward(
        problem.x, problem.params, problem.state, **problem.options, all_layers=True
    )
    for y, want in zip(outputs, expected, strict=True):
        assert_close(cupy.give(y), want, 8 * EPS)


@each_cell
def test_padding_is_neither_read_nor_written(cell: str, cupy: Library) -> None:
    problem = draw(cell, L=2, D=2, lengths=LENGTHS, dtype="float32")
    spoilt = problem._replace(x=problem.x.copy(), dy=problem.dy.copy())
    if problem.attention is not None:
        spoilt = spoilt._replace(attention=problem.attention.copy())
    for row, length in enumerate(LENGTHS):
        spoilt.x[row, length:] = spoilt.dy[row, length:] = np.nan
        if spoilt.attention is not None:
            spoilt.attention[row, length:] = np.nan
    got, want = solve(spoilt, cupy), solve(problem, cupy)
    assert_same_bits(got, want)
    for row, length in enumerate(LENGTHS):
        assert not got[0][row, length:].any()
        assert not got[2].x[row, length:].any()
        assert problem.attention is None or not got[2].attention[row, length:].any()


@each_cell
def test_time_blocks_do_not_matter(cell: str, cupy: Library, tune: Tune) -> None:
    """A workspace for one step, for two, for all: the same results but for rounding."""
    problem = draw(cell, (3, 5, 3, 4), D=2, lengths=[2, 1, 5], dtype="float32")
    want = solve(problem, cupy)
    for size in (1, 500):
        tune(WORKSPACE_BYTES=size)
        for a, b in zip(flatten(*solve(problem, cupy)), flatten(*want), strict=True):
            assert_close(a, b, 16 * EPS)


def test_sequences_of_growing_length(cupy: Library) -> None:
    """What a thread keeps from shorter ones is not used for longer ones."""
    for T in (2, 1, 5, 4):
        problem = draw("gru", (2, T, 3, 5), dtype="float32")
        for a, b in zip(flatten(*solve(problem, cupy)), flatten(*solve(problem)), strict=True):
            assert_close(a, b, 16 * EPS)


@pytest.mark.parametrize("missing", ["dy", "dh_n", "a member of dh_n"])
@each_cell
def test_gradients_that_are_missing_are_zeros(cell: str, missing: str, cupy: Library) -> None:
    problem = draw(cell, L=2, D=2, lengths=LENGTHS)
    if missing == "dy":
        zeros: Any = problem._replace(dy=np.zeros_like(problem.dy))
    else:
        gone = len(problem.dh_n) if missing == "dh_n" else 1
        rest = problem.dh_n[gone:]
        zeros = problem._replace(dh_n=(*map(np.zeros_like, problem.dh_n[:gone]), *rest))
    taken = cupy.take(zeros)
    x, params, h0, _, dy, dh_n, _ = taken
    _, _, saved = fastgru.forward_train(x, params, as_state(h0), **taken.options)
    given: dict[str, Any] = {"dy": dy, "dh_n": as_state(dh_n)}
    if missing in given:
        given[missing] = None
    else:
        given["dh_n"] = as_state((None, *dh_n[1:]))
    got = cupy.give(fastgru.backward(saved, **given))
    for a, b in zip(flatten(got), flatten(solve(zeros)[2]), strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("sizes", [(0, 4, 3, 5), (3, 0, 3, 5)])
@each_cell
def test_nothing_to_do(cell: str, sizes: tuple[int, int, int, int], cupy: Library) -> None:
    problem = draw(cell, sizes, L=2, D=2)
    for a, b in zip(flatten(*solve(problem, cupy)), flatten(*solve(problem)), strict=True):
        assert_same_bits((a,), (b,))


@each_cell
def test_steps_are_forward_one_at_a_time(cell: str, cupy: Library) -> None:
    problem = cupy.take(draw(cell, L=2, dtype="float32"))
    weights = fastgru.pack(problem.params)
    y, h_n = fastgru.forward(problem.x, weights, as_state(problem.h0), **problem.options)
    state: Any = as_state(problem.h0)
    for t in range(problem.x.shape[1]):
        of_step = None if problem.attention is None else problem.attention[:, t]
        y_t, state = fastgru.step(problem.x[:, t], weights, state, attention=of_step)
        assert_close(cupy.give(y_t), cupy.give(y)[:, t], 16 * EPS)
    for a, b in zip(as_members(state), as_members(h_n), strict=True):
        assert_close(cupy.give(a), cupy.give(b), 16 * EPS)


def test_init_params_draws_the_same_numbers(cupy: Library) -> None:
    like = cupy.asarray(np.zeros(1, "float32"))
    ours = fastgru.init_params(3, 5, like=like, rng=0)
    assert ours.library == "cupy"
    assert_same_bits(cupy.give(ours), fastgru.init_params(3, 5, rng=0))


@pytest.mark.parametrize("loop", ["resident", "exchange", "cluster", "steps"])
def test_out_of_memory(
    loop: str, simulated: Library, use_loops: UseLoops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it ends, CuPy's error comes out, nothing is kept, and the next call is right."""
    import cupy

    class OutOfMemoryError(MemoryError):
        """As that of CuPy."""

    room = [0, 0]  # arrays that may still be made, and that were made

    def limited(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any) -> Any:
            room[0], room[1] = room[0] - 1, room[1] + 1
            if room[0] < 0:
                raise OutOfMemoryError
            return make(*arguments)

        return made

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is cupy.ndarray for thing in gc.get_objects())

    precision = "bf16" if loop == "cluster" else None
    problem = simulated.take(draw("lstm", (1, 2, 2, 3), dtype="float32"))
    use_loops(loop)
    for name in ("empty", "zeros", "ones", "ascontiguousarray"):
        monkeypatch.setattr(cupy, name, limited(getattr(cupy, name)))

    def call(most: int) -> Any:
        room[:] = [most, 0]
        x, params, h0, _, dy, dh_n, _ = problem
        y, h_n, saved = fastgru.forward_train(x, params, h0, precision=precision)
        return simulated.give((y, h_n, fastgru.backward(saved, dy, dh_n)))

    want = call(1000)
    call(1000)
    needed, before = room[1], alive()
    assert needed > 10
    for most in range(needed):
        with pytest.raises(OutOfMemoryError):
            call(most)
    assert alive() == before
    assert_same_bits(call(needed), want)
