"""The forward loop: its blocks of rows and of time."""

import numpy as np
from problems import assert_same_bits, by_row, draw, everywhere, join


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
