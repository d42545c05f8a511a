"""Whole blocks of time steps in one launch, with all recurrent weights on chip: for small H.

A block of threads takes a tile of rows through the steps by itself, so nothing is waited for but
its own threads. `product` multiplies; then thread (part, unit) has the equations of one row, the
`part`-th, and keeps its state in registers. For cells of one phase whose operand is h; others have
`pointwise`.
"""

from collections.abc import Callable

from numba import cuda
from numba.cuda import types

from ..cells import Cell
from ..primitives import zero_like
from .groups import make_zeros
from .pointwise import backward_parts, forward_parts, time_index
from .product import Tile, make_gather, make_product


def make_resident_forward(cell: Cell, tile: Tile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, forward."""
    gates = len(cell.recurrent_gates)
    H, parts, padded = tile.H, tile.parts, tile.padded
    (
        inputs, pre_activations, load_state, store_state, store_values, no_inputs, no_state,
        _, equations,
    ) = forward_parts(cell)  # fmt: skip
    load_weights, multiply = make_product(tile, gates, by_columns=False)
    gather = make_gather(tile.rows, gates)
    operand_shape, sums_shape = (parts, 1, padded), (parts * parts, gates, H)
    weights_shape = (gates, tile.length)

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
                gather(sums, part, unit, parts)
                a = pre_activations(x_part, sums, part, unit, bias_hh, unit)
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
    H, parts, padded = tile.H, tile.parts, tile.padded
    (
        split, store_ih, store_hh, load_state, store_state, load_values, no_state, no_values,
        equations,
    ) = backward_parts(cell)  # fmt: skip
    no_gates = make_zeros(gates)
    load_weights, multiply = make_product(tile, gates, by_columns=True)
    gather = make_gather(tile.rows, 1)
    d_shape, sums_shape = (parts, gates, padded), (parts * parts, 1, H)
    weights_shape = (gates, tile.length)

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
                gather(sums, part, unit, parts)
                members = (members[0] + sums[part, 0, unit],) + members[1:]
            step -= 1
        if row < order.shape[0]:
            store_state(dstate, row, unit, members)

    return resident_backward
