"""Recurrences for NumPy arrays.

`pack` and `Recurrence` work on one layer and direction; everything about layers, directions,
layouts and bad input is decided by the caller.
"""

from . import cache
from .recurrence import RaggedRows, Recurrence, ragged_rows
from .simd import register_bits, register_count
from .threads import describe_threads
from .weights import give_back, pack

__all__ = ["RaggedRows", "Recurrence", "describe", "give_back", "pack", "ragged_rows"]


def describe() -> dict[str, str]:
    """What these kernels compute with, by label."""
    return {
        "CPU vectors": f"{register_count()} registers of {register_bits()} bits",
        "CPU threads": describe_threads(),
        "compiled kernels": str(cache.folder() or "not kept: no home folder"),
    }
