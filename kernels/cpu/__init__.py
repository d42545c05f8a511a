"""Recurrences for NumPy arrays.

`pack`, `ragged_rows`, `forward` and `backward` work on one layer and direction; everything about
layers, directions, layouts and bad input is decided by the caller.
"""

import functools
from typing import NamedTuple

import numpy as np

from ..cells import Cell, Operand
from . import build, cache
from .gradients import (
    input_gradient_worker_size,
    weight_gradient_sums_size,
    weight_gradient_worker_size,
)
from .memory import aligned, scratch
from .plan import (
    PhasePlan,
    Sizes,
    backward_layout,
    forward_layout,
    padded,
    phase_plans,
    row_sizes,
)
from .simd import register_bits, register_count
from .threads import allowed_threads, describe_threads
from .weights import (
    Array,
    PackedWeights,
    Weights,
    gate_rows,
    multiply_adds,
    pack,
    pack_input_transposed,
    pack_recurrent_transposed,
)

__all__ = ["PackedWeights", "RaggedRows", "backward", "describe", "forward", "pack", "ragged_rows"]

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
        return _small_even_rows(N, T) if N + T < _SMALL else _even_rows(N, T)
    steps = np.asarray(lengths, np.intp)
    order = np.argsort(-steps, kind="stable")
    # Rows that run at step s are those longer than s.
    ended = np.bincount(steps, minlength=T + 1)[: T + 1].cumsum()
    offset = np.concatenate(([0], (N - ended[:T]).cumsum()))
    return RaggedRows(order, steps[order], offset)


def _even_rows(N: int, T: int) -> RaggedRows:
    """Samples that all have T steps."""
    return RaggedRows(np.arange(N), np.full(N, T, np.intp), np.arange(T + 1) * N)


# Calls on one step or a few are so short that making these arrays would show.
_SMALL = 4096
_small_even_rows = functools.lru_cache(maxsize=16)(_even_rows)


def _row_blocks(N: int, threads: int) -> tuple[int, int]:
    """Rows a block and number of workers. No result depends on either."""
    share = padded(-(-N // threads), _ROWS_MULTIPLE) if threads > 1 else N
    rows = max(1, min(share, _ROWS_AT_ONCE))
    return rows, max(1, min(threads, -(-N // rows)))


def forward(
    cell: Cell,
    packed: PackedWeights,
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
    packed : PackedWeights
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
    size, dtype, total = packed.size, packed.dtype, ragged.total
    rows, workers = _row_blocks(x.shape[0], allowed_threads(packed.multiply_adds * total))
    row_bytes = rows * (size.x + size.pre) * dtype.itemsize
    steps = max(1, min(_TIME_BLOCK_BYTES // row_bytes, len(ragged.offset) - 1))
    worker_size = forward_layout(0, rows, steps, len(cell.states), size).end
    values = aligned(total * size.value, dtype) if keep else np.empty(0, dtype)
    with scratch(workers * worker_size, dtype) as work:
        packed.kernel(
            x, initial, layer, *ragged, reverse, packed.array, y_out, final_out, values, keep,
            work, worker_size, rows, steps, workers=workers,
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
    N, I, H, dtype = x.shape[0], x.shape[2], y.shape[2], x.dtype
    size = row_sizes(len(cell.pre_activations), cell.num_values, I, H, build.lanes(dtype.name))
    threads = allowed_threads(multiply_adds(cell, I, H) * ragged.total)
    rows, workers = _row_blocks(N, threads)
    worker_size = backward_layout(0, rows, len(cell.states), size).end
    d = aligned(ragged.total * size.pre, dtype)
    with scratch(workers * worker_size, dtype) as work:
        build.backward_kernel(cell, dtype.name)(
            y if dy is None else dy, dy is not None, dfinal, layer, y, initial, *ragged, reverse,
            pack_recurrent_transposed(cell, weights), values, d, dinitial_out,
            work, worker_size, rows, workers=workers,
        )  # fmt: skip

    gradients = {name: np.empty_like(weight, order="C") for name, weight in weights.items()}
    steps = _Steps(layer, ragged, reverse, initial[0], values, d, size, H, threads)
    for plan in phase_plans(cell):
        if plan.inputs:
            packed = pack_input_transposed(cell, weights, plan)
            _input_gradient(steps, plan, packed, dx_out)
            out = gradients["weight_ih"], gradients.get("bias_ih", d[:0])
            _weight_gradient(steps, plan, None, x, plan.first, gate_rows(cell, plan, "input"), *out)
        if plan.recurrents:
            operand = cell.phases[plan.number].operand
            out = gradients["weight_hh"], gradients.get("bias_hh", d[:0])
            rows_hh = gate_rows(cell, plan, "recurrent")
            _weight_gradient(steps, plan, operand, y, plan.first_recurrent, rows_hh, *out)
    return gradients


class _Steps(NamedTuple):
    """What the gradients of x and of the weights read of one layer and direction."""

    layer: int
    ragged: RaggedRows
    reverse: bool
    h0: Array  # (layers * directions, N, H)
    values: Array
    d: Array  # (packed rows * size.pre,) gradients of pre-activations
    size: Sizes
    H: int
    threads: int


def _input_gradient(steps: _Steps, plan: PhasePlan, packed: Array, dx_out: Array) -> None:
    """Add one phase's part of the gradient of x."""
    d, size, dtype, threads = steps.d, steps.size, steps.d.dtype, steps.threads
    worker_size = input_gradient_worker_size(dx_out.shape[2], build.lanes(dtype.name))
    with scratch(threads * worker_size, dtype) as work:
        build.input_gradient_kernel(dtype.name)(
            d, size.pre, plan.first * size.unit, plan.inputs, size.unit, steps.H, packed,
            *steps.ragged, steps.reverse, dx_out, work, worker_size, workers=threads,
        )  # fmt: skip


def _weight_gradient(
    steps: _Steps,
    plan: PhasePlan,
    operand: Operand | None,
    source: Array,
    first: int,
    rows: Array,
    dweight_out: Array,
    dbias_out: Array,
) -> None:
    """Write the gradients of one phase's weights and their bias; no operand: input weights."""
    d, size, dtype, threads = steps.d, steps.size, steps.d.dtype, steps.threads
    columns, lanes = dweight_out.shape[1], build.lanes(dtype.name)
    sums_size = weight_gradient_sums_size(len(rows), size.unit, columns, lanes)
    worker_size = weight_gradient_worker_size(columns, lanes)
    with scratch(threads * worker_size, dtype) as work, scratch(sums_size, dtype) as sums:
        build.weight_gradient_kernel(operand, plan.first_value, dtype.name)(
            source, steps.h0, steps.layer, *steps.ragged, steps.reverse, steps.values, size.value,
            d, size.pre, first * size.unit, size.unit, steps.H, rows, dweight_out, dbias_out,
            sums, work, worker_size, workers=threads,
        )  # fmt: skip


def describe() -> dict[str, str]:
    """What these kernels compute with, by label."""
    return {
        "CPU vectors": f"{register_count()} registers of {register_bits()} bits",
        "CPU threads": describe_threads(),
        "compiled kernels": str(cache.folder() or "not kept: no home folder"),
    }
