"""Weights of one layer and direction, laid out for the loops that read them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..cells import Cell
from . import build
from .memory import aligned
from .plan import PhasePlan, Sizes, padded, phase_plans, row_sizes

Array = NDArray[Any]
Weights = Mapping[str, Array]


def gate_rows(cell: Cell, part: PhasePlan, kind: str) -> Array:
    """Which gate of the weights each input-fed or operand-fed pre-activation of a phase is."""
    if kind == "input":
        pre, gates = cell.pre_activations[part.first :][: part.inputs], cell.input_gates
    else:
        pre = cell.pre_activations[part.first_recurrent :][: part.recurrents]
        gates = cell.recurrent_gates
    return np.array([gates.index(p.gate) for p in pre], np.intp)


class PackedWeights(NamedTuple):
    """Weights of one layer and direction as the forward loop reads them."""

    array: Array  # flat, see `forward`
    size: Sizes
    multiply_adds: int  # of all products, for one packed row
    dtype: np.dtype[Any]
    kernel: build.Kernel


def pack(cell: Cell, weights: Weights) -> PackedWeights:
    """Lay out the weights of one layer and direction for `forward`; a copy."""
    I, (H, dtype) = weights["weight_ih"].shape[1], units(cell, weights)
    lanes = build.lanes(dtype)
    size = row_sizes(len(cell.pre_activations), cell.num_values, I, H, lanes)
    at = len(cell.pre_activations) * size.unit
    parts = phase_plans(cell)
    columns = sum(p.inputs * I + p.recurrents * H for p in parts)
    packed = aligned(at + size.unit * columns, np.dtype(dtype))
    packed[:at] = 0
    for name, part, gates in (
        ("bias_ih", "input", cell.input_gates),
        ("bias_hh", "recurrent", cell.recurrent_gates),
    ):
        if name in weights:
            rows = [gates.index(p.gate) if getattr(p, part) else -1 for p in cell.pre_activations]
            kernel = build.packing_kernel("pack_bias", dtype)
            kernel(weights[name], np.array(rows, np.intp), H, size.unit, packed)
    kernel = build.packing_kernel("pack_panels", dtype)
    for plan in parts:
        for name, kind, blocks, K in (
            ("weight_ih", "input", plan.inputs, I),
            ("weight_hh", "recurrent", plan.recurrents, H),
        ):
            if blocks:
                kernel(weights[name], gate_rows(cell, plan, kind), H, lanes, at, packed)
                at += size.unit * blocks * K
    kernel = build.forward_kernel(cell, dtype)
    return PackedWeights(packed, size, multiply_adds(cell, I, H), packed.dtype, kernel)


def multiply_adds(cell: Cell, I: int, H: int) -> int:
    """Multiply-adds of all forward products, for one packed row."""
    return H * (len(cell.input_gates) * I + len(cell.recurrent_gates) * H)


def units(cell: Cell, weights: Weights) -> tuple[int, str]:
    """Hidden size and dtype of the weights of one layer and direction."""
    weight = weights["weight_ih"]
    return weight.shape[0] // len(cell.input_gates), weight.dtype.name


def pack_recurrent_transposed(cell: Cell, weights: Weights) -> Array:
    """Recurrent weights as the backward loop reads them, see `backward`."""
    H, dtype = units(cell, weights)
    lanes = build.lanes(dtype)
    unit, parts = padded(H, lanes), phase_plans(cell)
    packed = aligned(unit * H * sum(p.recurrents for p in parts), np.dtype(dtype))
    kernel = build.packing_kernel("pack_transposed", dtype)
    at = 0
    for plan in parts:
        if plan.recurrents:
            rows = gate_rows(cell, plan, "recurrent")
            kernel(weights["weight_hh"], rows, H, lanes, at, packed)
            at += unit * H * plan.recurrents
    return packed


def pack_input_transposed(cell: Cell, weights: Weights, plan: PhasePlan) -> Array:
    """A phase's input weights as the gradient of x reads them, see `gradients`."""
    (H, dtype), I = units(cell, weights), weights["weight_ih"].shape[1]
    lanes = build.lanes(dtype)
    packed = aligned(padded(I, lanes) * plan.inputs * H, np.dtype(dtype))
    kernel = build.packing_kernel("pack_transposed", dtype)
    kernel(weights["weight_ih"], gate_rows(cell, plan, "input"), H, lanes, 0, packed)
    return packed
