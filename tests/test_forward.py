"""The forward loop: in which order a step takes its units, and its blocks of rows and of time."""

import numpy as np
import pytest
from problems import assert_same_bits, by_row, draw, everywhere, join

from fastgru.kernels.cpu.forward import first_of_strip, strip_bits
from fastgru.kernels.cpu.tuning import STRIP_BITS


@pytest.mark.parametrize(
    ("rows", "vectors", "sums", "K", "bits"),
    [
        (1, 8, 3, 128, 0),
        (2, 8, 3, 128, STRIP_BITS),  # a product of its own for each vector is not worth it
        (1, 2, 3, 32, STRIP_BITS),  # all weights stay in the first-level cache
        (1, 16, 3, 256, STRIP_BITS),  # those of one vector do not
        (1, 8, 1, 128, STRIP_BITS),  # one vector has too few sums
    ],
)
def test_which_strips_of_units_a_step_takes(
    rows: int, vectors: int, sums: int, K: int, bits: int
) -> None:
    """With vectors of 64 bytes."""
    assert strip_bits(rows, vectors, 64 * sums, 64 * sums * K) == bits


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


@everywhere
def test_results_do_not_depend_on_how_a_long_batch_is_split(cell: str, dtype: str) -> None:
    """More rows than run together, and more steps than are projected together."""
    problem = draw(cell, (67, 20, 3, 16), dtype=dtype)
    parts = np.split(np.arange(67), [1, 8, 20])
    assert_same_bits(join([by_row(problem.rows(rows)) for rows in parts]), by_row(problem))


@everywhere
def test_a_row_alone_whose_weights_leave_the_first_level_cache_gives_the_same_bits(
    cell: str, dtype: str
) -> None:
    """It takes its units in smaller groups."""
    problem = draw(cell, (3, 4, 3, 72), dtype=dtype)
    parts = [[0], [1, 2]]
    assert_same_bits(join([by_row(problem.rows(rows)) for rows in parts]), by_row(problem))
