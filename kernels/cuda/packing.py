"""The weights of one layer and direction, as the kernels take them."""

from typing import Any

import numpy as np

from ..cells import Cell
from .context import PackedWeights


class Packing:
    """How the weights of one layer and direction are laid out: by position, contiguous."""

    def __init__(self, cell: Cell, I: int, H: int, dtype: np.dtype[Any]) -> None:
        self._cell = cell

    def pack(self, weights: Any) -> PackedWeights:
        """Lay out weights, without a copy where they are contiguous; missing biases are 0."""
        with weights["weight_ih"].device:
            return pack_weights(self._cell, weights)

    def give_back(self, packed: PackedWeights) -> None:
        """Packed weights take no memory of ours."""


def pack_weights(cell: Cell, weights: Any) -> PackedWeights:
    """As `Packing.pack`, on the current device."""
    import cupy as xp

    gates, recurrent = len(cell.input_gates), len(cell.recurrent_gates)
    H = weights["weight_ih"].shape[0] // gates

    def bias(name: str, count: int) -> Any:
        values = weights.get(name)
        if values is None:
            return xp.zeros((1, count, H), ih.dtype)
        return xp.ascontiguousarray(values).reshape(1, count, H)

    ih = xp.ascontiguousarray(weights["weight_ih"])
    hh = xp.ascontiguousarray(weights["weight_hh"]) if recurrent else xp.empty((0, H), ih.dtype)
    return PackedWeights(ih, hh, bias("bias_ih", gates), bias("bias_hh", recurrent))
