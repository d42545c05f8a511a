"""A whole time block in one launch, with the recurrent weights spread over thread blocks.

For H too large for one block. A group of blocks takes tiles of rows through the steps, one after
the other; each block has some of the units, and at every step sends the group what it has computed
of them. `register_product` multiplies; then thread (part, unit) has the equations of one row, the
`part`-th, and keeps its state in registers.

An exchange: every block writes tagged words of its units (see `intrinsics`), then reads those of
all units, each again and again until its number is that of the exchange. Every exchange holds words
of every block, and behind a barrier after reading, a block knows that all have written. So no block
writes exchange e + 1 before all have written e, and none writes e + 2 before all have read e: two
slots, used in turns, are enough. That holds only if all blocks of a group run at the same time,
which the launch must see to; and every block must make the same exchanges, which follow from the
lengths of a tile's rows alone. Threads of one warp may wait for each other's words: from compute
capability 7.0 on, each of them makes progress.
"""

from collections.abc import Callable
from typing import Any

from numba import cuda
from numba.cuda import types
from numba.cuda.extending import register_jitable

from ...cells import Cell
from ...primitives import zero_like
from .. import tuning
from .intrinsics import load_tagged, store_tagged
from .on_chip import backward_parts, forward_parts, own_steps
from .register_product import Tile, make_product


def _make_receive_some(tile: Tile, vectors: int, count: int) -> Callable[..., None]:
    """Build what receives so many words: all loads are started, then waited for."""
    if count == 0:

        def receive_some(exchange_words, slot, at, total, exchange, out):
            return

    else:
        H, threads = tile.H, tile.threads
        receive_others = _make_receive_some(tile, vectors, count - 1)

        def receive_some(exchange_words, slot, at, total, exchange, out):
            # exchange_words: (2 * groups, rows * vectors, H); out: (rows, vectors, padded)
            word = min(at, total - 1)
            line, unit = word // H, word % H
            found, value = load_tagged(exchange_words, slot, line, unit)
            receive_others(exchange_words, slot, at + threads, total, exchange, out)
            while found != exchange & 0xFFFFFFFF:
                cuda.nanosleep(0)  # lets the other threads of the warp run
                found, value = load_tagged(exchange_words, slot, line, unit)
            if at < total:
                out[line // vectors, line % vectors, unit] = value

    return register_jitable(receive_some)


def _make_receive(tile: Tile, vectors: int) -> Callable[..., None]:
    """Build what waits for the words of a tile's first rows and puts them into shared memory.

    A word's row is that of the tile times `vectors`, plus which of the row's vectors it is of.
    """
    H, stride = tile.H, tile.threads * tuning.EXCHANGE_PREFETCH
    receive_some = _make_receive_some(tile, vectors, tuning.EXCHANGE_PREFETCH)

    def receive(exchange_words, slot, rows, exchange, out):
        # exchange_words: (2 * groups, rows * vectors, H); out: (rows, vectors, padded)
        at, total = cuda.threadIdx.x, rows * vectors * H
        while at < total:
            receive_some(exchange_words, slot, at, total, exchange, out)
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


def _make_send(vectors: int) -> Callable[..., None]:
    """Build what sends the group a row's values of one unit, a tuple."""
    if vectors == 0:

        def send(exchange_words, slot, line, unit, exchange, values):
            return

    else:
        before, last = _make_send(vectors - 1), vectors - 1

        def send(exchange_words, slot, line, unit, exchange, values):
            # exchange_words: (2 * groups, rows * vectors, H)
            before(exchange_words, slot, line, unit, exchange, values)
            store_tagged(exchange_words, slot, line + last, unit, exchange, values[last])

    return register_jitable(send)


def make_exchange_forward(cell: Cell, tile: Tile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, forward."""
    gates = len(cell.recurrent_gates)
    H, units, parts, padded, most_rows = tile.H, tile.units, tile.parts, tile.padded, tile.rows
    threads = tile.threads
    (
        load_state, store_state, no_inputs, no_state, _, load_inputs, advance, store_step,
    ) = forward_parts(cell, tile.rows)  # fmt: skip
    load_weights, multiply = make_product(tile, gates, by_columns=False)
    receive, running = _make_receive(tile, 1), _make_running(tile)
    operand_shape, sums_shape = (most_rows, 1, padded), (parts * most_rows, gates, units)
    weights_shape = (gates, tile.length)

    def exchange_forward(
        x_sums,  # (packed rows of these steps, input gates, H): W x
        hh,  # (recurrent gates * H, H)
        constants,  # (1, pre-activations, H)
        state_before,  # (N, states, H)
        state,  # (N, states, H), written: another array, as each block reads h of all units
        values,  # (packed rows, values, H), written if `keep`
        y_out,  # (N, T, H), any strides; written
        exchange_words,  # (2 * groups, rows of a tile, H), of earlier exchanges
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,
        last_step,
        reverse,  # whether rows are walked from their last step
        keep,
        exchange,  # number of the first one
    ):
        thread = cuda.threadIdx.x
        part, own = thread // units, thread % units
        # As a number that the compiler does not know: unrolled over 32 parts, their sum takes
        # registers that the weights need (24 bytes spilled).
        run_time_parts = cuda.blockDim.x // units
        group, unit = cuda.blockIdx.x, cuda.blockIdx.y * units + own
        operand = cuda.shared.array(operand_shape, types.float32, 16)
        sums = cuda.shared.array(sums_shape, types.float32)
        weights = cuda.local.array(weights_shape, types.float32)

        zero = zero_like(constants[0, 0, 0])
        load_weights(hh, unit, part, weights, zero)
        first_row = group * most_rows
        while first_row < order.shape[0]:
            row = first_row + part
            mine = part < most_rows and row < order.shape[0] and unit < H
            # The tile's first row is its longest.
            end = min(last_step, lengths[first_row])
            n, own_end = own_steps(order, lengths, row, mine, first_step, last_step)
            members, x_part = no_state(zero), no_inputs(zero)
            if mine:
                members = load_state(state_before, row, unit)
            if first_step < own_end:
                x_part = load_inputs(x_sums, constants, offset, first_step, first_step, row, unit)
            at = thread
            while at < most_rows * padded:  # beyond H there is padding, which stays 0
                line, k = at // padded, at % padded
                inside = first_row + line < order.shape[0] and k < H
                operand[line, 0, k] = state_before[first_row + line, 0, k] if inside else zero
                at += threads
            cuda.syncthreads()
            step = first_step
            while step < end:
                rows, slot = running(offset, step, first_row), group * 2 + exchange % 2
                multiply(weights, operand, rows, part, own, sums, zero)
                cuda.syncthreads()
                if step < own_end:
                    members, new = advance(
                        sums, part, own, run_time_parts, x_part, constants, unit, members
                    )
                    if step + 1 < own_end:
                        store_tagged(exchange_words, slot, part, unit, exchange, members[0])
                    store_step(
                        y_out, values, offset, lengths, step, row, n, unit, reverse, keep,
                        members[0], new,
                    )  # fmt: skip
                    if step + 1 < own_end:  # prefetched: it is there after the next product
                        x_part = load_inputs(
                            x_sums, constants, offset, first_step, step + 1, row, unit
                        )
                step += 1
                if step < end:
                    rows = running(offset, step, first_row)
                    receive(exchange_words, slot, rows, exchange, operand)
                    exchange += 1
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
        load_state, store_state, no_state, no_values, _, load_step, add_output, differentiate,
        recurrent, store_step, add_product,
    ) = backward_parts(cell, tile.rows)  # fmt: skip
    load_weights, multiply = make_product(tile, gates, by_columns=True)
    send, receive, running = _make_send(gates), _make_receive(tile, gates), _make_running(tile)
    d_shape, sums_shape = (most_rows, gates, padded), (parts * most_rows, 1, units)
    weights_shape = (gates, tile.length)

    def exchange_backward(
        h_before,  # (packed rows of these steps, 1, H): h before each step
        hh,  # (recurrent gates * H, H)
        values,  # (packed rows, values, H)
        dy,  # (N, T, H), any strides; read where valid, if `has_dy`
        dstate,  # (N, states, H): gradient of the state after the steps; becomes that before them
        d_ih,  # (packed rows of these steps, input gates, H): gradients of W x + b; written
        d_hh,  # (packed rows of these steps, recurrent gates, H): of U h + b; written
        exchange_words,  # (2 * groups, rows of a tile * recurrent gates, H), as forward
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,
        last_step,
        reverse,  # whether rows were walked from their last step
        has_dy,
        exchange,  # number of the first one
    ):
        thread = cuda.threadIdx.x
        part, own = thread // units, thread % units
        run_time_parts = cuda.blockDim.x // units  # as forward
        group, unit = cuda.blockIdx.x, cuda.blockIdx.y * units + own
        d_tile = cuda.shared.array(d_shape, types.float32, 16)
        sums = cuda.shared.array(sums_shape, types.float32)
        weights = cuda.local.array(weights_shape, types.float32)

        zero = zero_like(hh[0, 0])
        load_weights(hh, unit, part, weights, zero)
        first_row = group * most_rows
        while first_row < order.shape[0]:
            row = first_row + part
            mine = part < most_rows and row < order.shape[0] and unit < H
            n, own_end = own_steps(order, lengths, row, mine, first_step, last_step)
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
                rows, slot = running(offset, step, first_row), group * 2 + exchange % 2
                if step < own_end:
                    packed, h, saved = load_step(
                        h_before, values, offset, first_step, step, row, unit
                    )
                    if has_dy:
                        members = add_output(members, dy, n, step, lengths[row], unit, reverse)
                    da, members = differentiate(h, saved, members, zero)
                    send(exchange_words, slot, part * gates, unit, exchange, recurrent(da))
                    store_step(d_ih, d_hh, packed, unit, da)
                receive(exchange_words, slot, rows, exchange, d_tile)
                exchange += 1
                cuda.syncthreads()
                multiply(weights, d_tile, rows, part, own, sums, zero)
                cuda.syncthreads()
                if step < own_end:
                    members = add_product(sums, part, own, run_time_parts, members)
                step -= 1
            if mine:
                store_state(dstate, row, unit, members)
            first_row += cuda.gridDim.x * most_rows

    return exchange_backward
