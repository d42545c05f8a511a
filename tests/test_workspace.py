"""Memory for the kernels: what is kept for the next call, and that what it holds has no effect."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from problems import assert_same_bits, draw, each_cell, solve

from fastgru import packed
from fastgru.kernels.cpu import layer, workspace
from fastgru.kernels.cpu import packed as cpu_packed
from fastgru.kernels.cpu.tuning import CACHE_LINE, KEPT_OF_EACH, KEPT_OF_LARGE, SMALL_BUFFER


class FilledPool(workspace.Pool):
    """A pool whose buffers are filled before they are given."""

    def __init__(self, dtype: Any, content: float) -> None:
        super().__init__(dtype)
        self._content = content
        self.filled = 0  # how many

    def buffers(self, size: int) -> Any:
        buffers = super().buffers(size)

        def acquire() -> Any:
            buffer = buffers.acquire()
            buffer.fill(self._content)
            self.filled += 1
            return buffer

        return SimpleNamespace(acquire=acquire, release=buffers.release)


def test_scratch_memory_is_kept_up_to_a_size() -> None:
    pool = workspace.Pool(np.dtype("float32"))
    for size, kept in (
        (100, KEPT_OF_EACH),
        (1 << 21, KEPT_OF_LARGE),
        ((1 << 24) - 1, KEPT_OF_LARGE),
        (1 << 24, 0),
        (1 << 25, 0),
    ):
        buffers = [pool.acquire(size) for _ in range(4)]
        assert all(buffer.size >= size for buffer in buffers)
        pool.release(*buffers)
        again = [pool.acquire(size) for _ in range(4)]
        assert sum(any(a is b for b in buffers) for a in again) == kept
    # One of a size of its own is not kept, as no call would ask for it.
    pool = workspace.Pool(np.dtype("float32"))
    pool.release(pool.acquire((1 << 24) + 1))
    assert pool.acquire((1 << 24) - 1).size == 1 << 24


def test_a_full_set_of_buffers_drops_its_oldest_one() -> None:
    buffers = workspace.Buffers(10, np.dtype("float64"), kept=2)
    given = [buffers.acquire() for _ in range(3)]
    assert {(buffer.size, buffer.dtype.name) for buffer in given} == {(10, "float64")}
    for buffer in given:
        buffers.release(buffer)
    assert buffers.acquire() is given[2]
    assert buffers.acquire() is given[1]
    assert all(buffers.acquire() is not buffer for buffer in given)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_but_small_memory_starts_on_a_cache_line(dtype: str) -> None:
    kept = [workspace.aligned(SMALL_BUFFER + n, np.dtype(dtype)) for n in range(20)]
    assert [memory.size for memory in kept] == [SMALL_BUFFER + n for n in range(20)]
    assert {memory.ctypes.data % CACHE_LINE for memory in kept} == {0}
    assert {memory.dtype.name for memory in kept} == {dtype}


def forget() -> None:
    """Drop what was prepared for calls, and with it where their memory comes from."""
    packed._architecture.cache_clear()
    layer.layer_for.cache_clear()


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """What a test prepares is not kept for others."""
    yield
    forget()


@pytest.mark.parametrize("sizes", [(3, 4, 3, 5), (2, 5, 17, 33), (9, 3, 1, 16)])
@each_cell
def test_what_scratch_memory_holds_has_no_effect(
    cell: str,
    sizes: tuple[int, int, int, int],
    monkeypatch: pytest.MonkeyPatch,
    nothing_kept: None,
) -> None:
    """Kernels read more than they wrote: padding, and what follows the last row."""
    lengths = (1 + np.arange(sizes[0])) % (sizes[1] + 1)

    def solved(content: float) -> Any:
        forget()
        fresh = FilledPool(np.dtype("float32"), content)
        for user in (layer, cpu_packed):
            monkeypatch.setattr(user, "pool", lambda dtype: fresh)
        problem = draw(cell, sizes, dtype="float32", lengths=lengths, D=2)
        found = solve(problem), problem.forward()
        assert fresh.filled > 10
        return found

    assert_same_bits(solved(np.nan), solved(0.0))
