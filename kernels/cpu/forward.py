"""The forward time loop, for any cell.

A block of sorted rows runs through the whole sequence by itself, so threads never wait for each
other. Time is taken in blocks of steps: gather x, project all of it, then go step by step.

Packed weights are one flat array: the bias (pre-activations, unit), then for each phase its input
weights (panels, I, gates, lanes) and its recurrent weights (panels, H, gates, lanes).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange
from numba.extending import register_jitable

from ..cells import Cell
from .plan import chain, forward_layout, phase_plans, row_sizes
from .rows import load_row, running, store_row, time_index
from .simd import load_group, make_sweeps, store_group
from .tile import product


def _make_projection(cell: Cell, number: int, lanes: int) -> Callable[..., Any]:
    """Add W x to one phase's pre-activations, for all packed rows of a time block."""
    num_pre, part = len(cell.pre_activations), phase_plans(cell)[number]
    first, gates = part.first, part.inputs
    inputs_before, recurrents_before = part.inputs_before, part.recurrents_before

    def project(work, at, size, weights, rows, I, H):
        start = size.unit * (num_pre + inputs_before * I + recurrents_before * H)
        product(
            work, at.pre + first * size.unit, size.pre, size.unit,
            work, at.x, size.x, 0, 1,
            weights, start, I * gates * lanes, 1, I,
            rows, size.unit // lanes, gates,
        )  # fmt: skip

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

    def phase(work, at, size, weights, saved, value, pre, running_rows, rows, step, I, H):
        # work, weights, saved: flat; value, pre: index of the first row's values, pre-activations
        turn = (step * phases + number) % 2
        operand = at.operand + turn * rows * size.h
        following = at.operand + (1 - turn) * rows * size.h
        start = size.unit * (num_pre + inputs_before * I + recurrents_before * H)
        product(
            work, pre + first_recurrent * size.unit, size.pre, size.unit,
            work, operand, size.h, 0, 1,
            weights, start, H * gates * lanes, 1, H,
            running_rows, size.unit // lanes, gates,
        )  # fmt: skip
        for row in range(running_rows):
            for unit in range(0, size.unit, lanes):
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

    return phase


def make_forward(cell: Cell, lanes: int) -> Callable[..., None]:
    """Build the forward loop of one layer and direction."""
    num_pre, num_values = len(cell.pre_activations), cell.num_values
    states, phases = len(cell.states), range(len(cell.phases))
    first_operand = register_jitable(cell.phases[0].operand.value)
    fill_zero, copy, _ = make_sweeps(lanes)
    project = chain([_make_projection(cell, number, lanes) for number in phases])
    step_phases = chain([_make_phase(cell, number, lanes) for number in phases])

    def forward(
        x,  # (N, T, I), any strides
        initial,  # for each member of the state (layers * directions, N, H), any strides
        layer,  # which layer and direction of `initial` and `final_out`
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row, longest first
        offset,  # (T + 1,) packed rows before each step
        reverse,  # whether rows are walked from their last step
        weights,  # flat, packed
        y_out,  # (N, T, H), any strides; valid steps are written
        final_out,  # like `initial`; written
        values_out,  # (packed rows * value row,) saved for backward; written if `keep`
        keep,
        work,  # (workers * worker_size,)
        worker_size,
        block_rows,  # rows a block
        steps,  # steps a block
        worker,  # which share of the blocks to do
        workers,
    ):
        N, I, H = order.shape[0], x.shape[2], y_out.shape[2]
        size = row_sizes(num_pre, num_values, I, H, lanes)
        saved = values_out if keep else work
        for block in range(worker, (N + block_rows - 1) // block_rows, workers):
            first = block * block_rows
            last = min(first + block_rows, N)
            rows = last - first
            at = forward_layout(worker * worker_size, rows, steps, states, size)

            fill_zero(work, at.state, at.x - at.state)
            for row in range(rows):
                for member in range(states):
                    to = at.state + (member * rows + row) * size.h
                    load_row(initial[member], layer, order[first + row], work, to, H)
                for unit in range(0, size.unit, lanes):
                    h = row * size.h + unit
                    (value,) = load_group(work, at.state + h, 0, 1)
                    store_group(work, at.operand + h, 0, (first_operand(value, ()),))

            longest = lengths[first]
            for step0 in range(0, longest, steps):
                step1 = min(step0 + steps, longest)
                packed = 0
                for step in range(step0, step1):
                    for row in range(running(offset, step, first, last)):
                        t = time_index(step, lengths[first + row], reverse)
                        load_row(x, order[first + row], t, work, at.x + packed * size.x, I)
                        pre = at.pre + packed * size.pre
                        copy(work, pre, weights, 0, num_pre * size.unit)
                        packed += 1
                project(work, at, size, weights, packed, I, H)
                pre = at.pre
                for step in range(step0, step1):
                    running_rows = running(offset, step, first, last)
                    value = (offset[step] + first) * size.value if keep else at.values
                    step_phases(
                        work, at, size, weights, saved, value, pre, running_rows, rows, step, I, H
                    )
                    for row in range(running_rows):
                        t = time_index(step, lengths[first + row], reverse)
                        store_row(y_out, order[first + row], t, work, at.state + row * size.h, H)
                    pre += running_rows * size.pre

            for row in range(rows):
                for member in range(states):
                    h = at.state + (member * rows + row) * size.h
                    store_row(final_out[member], layer, order[first + row], work, h, H)

    return forward


def forward_threads(
    kernel, x, initial, layer, order, lengths, offset, reverse, weights, y_out, final_out,
    values_out, keep, work, worker_size, block_rows, steps, workers,
):  # fmt: skip
    """Run the forward loop's shares on threads."""
    for worker in prange(workers):
        kernel(
            x, initial, layer, order, lengths, offset, reverse, weights, y_out, final_out,
            values_out, keep, work, worker_size, block_rows, steps, np.intp(worker), workers,
        )  # fmt: skip
