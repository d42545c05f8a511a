"""Products by cuBLAS, emulated."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .cupy_module import Stream


def _view(matrix: Any, rows: int, columns: int) -> Any:
    """A matrix inside an array as a NumPy array."""
    if matrix.transposed:
        return _view(matrix._replace(transposed=False), columns, rows).T
    flat = np.asarray(matrix.array).reshape(-1)[matrix.start :]
    assert (rows - 1) * matrix.stride + columns <= flat.size
    assert columns <= matrix.stride or rows <= 1
    size = flat.itemsize
    return np.lib.stride_tricks.as_strided(
        flat, (rows, columns), (matrix.stride * size, size), writeable=True
    )


def _rounded(values: Any, bits: int) -> Any:
    """Rounded to so many significant bits, if those are fewer than float32 has."""
    if bits == 24:
        return values
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


class Handle:
    """`blas.Handle`: what multiplies is the number of the stream that is to be used."""

    def on(self, stream: int, workspace: Any) -> int:
        """See `blas.Handle`."""
        return stream


def product(
    n: int,
    k: int,
    a: Any,
    b: Any,
    c: Any,
    *,
    add: bool,
    precision: Any = None,
    multiply: int | None = None,
) -> Callable[[int, int], None]:
    """`blas.product` on NumPy arrays; CuPy's own handle, on the null stream, cannot be captured."""

    def run(m: int, offset: int) -> None:
        if m == 0 or n == 0:
            return
        null = sys.modules["cupy"].cuda.get_current_stream().ptr
        from_there = a._replace(start=a.start + offset)
        Stream.launch(
            null if multiply is None else multiply,
            lambda: _multiply(m, n, k, from_there, b, c, add, precision),
        )

    return run


def _multiply(m: int, n: int, k: int, a: Any, b: Any, c: Any, add: bool, precision: Any) -> None:
    assert a.array.dtype == b.array.dtype == c.array.dtype
    out = _view(c, m, n)
    bits = {None: 24, "tf32": 11, "bf16": 8}[precision]
    with np.errstate(invalid="ignore"):  # a GPU does not warn
        product = _rounded(_view(a, m, k), bits) @ _rounded(_view(b, k, n), bits)
    out[...] = out + product if add else product
