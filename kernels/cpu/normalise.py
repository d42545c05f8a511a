"""Normalisers: of a row's recurrent sums, and of input parts over a batch.

See `LayerNorm` and `BatchNorm`. Sums are float64, in a fixed order: what is summed does not depend
on threads or on how rows are taken. A batch norm needs the input parts of all rows before the first
step, and all gradients before those of W and of x; they are computed anew for it, some rows at a
time, which needs no memory for all of them. Forward runs with the norm folded into the weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .calling import call_at, record
from .float_mode import enter_ieee_mode, restore_mode
from .product import Extent, Factors, Panels, Prefetch, Sums
from .rows import load_row, step_of, time_index
from .simd import jitable, make_sweeps, pointer
from .tuning import BLOCK_ROWS


def word_of(value: float) -> int:
    """A float64 as a word of a kernel's table."""
    return int(np.float64(value).view(np.int64))


@intrinsic
def float_of(typing, word):
    """The float64 that a word of a table holds."""

    def emit(context, builder, sig, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.intp), emit


# Sums over the units of a row are eight, each of every eighth unit: one vector of them, where one
# sum would wait for each addition. What is left over goes to the first.


@jitable
def joined(t):
    """The sum of eight sums, in a fixed order."""
    return ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]))


@jitable
def sum_of_row(memory, start, H):
    """Sum of the units of a row."""
    a = b = c = d = e = f = g = h = 0.0
    whole = H // 8 * 8
    for j in range(start, start + whole, 8):
        a += memory[j]
        b += memory[j + 1]
        c += memory[j + 2]
        d += memory[j + 3]
        e += memory[j + 4]
        f += memory[j + 5]
        g += memory[j + 6]
        h += memory[j + 7]
    for j in range(start + whole, start + H):
        a += memory[j]
    return joined((a, b, c, d, e, f, g, h))


@jitable
def sum_of_products(one, first, other, second, H, mean_of_one, mean_of_other):
    """Sum of the products of two rows' units, each less a mean."""
    a = b = c = d = e = f = g = h = 0.0
    whole = H // 8 * 8
    for j in range(0, whole, 8):
        p, q = first + j, second + j
        a += (one[p] - mean_of_one) * (other[q] - mean_of_other)
        b += (one[p + 1] - mean_of_one) * (other[q + 1] - mean_of_other)
        c += (one[p + 2] - mean_of_one) * (other[q + 2] - mean_of_other)
        d += (one[p + 3] - mean_of_one) * (other[q + 3] - mean_of_other)
        e += (one[p + 4] - mean_of_one) * (other[q + 4] - mean_of_other)
        f += (one[p + 5] - mean_of_one) * (other[q + 5] - mean_of_other)
        g += (one[p + 6] - mean_of_one) * (other[q + 6] - mean_of_other)
        h += (one[p + 7] - mean_of_one) * (other[q + 7] - mean_of_other)
    for j in range(whole, H):
        a += (one[first + j] - mean_of_one) * (other[second + j] - mean_of_other)
    return joined((a, b, c, d, e, f, g, h))


@jitable
def normalise_rows(u, values, rows, gates, H, eps):
    """Replace sums by normalised ones, and keep these and one over their deviation."""
    # u: Strided, the sums (rows, gates, units); values: Strided, those of the normaliser
    count = gates * H
    for row in range(rows):
        first = row * u.row
        total = 0.0
        for gate in range(gates):
            total += sum_of_row(u.memory, first + gate * u.member, H)
        mean = total / count
        squares = 0.0
        for gate in range(gates):
            start = first + gate * u.member
            squares += sum_of_products(u.memory, start, u.memory, start, H, mean, mean)
        scale = 1.0 / np.sqrt(squares / count + eps)
        for gate in range(gates):
            start, kept = first + gate * u.member, row * values.row + gate * values.member
            for j in range(H):
                normalised = (u.memory[start + j] - mean) * scale
                u.memory[start + j] = normalised
                values.memory[kept + j] = normalised
        values.memory[row * values.row + gates * values.member] = scale


@jitable
def normalise_rows_backward(d, values, rows, gates, H):
    """Turn gradients of normalised sums into those of the sums."""
    # d: Strided (rows, gates, units); values: Strided, what `normalise_rows` kept
    count = gates * H
    for row in range(rows):
        total, along = 0.0, 0.0
        for gate in range(gates):
            start, kept = row * d.row + gate * d.member, row * values.row + gate * values.member
            total += sum_of_row(d.memory, start, H)
            along += sum_of_products(d.memory, start, values.memory, kept, H, 0.0, 0.0)
        mean, slope = total / count, along / count
        scale = values.memory[row * values.row + gates * values.member]
        for gate in range(gates):
            start, kept = row * d.row + gate * d.member, row * values.row + gate * values.member
            for j in range(H):
                own = d.memory[start + j] - mean - values.memory[kept + j] * slope
                d.memory[start + j] = own * scale


class NormPlan(NamedTuple):
    """What the kernels of a batch norm are told of a layer; lengths in elements."""

    phases: int  # how many `NormPhase`s follow; then for each input part the number of its gate
    H: int
    unit: int  # of `layout.Rows`, likewise the next ones
    x_row: int
    pre_row: int
    d_row: int


class NormPhase(NamedTuple):
    """The input parts of a phase."""

    first: int  # its first pre-activation that x feeds, in a row
    inputs: int  # how many x feeds
    product: int  # address of the product with so many gates
    weights: int  # where they lie in packed weights
    first_gate: int  # where their gates are in the table


_PLAN, _PHASE = len(NormPlan._fields), len(NormPhase._fields)


def norm_worker_size(x_row: int, pre_row: int) -> int:
    """Elements of workspace that the kernels of a batch norm need."""
    return BLOCK_ROWS * (x_row + pre_row)


def _make_input_parts(lanes: int) -> Callable[..., None]:
    """Build W x of some packed rows, in the workspace after the rows of x."""
    fill_zero = make_sweeps(lanes).fill_zero

    def input_parts(table, order, lengths, offset, x, reverse, packed, begin, rows, work):
        # x: (N, T, I), any strides; packed: pointer to packed weights; work: pointer
        plan = record(NormPlan, table, 0)
        I = x.shape[2]
        step = step_of(offset, begin)
        for i in range(rows):
            while begin + i >= offset[step + 1]:
                step += 1
            row = begin + i - offset[step]
            t = time_index(step, lengths[row], reverse)
            load_row(x, order[row], t, 0, work, i * plan.x_row, I)
        pre = BLOCK_ROWS * plan.x_row
        fill_zero(work, pre, rows * plan.pre_row)
        for number in range(plan.phases):
            phase = record(NormPhase, table, _PLAN + number * _PHASE)
            if phase.inputs > 0:
                sums = Sums(pointer(work, pre + phase.first), plan.pre_row, plan.unit)
                panels = pointer(packed, phase.weights)
                call_at(
                    phase.product,
                    sums,
                    sums,
                    Factors(work, plan.x_row, 0, 1),
                    Panels(panels, I * phase.inputs * lanes, phase.inputs * lanes),
                    Prefetch(panels, panels, 0, 0),
                    Extent(1, I, rows, plan.unit // lanes),
                )

    return jitable(input_parts)


# Loops over the units of a row are the inner ones: they are vectors, and each unit's sum is still
# taken over the rows in their order.


@jitable
def join_statistics(norm, column, H, work, at, stride, before, rows, joined):
    """Join mean and squares of some rows to those of the rows before."""
    # norm: (4, normalised gates * H) float64; work: pointer, whose rows begin at `at`
    mean, squares = norm[2, column : column + H], norm[3, column : column + H]
    mean[:] = 0.0
    squares[:] = 0.0
    for i in range(rows):
        for j in range(H):
            mean[j] += work[at + i * stride + j]
    for j in range(H):
        mean[j] /= rows
    for i in range(rows):
        for j in range(H):
            distance = work[at + i * stride + j] - mean[j]
            squares[j] += distance * distance
    for j in range(H):
        moved = mean[j] - norm[0, column + j]
        norm[0, column + j] += moved * rows / joined
        norm[1, column + j] += squares[j] + moved * moved * before * rows / joined


@jitable
def sum_norm_gradients(norm, column, H, work, at, stride, d, to, d_stride, rows):
    """Add some rows to the gradients of scale and shift."""
    mean, over = norm[0, column : column + H], norm[1, column : column + H]
    along, plain = norm[3, column : column + H], norm[4, column : column + H]
    for i in range(rows):
        for j in range(H):
            g = d[to + i * d_stride + j]
            along[j] += g * ((work[at + i * stride + j] - mean[j]) * over[j])
            plain[j] += g


@jitable
def apply_norm_gradients(norm, column, H, work, at, stride, d, to, d_stride, rows, total):
    """Turn gradients of normalised parts into those of the parts, in some rows."""
    mean, over, scale = (
        norm[0, column : column + H],
        norm[1, column : column + H],
        norm[2, column : column + H],
    )
    along, plain = norm[3, column : column + H], norm[4, column : column + H]
    for i in range(rows):
        for j in range(H):
            a = (work[at + i * stride + j] - mean[j]) * over[j]
            own = d[to + i * d_stride + j] - plain[j] / total - a * along[j] / total
            d[to + i * d_stride + j] = scale[j] * over[j] * own


def make_statistics(lanes: int) -> Callable[..., None]:
    """Build the statistics of input parts over all packed rows, some at a time, joined in order."""
    input_parts = _make_input_parts(lanes)

    def statistics(
        norm_table,  # a NormPlan, a NormPhase for each phase, and gates
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        x,  # (N, T, I), any strides
        reverse,
        packed,  # flat, packed weights
        norm,  # (4, normalised gates * H) float64: mean, and variance times the rows; written, and
        #        two rows to work with
        workspace,  # flat
    ):
        mode = enter_ieee_mode()
        plan = record(NormPlan, norm_table, 0)
        weights, work = pointer(packed, 0), pointer(workspace, 0)
        norm[:] = 0.0
        for begin in range(0, offset[-1], BLOCK_ROWS):
            rows = min(BLOCK_ROWS, offset[-1] - begin)
            input_parts(norm_table, order, lengths, offset, x, reverse, weights, begin, rows, work)
            for number in range(plan.phases):
                phase = record(NormPhase, norm_table, _PLAN + number * _PHASE)
                for term in range(phase.inputs):
                    column = norm_table[phase.first_gate + term] * plan.H
                    at = BLOCK_ROWS * plan.x_row + phase.first + term * plan.unit
                    join_statistics(
                        norm, column, plan.H, work, at, plan.pre_row, begin, rows, begin + rows
                    )
        restore_mode(mode)

    return statistics


def make_input_norm_backward(lanes: int) -> Callable[..., None]:
    """Build what turns gradients of normalised input parts into those of W x, of all packed rows.

    With g the gradient of ``scale * a + shift``, a normalised: the gradient of W x is
    ``scale / deviation * (g - mean of g - a * mean of g a)``.
    """
    input_parts = _make_input_parts(lanes)

    def input_norm_backward(
        norm_table,  # a NormPlan, a NormPhase for each phase, and gates
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        x,  # (N, T, I), any strides
        reverse,
        packed,  # flat, packed weights
        norm,  # (5, normalised gates * H) float64: mean, one over the deviation, scale; gradients
        #        of scale and shift, written
        d,  # (packed rows * d_row,) gradients of pre-activations, of which input parts change
        workspace,  # flat
    ):
        plan = record(NormPlan, norm_table, 0)
        weights, work = pointer(packed, 0), pointer(workspace, 0)
        total = offset[-1]
        norm[3:] = 0.0
        for is_second in range(2):  # first the sums over all rows, then what is made with them
            for begin in range(0, total, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, total - begin)
                input_parts(
                    norm_table, order, lengths, offset, x, reverse, weights, begin, rows, work
                )
                for number in range(plan.phases):
                    phase = record(NormPhase, norm_table, _PLAN + number * _PHASE)
                    for term in range(phase.inputs):
                        column = norm_table[phase.first_gate + term] * plan.H
                        in_row = phase.first + term * plan.unit
                        at, to = BLOCK_ROWS * plan.x_row + in_row, begin * plan.d_row + in_row
                        if is_second == 1:
                            apply_norm_gradients(
                                norm, column, plan.H, work, at, plan.pre_row, d, to, plan.d_row,
                                rows, total,
                            )  # fmt: skip
                        else:
                            sum_norm_gradients(
                                norm, column, plan.H, work, at, plan.pre_row, d, to, plan.d_row,
                                rows,
                            )  # fmt: skip

    return input_norm_backward
