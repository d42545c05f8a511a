"""The matrix product: right for every number of rows and panels, and no row depends on others."""

from typing import Any

import numba
import numpy as np
import pytest
from problems import DTYPES

from fastgru.kernels.cpu import build
from fastgru.kernels.cpu.product import product

BLOCKS, K = 2, 5
ROWS, PANELS = range(20), range(7)


def compiled(gates: int) -> Any:
    """``C + A @ B`` for so many gates: A (rows, blocks, K), B (panels, blocks, K, gates, lanes)."""

    @numba.njit
    def add(out, C, c_row, c_gate, A, B, b_panel, rows, panels):  # type: ignore[no-untyped-def]
        product(
            out, 0, c_row, c_gate, C, 0, c_row, c_gate, A, 0, BLOCKS * K, K, 1,
            B, 0, b_panel, 0, (), BLOCKS, K, rows, panels, gates,
        )  # fmt: skip

    def multiply(C: Any, A: Any, B: Any) -> Any:
        out = np.full_like(C, np.nan)  # (rows, gates, panels and one more, lanes)
        _, _, stride, lanes = C.shape
        c_gate, b_panel = stride * lanes, BLOCKS * K * gates * lanes
        sizes = b_panel, len(A), len(B)
        add(out.ravel(), C.ravel(), gates * c_gate, c_gate, A.ravel(), B.ravel(), *sizes)
        return out

    return multiply


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gates", [1, 2, 3, 4])
def test_product(gates: int, dtype: str) -> None:
    lanes, rng = build.lanes(np.dtype(dtype)), np.random.default_rng(0)
    multiply = compiled(gates)
    A = rng.standard_normal((len(ROWS), BLOCKS, K)).astype(dtype)
    for panels in PANELS:
        B = rng.standard_normal((panels, BLOCKS, K, gates, lanes)).astype(dtype)
        C = rng.standard_normal((len(ROWS), gates, panels + 1, lanes)).astype(dtype)
        alone = np.concatenate([multiply(C[[row]], A[[row]], B) for row in ROWS])
        expected = np.full(C.shape, np.nan, "longdouble")
        added = np.einsum("rbk,pbkgl->rgpl", A, B, dtype="longdouble")
        expected[:, :, :panels] = C[:, :, :panels] + added
        tolerance = 4 * BLOCKS * K * np.finfo(dtype).eps
        np.testing.assert_allclose(alone, expected, rtol=0, atol=tolerance)
        for rows in ROWS:
            together = multiply(C, A[:rows], B)
            np.testing.assert_array_equal(together[:rows], alone[:rows])
            assert np.isnan(together[rows:]).all()
