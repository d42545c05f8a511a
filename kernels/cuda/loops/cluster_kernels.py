"""A whole time block in one launch, by clusters of thread blocks and their tensor cores.

A cluster takes eight rows through the steps by itself; each block has some of the units, and at
every step writes what it has computed of them into the shared memory of all the others, rounded to
the numbers that are multiplied: `tensor_product`. Thread (row, unit) has the equations of one row
and unit, and keeps its state in registers, as float32.

The vectors of a step are written while others may still read those of the step before, so there are
two buffers, used in turns. One barrier of the cluster a step is enough: nobody writes the vectors
of step s + 2 before all have passed that of step s + 1, thus read those of step s. Where there is
room for one buffer only, all wait once more a step, until it has been read. The hardware runs the
blocks of a cluster at the same time or not at all, so none waits for one that is not there.

Arriving takes until all that the thread has written is there, in global memory too, and after the
barrier the first-level cache is empty. So a step writes its results after it has arrived, and then
prefetches what the next step needs of global memory: both have the time of a product.
"""

from collections.abc import Callable

from numba import cuda
from numba.cuda import types
from numba.cuda.extending import register_jitable

from ...cells import Cell
from ...primitives import zero_like
from ..pointwise import time_index
from .on_chip import backward_parts, forward_parts, own_steps
from .tensor_intrinsics import cluster_arrive, cluster_wait
from .tensor_product import PARTS, ROWS, TensorTile, make_send, make_tensor_product


def _make_clear(tile: TensorTile) -> Callable[..., None]:
    """Build what fills a block's vectors with zeros, of which the padding keeps its own."""
    first, end, threads = tile.first_vector, tile.words, tile.threads

    def clear(words):
        # words: flat, shared
        at = first + cuda.threadIdx.x
        while at < end:
            words[at] = 0
            at += threads

    return register_jitable(clear)


def make_cluster_forward(cell: Cell, tile: TensorTile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, forward."""
    H, units = tile.H, tile.units
    (
        load_state, store_state, no_inputs, no_state, no_values, load_inputs, advance, store_step,
    ) = forward_parts(cell, ROWS)  # fmt: skip
    load_weights, multiply = make_tensor_product(tile, by_columns=False)
    clear, send = _make_clear(tile), make_send(tile)
    sums_shape, weights_shape = tile.sums, (tile.in_registers, 8)
    total_shape = tile.gates, 4
    terms = len(cell.pre_activations)
    own_shape = 1, terms, 1

    def cluster_forward(
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
        line, own = thread // units, thread % units
        first_row, first_unit = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * units
        row, unit = first_row + line, first_unit + own
        words = cuda.shared.array(0, types.uint32, 16)
        sums = cuda.shared.array(sums_shape, types.float32)
        weights = cuda.local.array(weights_shape, types.uint32)
        total = cuda.local.array(total_shape, types.float32)
        own_constants = cuda.local.array(own_shape, types.float32)

        zero = zero_like(constants[0, 0, 0])
        for term in range(terms):
            own_constants[0, term, 0] = constants[0, term, unit] if unit < H else zero
        load_weights(hh, first_unit, thread, weights, words, zero)
        clear(words)
        mine = row < order.shape[0] and unit < H
        # The tile's first row is its longest.
        end = min(last_step, lengths[first_row])
        n, own_end = own_steps(order, lengths, row, mine, first_step, last_step)
        members, x_part, new = no_state(zero), no_inputs(zero), no_values(zero)
        if mine:
            members = load_state(state, row, unit)
        if first_step < own_end:
            x_part = load_inputs(x_sums, constants, offset, first_step, first_step, row, unit)
        # Before all have arrived, some may not be there, or not have cleared their vectors.
        cluster_arrive()
        cluster_wait()
        if first_step < own_end:
            send(words, first_step, line, unit, members)
        cluster_arrive()
        cluster_wait()
        step = first_step
        while step < end:
            multiply(weights, words, thread, step, total, sums, zero)
            cuda.syncthreads()
            if step < own_end:
                members, new = advance(sums, line, own, PARTS, x_part, own_constants, 0, members)
                if step + 1 < own_end:
                    send(words, step + 1, line, unit, members)
            cluster_arrive()
            if step < own_end:
                store_step(
                    y_out, values, offset, lengths, step, row, n, unit, reverse, keep, members[0],
                    new,
                )  # fmt: skip
                if step + 1 < own_end:
                    x_part = load_inputs(x_sums, constants, offset, first_step, step + 1, row, unit)
            cluster_wait()
            step += 1
        if mine:
            store_state(state, row, unit, members)

    return cluster_forward


def make_cluster_backward(cell: Cell, tile: TensorTile) -> Callable[..., None]:
    """Build the kernel that takes all rows through some steps, backward."""
    H, units = tile.H, tile.units
    (
        load_state, store_state, no_state, no_values, no_gradients, load_step, _, differentiate,
        recurrent, store_step, add_product,
    ) = backward_parts(cell, ROWS)  # fmt: skip
    load_weights, multiply = make_tensor_product(tile, by_columns=True)
    clear, send = _make_clear(tile), make_send(tile)
    sums_shape, weights_shape = tile.sums, (tile.in_registers, 8)
    total_shape = tile.gates, 4
    one_buffer = tile.buffers == 1

    def load(
        h_before, values, dy, offset, first_step, step, row, n, length, unit, reverse, has_dy, zero
    ):  # fmt: skip
        # As `load_step`, and dy: (N, T, H)
        packed, h, saved = load_step(h_before, values, offset, first_step, step, row, unit)
        d = dy[n, time_index(step, length, reverse), unit] if has_dy else zero
        return packed, h, saved, d

    prefetch = register_jitable(load)

    def cluster_backward(
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
        line, own = thread // units, thread % units
        first_row, first_unit = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * units
        row, unit = first_row + line, first_unit + own
        words = cuda.shared.array(0, types.uint32, 16)
        sums = cuda.shared.array(sums_shape, types.float32)
        weights = cuda.local.array(weights_shape, types.uint32)
        total = cuda.local.array(total_shape, types.float32)

        zero = zero_like(hh[0, 0])
        load_weights(hh, first_unit, thread, weights, words, zero)
        clear(words)
        mine = row < order.shape[0] and unit < H
        length = lengths[row] if mine else 0
        own_end = min(last_step, length)
        n = order[row] if mine else 0
        members, da = no_state(zero), no_gradients(zero)
        saved, h, d, packed = no_values(zero), zero, zero, 0
        if mine:
            members = load_state(dstate, row, unit)
        # Before all have arrived, some may not be there, or not have cleared their vectors.
        cluster_arrive()
        if not one_buffer:
            cluster_wait()
        step = min(last_step, lengths[first_row]) - 1
        if first_step <= step < own_end:
            packed, h, saved, d = prefetch(
                h_before, values, dy, offset, first_step, step, row, n,
                length, unit, reverse, has_dy, zero,
            )  # fmt: skip
        while step >= first_step:
            if step < own_end:
                members = (members[0] + d,) + members[1:]
                da, members = differentiate(h, saved, members, zero)
            if one_buffer:
                cluster_wait()
            if step < own_end:
                send(words, step, line, unit, recurrent(da))
            cluster_arrive()
            if step < own_end:
                store_step(d_ih, d_hh, packed, unit, da)
            if first_step < step <= own_end:
                packed, h, saved, d = prefetch(
                    h_before, values, dy, offset, first_step, step - 1, row, n,
                    length, unit, reverse, has_dy, zero,
                )  # fmt: skip
            cluster_wait()
            multiply(weights, words, thread, step, total, sums, zero)
            cuda.syncthreads()
            if one_buffer:
                cluster_arrive()
            if step < own_end:
                members = add_product(sums, line, own, PARTS, members)
            step -= 1
        if one_buffer:
            cluster_wait()
        if mine:
            store_state(dstate, row, unit, members)

    return cluster_backward
