"""Memory for the kernels: aligned, and for scratch borrowed rather than allocated."""

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_CACHE_LINE = 64
# Elements below which finding the next cache line takes longer than not starting on one.
_SMALL = 4096
# Scratch memory is kept for the next call: new memory comes in pages that the system clears one by
# one, which takes longer than many a kernel. What is not touched of a buffer takes no memory.
_SMALLEST_KEPT_BITS, _LARGEST_KEPT_BITS = 14, 24
_KEPT_OF_EACH = 3
# Of sizes above 2^21 elements two are kept: what backward needs at once of large weights. New ones
# took a tenth of training at (25, 64, 1024, 1024) with an LSTM, whose 33 MB no heap keeps either.
# All that can be kept are 70 million elements, 285 MB of float32, after calls that needed as many.
_MANY_KEPT_BITS, _KEPT_OF_LARGE = 21, 2


def aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """Uninitialised memory that starts on a cache line, unless it is too small to matter."""
    if size < _SMALL:
        return np.empty(size, dtype)
    memory = np.empty(size * dtype.itemsize + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + size * dtype.itemsize].view(dtype)


class Shelf:
    """Idle buffers of one size.

    Taking and giving back are single operations of a deque, so threads need no lock, and a call
    inside a call (from a signal handler, say) just takes another buffer. A full shelf drops its
    oldest one.

    Attributes
    ----------
    give_back : callable
        Takes a buffer of this shelf, which nobody may use from now on.
    """

    def __init__(self, size: int, dtype: np.dtype[Any], kept: int) -> None:
        self._size, self._dtype = size, dtype
        self._idle: deque[Array] = deque(maxlen=kept)
        self.give_back: Callable[[Array], None] = self._idle.append

    def borrow(self) -> Array:
        """An uninitialised buffer, for a while or for ever."""
        try:
            return self._idle.pop()
        except IndexError:
            return aligned(self._size, self._dtype)


class Pool:
    """Scratch memory of one dtype: shelves of buffers of 2^bits elements."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._shelves = [
            Shelf(1 << bits, dtype, _KEPT_OF_EACH if bits <= _MANY_KEPT_BITS else _KEPT_OF_LARGE)
            for bits in range(_LARGEST_KEPT_BITS + 1)
        ]

    def shelf(self, size: int) -> Shelf:
        """Where buffers of at least that size come from."""
        bits = max(size.bit_length(), _SMALLEST_KEPT_BITS)
        return self._shelves[bits] if bits <= _LARGEST_KEPT_BITS else Shelf(size, self._dtype, 0)

    def borrow(self, size: int) -> Array:
        """An uninitialised buffer of at least that size, for a while or for ever."""
        return self.shelf(size).borrow()

    def give_back(self, *buffers: Array) -> None:
        """Return buffers, which nobody may use from now on."""
        for buffer in buffers:
            bits = buffer.size.bit_length() - 1
            if bits <= _LARGEST_KEPT_BITS and buffer.size == 1 << bits:  # from one of the shelves
                self._shelves[bits].give_back(buffer)


@functools.cache
def pool(dtype: np.dtype[Any]) -> Pool:
    """The pool that all calls share."""
    return Pool(dtype)
