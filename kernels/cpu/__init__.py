"""Recurrences for NumPy arrays.

`pack`, `ragged_rows`, `forward` and `backward` work on one layer and direction; everything about
layers, directions, layouts and bad input is decided by the caller.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..cells import Cell
from . import build, cache
from .gradients import (
    input_gradient_worker_size,
    weight_gradient_sums_size,
    weight_gradient_worker_size,
)
from .plan import PhasePlan, backward_layout, forward_layout, padded, phase_plans, row_sizes
from .simd import register_bits, register_count
from .threads import allowed_threads, describe_threads

Array = NDArray[Any]
Weights = Mapping[str, Array]

# Rows that run through a sequence together: enough for a panel of weights to be used from L1 many
# times, few enough that the state stays in cache.
_ROWS_AT_ONCE = 64
# Rows are split over threads in whole tiles.
_ROWS_MULTIPLE = 8
# Inputs and pre-activations of a block of time steps, which are written and read again soon.
_TIME_BLOCK_BYTES = 256 * 1024


class RaggedRows(NamedTuple):
    """Samples sorted by length, and packed rows before each step; see `rows`."""

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
        steps = np.full(N, T, np.intp)
        return RaggedRows(np.arange(N), steps, np.arange(T + 1) * N)
    steps = np.asarray(lengths, np.intp)
    order = np.argsort(-steps, kind="stable")
    # Rows that run at step s are those longer than s.
    ended = np.bincount(steps, minlength=T + 1)[: T + 1].cumsum()
    offset = np.concatenate(([0], (N - ended[:T]).cumsum()))
    return RaggedRows(order, steps[order], offset)


def _aligned(size: int, dtype: Any) -> Array:
    """Uninitialised memory that starts on a cache line."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.empty(size * itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * itemsize].view(dtype)


def _gate_rows(cell: Cell, part: PhasePlan, kind: str) -> Array:
    """Which gate of the weights each input-fed or operand-fed pre-activation of a phase is."""
    if kind == "input":
        pre, gates = cell.pre_activations[part.first :][: part.inputs], cell.input_gates
    else:
        pre = cell.pre_activations[part.first_recurrent :][: part.recurrents]
        gates = cell.recurrent_gates
    return np.array([gates.index(p.gate) for p in pre], np.intp)


def pack(cell: Cell, weights: Weights) -> Array:
    """Weights of one layer and direction as the forward loop reads them; a copy."""
    I, (H, dtype) = weights["weight_ih"].shape[1], _units(cell, weights)
    lanes = build.lanes(dtype)
    unit = padded(H, lanes)
    at = len(cell.pre_activations) * unit
    parts = phase_plans(cell)
    packed = _aligned(at + unit * sum(p.inputs * I + p.recurrents * H for p in parts), dtype)
    packed[:at] = 0
    for name, part, gates in (
        ("bias_ih", "input", cell.input_gates),
        ("bias_hh", "recurrent", cell.recurrent_gates),
    ):
        if name in weights:
            rows = [gates.index(p.gate) if getattr(p, part) else -1 for p in cell.pre_activations]
            kernel = build.packing_kernel("pack_bias", dtype)
            kernel(weights[name], np.array(rows, np.intp), H, unit, packed)
    kernel = build.packing_kernel("pack_panels", dtype)
    for plan in parts:
        for name, kind, blocks, K in (
            ("weight_ih", "input", plan.inputs, I),
            ("weight_hh", "recurrent", plan.recurrents, H),
        ):
            if blocks:
                kernel(weights[name], _gate_rows(cell, plan, kind), H, lanes, at, packed)
                at += unit * blocks * K
    return packed


def _units(cell: Cell, weights: Weights) -> tuple[int, str]:
    """Hidden size and dtype of the weights of one layer and direction."""
    weight = weights["weight_ih"]
    return weight.shape[0] // len(cell.input_gates), weight.dtype.name


def _multiply_adds(cell: Cell, total: int, I: int, H: int) -> int:
    """Multiply-adds of all products of a layer over so many packed rows."""
    return total * H * (len(cell.input_gates) * I + len(cell.recurrent_gates) * H)


def _row_blocks(N: int, threads: int) -> tuple[int, int]:
    """Rows a block and number of workers. No result depends on either."""
    share = padded(-(-N // threads), _ROWS_MULTIPLE) if threads > 1 else N
    rows = max(1, min(share, _ROWS_AT_ONCE))
    return rows, max(1, min(threads, -(-N // rows)))


def forward(
    cell: Cell,
    packed: Array,
    x: Array,
    initial: tuple[Array, ...],
    layer: int,
    ragged: RaggedRows,
    reverse: bool,
    y_out: Array,
    final_out: tuple[Array, ...],
    keep: bool,
) -> Array:
    """Run one layer in one direction; write y and the final state.

    Parameters
    ----------
    cell : Cell
    packed : (…,) array
        Of `pack`.
    x : (N, T, I) array
    initial, final_out : tuple of (layers * directions, N, H) arrays
        For each member of the state; `layer` is the index into them.
    layer : int
    ragged : RaggedRows
    reverse : bool
        Walk each row from its last step to its first.
    y_out : (N, T, H) array
        Written where a step is valid.
    keep : bool
        Keep the values that backward needs.

    Returns
    -------
    (…,) array
        The values kept; empty otherwise.
    """
    (N, _, I), H, dtype = x.shape, y_out.shape[2], x.dtype.name
    size = row_sizes(len(cell.pre_activations), cell.num_values, I, H, build.lanes(dtype))
    threads = allowed_threads(_multiply_adds(cell, ragged.total, I, H))
    rows, workers = _row_blocks(N, threads)
    row_bytes = rows * (size.x + size.pre) * x.itemsize
    steps = max(1, min(_TIME_BLOCK_BYTES // row_bytes, len(ragged.offset) - 1))
    worker_size = forward_layout(0, rows, steps, len(cell.states), size).end
    values = _aligned(ragged.total * size.value if keep else 0, dtype)
    build.forward_kernel(cell, dtype)(
        x, initial, layer, *ragged, reverse, packed,
        y_out, final_out, values, keep,
        _aligned(workers * worker_size, dtype), worker_size, rows, steps, workers=workers,
    )  # fmt: skip
    return values


def backward(
    cell: Cell,
    weights: Weights,
    x: Array,
    initial: tuple[Array, ...],
    layer: int,
    ragged: RaggedRows,
    reverse: bool,
    y: Array,
    values: Array,
    dy: Array | None,
    dfinal: tuple[Array, ...],
    dx_out: Array,
    dinitial_out: tuple[Array, ...],
) -> dict[str, Array]:
    """Gradients of one layer in one direction.

    Parameters are those of `forward`, with `values` what it kept, and

    Parameters
    ----------
    weights : mapping of str to array
        By name; those absent are missing.
    dy : (N, T, H) array or None
        Gradient of y; read where a step is valid.
    dfinal, dinitial_out : tuple of (layers * directions, N, H) arrays
        Gradients of the final and of the initial state.
    dx_out : (N, T, I) array
        The gradient of x is added where a step is valid.

    Returns
    -------
    dict of str to array
        Gradients of the weights, by name.
    """
    (N, _, I), H, dtype = x.shape, y.shape[2], x.dtype.name
    lanes = build.lanes(dtype)
    size = row_sizes(len(cell.pre_activations), cell.num_values, I, H, lanes)
    threads = allowed_threads(_multiply_adds(cell, ragged.total, I, H))
    parts = phase_plans(cell)

    rows, workers = _row_blocks(N, threads)
    worker_size = backward_layout(0, rows, len(cell.states), size).end
    d = _aligned(ragged.total * size.pre, dtype)
    build.backward_kernel(cell, dtype)(
        y if dy is None else dy, dy is not None, dfinal, layer, y, initial, *ragged, reverse,
        _pack_recurrent_transposed(cell, weights, lanes), values, d, dinitial_out,
        _aligned(workers * worker_size, dtype), worker_size, rows, workers=workers,
    )  # fmt: skip

    gradients = {name: np.empty_like(weight, order="C") for name, weight in weights.items()}
    for plan in parts:
        if plan.inputs:
            _input_gradient(cell, plan, weights, ragged, reverse, d, size, dx_out, threads)
            _weight_gradient(
                cell, plan, "input", x, initial[0], layer, ragged, reverse, values, d, size, H,
                gradients, threads,
            )  # fmt: skip
        if plan.recurrents:
            _weight_gradient(
                cell, plan, "recurrent", y, initial[0], layer, ragged, reverse, values, d, size, H,
                gradients, threads,
            )  # fmt: skip
    return gradients


def _pack_recurrent_transposed(cell: Cell, weights: Weights, lanes: int) -> Array:
    """Recurrent weights as the backward loop reads them."""
    H, dtype = _units(cell, weights)
    parts = phase_plans(cell)
    packed = _aligned(padded(H, lanes) * H * sum(p.recurrents for p in parts), dtype)
    at = 0
    for plan in parts:
        if plan.recurrents:
            rows = _gate_rows(cell, plan, "recurrent")
            kernel = build.packing_kernel("pack_transposed", dtype)
            kernel(weights["weight_hh"], rows, H, lanes, at, packed)
            at += padded(H, lanes) * H * plan.recurrents
    return packed


def _input_gradient(
    cell: Cell,
    plan: PhasePlan,
    weights: Weights,
    ragged: RaggedRows,
    reverse: bool,
    d: Array,
    size: Any,
    dx_out: Array,
    threads: int,
) -> None:
    """Add one phase's part of the gradient of x."""
    (H, dtype), I = _units(cell, weights), dx_out.shape[2]
    lanes = build.lanes(dtype)
    packed = _aligned(padded(I, lanes) * plan.inputs * H, dtype)
    gate_rows = _gate_rows(cell, plan, "input")
    kernel = build.packing_kernel("pack_transposed", dtype)
    kernel(weights["weight_ih"], gate_rows, H, lanes, 0, packed)
    worker_size = input_gradient_worker_size(I, lanes)
    build.input_gradient_kernel(dtype)(
        d, size.pre, plan.first * size.unit, plan.inputs, size.unit, H, packed,
        *ragged, reverse, dx_out,
        _aligned(threads * worker_size, dtype), worker_size, workers=threads,
    )  # fmt: skip


def _weight_gradient(
    cell: Cell,
    plan: PhasePlan,
    kind: str,
    source: Array,
    h: Array,
    layer: int,
    ragged: RaggedRows,
    reverse: bool,
    values: Array,
    d: Array,
    size: Any,
    H: int,
    gradients: dict[str, Array],
    threads: int,
) -> None:
    """Write the gradients of one phase's input or recurrent weights and their bias."""
    dtype = d.dtype.name
    lanes = build.lanes(dtype)
    suffix, first, operand = (
        ("ih", plan.first, None)
        if kind == "input"
        else ("hh", plan.first_recurrent, cell.phases[plan.number].operand)
    )
    dweight = gradients[f"weight_{suffix}"]
    dbias = gradients.get(f"bias_{suffix}", d[:0])
    gate_rows = _gate_rows(cell, plan, kind)
    sums = weight_gradient_sums_size(len(gate_rows), size.unit, dweight.shape[1], lanes)
    worker_size = weight_gradient_worker_size(dweight.shape[1], lanes)
    build.weight_gradient_kernel(operand, plan.first_value, dtype)(
        source, h, layer, *ragged, reverse, values, size.value,
        d, size.pre, first * size.unit, size.unit, H, gate_rows, dweight, dbias,
        _aligned(sums, dtype), _aligned(threads * worker_size, dtype), worker_size, workers=threads,
    )  # fmt: skip


def describe() -> dict[str, str]:
    """What these kernels compute with, by label."""
    return {
        "CPU vectors": f"{register_count()} registers of {register_bits()} bits",
        "CPU threads": describe_threads(),
        "compiled kernels": str(cache.folder() or "not kept: no home folder"),
    }
