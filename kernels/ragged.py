"""The ragged order in which the rows of a batch are computed.

Samples are sorted by length, longest first, so those still running at a step are a leading run of
the sorted rows. *Packed rows* list all valid (step, row) pairs, step by step: step s holds the
packed rows offset[s] to offset[s + 1].
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class RaggedRows(NamedTuple):
    """Samples sorted by length, and packed rows before each step."""

    order: Array  # (N,)
    lengths: Array  # (N,)
    offset: Array  # (T + 1,)

    @property
    def total(self) -> int:
        """Number of packed rows."""
        return int(self.offset[-1])


def ragged_rows(lengths: Array | None, N: int, T: int) -> RaggedRows:
    """Sort the samples of a batch by their number of steps (None: all T)."""
    if lengths is None:
        return RaggedRows(np.arange(N), np.full(N, T, np.intp), np.arange(T + 1) * N)
    steps = np.asarray(lengths, np.intp)
    order = np.argsort(-steps, kind="stable")
    # Rows that run at step s are those longer than s.
    ended = np.bincount(steps, minlength=T + 1)[: T + 1].cumsum()
    offset = np.concatenate(([0], (N - ended[:T]).cumsum()))
    return RaggedRows(order, steps[order], offset)
