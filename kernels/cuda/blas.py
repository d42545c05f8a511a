"""Matrix products on the GPU, by cuBLAS: `gemm` over row-major matrices inside larger arrays."""

import functools
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
    """What gives the handle of the current device, and what multiplies on the current stream."""
    from cupy.cuda.device import get_cublas_handle
    from cupy_backends.cuda.libs import cublas

    return get_cublas_handle, cublas.gemmEx


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
) -> None:
    """``c = a @ b``, or ``c += a @ b``, for c of m rows and n columns; on the current stream."""
    if m == 0 or n == 0:
        return
    handle, multiply = _cublas()
    dtype = c.array.dtype
    single = dtype.itemsize == 4
    kind = _REAL_32F if single else _REAL_64F
    compute = COMPUTE[precision] if single else _COMPUTE_64F
    alpha, beta = _scalar(dtype, 1)[0], _scalar(dtype, int(add))[0]
    size = dtype.itemsize
    # cuBLAS's matrices are column-major: it is asked for the transposed product.
    multiply(
        handle(),
        _TRANSPOSED if b.transposed else _PLAIN,
        _TRANSPOSED if a.transposed else _PLAIN,
        n, m, k, alpha,
        b.array.data.ptr + b.start * size, kind, b.stride,
        a.array.data.ptr + a.start * size, kind, a.stride,
        beta, c.array.data.ptr + c.start * size, kind, c.stride,
        compute, _DEFAULT_ALGORITHM,
    )  # fmt: skip
