"""The forward time loop, for any cell.

A block of sorted rows runs through the whole sequence by itself. Time is taken in blocks of steps:
gather x, project all of it, then go step by step. Threads take blocks of their own and never wait
for each other, or they share the units of each block and meet after every product's equations.

Packed weights are one flat array: the bias (pre-activations, unit), then for each phase its input
weights (panels, I, gates, lanes) and its recurrent weights (panels, H, gates, lanes).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange
from numba.extending import register_jitable

from ..cells import Cell
from ..plan import phase_plans
from .float_mode import enter_ieee_mode, restore_mode
from .launch import call_at
from .plan import chain, first_of_group, forward_layout, group_bits, row_sizes, units_of
from .product import make_share_out, product
from .rows import load_row, make_state_rows, running, store_row, time_index
from .simd import inlined, load_group, make_sweeps, store_group
from .team import block_of, fetch, join, meet, turns


def _make_projection(cell: Cell, number: int, lanes: int) -> Callable[..., Any]:
    """One phase's biases and, where x feeds it, W x, for all packed rows of a time block."""
    num_pre, part = len(cell.pre_activations), phase_plans(cell)[number]
    first, gates, last = part.first, part.inputs, part.first + part.blocks
    inputs_before, recurrents_before = part.inputs_before, part.recurrents_before
    _, copy = make_sweeps(lanes)

    def project(work, at, size, weights, units, rows, I, H):
        # work, weights: flat
        start = size.unit * (num_pre + inputs_before * I + recurrents_before * H)
        first_weight = start + units.first * I * gates
        product(
            work, at.pre + first * size.unit + units.first, size.pre, size.unit,
            weights, first * size.unit + units.first, 0, size.unit,
            work, at.x, size.x, 0, 1,
            weights, first_weight, I * gates * lanes, gates * lanes, first_weight, (), 1, I,
            rows, units.vectors, gates,
        )  # fmt: skip
        for block in range(first + gates, last):
            bias = block * size.unit + units.first
            for row in range(rows):
                pre = at.pre + row * size.pre
                copy(work, pre + bias, weights, bias, units.vectors * lanes)

    return project


def _make_next_operand(cell: Cell, number: int) -> Callable[..., Any]:
    """The operand of the phase after this one, from this phase's results."""
    if number + 1 < len(cell.phases):
        operand = register_jitable(cell.phases[number + 1].operand.value)

        def next_operand(state, values):
            return operand(state[0], values)

    else:
        operand = register_jitable(cell.phases[0].operand.value)

        def next_operand(state, values):
            return operand(state[0], ())

    return next_operand


def _make_phase(cell: Cell, number: int, lanes: int) -> Callable[..., Any]:
    """One phase of one step, for the running rows: its product, then its equations."""
    phases, states = len(cell.phases), len(cell.states)
    part = phase_plans(cell)[number]
    first, blocks, first_value = part.first, part.blocks, part.first_value
    num_pre, first_recurrent, gates = (
        len(cell.pre_activations),
        part.first_recurrent,
        part.recurrents,
    )
    inputs_before = part.inputs_before + part.inputs
    recurrents_before = part.recurrents_before
    equations = register_jitable(cell.phases[number].forward)
    next_operand = register_jitable(_make_next_operand(cell, number))
    share_out = make_share_out(gates)

    def phase(
        work, at, operands, size, weights, units, meeting, members, saved, saves, value, pre,
        running_rows, rows, step, I, H,
    ):  # fmt: skip
        # work, weights, saved: flat; operands, value, pre: index of the first row's in them; saves:
        # elements of `saved` that all rows keep, if they are to be asked for
        turn = (step * phases + number) % 2
        operand = operands + turn * rows * size.h
        following = operands + (1 - turn) * rows * size.h
        start = size.unit * (num_pre + inputs_before * I + recurrents_before * H)
        sums = pre + first_recurrent * size.unit + units.first
        if members > 1:
            for row in range(running_rows):
                fetch(work, operand + row * size.h, H)
        panel, first_weight = H * gates * lanes, start + units.first * H * gates
        # The values saved are written to lines that are in no cache.
        weight_bytes = units.vectors * panel * work.itemsize
        ask = share_out(saves, running_rows, units.vectors, H, weight_bytes)
        # By the rows of the block, which do not change from step to step: 1 to 4 % of a small step.
        # More groups than `share_out` counts are those of one row, which fills no tile and asks for
        # nothing.
        sum_bytes, panel_bytes = gates * lanes * work.itemsize, panel * work.itemsize
        bits = group_bits(rows, units.vectors, sum_bytes, panel_bytes)
        for group in range((units.vectors + (1 << bits) - 1) >> bits):
            vector = first_of_group(group, units.vectors, bits, step)
            next_vector = first_of_group(group + 1, units.vectors, bits, step)
            at_vector = sums + vector * lanes
            product(
                work, at_vector, size.pre, size.unit,
                work, at_vector, size.pre, size.unit,
                work, operand, size.h, 0, 1,
                weights, first_weight + vector * panel, panel, lanes * gates,
                first_weight + next_vector * panel,
                (saved, value + group * ask.size, ask.n_tile, ask.n_round), 1, H,
                running_rows, min(1 << bits, units.vectors - vector), gates,
            )  # fmt: skip
        for row in range(running_rows):
            for unit in range(units.first, units.last, lanes):
                h = row * size.h + unit
                v = value + row * size.value + unit
                a = load_group(
                    work, pre + row * size.pre + first * size.unit + unit, size.unit, blocks
                )
                state = load_group(work, at.state + h, rows * size.h, states)
                values = load_group(saved, v, size.unit, first_value)
                state, new = equations(a, state, values)
                store_group(saved, v + first_value * size.unit, size.unit, new)
                store_group(work, at.state + h, rows * size.h, state)
                store_group(work, following + h, 0, (next_operand(state, values + new),))
        meet(meeting, members)

    return phase


def make_forward(cell: Cell, lanes: int) -> Callable[..., None]:
    """Build the forward loop of one layer and direction."""
    num_pre, num_values = len(cell.pre_activations), cell.num_values
    states, phases = len(cell.states), range(len(cell.phases))
    first_operand = register_jitable(cell.phases[0].operand.value)
    load_state, store_state = make_state_rows(states, lanes)
    # Inlined too, the projection would be 4 % slower.
    project = chain([register_jitable(_make_projection(cell, n, lanes)) for n in phases])
    step_phases = chain([inlined(_make_phase(cell, n, lanes)) for n in phases])

    def forward(
        worker_size,  # elements of `work` that a worker has
        block_rows,  # rows a block
        steps,  # steps a block
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row, longest first
        offset,  # (T + 1,) packed rows before each step
        x,  # (N, T, I), any strides
        initial,  # for each member of the state (layers * directions, N, H), any strides
        layer,  # which layer and direction of `initial` and `final_out`
        reverse,  # whether rows are walked from their last step
        weights,  # flat, packed
        y_out,  # (N, T, H), any strides; valid steps are written
        final_out,  # like `initial`; written
        values_out,  # (packed rows * value row,) saved for backward; written if `keep`
        keep,
        work,  # (workers * worker_size,)
        meeting,  # of the workers if they share blocks, else empty; see `team`
        worker,  # which of the workers this is
        workers,
    ):
        share = join(meeting, worker, workers)
        if share.block < 0:
            return
        mode = enter_ieee_mode()
        N, I, H = order.shape[0], x.shape[2], y_out.shape[2]
        size = row_sizes(num_pre, num_values, I, H, lanes)
        units = units_of(share.rank, share.members, H, lanes)
        saved = values_out if keep else work
        for turn in range(turns(share, (N + block_rows - 1) // block_rows)):
            first = block_of(share, turn) * block_rows
            if first >= N:
                continue
            last = min(first + block_rows, N)
            rows = last - first
            at = forward_layout(worker * worker_size, rows, steps, states, size)
            # Those who share a block see each other's h, and nothing else of each other.
            operand = forward_layout(share.area * worker_size, rows, steps, states, size).operand

            load_state(initial, layer, order, first, rows, units, work, at.state, size)
            for row in range(rows):
                for unit in range(units.first, units.last, lanes):
                    h = row * size.h + unit
                    (value,) = load_group(work, at.state + h, 0, 1)
                    store_group(work, operand + h, 0, (first_operand(value, ()),))
            meet(meeting, share.members)

            longest = lengths[first]
            for step0 in range(0, longest, steps):
                step1 = min(step0 + steps, longest)
                packed = 0
                for step in range(step0, step1):
                    running_rows = running(offset, step, first, last)
                    for row in range(running_rows):
                        t = time_index(step, lengths[first + row], reverse)
                        load_row(x, order[first + row], t, 0, work, at.x + packed * size.x, I)
                        packed += 1
                project(work, at, size, weights, units, packed, I, H)
                pre = at.pre
                for step in range(step0, step1):
                    running_rows = running(offset, step, first, last)
                    value = (offset[step] + first) * size.value if keep else at.values
                    # Those who share a block write a part of these values each, here and there.
                    saves = running_rows * size.value if keep and share.members == 1 else 0
                    step_phases(
                        work, at, operand, size, weights, units, meeting, share.members, saved,
                        saves, value, pre, running_rows, rows, step, I, H,
                    )  # fmt: skip
                    for row in range(running_rows):
                        t = time_index(step, lengths[first + row], reverse)
                        h = at.state + row * size.h + units.first
                        store_row(y_out, order[first + row], t, units.first, work, h, units.real)
                    pre += running_rows * size.pre

            store_state(final_out, layer, order, first, rows, units, work, at.state, size)
        restore_mode(mode)

    return forward


def forward_threads(
    address, worker_size, block_rows, steps, order, lengths, offset, x, initial, layer, reverse,
    weights, y_out, final_out, values_out, keep, work, meeting, worker, workers,
):  # fmt: skip
    """Run the forward loop's workers on threads."""
    for number in prange(worker, workers):
        call_at(
            address, worker_size, block_rows, steps, order, lengths, offset, x, initial, layer,
            reverse, weights, y_out, final_out, values_out, keep, work, meeting, np.intp(number),
            workers,
        )  # fmt: skip
