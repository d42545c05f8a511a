"""Recurrences for CuPy arrays: handwritten kernels for the equations, cuBLAS for the products.

The same interface as `fastgru.kernels.cpu`. Results stay on the arrays' device and are made on
CuPy's current stream.
"""

import importlib.util
from typing import Any

if importlib.util.find_spec("numba_cuda") is None:
    raise ModuleNotFoundError(
        "CuPy arrays need numba-cuda, which is not installed: "
        'pip install "fastgru[cuda12]", or "fastgru[cuda13]" for CUDA 13',
        name="numba_cuda",
    )

from ..ragged import ragged_rows
from . import blas, loops
from . import primitives as _primitives  # noqa: F401 - teaches Numba the functions that cells call
from .packing import Packing
from .recurrence import Recurrence

__all__ = [
    "Packing",
    "Recurrence",
    "copy",
    "describe",
    "device_of",
    "place",
    "precisions",
    "ragged_rows",
]


def device_of(array: Any) -> Any:
    """The GPU that holds an array."""
    return array.device


def precisions(dtype: Any) -> tuple[str | None, ...]:
    """Precisions of products that these kernels know for arrays of a dtype."""
    return tuple(blas.COMPUTE) if dtype.itemsize == 4 else (None,)


def copy(array: Any) -> Any:
    """A copy of an array, where it is: CuPy copies to the current device."""
    with array.device:
        return array.copy()


def place(array: Any, like: Any) -> Any:
    """A NumPy array on the device of a CuPy array."""
    import cupy

    with like.device:
        return cupy.asarray(array)


def describe() -> dict[str, str]:
    """What these kernels compute with, by label."""
    import cupy

    device = cupy.cuda.Device()
    name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return {
        "GPU": f"{name}, compute capability {device.compute_capability}",
        "loops on it": loops.describe(),
    }
