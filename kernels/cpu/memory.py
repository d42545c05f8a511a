"""Memory for the kernels: aligned, and for scratch borrowed rather than allocated."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_CACHE_LINE = 64
# Scratch buffers kept for the next call, so that small calls neither allocate nor fault in pages.
_KEPT_BYTES = 2 * 1024 * 1024
_KEPT_BUFFERS = 4
# Buffers that nobody uses. Taking and giving back are single list operations, so threads need no
# lock, and a call inside a call (from a signal handler, say) just takes another buffer.
_idle: list[Array] = []


def aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """Uninitialised memory that starts on a cache line."""
    memory = np.empty(size * dtype.itemsize + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + size * dtype.itemsize].view(dtype)


@contextmanager
def scratch(size: int, dtype: np.dtype[Any]) -> Iterator[Array]:
    """Uninitialised memory for the duration of a ``with`` block."""
    if size * dtype.itemsize > _KEPT_BYTES:
        yield aligned(size, dtype)
        return
    try:
        buffer = _idle.pop()
    except IndexError:
        buffer = aligned(_KEPT_BYTES, np.dtype(np.uint8))
    try:
        yield buffer.view(dtype)[:size]
    finally:
        if len(_idle) < _KEPT_BUFFERS:
            _idle.append(buffer)
