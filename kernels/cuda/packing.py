"""The weights of one layer and direction, as the kernels take them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..cells import RECURRENT, Cell, Weight
from ..layout import folded_weights, vector_weights
from .context import PackedWeights
from .terms import constant_runs

Weights = Mapping[str, Any]


class Packing:
    """How the weights of one layer and direction are laid out: by position, contiguous."""

    def __init__(self, cell: Cell, I: int, H: int, dtype: np.dtype[Any]) -> None:
        self._cell, self._H, self._dtype = cell, H, dtype

    def pack(self, weights: Weights, statistics: Any = None) -> PackedWeights:
        """Lay out weights, matrices without a copy where they are contiguous.

        A batch norm is folded into them: by the statistics given, else by the running ones.
        """
        with weights[self._cell.input_weight.name].device:
            if self._cell.norm is not None:
                weights = folded_weights(self._cell, weights, statistics)
            ih, hh = pack_matrices(self._cell, weights, self._H)
            vectors = vector_weights(self._cell)
            constants = pack_vectors(self._cell, weights, vectors, self._H, self._dtype)
            return PackedWeights(ih, hh, constants)

    def give_back(self, packed: PackedWeights) -> None:
        """Packed weights take no memory of ours."""


def pack_vectors(
    cell: Cell, weights: Weights, vectors: Sequence[Weight], H: int, dtype: np.dtype[Any]
) -> Any:
    """What some vectors of weights add to each pre-activation, (1, pre-activations, H).

    On the current device.
    """
    import cupy as xp

    constants = xp.zeros((1, len(cell.pre_activations), H), dtype)
    for weight in vectors:
        vector = weights.get(weight.name)
        if vector is not None:
            gates = vector.reshape(-1, H)
            for source, target, count in constant_runs(cell, weight):
                view = constants[0, target : target + count]
                view += gates[source : source + count]  # an item would be copied back
    return constants


def pack_matrices(cell: Cell, weights: Weights, H: int) -> tuple[Any, Any]:
    """The input weights and the recurrent ones, contiguous, on the current device."""
    import cupy as xp

    recurrent = cell.weight_of(RECURRENT)
    ih = xp.ascontiguousarray(weights[cell.input_weight.name])
    if recurrent is None:
        return ih, xp.empty((0, H), ih.dtype)
    return ih, xp.ascontiguousarray(weights[recurrent.name])
