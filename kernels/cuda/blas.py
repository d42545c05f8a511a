"""Matrix products on the GPU, by cuBLAS: `gemm` over row-major matrices inside larger arrays."""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# How a product of float32 is computed: float32 throughout, or, where cuBLAS has a kernel for it, on
# tensor cores from operands rounded to fewer bits, with float32 sums. The numbers are cuBLAS's.
COMPUTE = {
    None: 68,  # CUBLAS_COMPUTE_32F
    "tf32": 77,  # CUBLAS_COMPUTE_32F_FAST_TF32
    "bf16": 75,  # CUBLAS_COMPUTE_32F_FAST_16BF
}
_COMPUTE_64F = 70
_REAL_32F, _REAL_64F = 0, 1
_PLAIN, _TRANSPOSED = 0, 1
_DEFAULT_ALGORITHM = -1


class Matrix(NamedTuple):
    """A row-major matrix inside an array."""

    array: Any
    start: int  # its first element
    stride: int  # elements from one row to the next
    transposed: bool = False


@functools.cache
def _scalar(dtype: np.dtype[Any], value: int) -> tuple[int, Any]:
    """Address of a number in the host's memory, and what keeps it there."""
    array = np.array(value, dtype)
    return array.ctypes.data, array


@functools.cache
def _cublas() -> tuple[Any, Any]:
    """What gives CuPy's handle for the current device, and what multiplies on its stream."""
    from cupy.cuda.device import get_cublas_handle
    from cupy_backends.cuda.libs import cublas

    return get_cublas_handle, cublas.gemmEx


def _on_current_stream(*numbers: int) -> None:
    handle, multiply = _cublas()
    multiply(handle(), *numbers)


@functools.cache
def _library() -> Any:
    """cuBLAS itself, the one that CuPy has loaded."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    for name, kinds in _SIGNATURES.items():
        getattr(library, name).argtypes = kinds
    return library


_INT, _POINTER = ctypes.c_int, ctypes.c_void_p
_SIGNATURES = {
    "cublasCreate_v2": [_POINTER],
    "cublasSetStream_v2": [_POINTER, _POINTER],
    "cublasSetWorkspace_v2": [_POINTER, _POINTER, ctypes.c_size_t],
    "cublasGemmEx": [
        *(_POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER),
        *(_POINTER, _INT, _INT, _POINTER, _INT, _INT),
        *(_POINTER, _POINTER, _INT, _INT, _INT, _INT),
    ],
}


def _call(name: str, *arguments: Any) -> None:
    """Call cuBLAS; its error as an exception."""
    status = getattr(_library(), name)(*arguments)
    if status != 0:
        raise RuntimeError(f"cuBLAS: {name} failed with status {status}")


def on_captured(device: Any, stream: int, workspace: Any) -> Callable[..., None]:
    """What multiplies on a stream of the current device that is, or will be, captured.

    CuPy's own calls refuse to, so this is a handle of ours, one for each thread and device. Its
    workspace belongs to the stream, for what is captured will use it whenever it runs.
    """
    handles: dict[int, Any] = vars(_of_thread).setdefault("handles", {})
    handle = handles.get(device.id)
    if handle is None:
        handle = ctypes.c_void_p()
        _call("cublasCreate_v2", ctypes.byref(handle))
        handles[device.id] = handle
    _call("cublasSetStream_v2", handle, stream)
    _call("cublasSetWorkspace_v2", handle, workspace.data.ptr, workspace.nbytes)
    return functools.partial(_call, "cublasGemmEx", handle)


_of_thread = threading.local()


def gemm(
    m: int,
    n: int,
    k: int,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    *,
    add: bool,
    precision: str | None = None,
    multiply: Callable[..., None] | None = None,
) -> None:
    """``c = a @ b``, or ``c += a @ b``, for c of m rows and n columns.

    On the current stream, or on that of a `multiply` of `on_captured`.
    """
    if m == 0 or n == 0:
        return
    if multiply is None:
        multiply = _on_current_stream
    dtype = c.array.dtype
    single = dtype.itemsize == 4
    kind = _REAL_32F if single else _REAL_64F
    compute = COMPUTE[precision] if single else _COMPUTE_64F
    alpha, beta = _scalar(dtype, 1)[0], _scalar(dtype, int(add))[0]
    size = dtype.itemsize
    # cuBLAS's matrices are column-major: it is asked for the transposed product.
    multiply(
        _TRANSPOSED if b.transposed else _PLAIN,
        _TRANSPOSED if a.transposed else _PLAIN,
        n, m, k, alpha,
        b.array.data.ptr + b.start * size, kind, b.stride,
        a.array.data.ptr + a.start * size, kind, a.stride,
        beta, c.array.data.ptr + c.start * size, kind, c.stride,
        compute, _DEFAULT_ALGORITHM,
    )  # fmt: skip
