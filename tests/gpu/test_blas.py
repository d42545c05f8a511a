"""What cuBLAS is told."""

import ctypes
import types
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What comes at a library with the signatures of cuBLAS's documentation; it is version 7."""

    pytest.importorskip("numba_cuda")
    from fastgru.kernels.cuda import blas

    i, p = ctypes.c_int, ctypes.c_void_p
    # Handle, operations, m, n, k, alpha, A, its type and leading dimension, B, beta, C, compute
    # type, algorithm.
    gemm = (p, i, i, i, i, i, p, p, i, i, p, i, i, p, p, i, i, i, i)
    kinds: dict[str, tuple[Any, ...]] = {
        "cublasCreate_v2": (p,),
        "cublasDestroy_v2": (p,),
        "cublasGetVersion_v2": (p, p),
        "cublasSetStream_v2": (p, p),
        "cublasSetWorkspace_v2": (p, p, ctypes.c_size_t),
        "cublasGemmEx": gemm,
    }
    assert {name: tuple(own) for name, own in blas.SIGNATURES.items()} == kinds
    came: list[Any] = []

    def stub(name: str) -> Any:
        def note(*arguments: Any) -> int:
            if name == "cublasCreate_v2":
                ctypes.cast(arguments[0], ctypes.POINTER(ctypes.c_size_t))[0] = 2**50
            elif name == "cublasGetVersion_v2":
                ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_int))[0] = 7
            else:
                came.append((name, *arguments))
            return 13 if arguments[1:2] == (99,) else 0

        return ctypes.CFUNCTYPE(i, *kinds[name])(note)

    library = types.SimpleNamespace(**{name: stub(name) for name in kinds})
    monkeypatch.setattr(blas, "c_library", lambda: library)
    monkeypatch.setattr(blas, "version_for_cupy", lambda: 7)
    return came


def test_cublas_is_called_with_what_it_expects(noted: list[Any]) -> None:

    from fastgru.kernels.cuda import blas

    at = types.SimpleNamespace
    handle = blas.Handle()
    multiply = handle.on(2**63 + 2**41, at(data=at(ptr=2**40), nbytes=2**33))
    assert noted == [
        ("cublasSetStream_v2", 2**50, 2**63 + 2**41),
        ("cublasSetWorkspace_v2", 2**50, 2**40, 2**33),
    ]
    matrix = at(dtype=np.dtype("float32"), data=at(ptr=2**42))
    a, b, c = (blas.Matrix(matrix, start, 10 + start) for start in (1, 2, 3))
    blas.gemm(4, 5, 6, a, b._replace(transposed=True), c, add=True, multiply=multiply)
    told = [*noted[2][2:]]
    one = told[5]
    assert ctypes.c_float.from_address(one).value == 1
    assert told == [1, 0, 5, 4, 6, one, 2**42 + 8, 0, 12, 2**42 + 4, 0, 11, one, 2**42 + 12, 0, 13,
                    68, -1]  # fmt: skip
    with pytest.raises(RuntimeError, match="cublasSetStream_v2 failed with status 13"):
        handle.on(99, None)
    del handle, multiply
    assert noted[-1] == ("cublasDestroy_v2", 2**50)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(
    ("dtype", "precision", "kind", "compute"),
    [
        ("float32", None, 0, 68),
        ("float32", "tf32", 0, 77),
        ("float32", "bf16", 0, 75),
        ("float64", None, 1, 70),
    ],
)
def test_products_are_prepared_once(
    cuda_tools: None, dtype: str, precision: Any, kind: int, compute: int, add: bool
) -> None:
    from fastgru.kernels.cuda import blas

    def matrix(address: int, start: int, stride: int) -> Any:
        memory = types.SimpleNamespace(ptr=address)
        return blas.Matrix(types.SimpleNamespace(dtype=np.dtype(dtype), data=memory), start, stride)

    told: list[Any] = []
    a, b, c = matrix(1000, 1, 20), matrix(2000, 2, 30), matrix(3000, 3, 40)
    options: Any = {"precision": precision, "multiply": lambda *numbers: told.append(numbers)}
    product = blas.product(5, 6, a, b, c, add=add, **options)
    for rows, offset in ((4, 0), (0, 0), (3, 7)):
        product(rows, offset)
    blas.product(0, 6, a, b, c, add=add, **options)(4, 0)
    size = np.dtype(dtype).itemsize
    number: Any = {4: ctypes.c_float, 8: ctypes.c_double}[size]
    for (rows, offset), found in zip(((4, 0), (3, 7)), told, strict=True):
        alpha, beta = found[5], found[12]
        assert number.from_address(alpha).value == 1
        assert number.from_address(beta).value == add
        assert found == (
            0, 0, 5, rows, 6, alpha, 2000 + 2 * size, kind, 30,
            1000 + (1 + offset) * size, kind, 20, beta, 3000 + 3 * size, kind, 40, compute, -1,
        )  # fmt: skip


def test_another_cublas_than_that_of_cupy_is_refused(
    noted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgru.kernels.cuda import blas

    monkeypatch.setattr(blas, "version_for_cupy", lambda: 6)
    with pytest.raises(RuntimeError, match="expected version 6, which CuPy uses, got 7"):
        blas.Handle()
    assert noted == [("cublasDestroy_v2", 2**50)]
