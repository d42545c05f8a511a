"""Matrix products on the GPU, by cuBLAS, of row-major matrices inside larger arrays."""

import ctypes
import functools
import weakref
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
_DEFAULT_ALGORITHM = -1


class Matrix(NamedTuple):
    """A row-major matrix inside an array."""

    array: Any
    start: int  # its first element
    stride: int  # elements from one row to the next
    transposed: bool = False  # as a number that of cuBLAS


class _Numbers(NamedTuple):
    """What cuBLAS is told of the numbers of a product."""

    size: int  # in bytes
    kind: int
    compute: int
    zero: int  # its address in the host's memory
    one: int
    both: Any  # the array that holds them


@functools.cache
def _numbers(dtype: np.dtype[Any], precision: str | None) -> _Numbers:
    """Those of a dtype and precision; the array lives as long as their addresses are used."""
    both = np.array([0, 1], dtype)
    zero, size = both.ctypes.data, dtype.itemsize
    kind, compute = (_REAL_32F, COMPUTE[precision]) if size == 4 else (_REAL_64F, _COMPUTE_64F)
    return _Numbers(size, kind, compute, zero, zero + size, both)


@functools.cache
def _cublas() -> tuple[Any, Any]:
    """What gives CuPy's handle for the current device, and what multiplies on its stream."""
    from cupy.cuda.device import get_cublas_handle
    from cupy_backends.cuda.libs import cublas

    return get_cublas_handle, cublas.gemmEx


def _on_current_stream() -> Callable[..., None]:
    """What multiplies on CuPy's current stream."""
    handle, multiply = _cublas()
    return functools.partial(multiply, handle())


@functools.cache
def c_library() -> Any:
    """cuBLAS as a C library: the one that is loaded already, where it is."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    for name, kinds in SIGNATURES.items():
        getattr(library, name).argtypes = kinds
    return library


_INT, _POINTER = ctypes.c_int, ctypes.c_void_p
SIGNATURES = {
    "cublasCreate_v2": [_POINTER],
    "cublasDestroy_v2": [_POINTER],
    "cublasGetVersion_v2": [_POINTER, _POINTER],
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
    status = getattr(c_library(), name)(*arguments)
    if status != 0:
        raise RuntimeError(f"cuBLAS: {name} failed with status {status}")


def version_for_cupy() -> int:
    """Version of the cuBLAS that CuPy uses."""
    from cupy.cuda.device import get_cublas_handle
    from cupy_backends.cuda.libs import cublas

    return int(cublas.getVersion(get_cublas_handle()))


class Handle:
    """A cuBLAS handle of ours on the current device: CuPy refuses to use its own while a stream is
    captured. For one thread at a time.

    Raises
    ------
    RuntimeError
        If cuBLAS cannot be used, or is another one than CuPy's.
    """

    def __init__(self) -> None:
        self._handle = ctypes.c_void_p()
        _call("cublasCreate_v2", ctypes.byref(self._handle))
        # When a program ends there may be no driver left to call.
        destroy = c_library().cublasDestroy_v2
        weakref.finalize(self, destroy, self._handle).atexit = False
        version = ctypes.c_int()
        _call("cublasGetVersion_v2", self._handle, ctypes.byref(version))
        if version.value != version_for_cupy():
            raise RuntimeError(
                f"cuBLAS: expected version {version_for_cupy()}, which CuPy uses, "
                f"got {version.value}"
            )

    def on(self, stream: int, workspace: Any) -> Callable[..., None]:
        """What multiplies on a stream from now on, until `on` is called for another."""
        # In this order: setting the stream resets the workspace.
        _call("cublasSetStream_v2", self._handle, stream)
        _call("cublasSetWorkspace_v2", self._handle, workspace.data.ptr, workspace.nbytes)
        return functools.partial(_call, "cublasGemmEx", self._handle)


# Called with the number of rows of a and c, and how many elements further than `a` says a starts.
Product = Callable[[int, int], None]


def product(
    n: int,
    k: int,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    *,
    add: bool,
    precision: str | None = None,
    multiply: Callable[..., None] | None = None,
) -> Product:
    """Prepare ``c = a @ b``, or ``c += a @ b``, for n columns of b and k of a, and any rows.

    On the current stream, or by a `multiply` of `Handle.on`. For products of every time step: what
    cuBLAS is told is then the same but for two numbers, and finding it takes the host as long as
    telling it.
    """
    multiply = multiply or _on_current_stream()
    size, kind, compute, zero, one, _ = _numbers(c.array.dtype, precision)
    beta = one if add else zero
    a_array, a_start, a_stride, a_transposed = a
    b_array, b_start, b_stride, b_transposed = b
    c_array, c_start, c_stride, _ = c
    arrays = a_array, b_array, c_array  # which live as long as their addresses are used
    a_address = a_array.data.ptr + a_start * size
    b_address = b_array.data.ptr + b_start * size
    c_address = c_array.data.ptr + c_start * size

    def run(m: int, offset: int, kept: Any = arrays) -> None:
        if m == 0 or n == 0:
            return
        # cuBLAS's matrices are column-major: it computes the transposed product.
        multiply(
            b_transposed, a_transposed, n, m, k, one, b_address, kind, b_stride,
            a_address + offset * size, kind, a_stride,
            beta, c_address, kind, c_stride, compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip

    return run


def gemm(m: int, n: int, k: int, a: Matrix, b: Matrix, c: Matrix, **options: Any) -> None:
    """``c = a @ b``, or ``c += a @ b``, for c of m rows and n columns; see `product`."""
    product(n, k, a, b, c, **options)(m, 0)
