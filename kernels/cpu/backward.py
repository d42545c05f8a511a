"""The backward time loop, for any cell: from gradients of the outputs to those of pre-activations.

The mirror of `forward`: the same blocks of sorted rows, shared by threads in the same two ways,
phases in reverse. It runs over some steps, the last ones first, and leaves the gradients of their
pre-activations in packed rows; `gradients` makes those of x and of the weights from them.

Packed weights are one flat array: for each phase its recurrent weights (panels, gates, H, lanes),
where a panel is a vector of the operand's units.
"""

from collections.abc import Callable
from typing import Any

from numba.extending import register_jitable

from ..cells import Cell
from ..plan import phase_plans
from .float_mode import enter_ieee_mode, restore_mode
from .plan import GROUP, GROUP_BITS, backward_layout, chain, first_of_group, row_sizes, units_of
from .product import make_share_out, product
from .rows import add_row, fetch_ahead, make_state_rows, previous_h, running, time_index
from .simd import add_group, inlined, load_group, make_sweeps, store_group, zero_group
from .team import block_of, fetch, join, meet, turns


def _make_phase(cell: Cell, number: int, lanes: int) -> Callable[..., Any]:
    """One phase of one step, backward, for the running rows: its equations, then its product."""
    states, part = len(cell.states), phase_plans(cell)[number]
    first, first_value = part.first, part.first_value
    seen = first_value + part.values
    first_recurrent, gates = part.first_recurrent, part.recurrents
    recurrents_before = part.recurrents_before
    equations = register_jitable(cell.phases[number].backward)
    operand_gradient = register_jitable(cell.phases[number].operand.gradient)
    fill_zero, _ = make_sweeps(lanes)
    share_out = make_share_out(1)

    if number + 1 < len(cell.phases):

        def gradients_so_far(work, start, stride):
            return load_group(work, start, stride, seen)

    else:

        def gradients_so_far(work, start, stride):
            return zero_group(work, seen)  # no later phase has used these values

    value_gradients = register_jitable(gradients_so_far)

    def phase(
        work, at, size, units, meeting, members, saved, value, next_value, soon_size, d, d_row,
        weights, running_rows, rows, step, H,
    ):  # fmt: skip
        # work, saved, d, weights: flat; value, d_row: index of the first row's values, gradients;
        # next_value: of the values that the next step reads, soon_size of them
        for row in range(running_rows):
            for unit in range(units.first, units.last, lanes):
                at_h = row * size.h + unit
                at_v = row * size.value + unit
                (h,) = load_group(work, at.h + at_h, 0, 1)
                values = load_group(saved, value + at_v, size.unit, seen)
                dstate = load_group(work, at.dstate + at_h, rows * size.h, states)
                dvalues = value_gradients(work, at.dvalues + at_v, size.unit)
                da, dstate, dvalues = equations(h, values, dstate, dvalues)
                store_group(d, d_row + row * size.pre + first * size.unit + unit, size.unit, da)
                store_group(work, at.dstate + at_h, rows * size.h, dstate)
                store_group(work, at.dvalues + at_v, size.unit, dvalues)

        # To the operand, and through it to h and to the values of earlier phases.
        if gates == 0:
            return
        meet(meeting, members)
        if members > 1:
            for row in range(running_rows):
                fetch(d, d_row + row * size.pre + first_recurrent * size.unit, gates * size.unit)
        sums = at.doperand + units.first
        for row in range(running_rows):
            fill_zero(work, sums + row * size.h, units.vectors * lanes)
        panel = gates * H * lanes
        first_weight = size.unit * recurrents_before * H + units.first * gates * H
        weight_bytes = units.vectors * panel * work.itemsize
        ask = share_out(soon_size, running_rows, units.vectors, gates * H, weight_bytes)
        for group in range((units.vectors + GROUP - 1) // GROUP):
            vector = first_of_group(group, units.vectors, GROUP_BITS, step)
            next_vector = first_of_group(group + 1, units.vectors, GROUP_BITS, step)
            at_vector = sums + vector * lanes
            product(
                work, at_vector, size.h, 0,
                work, at_vector, size.h, 0,
                d, d_row + first_recurrent * size.unit, size.pre, size.unit, 1,
                weights, first_weight + vector * panel, panel, lanes,
                first_weight + next_vector * panel,
                (saved, next_value + group * ask.size, ask.n_tile, ask.n_round), gates, H,
                running_rows, min(GROUP, units.vectors - vector), 1,
            )  # fmt: skip
        for row in range(running_rows):
            for unit in range(units.first, units.last, lanes):
                at_h = row * size.h + unit
                at_v = row * size.value + unit
                (h,) = load_group(work, at.h + at_h, 0, 1)
                (doperand,) = load_group(work, at.doperand + at_h, 0, 1)
                values = load_group(saved, value + at_v, size.unit, first_value)
                dstate = load_group(work, at.dstate + at_h, 0, 1)
                dvalues = load_group(work, at.dvalues + at_v, size.unit, first_value)
                dh, dv = operand_gradient(h, values, doperand)
                store_group(work, at.dstate + at_h, 0, add_group(dstate, (dh,)))
                store_group(work, at.dvalues + at_v, size.unit, add_group(dvalues, dv))

    return phase


def make_backward(cell: Cell, lanes: int) -> Callable[..., None]:
    """Build the backward loop of one layer and direction."""
    num_pre, num_values, states = len(cell.pre_activations), cell.num_values, len(cell.states)
    numbers = reversed(range(len(cell.phases)))
    step_phases = chain([inlined(_make_phase(cell, number, lanes)) for number in numbers])
    fill_zero, _ = make_sweeps(lanes)
    load_state, store_state = make_state_rows(states, lanes)

    def backward(
        dy,  # (N, T, H), any strides; read where valid, if `has_dy`
        has_dy,
        layer,  # which layer and direction of `initial` and `dstate_out`
        y,  # (N, T, H), any strides: what forward gave
        initial,  # for each member of the state (layers * directions, N, H), any strides
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row, longest first
        offset,  # (T + 1,) packed rows before each step
        reverse,  # whether rows were walked from their last step
        weights,  # flat, packed
        saved,  # (packed rows * value row,) what forward kept
        first_step,  # steps first_step to last_step - 1 are walked, the last one first
        last_step,
        d_out,  # (packed rows of these steps * pre row,) gradients of pre-activations; written
        dstate_out,  # like `initial`; gradients of the state after these steps become those before
        work,  # (workers * worker_size,)
        worker_size,
        block_rows,  # rows a block
        meeting,  # of the workers if they share blocks, else empty; see `team`
        worker,  # which of the workers this is
        workers,
    ):
        share = join(meeting, worker, workers)
        if share.block < 0:
            return
        mode = enter_ieee_mode()
        N, H = order.shape[0], y.shape[2]
        size = row_sizes(num_pre, num_values, 0, H, lanes)
        units = units_of(share.rank, share.members, H, lanes)
        previous = 1 if reverse else -1  # where h before a step lies in y
        for turn in range(turns(share, (N + block_rows - 1) // block_rows)):
            first = block_of(share, turn) * block_rows
            if first >= N:
                continue
            last = min(first + block_rows, N)
            rows = last - first
            at = backward_layout(worker * worker_size, rows, states, size)

            for row in range(rows):
                fill_zero(work, at.h + row * size.h + units.first, units.vectors * lanes)
            load_state(dstate_out, layer, order, first, rows, units, work, at.dstate, size)

            for step in range(min(last_step, lengths[first]) - 1, first_step - 1, -1):
                running_rows = running(offset, step, first, last)
                for row in range(running_rows):
                    n = order[first + row]
                    t = time_index(step, lengths[first + row], reverse)
                    h = row * size.h + units.first
                    walk = (order, lengths, first + row, first + running_rows, step, reverse)
                    fetch_ahead(y, *walk, previous, units.first, units.real)
                    if has_dy:
                        fetch_ahead(dy, *walk, 0, units.first, units.real)
                        add_row(dy, n, t, units.first, work, at.dstate + h, units.real)
                    previous_h(
                        y, initial[0], layer, n, step, t, reverse, units.first,
                        work, at.h + h, units.real,
                    )  # fmt: skip
                packed = offset[step] + first
                next_value, soon_size = 0, 0
                # Those who share a block read a part of these values each, here and there.
                if step > first_step and share.members == 1:
                    next_value = (offset[step - 1] + first) * size.value
                    soon_size = running_rows * size.value
                step_phases(
                    work, at, size, units, meeting, share.members, saved, packed * size.value,
                    next_value, soon_size, d_out, (packed - offset[first_step]) * size.pre, weights,
                    running_rows, rows, step, H,
                )  # fmt: skip

            store_state(dstate_out, layer, order, first, rows, units, work, at.dstate, size)
        restore_mode(mode)

    return backward
