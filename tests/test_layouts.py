"""Layouts, strides and memory: what may come in, and what results share with it."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from problems import (
    Problem,
    as_members,
    as_state,
    assert_same_bits,
    draw,
    each_cell,
    everywhere,
    flatten,
    solve,
)

import fastgru
from fastgru import packed
from fastgru.kernels.cells import CELLS
from fastgru.kernels.cpu import layer, memory, recurrence

N, T, I, H = 3, 4, 3, 5  # the sizes that `draw` gives
LENGTHS = [2, 0, 4]


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [1, 2])
@everywhere
def test_time_major_takes_and_gives_the_time_axis_first(cell: str, dtype: str, D: int) -> None:
    problem = draw(cell, L=2, D=D, lengths=LENGTHS, dtype=dtype)
    x, dy = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (problem.x, problem.dy))
    args = (x, problem.params, as_state(problem.h0))
    y, h_n, saved = fastgru.forward_train(*args, lengths=LENGTHS, time_major=True)
    gradients = fastgru.backward(saved, dy, as_state(problem.dh_n))
    assert y.shape == (T, N, D * H)
    assert gradients.x.shape == (T, N, I)
    assert y.flags.c_contiguous
    assert gradients.x.flags.c_contiguous
    assert_same_bits(fastgru.forward(*args, lengths=LENGTHS, time_major=True), (y, h_n))
    gradients = gradients._replace(x=gradients.x.swapaxes(0, 1))
    assert_same_bits((y.swapaxes(0, 1), h_n, gradients), solve(problem))


@pytest.mark.parametrize("D", [1, 2])
@everywhere
def test_unbatched_sequence_gives_unbatched_results(cell: str, dtype: str, D: int) -> None:
    problem = draw(cell, (1, T, I, H), L=2, D=D, dtype=dtype)
    x, params, h0, _, dy, dh_n = problem
    h0, dh_n = (as_state(tuple(h[:, 0] for h in state)) for state in (h0, dh_n))
    y, h_n, saved = fastgru.forward_train(x[0], params, h0)
    gradients = fastgru.backward(saved, dy[0], dh_n)
    assert y.shape == (T, D * H)
    assert gradients.x.shape == (T, I)
    assert {h.shape for h in (*as_members(h_n), *as_members(gradients.h0))} == {(2 * D, H)}
    assert_same_bits(fastgru.forward(x[0], params, h0), (y, h_n))
    want_y, want_h, want = solve(problem)
    want_states = (h[:, 0] for h in (*as_members(want_h), *as_members(want.h0)))
    assert_same_bits(
        (y, h_n, gradients.h0, gradients.x, gradients.params),
        (want_y[0], *want_states, want.x[0], want.params),
    )


@each_cell
def test_time_major_has_no_effect_without_samples(cell: str) -> None:
    x, params, _, _, dy, _ = draw(cell, (1, T, I, H), D=2)
    results = []
    for time_major in (False, True):
        y, h_n, saved = fastgru.forward_train(x[0], params, time_major=time_major)
        assert_same_bits(fastgru.forward(x[0], params, time_major=time_major), (y, h_n))
        results.append((y, h_n, fastgru.backward(saved, dy[0])))
    assert_same_bits(*results)


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


def in_memory(problem: Problem, place: Callable[[Any], Any]) -> Problem:
    """All arrays of a problem placed in memory in some way."""
    x, params, h0, lengths, dy, dh_n = problem
    return Problem(
        place(x), params.map(place), tuple(map(place, h0)), lengths,
        place(dy), tuple(map(place, dh_n)),
    )  # fmt: skip


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
    placed = in_memory(draw(cell, L=2, D=2, lengths=LENGTHS, dtype=dtype), MEMORY[memory])
    assert_same_bits(solve(placed), solve(in_memory(placed, np.ascontiguousarray)))
    placed = in_memory(draw(cell, dtype=dtype), MEMORY[memory])
    contiguous = in_memory(placed, np.ascontiguousarray)
    got, want = (fastgru.step(p.x[:, 1], p.params, as_state(p.h0)) for p in (placed, contiguous))
    assert_same_bits(got, want)


def peak_bytes(function: Callable[..., Any], *args: Any, **options: Any) -> int:
    """The most memory that NumPy held at once during a call, beyond what there was."""
    function(*args, **options)  # imports and kernels
    tracemalloc.start()
    try:
        function(*args, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("time_major", [False, True])
def test_x_is_not_copied_whatever_its_layout(time_major: bool) -> None:
    """One unit is little work, which one thread does: no other kernels are compiled for this."""
    params = fastgru.init_params(256, 1, rng=0)
    for x in (np.zeros((4, 500, 256), np.float32), np.zeros((256, 500, 4), np.float32).T):
        x = x.swapaxes(0, 1) if time_major else x
        args = (x, params)
        assert peak_bytes(fastgru.forward, *args, time_major=time_major) < 0.25 * x.nbytes
        assert peak_bytes(fastgru.forward_train, *args, time_major=time_major) < 0.5 * x.nbytes


@pytest.mark.parametrize("time_major", [False, True])
def test_y_is_made_once_in_either_layout(time_major: bool) -> None:
    params = fastgru.init_params(1, 64, cell="toy_no_product", rng=0)  # little work again
    x = np.zeros((1000, 15, 1), np.float32)
    y, _ = fastgru.forward(x, params, time_major=time_major)
    peak = peak_bytes(fastgru.forward, x, params, time_major=time_major)
    assert y.nbytes <= peak < 1.25 * y.nbytes


# --- arguments and results ------------------------------------------------------------------------


@each_cell
def test_arguments_are_never_modified(cell: str) -> None:
    problem = draw(cell, L=2, lengths=np.array(LENGTHS), dtype="float32")
    before = [a.copy() for a in flatten(*problem)]
    x, params, h0, lengths, dy, dh_n = problem
    for weights in (params, fastgru.pack(params)):
        fastgru.forward(x, weights, as_state(h0), lengths=lengths)
        _, _, saved = fastgru.forward_train(x, weights, as_state(h0), lengths=lengths)
        fastgru.backward(saved, dy, as_state(dh_n))
        fastgru.step(x[:, 0], weights, as_state(h0))
    assert_same_bits(tuple(problem), tuple(before))


def assert_own_memory(results: Any, *arguments: Any) -> None:
    """Results can be written, and share no memory with arguments nor with each other."""
    ours, theirs = flatten(results), flatten(arguments)
    for number, array in enumerate(ours):
        assert array.flags.writeable
        for other in (*ours[:number], *theirs):
            assert not np.shares_memory(array, other)


@pytest.mark.parametrize(
    ("rows", "steps", "L", "D"),
    [(N, 0, 2, 2), (N, 1, 2, 2), (N, T, 2, 2), (1, 0, 1, 1), (1, 1, 1, 1)],
)
@each_cell
def test_results_share_no_memory(cell: str, rows: int, steps: int, L: int, D: int) -> None:
    """T = 0 and T = 1 are where the state could pass through, or be a view of y."""
    problem = draw(cell, (rows, steps, I, H), L=L, D=D)
    x, params, h0, _, dy, dh_n = problem
    arguments = (*problem, fastgru.pack(params).params)
    assert_own_memory(fastgru.forward(x, params, as_state(h0)), *arguments)
    y, h_n, saved = fastgru.forward_train(x, params, as_state(h0))
    assert_own_memory((y, h_n), *arguments)
    gradients = [fastgru.backward(saved, dy, as_state(dh_n)) for _ in range(2)]
    assert_own_memory(tuple(gradients), y, h_n, *arguments)


class Filled:
    """A shelf that fills a buffer before it lends it."""

    def __init__(self, shelf: memory.Shelf, content: float) -> None:
        self._shelf, self._content = shelf, content
        self.give_back = shelf.give_back

    def borrow(self) -> Any:
        buffer = self._shelf.borrow()
        buffer.fill(self._content)
        return buffer


def test_scratch_memory_is_kept_up_to_a_size() -> None:
    pool = memory.Pool(np.dtype("float32"))
    for size, kept in ((100, 3), (1 << 21, 2), ((1 << 24) - 1, 2), (1 << 24, 0), (1 << 25, 0)):
        buffers = [pool.borrow(size) for _ in range(4)]
        assert all(buffer.size >= size for buffer in buffers)
        pool.give_back(*buffers)
        again = [pool.borrow(size) for _ in range(4)]
        assert sum(any(a is b for b in buffers) for a in again) == kept
    # A size of its own stands on no shelf, where no call would ask for it.
    pool = memory.Pool(np.dtype("float32"))
    pool.give_back(pool.borrow((1 << 24) + 1))
    assert pool.borrow((1 << 24) - 1).size == 1 << 24


@pytest.fixture
def nothing_prepared() -> Iterator[None]:
    """Calls that are prepared anew, and not kept for other tests."""
    for forget in (packed._architecture.cache_clear, layer.layer_for.cache_clear):
        forget()
    yield
    for forget in (packed._architecture.cache_clear, layer.layer_for.cache_clear):
        forget()


@pytest.mark.parametrize("sizes", [(3, 4, 3, 5), (2, 5, 17, 33), (9, 3, 1, 16)])
@each_cell
def test_what_scratch_memory_holds_has_no_effect(
    cell: str,
    sizes: tuple[int, int, int, int],
    monkeypatch: pytest.MonkeyPatch,
    nothing_prepared: None,
) -> None:
    """Kernels read more than they wrote: padding, and what follows the last row."""
    lengths = np.arange(sizes[0]) % (sizes[1] + 1)

    def solved(content: float) -> Any:
        fresh = memory.Pool(np.dtype("float32"))
        monkeypatch.setattr(fresh, "_shelves", [Filled(s, content) for s in fresh._shelves])
        monkeypatch.setattr(layer, "pool", lambda dtype: fresh)
        monkeypatch.setattr(recurrence, "layer_for", layer.Layer)
        problem = draw(cell, sizes, dtype="float32", lengths=lengths, D=2)
        return solve(problem)

    assert_same_bits(solved(np.nan), solved(0.0))


@each_cell
@pytest.mark.parametrize(("rows", "layers"), [(1, 1), (3, 2)])
def test_results_of_step_share_no_memory_but_y_with_h(cell: str, rows: int, layers: int) -> None:
    x, params, h0, *_ = draw(cell, (rows, 4, 3, 5), L=layers)
    y_t, h = fastgru.step(x[:, 0], params, as_state(h0))
    assert_own_memory(h, x, params, h0)
    assert_own_memory(y_t, x, params, h0)
