"""Memory for the kernels: aligned, and workspace that is used again rather than allocated."""

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tuning import (
    CACHE_LINE,
    KEPT_OF_EACH,
    KEPT_OF_LARGE,
    LARGEST_KEPT_BITS,
    MANY_KEPT_BITS,
    SMALL_BUFFER,
    SMALLEST_KEPT_BITS,
)

Array = NDArray[Any]


def aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """Uninitialised memory that starts on a cache line, unless it is too small to matter."""
    if size < SMALL_BUFFER:
        return np.empty(size, dtype)
    memory = np.empty(size * dtype.itemsize + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + size * dtype.itemsize].view(dtype)


class Buffers:
    """Idle buffers of one size.

    Taking and giving back are single operations of a deque, so threads need no lock, and a call
    inside a call (from a signal handler, say) just takes another buffer. When it is full, it
    drops its oldest one.

    Attributes
    ----------
    release : callable
        Takes back a buffer of these, which nobody may use from now on.
    """

    def __init__(self, size: int, dtype: np.dtype[Any], kept: int) -> None:
        self._size, self._dtype = size, dtype
        self._idle: deque[Array] = deque(maxlen=kept)
        self.release: Callable[[Array], None] = self._idle.append

    def acquire(self) -> Array:
        """An uninitialised buffer; need not be given back."""
        try:
            return self._idle.pop()
        except IndexError:
            return aligned(self._size, self._dtype)


class Pool:
    """Scratch memory of one dtype: buffers of 2^bits elements."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._buffers = [
            Buffers(1 << bits, dtype, KEPT_OF_EACH if bits <= MANY_KEPT_BITS else KEPT_OF_LARGE)
            for bits in range(LARGEST_KEPT_BITS + 1)
        ]

    def buffers(self, size: int) -> Buffers:
        """Where buffers of at least that size come from."""
        bits = max(size.bit_length(), SMALLEST_KEPT_BITS)
        return self._buffers[bits] if bits <= LARGEST_KEPT_BITS else Buffers(size, self._dtype, 0)

    def acquire(self, size: int) -> Array:
        """An uninitialised buffer of at least that size; need not be given back."""
        return self.buffers(size).acquire()

    def release(self, *buffers: Array) -> None:
        """Return buffers, which nobody may use from now on."""
        for buffer in buffers:
            bits = buffer.size.bit_length() - 1
            if bits <= LARGEST_KEPT_BITS and buffer.size == 1 << bits:  # one of those kept
                self._buffers[bits].release(buffer)


@functools.cache
def pool(dtype: np.dtype[Any]) -> Pool:
    """The pool that all calls share."""
    return Pool(dtype)
