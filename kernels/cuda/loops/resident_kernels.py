"""A whole time block in one launch, with all recurrent weights on chip: for small H.

A block of threads takes a tile of rows through the steps by itself, so nothing is waited for but
its own threads. `register_product` multiplies; then thread (part, unit) has the equations of one
row, the `part`-th, and keeps its state in registers. Whether there is that row is computed anew
wherever it is needed: kept, it takes a register that the weights need (GRU, H = 96, sm_80).
"""

from collections.abc import Callable

from numba import cuda
from numba.cuda import types

from ...cells import Cell
from ...primitives import zero_like
from ..unit_values import make_store, make_zeros
from .on_chip import backward_parts, forward_parts, own_steps
from .register_product import Tile, make_product


def make_resident_forward(cell: Cell, tile: Tile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, forward."""
    gates = len(cell.recurrent_gates)
    H, parts, padded = tile.H, tile.parts, tile.padded
    (
        load_state, store_state, no_inputs, no_state, _, load_inputs, advance, store_step,
    ) = forward_parts(cell, tile.rows)  # fmt: skip
    load_weights, multiply = make_product(tile, gates, by_columns=False)
    operand_shape, sums_shape = (parts, 1, padded), (parts * parts, gates, H)
    weights_shape = (gates, tile.length)

    def resident_forward(
        x_sums,  # (packed rows of these steps, input gates, H): W x
        hh,  # (recurrent gates * H, H)
        constants,  # (1, pre-activations, H)
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
        load_weights(hh, unit, part, weights, zero)
        # The tile's first row is its longest.
        end = min(last_step, lengths[first_row])
        n, own_end = own_steps(order, lengths, row, row < order.shape[0], first_step, last_step)
        members, x_part = no_state(zero), no_inputs(zero)
        if row < order.shape[0]:
            members = load_state(state, row, unit)
        if first_step < own_end:
            x_part = load_inputs(x_sums, constants, offset, first_step, first_step, row, unit)
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
                members, new = advance(sums, part, unit, parts, x_part, constants, unit, members)
                operand[part, 0, unit] = members[0]
                store_step(
                    y_out, values, offset, lengths, step, row, n, unit, reverse, keep, members[0],
                    new,
                )  # fmt: skip
                if step + 1 < own_end:  # prefetched: it is there after the next product
                    x_part = load_inputs(x_sums, constants, offset, first_step, step + 1, row, unit)
            cuda.syncthreads()
            step += 1
        if row < order.shape[0]:
            store_state(state, row, unit, members)

    return resident_forward


def make_resident_backward(cell: Cell, tile: Tile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, backward."""
    gates = len(cell.recurrent_gates)
    H, parts, padded = tile.H, tile.parts, tile.padded
    (
        load_state, store_state, no_state, no_values, _, load_step, add_output, differentiate,
        recurrent, store_step, add_product,
    ) = backward_parts(cell, tile.rows)  # fmt: skip
    store_gates, no_gates = make_store(range(gates)), make_zeros(gates)
    load_weights, multiply = make_product(tile, gates, by_columns=True)
    d_shape, sums_shape = (parts, gates, padded), (parts * parts, 1, H)
    weights_shape = (gates, tile.length)

    def resident_backward(
        h_before,  # (packed rows of these steps, 1, H): h before each step
        hh,  # (recurrent gates * H, H)
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
        load_weights(hh, unit, part, weights, zero)
        n, own_end = own_steps(order, lengths, row, row < order.shape[0], first_step, last_step)
        members, saved, h = no_state(zero), no_values(zero), zero
        if row < order.shape[0]:
            members = load_state(dstate, row, unit)
        k = unit
        while k < padded:  # the padding beyond H stays 0, and so do rows until their last step
            store_gates(d_tile, part, k, no_gates(zero))
            k += H
        step = min(last_step, lengths[first_row]) - 1
        while step >= first_step:
            if step < own_end:
                packed, h, saved = load_step(h_before, values, offset, first_step, step, row, unit)
                if has_dy:
                    members = add_output(members, dy, n, step, lengths[row], unit, reverse)
                da, members = differentiate(h, saved, members, zero)
                store_step(d_ih, d_hh, packed, unit, da)
                store_gates(d_tile, part, unit, recurrent(da))
            cuda.syncthreads()
            multiply(weights, d_tile, rows, part, unit, sums, zero)
            cuda.syncthreads()
            if step < own_end:
                members = add_product(sums, part, unit, parts, members)
            step -= 1
        if row < order.shape[0]:
            store_state(dstate, row, unit, members)

    return resident_backward
