"""Weights of one layer and direction, laid out for the loops that read them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cells import Cell
from ..plan import PhasePlan, phase_plans
from . import build
from .memory import pool
from .plan import padded
from .threads import allowed_threads

Array = NDArray[Any]
Weights = Mapping[str, Array]

# Laying out an element takes as long as so many multiply-adds, by which threads are decided.
_WORK_PER_ELEMENT = 8


def gate_rows(cell: Cell, part: PhasePlan, kind: str) -> Array:
    """Gate of the weights that each input-fed or operand-fed pre-activation of a phase has."""
    if kind == "input":
        pre, gates = cell.pre_activations[part.first :][: part.inputs], cell.input_gates
    else:
        pre = cell.pre_activations[part.first_recurrent :][: part.recurrents]
        gates = cell.recurrent_gates
    return np.array([gates.index(p.gate) for p in pre], np.intp)


class Packing:
    """How the weights of one layer and direction are laid out: by units for the forward loop, by
    columns for the gradients of operands and of x.

    Attributes
    ----------
    starts : dict
        Where weights start, by (phase, "input" or "recurrent").
    """

    def __init__(
        self, cell: Cell, I: int, H: int, dtype: np.dtype[Any], by_columns: bool = False
    ) -> None:
        lanes = build.lanes(dtype)
        pre, unit = cell.pre_activations, padded(H, lanes)
        parts: list[int] = []
        rows: list[Array] = []
        at = 0 if by_columns else len(pre) * unit
        self.starts: dict[tuple[int, str], int] = {}
        places = [(plan, kind) for plan in phase_plans(cell) for kind in ("input", "recurrent")]
        if by_columns:  # recurrent weights of all phases come first: their loop does not know I
            places.sort(key=lambda place: place[1], reverse=True)
        for plan, kind in places:
            gates, K = gate_rows(cell, plan, kind), I if kind == "input" else H
            self.starts[plan.number, kind] = at
            parts += [kind == "recurrent", sum(len(r) for r in rows), len(gates), at]
            rows.append(gates)
            at += len(gates) * (padded(K, lanes) * H if by_columns else unit * K)
        biases = [
            gates.index(p.gate) if getattr(p, kind) else -1
            for kind, gates in (("input", cell.input_gates), ("recurrent", cell.recurrent_gates))
            for p in pre
        ]
        self._order = np.array(parts, np.intp), np.concatenate(rows), np.array(biases, np.intp)
        self._by_columns, self._H = by_columns, H
        # What stands for a weight and a bias that are not there.
        self._no_weight, self._no_bias = np.empty((0, 0), dtype), np.empty(0, dtype)
        self._shelf = pool(dtype).shelf(at)
        self._work = at * _WORK_PER_ELEMENT
        self._kernel = build.packing_kernel(dtype)

    def pack(self, weights: Weights) -> Array:
        """Lay out weights; a copy."""
        packed = self._shelf.borrow()
        workers = allowed_threads(self._work)
        self._kernel.on(workers)(
            weights["weight_ih"], weights.get("weight_hh", self._no_weight),
            weights.get("bias_ih", self._no_bias), weights.get("bias_hh", self._no_bias),
            *self._order, self._by_columns, self._H, packed, 0, workers,
        )  # fmt: skip
        return packed

    def give_back(self, packed: Array) -> None:
        """Return the memory of packed weights that nobody uses any more."""
        self._shelf.give_back(packed)


def multiply_adds(cell: Cell, I: int, H: int) -> int:
    """Multiply-adds of all forward products, for one packed row."""
    return H * (len(cell.input_gates) * I + len(cell.recurrent_gates) * H)
