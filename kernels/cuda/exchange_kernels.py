"""Whole blocks of time steps in one launch, with the recurrent weights spread over blocks.

For H too large for one block of threads. A group of blocks takes tiles of rows through the steps,
one after the other; each block has some of the units, and at every step gives the group what it has
computed of them. `product` multiplies; then thread (part, unit) has the equations of one row, the
`part`-th, and keeps its state in registers. For cells of one phase whose operand is h.

An exchange: every block writes the words of its units, then reads those of all units, each again
and again until its number is that of the exchange. Every exchange holds words of every block, and
behind a barrier after reading, a block knows that all have written. So no block writes exchange
e + 1 before all have written e, and none writes e + 2 before all have read e: two slots, used in
turns, are enough. That holds only if all blocks of a group run at the same time, which the launch
must see to; and every block must make the same exchanges, which follow from the lengths of a tile's
rows alone. Threads of one warp may wait for each other's words: from compute capability 7.0 on,
each of them makes progress.
"""

from collections.abc import Callable
from typing import Any

from numba import cuda
from numba.cuda import types
from numba.cuda.extending import register_jitable

from ..cells import Cell
from ..primitives import zero_like
from .intrinsics import get_word, put_word
from .pointwise import backward_parts, forward_parts, time_index
from .product import Tile, make_gather, make_product

_AT_ONCE = 4  # words that a thread asks for before it waits for one


def _make_take(tile: Tile, vectors: int, count: int) -> Callable[..., None]:
    """Build what takes so many words: all are asked for, then waited for."""
    if count == 0:

        def take(words, slot, at, total, number, out):
            return

    else:
        H, threads = tile.H, tile.threads
        take_others = _make_take(tile, vectors, count - 1)

        def take(words, slot, at, total, number, out):
            # words: (2 * groups, rows * vectors, H); out: (rows, vectors, padded)
            place = min(at, total - 1)
            line, unit = place // H, place % H
            found, value = get_word(words, slot, line, unit)
            take_others(words, slot, at + threads, total, number, out)
            while found != number & 0xFFFFFFFF:
                cuda.nanosleep(0)  # lets the other threads of the warp run
                found, value = get_word(words, slot, line, unit)
            if at < total:
                out[line // vectors, line % vectors, unit] = value

    return register_jitable(take)


def _make_receive(tile: Tile, vectors: int) -> Callable[..., None]:
    """Build what waits for the words of a tile's first rows and puts them into shared memory.

    A word's row is that of the tile times `vectors`, plus which of the row's vectors it is of.
    """
    H, stride = tile.H, tile.threads * _AT_ONCE
    take = _make_take(tile, vectors, _AT_ONCE)

    def receive(words, slot, rows, number, out):
        # words: (2 * groups, rows * vectors, H); out: (rows, vectors, padded)
        at, total = cuda.threadIdx.x, rows * vectors * H
        while at < total:
            take(words, slot, at, total, number, out)
            at += stride

    return register_jitable(receive)


def _make_running(tile: Tile) -> Callable[..., Any]:
    """Build what counts the rows of a tile that run at a step: its first ones, as rows are sorted.

    For steps at which the tile's first row runs.
    """
    most_rows = tile.rows

    def running(offset, step, first_row):
        # offset: (T + 1,) packed rows before each step
        return min(most_rows, offset[step + 1] - offset[step] - first_row)

    return register_jitable(running)


def _make_put(vectors: int) -> Callable[..., None]:
    """Build what gives the group a row's values of one unit, a tuple."""
    if vectors == 0:

        def put(words, slot, line, unit, number, group):
            return

    else:
        before, last = _make_put(vectors - 1), vectors - 1

        def put(words, slot, line, unit, number, group):
            # words: (2 * groups, rows * vectors, H)
            before(words, slot, line, unit, number, group)
            put_word(words, slot, line + last, unit, number, group[last])

    return register_jitable(put)


def make_exchange_forward(cell: Cell, tile: Tile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, forward."""
    gates = len(cell.recurrent_gates)
    H, units, parts, padded, most_rows = tile.H, tile.units, tile.parts, tile.padded, tile.rows
    threads = tile.threads
    (
        inputs, pre_activations, load_state, store_state, store_values, no_inputs, no_state,
        _, equations,
    ) = forward_parts(cell)  # fmt: skip
    load_weights, multiply = make_product(tile, gates, by_columns=False)
    gather, receive, running = (
        make_gather(tile.rows, gates),
        _make_receive(tile, 1),
        _make_running(tile),
    )
    operand_shape, sums_shape = (most_rows, 1, padded), (parts * most_rows, gates, units)
    weights_shape = (gates, tile.length)

    def exchange_forward(
        x_sums,  # (packed rows of these steps, input gates, H): W x
        weight_hh,  # (recurrent gates * H, H)
        bias_ih,  # (1, input gates, H)
        bias_hh,  # (1, recurrent gates, H)
        state_before,  # (N, states, H)
        state,  # (N, states, H), written: another array, as each block reads h of all units
        values,  # (packed rows, values, H), written if `keep`
        y_out,  # (N, T, H), any strides; written
        words,  # (2 * groups, rows of a tile, H): exchanges, the numbers of which must be earlier
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,
        last_step,
        reverse,  # whether rows are walked from their last step
        keep,
        number,  # of the first exchange
    ):
        thread = cuda.threadIdx.x
        part, own = thread // units, thread % units
        # As a number that the compiler does not know: unrolled over 32 parts, their sum takes
        # registers that the weights need (24 bytes spilled).
        parts_there = cuda.blockDim.x // units
        group, unit = cuda.blockIdx.x, cuda.blockIdx.y * units + own
        operand = cuda.shared.array(operand_shape, types.float32, 16)
        sums = cuda.shared.array(sums_shape, types.float32)
        weights = cuda.local.array(weights_shape, types.float32)

        zero = zero_like(bias_ih[0, 0, 0])
        load_weights(weight_hh, unit, part, weights, zero)
        first_row = group * most_rows
        while first_row < order.shape[0]:
            row = first_row + part
            mine = part < most_rows and row < order.shape[0] and unit < H
            # The tile's first row is its longest.
            end = min(last_step, lengths[first_row])
            own_end = min(last_step, lengths[row]) if mine else first_step
            n = order[row] if mine else 0
            members, x_part = no_state(zero), no_inputs(zero)
            if mine:
                members = load_state(state_before, row, unit)
            if first_step < own_end:
                x_part = inputs(x_sums, row, bias_ih, unit)
            at = thread
            while at < most_rows * padded:  # beyond H there is padding, which stays 0
                line, k = at // padded, at % padded
                there = first_row + line < order.shape[0] and k < H
                operand[line, 0, k] = state_before[first_row + line, 0, k] if there else zero
                at += threads
            cuda.syncthreads()
            step = first_step
            while step < end:
                rows, slot = running(offset, step, first_row), group * 2 + number % 2
                multiply(weights, operand, rows, part, own, sums, zero)
                cuda.syncthreads()
                if step < own_end:
                    gather(sums, part, own, parts_there)
                    a = pre_activations(x_part, sums, part, own, bias_hh, unit)
                    members, new = equations(a, members, ())
                    if step + 1 < own_end:
                        put_word(words, slot, part, unit, number, members[0])
                    y_out[n, time_index(step, lengths[row], reverse), unit] = members[0]
                    if keep:
                        store_values(values, offset[step] + row, unit, new)
                    if step + 1 < own_end:  # loaded now, it is there after the next product
                        x_row = offset[step + 1] - offset[first_step] + row
                        x_part = inputs(x_sums, x_row, bias_ih, unit)
                step += 1
                if step < end:
                    rows = running(offset, step, first_row)
                    receive(words, slot, rows, number, operand)
                    number += 1
                cuda.syncthreads()
            if mine:
                store_state(state, row, unit, members)
            first_row += cuda.gridDim.x * most_rows

    return exchange_forward


def make_exchange_backward(cell: Cell, tile: Tile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, backward."""
    gates = len(cell.recurrent_gates)
    H, units, parts, padded, most_rows = tile.H, tile.units, tile.parts, tile.padded, tile.rows
    threads = tile.threads
    (
        split, store_ih, store_hh, load_state, store_state, load_values, no_state, no_values,
        equations,
    ) = backward_parts(cell)  # fmt: skip
    load_weights, multiply = make_product(tile, gates, by_columns=True)
    gather, receive, put = make_gather(tile.rows, 1), _make_receive(tile, gates), _make_put(gates)
    running = _make_running(tile)
    d_shape, sums_shape = (most_rows, gates, padded), (parts * most_rows, 1, units)
    weights_shape = (gates, tile.length)

    def exchange_backward(
        h_before,  # (packed rows of these steps, 1, H): h before each step
        weight_hh,  # (recurrent gates * H, H)
        values,  # (packed rows, values, H)
        dy,  # (N, T, H), any strides; read where valid, if `has_dy`
        dstate,  # (N, states, H): gradient of the state after the steps; becomes that before them
        d_ih,  # (packed rows of these steps, input gates, H): gradients of W x + b; written
        d_hh,  # (packed rows of these steps, recurrent gates, H): of U h + b; written
        words,  # (2 * groups, rows of a tile * recurrent gates, H): exchanges, as forward
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,
        last_step,
        reverse,  # whether rows were walked from their last step
        has_dy,
        number,  # of the first exchange
    ):
        thread = cuda.threadIdx.x
        part, own = thread // units, thread % units
        parts_there = cuda.blockDim.x // units  # as forward
        group, unit = cuda.blockIdx.x, cuda.blockIdx.y * units + own
        d_tile = cuda.shared.array(d_shape, types.float32, 16)
        sums = cuda.shared.array(sums_shape, types.float32)
        weights = cuda.local.array(weights_shape, types.float32)

        zero = zero_like(weight_hh[0, 0])
        load_weights(weight_hh, unit, part, weights, zero)
        first_row = group * most_rows
        while first_row < order.shape[0]:
            row = first_row + part
            mine = part < most_rows and row < order.shape[0] and unit < H
            own_end = min(last_step, lengths[row]) if mine else first_step
            n = order[row] if mine else 0
            members, saved, h = no_state(zero), no_values(zero), zero
            if mine:
                members = load_state(dstate, row, unit)
            at = thread
            while at < most_rows * gates * padded:  # the padding stays 0
                line = at // padded
                d_tile[line // gates, line % gates, at % padded] = zero
                at += threads
            cuda.syncthreads()
            step = min(last_step, lengths[first_row]) - 1
            while step >= first_step:
                rows, slot = running(offset, step, first_row), group * 2 + number % 2
                if step < own_end:
                    packed = offset[step] - offset[first_step] + row
                    h = h_before[packed, 0, unit]
                    saved = load_values(values, offset[step] + row, unit)
                    if has_dy:
                        d = dy[n, time_index(step, lengths[row], reverse), unit]
                        members = (members[0] + d,) + members[1:]
                    da, members, _ = equations(h, saved, members, no_values(zero))
                    put(words, slot, part * gates, unit, number, da[split:])
                    store_ih(d_ih, packed, unit, da)
                    store_hh(d_hh, packed, unit, da[split:])
                receive(words, slot, rows, number, d_tile)
                number += 1
                cuda.syncthreads()
                multiply(weights, d_tile, rows, part, own, sums, zero)
                cuda.syncthreads()
                if step < own_end:
                    gather(sums, part, own, parts_there)
                    members = (members[0] + sums[part, 0, own],) + members[1:]
                step -= 1
            if mine:
                store_state(dstate, row, unit, members)
            first_row += cuda.gridDim.x * most_rows

    return exchange_backward
