"""The matrix product: right for every number of rows and panels, and no row depends on others."""

from typing import Any

import numba
import numpy as np
import pytest
from problems import DTYPES, ELEMENTARY, SHIPPED_CELLS, assert_close, draw, flatten, solve

from fastgru.kernels.cpu import build
from fastgru.kernels.cpu.calling import call_at
from fastgru.kernels.cpu.product import (
    Extent,
    Factors,
    Panels,
    Prefetch,
    Sums,
    share_of_strip,
    tile_counts,
    tile_shapes,
)
from fastgru.kernels.cpu.simd import pointer, register_count
from fastgru.kernels.cpu.tuning import CHUNK, NEAR_CACHE, STRIP

SEGMENTS, K = 2, 5
ROWS, PANELS = range(20), range(7)


@numba.njit
def call(address, out, C, c_row, c_gate, A, segments, K, B, b_panel, b_k, soon, rows, panels):  # type: ignore[no-untyped-def]
    """``out = C + A @ B`` by the kernel at an address; it may prefetch what does not exist."""
    call_at(
        address,
        Sums(pointer(out, 0), c_row, c_gate),
        Sums(pointer(C, 0), c_row, c_gate),
        Factors(pointer(A, 0), segments * K, K, 1),
        Panels(pointer(B, 0), b_panel, b_k),
        Prefetch(pointer(B, 0), pointer(A, 0), 1000, soon),
        Extent(segments, K, rows, panels),
    )


def product(C: Any, A: Any, B: Any, soon: int = 0) -> Any:
    """The sums C (rows, gates, panels and one more, lanes) with the products of A and B added.

    A (rows, segments, K), B (panels, segments, K, gates, lanes). `soon` elements of A, and of what
    follows it, are asked for in each round.
    """
    _, gates, stride, lanes = C.shape
    _, segments, K = A.shape
    kernel = build.product_kernel(gates, C.dtype)
    out, c_gate = np.full_like(C, np.nan), stride * lanes
    call(
        kernel.address, out.ravel(), C.ravel(), gates * c_gate, c_gate, A.ravel(), segments, K,
        B.ravel(), segments * K * gates * lanes, gates * lanes, soon, len(A), len(B),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gates", [1, 2, 3, 4])
@pytest.mark.parametrize("asks", [False, True])
def test_product(asks: bool, gates: int, dtype: str) -> None:
    lanes, rng = build.lanes(np.dtype(dtype)), np.random.default_rng(0)
    A = rng.standard_normal((len(ROWS), SEGMENTS, K)).astype(dtype)
    for panels in PANELS:
        B = rng.standard_normal((panels, SEGMENTS, K, gates, lanes)).astype(dtype)
        C = rng.standard_normal((len(ROWS), gates, panels + 1, lanes)).astype(dtype)
        alone = np.concatenate([product(C[[row]], A[[row]], B) for row in ROWS])
        expected = np.full(C.shape, np.nan, "longdouble")
        added = np.einsum("rbk,pbkgl->rgpl", A, B, dtype="longdouble")
        expected[:, :, :panels] = C[:, :, :panels] + added
        tolerance = 4 * SEGMENTS * K * np.finfo(dtype).eps
        np.testing.assert_allclose(alone, expected, rtol=0, atol=tolerance)
        for rows in ROWS:
            together = product(C, A[:rows], B, soon=rows % 3 if asks else 0)
            np.testing.assert_array_equal(together[:rows], alone[:rows])
            assert np.isnan(together[rows:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sums_are_made_of_chunks(dtype: str) -> None:
    """Each chunk is summed from 0, then added to the ones before; to the bit, where exact."""
    kind = np.dtype(dtype)
    lanes, length = build.lanes(kind), 2 * CHUNK + 3
    large = 2.0 ** (np.finfo(kind).nmant + 1)  # adding 1 to it is lost
    A = np.ones((1, 1, length), kind)
    B = np.ones((1, 1, length, 1, lanes), kind)
    C = np.zeros((1, 1, 2, lanes), kind)
    C[:, :, 0] = large
    out = product(C, A, B)
    assert (out[0, 0, 0] == large + 2 * CHUNK + 4).all()  # the last 3 round up to 4
    # One after the other they would all be lost.
    assert (np.cumsum(np.concatenate([C[0, 0, 0, :1], A.ravel()]))[-1] == large).all()


@pytest.mark.parametrize("gates", range(1, 5))
def test_tiles_take_all_rows_and_panels(gates: int) -> None:
    """Largest first, and down to one row and one panel; sums fill most registers."""
    shapes = tile_shapes(gates)
    heights = [rows for rows, _ in shapes]
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] == 1
    assert all(panels[-1] == 1 for _, panels in shapes)
    largest = max(rows * panels[0] * gates for rows, panels in shapes)
    assert largest <= register_count() * 3 // 4
    counts = tile_counts(gates)
    assert (counts.full_rows, counts.full_panels) == (shapes[0][0], shapes[0][1][0])


@pytest.mark.parametrize("rows", [1, 8, 12, 19])
@pytest.mark.parametrize("vectors", [1, 4, 9])
def test_what_a_step_prefetches_is_shared_among_its_tiles(rows: int, vectors: int) -> None:
    """All of it, hardly more; nothing where weights come first, or where there is nothing."""
    tiles, rounds, size = tile_counts(3), 50, 40_000
    share = share_of_strip(size, rows, vectors, rounds, 1000, tiles)
    strips = -(-vectors // STRIP)
    assert size - strips < strips * share.strip <= size
    assert share.tile == rounds * share.round
    full = rows // tiles.full_rows * (min(vectors, STRIP) // tiles.full_panels)
    if full:
        assert (full + tiles.pairs * STRIP) * share.tile >= share.strip
    for none in (
        share_of_strip(size, rows, vectors, rounds, NEAR_CACHE + 1, tiles),
        share_of_strip(0, rows, vectors, rounds, 1000, tiles),
    ):
        assert none == (0, 0, 0)


# --- long sums ------------------------------------------------------------------------------------


def rounding_of_sums(terms: int, largest: float = 1.0) -> float:
    """Error of sums of so many products, in eps, by chunks of 512, then of the chunks.

    Partial sums grow to `largest` like a random walk, and each addition rounds the one before it:
    over b terms that makes sqrt(b / 24) times the last one, mean square.
    """
    chunk = min(terms, 512)
    return largest * float(np.sqrt((chunk + terms / chunk) / 24))


@pytest.mark.parametrize("I", [10_000, 100_000])
@pytest.mark.parametrize("cell", SHIPPED_CELLS)
def test_very_wide_inputs(cell: str, I: int) -> None:
    """Pre-activations near 1 are sums of all inputs: with one accumulator they lost three digits.

    Against float64; three standard deviations are allowed.
    """
    eps = float(np.finfo("float32").eps)
    N, T, H = 8, 3, 16
    problem = draw(cell, (N, T, I, H), dtype="float32")
    scale = np.float32((3 * H / I) ** 0.5)
    problem = problem._replace(x=problem.x * scale)
    (y, _, gradients), (want_y, _, want) = solve(problem), solve(problem.astype("float64"))
    allowed = 3 * rounding_of_sums(I) + ELEMENTARY
    assert_close(y, want_y, eps * allowed)
    for got, exact in zip(flatten(gradients), flatten(want), strict=True):
        assert_close(got / np.abs(exact).max(), exact / np.abs(exact).max(), 4 * eps * allowed)


@pytest.mark.parametrize("cell", SHIPPED_CELLS)
def test_large_pre_activations(cell: str) -> None:
    """As in published models: the bound grows with them, for what they are sums of does."""
    eps = float(np.finfo("float32").eps)
    problem = draw(cell, (16, 20, 64, 64), dtype="float32", seed=3)
    problem = problem._replace(params=problem.params.map(lambda w: w * np.float32(11)))
    (weights,) = problem.params.layers[0]
    largest = float(np.abs(problem.x @ weights.weight_ih.T).max())
    assert largest > 25
    # One step: a network with such weights is chaotic over many.
    first = problem.steps(slice(1))
    y, _, _ = solve(first)
    want_y, _, _ = solve(first.astype("float64"))
    assert_close(y, want_y, eps * (3 * rounding_of_sums(128, largest) + ELEMENTARY))
