"""The matrix product: right for every number of rows and panels, and no row depends on others."""

from typing import Any

import numba
import numpy as np
import pytest
from numba.extending import register_jitable
from problems import DTYPES

from fastgru.kernels.cpu import build
from fastgru.kernels.cpu.plan import GROUP_BITS, first_of_group, group_bits
from fastgru.kernels.cpu.product import product

BLOCKS, K = 2, 5
ROWS, PANELS = range(20), range(7)


def compiled(gates: int, asks: bool) -> Any:
    """``C + A @ B`` for so many gates: A (rows, blocks, K), B (panels, blocks, K, gates, lanes).

    While it multiplies, it may ask for lines, here those of A and many more that do not exist.
    """

    @register_jitable
    def soon(A, rows):  # type: ignore[no-untyped-def]
        return (A, 0, 1000, rows % 3) if asks else ()

    @numba.njit
    def add(out, C, c_row, c_gate, A, B, b_panel, b_k, rows, panels):  # type: ignore[no-untyped-def]
        product(
            out, 0, c_row, c_gate, C, 0, c_row, c_gate, A, 0, BLOCKS * K, K, 1,
            B, 0, b_panel, b_k, 0, soon(A, rows), BLOCKS, K, rows, panels, gates,
        )  # fmt: skip

    def multiply(C: Any, A: Any, B: Any) -> Any:
        out = np.full_like(C, np.nan)  # (rows, gates, panels and one more, lanes)
        _, _, stride, lanes = C.shape
        c_gate, b_panel = stride * lanes, BLOCKS * K * gates * lanes
        sizes = b_panel, gates * lanes, len(A), len(B)
        add(out.ravel(), C.ravel(), gates * c_gate, c_gate, A.ravel(), B.ravel(), *sizes)
        return out

    return multiply


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gates", [1, 2, 3, 4])
@pytest.mark.parametrize("asks", [False, True])
def test_product(asks: bool, gates: int, dtype: str) -> None:
    lanes, rng = build.lanes(np.dtype(dtype)), np.random.default_rng(0)
    multiply = compiled(gates, asks)
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


@pytest.mark.parametrize(
    ("rows", "vectors", "sums", "K", "bits"),
    [
        (1, 8, 3, 128, 0),
        (2, 8, 3, 128, GROUP_BITS),  # a product of its own for each vector is not worth it
        (1, 2, 3, 32, GROUP_BITS),  # all weights stay in the first-level cache
        (1, 16, 3, 256, GROUP_BITS),  # those of one vector do not
        (1, 8, 1, 128, GROUP_BITS),  # one vector has too few sums
    ],
)
def test_which_groups_of_units_a_step_takes(
    rows: int, vectors: int, sums: int, K: int, bits: int
) -> None:
    """With vectors of 64 bytes."""
    assert group_bits(rows, vectors, 64 * sums, 64 * sums * K) == bits


@pytest.mark.parametrize("bits", [0, GROUP_BITS])
@pytest.mark.parametrize("vectors", range(1, 14))
def test_groups_of_units_go_there_and_back(vectors: int, bits: int) -> None:
    groups = -(-vectors // (1 << bits))
    there, back = (
        [first_of_group(i, vectors, bits, step) for i in range(groups)] for step in (0, 1)
    )
    assert there == list(range(0, vectors, 1 << bits))
    assert back == there[::-1]
    # After the last one it is where the next step starts.
    assert first_of_group(groups, vectors, bits, 0) == back[0]
    assert first_of_group(groups, vectors, bits, 1) == there[0]
