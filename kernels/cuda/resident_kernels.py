"""Whole blocks of time steps in one launch, with all recurrent weights on chip: for small H.

A block of threads takes a tile of rows through the steps by itself, so nothing is waited for but
its own threads. Thread (part, unit) holds, in registers, the recurrent weights of one unit and of a
part of the operand; it multiplies them with every row of the tile, and the parts are summed in
shared memory. Then thread (part, unit) has the equations of one row, the `part`-th, and keeps
its state in registers. For cells of one phase whose operand is h; others have `pointwise`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types
from numba.cuda.extending import register_jitable

from ..cells import Cell
from ..plan import phase_plans
from ..primitives import zero_like
from .groups import make_load, make_store, make_zeros
from .intrinsics import load_four
from .pointwise import make_inputs, make_pre_activations, time_index


class Tile(NamedTuple):
    """How a block of threads shares the work of its rows."""

    units: int  # H
    parts: int  # of the operand; also the rows of a tile
    length: int  # of a part, in whole groups of four

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.units * self.parts


def _make_product(tile: Tile, gates: int, by_columns: bool) -> tuple[Any, Any]:
    """Build what loads a thread's weights, and what multiplies them with the rows of a tile.

    By rows: sums[part, row, gate, unit] = sum over k of U[gate, unit, k] * vectors[row, 0, k].
    By columns: sums[part, row, 0, unit] = sum over gates and k of U[gate, k, unit] *
    vectors[row, gate, k]. Both over the k of the thread's part.
    """
    H, parts, length = tile

    if by_columns:

        def place(gate, unit, k):
            return gate * H + k, unit

    else:

        def place(gate, unit, k):
            return gate * H + unit, k

    weight_at = register_jitable(place)

    def load(weight_hh, unit, part, weights, zero):
        # weight_hh: (gates * H, H); weights: (gates, length), of the thread
        for gate in range(gates):
            for k in range(length):
                row, column = weight_at(gate, unit, part * length + k)
                weights[gate, k] = weight_hh[row, column] if part * length + k < H else zero

    def dot(weights, gate, vectors, row, which, part, total):
        for k in range(0, length, 4):
            a, b, c, d = load_four(vectors, row, which, part * length + k)
            total += weights[gate, k] * a
            total += weights[gate, k + 1] * b
            total += weights[gate, k + 2] * c
            total += weights[gate, k + 3] * d
        return total

    add_dot = register_jitable(dot)

    if by_columns:

        def multiply(weights, vectors, rows, part, unit, sums, zero):
            for row in range(rows):
                total = zero
                for gate in range(gates):
                    total = add_dot(weights, gate, vectors, row, gate, part, total)
                sums[part * parts + row, 0, unit] = total

    else:

        def multiply(weights, vectors, rows, part, unit, sums, zero):
            for row in range(rows):
                for gate in range(gates):
                    total = add_dot(weights, gate, vectors, row, 0, part, zero)
                    sums[part * parts + row, gate, unit] = total

    return register_jitable(load), register_jitable(multiply)


def _make_gather(tile: Tile, gates: int) -> Callable[..., None]:
    """Build what sums the parts of one row and unit, into those of the first part."""
    parts = tile.parts

    def gather(sums, row, unit):
        # sums: (parts * rows, gates, H)
        for gate in range(gates):
            total = sums[row, gate, unit]
            for part in range(1, parts):
                total += sums[part * parts + row, gate, unit]
            sums[row, gate, unit] = total

    return register_jitable(gather)


def make_resident_forward(cell: Cell, tile: Tile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, forward."""
    gates = len(cell.recurrent_gates)
    H, parts, length = tile
    padded, states = parts * length, len(cell.states)
    inputs, pre_activations = make_inputs(cell, 0), make_pre_activations(cell, 0)
    load_state, store_state = make_load(range(states)), make_store(range(states))
    store_values = make_store(range(cell.num_values))
    no_inputs, no_state = make_zeros(phase_plans(cell)[0].inputs), make_zeros(states)
    equations = register_jitable(cell.phases[0].forward)
    load_weights, multiply = _make_product(tile, gates, by_columns=False)
    gather = _make_gather(tile, gates)
    operand_shape, sums_shape = (parts, 1, padded), (parts * parts, gates, H)
    weights_shape = (gates, length)

    def resident_forward(
        x_sums,  # (packed rows of these steps, input gates, H): W x
        weight_hh,  # (recurrent gates * H, H)
        bias_ih,  # (1, input gates, H)
        bias_hh,  # (1, recurrent gates, H)
        state,  # (N, states, H), updated
        values,  # (packed rows, values, H), written if `keep`
        y_out,  # (N, T, H), any strides; written
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,
        last_step,
        reverse,  # whether rows are walked from their last step
        keep,
    ):
        thread = cuda.threadIdx.x
        part, unit = thread // H, thread % H
        first_row = cuda.blockIdx.x * parts
        row = first_row + part
        rows = min(parts, order.shape[0] - first_row)
        operand = cuda.shared.array(operand_shape, types.float32, 16)
        sums = cuda.shared.array(sums_shape, types.float32)
        weights = cuda.local.array(weights_shape, types.float32)

        zero = zero_like(x_sums[0, 0, 0])
        load_weights(weight_hh, unit, part, weights, zero)
        # The tile's first row is its longest.
        end = min(last_step, lengths[first_row])
        own_end = min(last_step, lengths[row]) if row < order.shape[0] else first_step
        n = order[row] if row < order.shape[0] else 0
        members, x_part = no_state(zero), no_inputs(zero)
        if row < order.shape[0]:
            members = load_state(state, row, unit)
        if first_step < own_end:
            x_part = inputs(x_sums, row, bias_ih, unit)
        k = unit
        while k < padded:  # beyond H there is padding, which stays 0
            operand[part, 0, k] = members[0] if k < H else zero
            k += H
        cuda.syncthreads()
        step = first_step
        while step < end:
            multiply(weights, operand, rows, part, unit, sums, zero)
            cuda.syncthreads()
            if step < own_end:
                gather(sums, part, unit)
                a = pre_activations(x_part, sums, part, bias_hh, unit)
                members, new = equations(a, members, ())
                operand[part, 0, unit] = members[0]
                y_out[n, time_index(step, lengths[row], reverse), unit] = members[0]
                if keep:
                    store_values(values, offset[step] + row, unit, new)
                if step + 1 < own_end:  # loaded now, it is there after the next product
                    x_row = offset[step + 1] - offset[first_step] + row
                    x_part = inputs(x_sums, x_row, bias_ih, unit)
            cuda.syncthreads()
            step += 1
        if row < order.shape[0]:
            store_state(state, row, unit, members)

    return resident_forward


def make_resident_backward(cell: Cell, tile: Tile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, backward."""
    gates = len(cell.recurrent_gates)
    part_plan = phase_plans(cell)[0]
    H, parts, length = tile
    padded, states, num_values = parts * length, len(cell.states), cell.num_values
    pre = cell.pre_activations
    split = part_plan.blocks - part_plan.recurrents
    store_ih = make_store([cell.input_gates.index(p.gate) for p in pre[: part_plan.inputs]])
    store_hh = make_store(range(gates))
    load_state, store_state = make_load(range(states)), make_store(range(states))
    load_values = make_load(range(num_values))
    no_state, no_values = make_zeros(states), make_zeros(num_values)
    no_gates = make_zeros(gates)
    equations = register_jitable(cell.phases[0].backward)
    load_weights, multiply = _make_product(tile, gates, by_columns=True)
    gather = _make_gather(tile, 1)
    d_shape, sums_shape = (parts, gates, padded), (parts * parts, 1, H)
    weights_shape = (gates, length)

    def resident_backward(
        h_before,  # (packed rows of these steps, 1, H): h before each step
        weight_hh,  # (recurrent gates * H, H)
        values,  # (packed rows, values, H)
        dy,  # (N, T, H), any strides; read where valid, if `has_dy`
        dstate,  # (N, states, H): gradient of the state after the steps; becomes that before them
        d_ih,  # (packed rows of these steps, input gates, H): gradients of W x + b; written
        d_hh,  # (packed rows of these steps, recurrent gates, H): of U h + b; written
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,
        last_step,
        reverse,  # whether rows were walked from their last step
        has_dy,
    ):
        thread = cuda.threadIdx.x
        part, unit = thread // H, thread % H
        first_row = cuda.blockIdx.x * parts
        row = first_row + part
        rows = min(parts, order.shape[0] - first_row)
        d_tile = cuda.shared.array(d_shape, types.float32, 16)
        sums = cuda.shared.array(sums_shape, types.float32)
        weights = cuda.local.array(weights_shape, types.float32)

        zero = zero_like(h_before[0, 0, 0])
        load_weights(weight_hh, unit, part, weights, zero)
        own_end = min(last_step, lengths[row]) if row < order.shape[0] else first_step
        n = order[row] if row < order.shape[0] else 0
        members, saved, h = no_state(zero), no_values(zero), zero
        if row < order.shape[0]:
            members = load_state(dstate, row, unit)
        k = unit
        while k < padded:  # the padding beyond H stays 0, and so do rows until their last step
            store_hh(d_tile, part, k, no_gates(zero))
            k += H
        cuda.syncthreads()
        step = min(last_step, lengths[first_row]) - 1
        while step >= first_step:
            if step < own_end:
                packed = offset[step] - offset[first_step] + row
                h = h_before[packed, 0, unit]
                saved = load_values(values, offset[step] + row, unit)
                if has_dy:
                    d = dy[n, time_index(step, lengths[row], reverse), unit]
                    members = (members[0] + d,) + members[1:]
                da, members, _ = equations(h, saved, members, no_values(zero))
                store_ih(d_ih, packed, unit, da)
                store_hh(d_hh, packed, unit, da[split:])
                store_hh(d_tile, part, unit, da[split:])
            cuda.syncthreads()
            multiply(weights, d_tile, rows, part, unit, sums, zero)
            cuda.syncthreads()
            if step < own_end:
                gather(sums, part, unit)
                members = (members[0] + sums[part, 0, unit],) + members[1:]
            step -= 1
        if row < order.shape[0]:
            store_state(dstate, row, unit, members)

    return resident_backward
