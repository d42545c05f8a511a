"""What the intrinsics of kernels do, as Python: a table of emulations, by intrinsic.

Each is called with the threads (`Cuda`), then with what the kernel gives the intrinsic.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastgru.kernels.cuda.loops import intrinsics, tensor_intrinsics

from .threads import Cuda


def load_four(cuda: Any, array: Any, row: int, middle: int, k: int) -> tuple[Any, ...]:
    """See `intrinsics`."""
    a = array[row, middle]
    return a[k], a[k + 1], a[k + 2], a[k + 3]


def store_tagged(
    cuda: Any, words: Any, slot: int, row: int, unit: int, number: int, value: Any
) -> None:
    """See `intrinsics`."""
    bits = int(np.float32(value).view(np.uint32))
    words[slot, row, unit] = (number & 0xFFFFFFFF) << 32 | bits


def load_tagged(cuda: Any, words: Any, slot: int, row: int, unit: int) -> tuple[int, Any]:
    """See `intrinsics`."""
    word = int(words[slot, row, unit])
    return word >> 32, np.uint32(word & 0xFFFFFFFF).view(np.float32)


def pack_bf16(cuda: Any, low: Any, high: Any) -> Any:
    """See `tensor_intrinsics`."""
    a, b = (_upper_half(value) for value in (low, high))
    return np.uint32(b << 16 | a)


def round_tf32(cuda: Any, value: Any) -> Any:
    """See `tensor_intrinsics`."""
    return np.uint32(_rounded_bits(value, 0x1000) & 0xFFFFE000)


def store_remote_bf16(cuda: Any, words: Any, at: int, rank: int, value: Any) -> None:
    """See `tensor_intrinsics`."""
    cuda.shared_by(words, rank).view(np.uint16)[at] = _upper_half(value)


def store_remote_tf32(cuda: Any, words: Any, at: int, rank: int, value: Any) -> None:
    """See `tensor_intrinsics`."""
    cuda.shared_by(words, rank)[at] = round_tf32(cuda, value)


def load_words(cuda: Any, words: Any, at: int) -> tuple[Any, ...]:
    """See `tensor_intrinsics`."""
    return words[at], words[at + 1], words[at + 2], words[at + 3]


def mma_bf16(cuda: Any, a: Any, b: Any, c: Any) -> Any:
    """See `tensor_intrinsics`."""
    return cuda.of_warp(_multiply_bf16, (a, b, c))


def mma_tf32(cuda: Any, a: Any, b: Any, c: Any) -> Any:
    """See `tensor_intrinsics`."""
    return cuda.of_warp(_multiply_tf32, (a, b, c))


def _rounded_bits(value: Any, half: int) -> int:
    """Bits of a float32, with `half` of a unit of what is kept added, if it is a finite number."""
    bits = int(np.float32(value).view(np.uint32))
    return bits if bits & 0x7F800000 == 0x7F800000 else bits + half


def _upper_half(value: Any) -> int:
    """Bits of the nearest bfloat16, of two that are as near the even one."""
    bits = int(np.float32(value).view(np.uint32))
    if np.isnan(value):
        return 0x7FFF
    return _rounded_bits(value, 0x7FFF + (bits >> 16 & 1)) >> 16


def _numbers_of_bf16(words: Any) -> Any:
    """The numbers in words, (rows, words), in order."""
    halves = np.stack([words << 16, words & np.uint32(0xFFFF0000)], axis=-1)
    return halves.view(np.float32).reshape(len(words), -1)


def _multiply_tiles(lanes: Any, numbers: Callable[[Any], Any]) -> Any:
    """What the 32 lanes of a warp get for what they have."""
    weights, vectors, sums = zip(*lanes, strict=True)
    of_a = np.array(weights, np.uint32).reshape(8, 4, 2, 2)  # g, t, half of k, half of the rows
    of_b = np.array(vectors, np.uint32).reshape(8, 4, 2)  # g, t, half of k
    of_c = np.array(sums, np.float32).reshape(8, 4, 2, 2)  # g, t, half of the rows, column
    a, b = of_a.transpose(3, 0, 2, 1).reshape(16, 8), of_b.transpose(0, 2, 1).reshape(8, 8)
    c = of_c.transpose(2, 0, 1, 3).reshape(16, 8) + numbers(a) @ numbers(b).T
    return c.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3).reshape(32, 4)


def _multiply_bf16(lanes: Any) -> Any:
    return _multiply_tiles(lanes, _numbers_of_bf16)


def _multiply_tf32(lanes: Any) -> Any:
    return _multiply_tiles(lanes, lambda words: words.view(np.float32))


EMULATIONS: dict[Any, Callable[..., Any]] = {
    intrinsics.load_four: load_four,
    intrinsics.store_tagged: store_tagged,
    intrinsics.load_tagged: load_tagged,
    tensor_intrinsics.cluster_arrive: Cuda.cluster_arrive,
    tensor_intrinsics.cluster_wait: Cuda.cluster_wait,
    tensor_intrinsics.pack_bf16: pack_bf16,
    tensor_intrinsics.round_tf32: round_tf32,
    tensor_intrinsics.store_remote_bf16: store_remote_bf16,
    tensor_intrinsics.store_remote_tf32: store_remote_tf32,
    tensor_intrinsics.load_words: load_words,
    tensor_intrinsics.mma_bf16: mma_bf16,
    tensor_intrinsics.mma_tf32: mma_tf32,
}


def emulate_intrinsics(patch: pytest.MonkeyPatch, cuda: Cuda) -> None:
    """Have calls of intrinsics, which Numba refuses in Python, run their emulations."""

    def call(intrinsic: Any, *arguments: Any) -> Any:
        return EMULATIONS[intrinsic](cuda, *arguments)

    patch.setattr(type(intrinsics.load_four), "__call__", call)
