"""Weights of one layer and direction, laid out for the loops that read them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cells import INPUT, RECURRENT, Cell
from ..layout import folded_weights, packed_weights, terms_of_vector, vector_weights
from . import build
from .packing import PackPart
from .threads import allowed_threads
from .tuning import WORK_PER_PACKED_ELEMENT
from .workspace import pool

Array = NDArray[Any]
Weights = Mapping[str, Array]


def flat(rows: Sequence[Sequence[int]]) -> Array:
    """Rows of whole numbers, one after the other: a table for kernels."""
    return np.array([number for row in rows for number in row], np.intp)


def vector_places(cell: Cell) -> Array:
    """For each row of the vectors of weights: vector, gate, and the pre-activation it is in."""
    return flat(
        [
            (number, gate, term)
            for number, weight in enumerate(vector_weights(cell))
            for gate, term in enumerate(terms_of_vector(cell, weight))
        ]
    )


class Packing:
    """How the weights of one layer and direction are laid out; see `layout.PackedWeights`.

    Parameters
    ----------
    by_columns : bool
        For the gradients of operands and of x, instead of forward.
    """

    def __init__(
        self, cell: Cell, I: int, H: int, dtype: np.dtype[Any], by_columns: bool = False
    ) -> None:
        layout = packed_weights(cell, I, H, build.lanes(dtype), by_columns)
        parts: list[PackPart] = []
        gates: list[int] = []
        for part in layout.parts:
            first = len(gates)
            parts.append(PackPart(part.kind == RECURRENT, first, len(part.gates), part.start))
            gates += part.gates
        terms = len(cell.pre_activations)
        self._tables = flat(parts), np.array(gates, np.intp), vector_places(cell)
        self._numbers = terms, by_columns, H
        self._cell = cell
        self._input, self._recurrent = (
            weight.name if (weight := cell.weight_of(kind)) else "" for kind in (INPUT, RECURRENT)
        )
        self._vectors = [weight.name for weight in vector_weights(cell)]
        # What stands for weights that are not there.
        self._no_matrix, self._no_vector = np.empty((0, 0), dtype), np.empty(0, dtype)
        self._no_vectors = (self._no_vector,) * build.vectors_passed(len(self._vectors))
        self._buffers = pool(dtype).buffers(layout.size)
        self._work = layout.size * WORK_PER_PACKED_ELEMENT
        self._kernel = build.packing_kernel(len(self._no_vectors), dtype)
        self._folds = cell.norm is not None and not by_columns

    def pack(self, weights: Weights, statistics: Any = None) -> Array:
        """Lay out weights; a copy.

        A batch norm is folded into them: by the statistics given, else by the running ones.
        """
        if self._folds:
            weights = folded_weights(self._cell, weights, statistics)
        vectors = [weights.get(name, self._no_vector) for name in self._vectors]
        return self._pack(weights, (*vectors, *self._no_vectors[len(vectors) :]))

    def pack_plain(self, weights: Weights) -> Array:
        """Lay out the matrices alone; a copy."""
        return self._pack(weights, self._no_vectors)

    def _pack(self, weights: Weights, vectors: tuple[Array, ...]) -> Array:
        packed = self._buffers.acquire()
        workers = allowed_threads(self._work)
        self._kernel.on(workers)(
            weights.get(self._input, self._no_matrix),
            weights.get(self._recurrent, self._no_matrix),
            vectors, *self._tables, *self._numbers, packed, 0, workers,
        )  # fmt: skip
        return packed

    def give_back(self, packed: Array) -> None:
        """Return the memory of packed weights that nobody uses any more."""
        self._buffers.release(packed)
