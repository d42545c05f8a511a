"""Recurrences for NumPy arrays.

`Packing` and `Recurrence` work on one layer and direction; everything about layers, directions,
layouts and bad input is decided by the caller.
"""

import sys
from typing import Any

import numpy as np
from numba.core.registry import cpu_target

from .. import store
from ..ragged import ragged_rows
from .build import kernel_makers
from .packed import Packing
from .recurrence import Recurrence
from .simd import has_fma, register_bits, register_count, target
from .threads import describe_threads, use_one_thread

__all__ = [
    "Packing",
    "Recurrence",
    "copy",
    "describe",
    "device_of",
    "kernel_makers",
    "precisions",
    "ragged_rows",
    "use_one_thread",
]

if sys.maxsize < 2**32:
    raise ImportError("fastgru needs a 64-bit Python")
# Loads what Numba otherwise loads with the first kernel: here, whoever imports this module can tell
# when it was interrupted.
cpu_target.target_context.refresh()

device_of = None  # memory is one


def copy(array: Any) -> Any:
    """A copy of an array, in memory: also of one that is mapped from a file."""
    return np.array(array)


def precisions(dtype: Any) -> tuple[str | None, ...]:
    """Precisions of products that these kernels know for arrays of a dtype: its own."""
    return (None,)


def describe() -> dict[str, str]:
    """What these kernels compute with, by label."""
    fused = "" if has_fma() else ", without fused multiply-add"
    return {
        "CPU vectors": f"{register_count()} registers of {register_bits()} bits{fused}, "
        f"for CPU {target().cpu}",
        "CPU threads": describe_threads(),
        "compiled kernels": store.describe(),
    }
