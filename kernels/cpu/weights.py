"""Weights of one layer and direction, laid out for the loops that read them."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

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


class _Order(NamedTuple):
    """Where the weights of one layer and direction go; see `packing`."""

    parts: Array
    gate_rows: Array
    bias_rows: Array
    starts: dict[tuple[int, str], int]  # of a phase's input or recurrent weights
    length: int


@functools.lru_cache(maxsize=64)
def _order(cell: Cell, I: int, H: int, lanes: int, by_columns: bool) -> _Order:
    """The order of the packed weights: by units for forward, by columns for backward."""
    pre, unit = cell.pre_activations, padded(H, lanes)
    parts: list[int] = []
    rows: list[Array] = []
    starts, at = {}, 0 if by_columns else len(pre) * unit
    places = [(plan, kind) for plan in phase_plans(cell) for kind in ("input", "recurrent")]
    if by_columns:  # recurrent weights of all phases come first: their loop does not know I
        places.sort(key=lambda place: place[1], reverse=True)
    for plan, kind in places:
        gates, K = gate_rows(cell, plan, kind), I if kind == "input" else H
        starts[plan.number, kind] = at
        parts += [kind == "recurrent", sum(len(r) for r in rows), len(gates), at]
        rows.append(gates)
        at += len(gates) * (padded(K, lanes) * H if by_columns else unit * K)
    biases = [
        gates.index(p.gate) if getattr(p, kind) else -1
        for kind, gates in (("input", cell.input_gates), ("recurrent", cell.recurrent_gates))
        for p in pre
    ]
    flat = np.concatenate(rows)
    return _Order(np.array(parts, np.intp), flat, np.array(biases, np.intp), starts, at)


def _pack(cell: Cell, weights: Weights, by_columns: bool) -> Array:
    weight = weights["weight_ih"]
    I, H, dtype = weight.shape[1], weight.shape[0] // len(cell.input_gates), weight.dtype
    order = _order(cell, I, H, build.lanes(dtype), by_columns)
    packed = pool(dtype).borrow(order.length)
    no_weight, no_bias = _absent(dtype)
    workers = allowed_threads(order.length * _WORK_PER_ELEMENT)
    build.packing_kernel(dtype).on(workers)(
        weight, weights.get("weight_hh", no_weight),
        weights.get("bias_ih", no_bias), weights.get("bias_hh", no_bias),
        order.parts, order.gate_rows, order.bias_rows, by_columns, H, packed,
        0, workers,
    )  # fmt: skip
    return packed


@functools.cache
def _absent(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """What stands for a weight and a bias that are not there."""
    return np.empty((0, 0), dtype), np.empty(0, dtype)


def pack(cell: Cell, weights: Weights) -> Array:
    """Lay out the weights of one layer and direction for `forward`; a copy, see there."""
    return _pack(cell, weights, by_columns=False)


def give_back(packed: Array) -> None:
    """Return the memory of packed weights that nobody uses any more."""
    pool(packed.dtype).give_back(packed)


def pack_by_columns(cell: Cell, weights: Weights) -> Array:
    """Lay out weights for the gradients of the operands and of x, see `backward`."""
    return _pack(cell, weights, by_columns=True)


def starts_by_columns(cell: Cell, I: int, H: int, lanes: int) -> dict[tuple[int, str], int]:
    """Where weights packed by columns start, by (phase, "input" or "recurrent")."""
    return _order(cell, I, H, lanes, by_columns=True).starts


def multiply_adds(cell: Cell, I: int, H: int) -> int:
    """Multiply-adds of all forward products, for one packed row."""
    return H * (len(cell.input_gates) * I + len(cell.recurrent_gates) * H)
