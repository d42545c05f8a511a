"""The product of one row: the bits are those of the product of many, whatever the strips."""

from typing import Any

import numba
import numpy as np
import pytest
from problems import DTYPES
from test_product import product

from fastgru.kernels.cpu import build
from fastgru.kernels.cpu.calling import call_at
from fastgru.kernels.cpu.product import first_of_strip
from fastgru.kernels.cpu.row_product import RowExtent, RowFactors, RowSums, strip_bits
from fastgru.kernels.cpu.simd import pointer
from fastgru.kernels.cpu.tuning import CHUNK, FIRST_CACHE, STRIP_BITS


@numba.njit
def call(address, sums, gate, factors, segments, K, weights, panels, step):  # type: ignore[no-untyped-def]
    """``sums += factors @ weights`` by the kernel at an address."""
    call_at(
        address,
        RowSums(pointer(sums, 0), gate),
        RowFactors(pointer(factors, 0), K),
        pointer(weights, 0),
        RowExtent(segments, K, panels),
        step,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gates", [1, 2, 3, 4])
@pytest.mark.parametrize("K", [5, CHUNK + 3, "one vector in the first-level cache"])
def test_bits_are_those_of_the_product_of_many_rows(gates: int, dtype: str, K: Any) -> None:
    kind, rng = np.dtype(dtype), np.random.default_rng(0)
    lanes, segments = build.lanes(kind), 2
    if isinstance(K, str):
        K = FIRST_CACHE // (segments * gates * lanes * kind.itemsize)
    for panels in (0, 1, 2, 3, 4, 5, 9):
        factors = rng.standard_normal((1, segments, K)).astype(kind)
        weights = rng.standard_normal((panels, segments, K, gates, lanes)).astype(kind)
        start = rng.standard_normal((1, gates, panels + 1, lanes)).astype(kind)
        expected = product(start, factors, weights)
        for step in (0, 1):
            sums = start.copy()
            call(
                build.row_product_kernel(gates, kind).address, sums.ravel(), (panels + 1) * lanes,
                factors.ravel(), segments, K, weights.ravel(), panels, step,
            )  # fmt: skip
            np.testing.assert_array_equal(sums[:, :, :panels], expected[:, :, :panels])
            np.testing.assert_array_equal(sums[:, :, panels], start[:, :, panels])


@pytest.mark.parametrize(
    ("vectors", "sums", "K", "bits"),
    [
        (8, 3, 128, 0),
        (2, 3, 32, STRIP_BITS),  # all weights stay in the first-level cache
        (16, 3, 256, STRIP_BITS),  # those of one vector do not
        (8, 1, 128, STRIP_BITS),  # one vector has too few sums
    ],
)
def test_which_strips_of_units_a_row_takes(vectors: int, sums: int, K: int, bits: int) -> None:
    """With vectors of 64 bytes."""
    assert strip_bits(vectors, 64 * sums, 64 * sums * K) == bits


@pytest.mark.parametrize("bits", [0, STRIP_BITS])
@pytest.mark.parametrize("vectors", range(1, 14))
def test_strips_of_units_go_there_and_back(vectors: int, bits: int) -> None:
    strips = -(-vectors // (1 << bits))
    there, back = (
        [first_of_strip(i, vectors, bits, step) for i in range(strips)] for step in (0, 1)
    )
    assert there == list(range(0, vectors, 1 << bits))
    assert back == there[::-1]
    # After the last one it is where the next step starts.
    assert first_of_strip(strips, vectors, bits, 0) == back[0]
    assert first_of_strip(strips, vectors, bits, 1) == there[0]
