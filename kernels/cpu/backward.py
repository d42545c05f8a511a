"""The backward loop, for every cell: from gradients of the outputs to those of pre-activations.

The mirror of `forward`: the same row blocks, shared by threads in the same two ways,
phases in reverse. It runs over some steps, the last ones first, and leaves the gradients of their
pre-activations in packed rows, with the operands that are not h; `gradients` makes those of x and
of the weights from them.

A table tells it what depends on the cell: a `LoopPlan`, a `BackwardPlan`, and then a
`BackwardPhase` for each phase, the last one first.
"""

from collections.abc import Callable
from typing import NamedTuple

from .barrier import join, prefetch_run, row_block_of, turns, wait
from .calling import call_at, record
from .equations import Strided
from .float_mode import enter_ieee_mode, restore_mode
from .normalise import normalise_rows_backward
from .product import (
    Extent,
    Factors,
    Panels,
    Prefetch,
    Sums,
    TileCounts,
    first_of_strip,
    share_of_strip,
)
from .row_product import RowExtent, RowFactors, RowSums
from .rows import (
    add_row,
    make_state_rows,
    prefetch_ahead,
    previous_h,
    running,
    time_index,
    units_of,
)
from .simd import inlined, make_sweeps, pointer
from .tuning import STRIP, STRIP_BITS


class LoopPlan(NamedTuple):
    """How threads run a backward pass; lengths in elements."""

    worker_size: int  # a worker's part of the workspace
    workers: int  # threads of the loop over steps
    threads: int  # threads that may be used


class BackwardPlan(NamedTuple):
    """What the backward loop is told of a layer; lengths in elements."""

    phases: int
    states: int
    block_rows: int  # rows at once
    unit: int  # of `layout.Rows`, likewise the next ones
    value_row: int
    d_row: int
    h_row: int
    dstate: int  # of `layout.BackwardWorkspace`, likewise the next ones
    h: int
    doperand: int
    dvalues: int


class BackwardPhase(NamedTuple):
    """What the backward loop is told of a phase; positions in a row are elements."""

    equations: int  # address
    first: int  # its first pre-activation
    recurrent: int  # first that the operand feeds
    recurrents: int  # how many it feeds
    product: int  # address of the product with one gate
    row_product: int  # and of that for one row
    weights: int  # where the recurrent weights lie in packed weights
    operand_gradient: int  # address of what passes the operand's gradient on; 0 where it is h
    operand: int  # where the operand goes in a row of `d`
    full_rows: int  # of `TileCounts` of that product, likewise the next ones
    full_panels: int
    pairs: int
    norm_values: int  # where what a normaliser kept lies in a row of values; -1 if there is none


_LOOP, _PLAN = len(LoopPlan._fields), len(BackwardPlan._fields)
_PHASE = len(BackwardPhase._fields)


def _make_multiply(lanes: int, itemsize: int) -> Callable[..., None]:
    """Build the product that makes an operand's gradient in one step: strips of panels."""
    fill_zero = make_sweeps(lanes).fill_zero

    def multiply(phase, plan, sums, d, weights, units, running_rows, step, H, ahead, ahead_size):
        # sums, d, weights: pointers, of the step's first row; ahead: pointer to the values that the
        # next step reads, so many of them
        for row in range(running_rows):
            fill_zero(sums, row * plan.h_row, units.vectors * lanes)
        panel = phase.recurrents * H * lanes
        first_panel = pointer(weights, phase.weights + units.first * phase.recurrents * H)
        if running_rows == 1:
            call_at(
                phase.row_product, RowSums(sums, 0), RowFactors(d, plan.unit), first_panel,
                RowExtent(phase.recurrents, H, units.vectors), step,
            )  # fmt: skip
            return
        tiles = TileCounts(phase.full_rows, phase.full_panels, phase.pairs)
        share = share_of_strip(
            ahead_size, running_rows, units.vectors, phase.recurrents * H,
            units.vectors * panel * itemsize, tiles,
        )  # fmt: skip
        for strip in range((units.vectors + STRIP - 1) // STRIP):
            vector = first_of_strip(strip, units.vectors, STRIP_BITS, step)
            next_vector = first_of_strip(strip + 1, units.vectors, STRIP_BITS, step)
            of_strip = Sums(pointer(sums, vector * lanes), plan.h_row, 0)
            call_at(
                phase.product,
                of_strip,
                of_strip,
                Factors(d, plan.d_row, plan.unit, 1),
                Panels(pointer(first_panel, vector * panel), panel, lanes),
                Prefetch(
                    pointer(first_panel, next_vector * panel),
                    pointer(ahead, strip * share.strip), share.tile, share.round,
                ),
                Extent(phase.recurrents, H, running_rows, min(STRIP, units.vectors - vector)),
            )  # fmt: skip

    return inlined(multiply)


def make_backward(lanes: int, itemsize: int) -> Callable[..., None]:
    """Build the backward loop of one layer and direction."""
    fill_zero, add = make_sweeps(lanes).fill_zero, make_sweeps(lanes).add
    load_state, store_state = make_state_rows(lanes)
    multiply = _make_multiply(lanes, itemsize)

    def backward(
        table,  # a LoopPlan, a BackwardPlan, then a BackwardPhase for each phase, the last first
        dy,  # (N, T, H), any strides; read where valid, if `has_dy`
        has_dy,
        layer,  # which layer and direction of `initial` and `dstate_out`
        y,  # (N, T, H), any strides: what forward gave
        initial,  # for each member of the state (layers * directions, N, H), any strides
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row, longest first
        offset,  # (T + 1,) packed rows before each step
        reverse,  # whether rows were walked from their last step
        packed,  # flat, weights packed by columns
        saved,  # (packed rows * value_row,) what forward kept
        first_step,  # of steps first_step to last_step - 1
        last_step,
        d_out,  # (packed rows of these steps * d_row,) gradients of pre-activations, and operands
        dstate_out,  # like `initial`; gradients of the state after these steps, then before them
        workspace,  # (workers * worker_size,)
        barrier,  # of the workers if they are a team, else empty; see `barrier`
        worker,  # which of the workers this is
        workers,
    ):
        share = join(barrier, worker, workers)
        if share.row_block < 0:
            return
        mode = enter_ieee_mode()
        plan = record(BackwardPlan, table, _LOOP)
        N, H = order.shape[0], y.shape[2]
        units = units_of(share.rank, share.members, H, lanes)
        width = units.vectors * lanes
        previous = 1 if reverse else -1
        weights, values_of_all = pointer(packed, 0), pointer(saved, 0)
        work = pointer(workspace, worker * record(LoopPlan, table, 0).worker_size)
        dstate, h_rows = pointer(work, plan.dstate), pointer(work, plan.h)
        doperand = pointer(work, plan.doperand + units.first)
        own_h = Strided(pointer(h_rows, units.first), plan.h_row, 0)
        own_doperand = Strided(doperand, plan.h_row, 0)
        own_dvalues = Strided(pointer(work, plan.dvalues + units.first), plan.value_row, plan.unit)
        own_dstate = Strided(pointer(dstate, units.first), plan.h_row, plan.block_rows * plan.h_row)
        for turn in range(turns(share, (N + plan.block_rows - 1) // plan.block_rows)):
            first = row_block_of(share, turn) * plan.block_rows
            if first >= N:
                continue
            last = min(first + plan.block_rows, N)
            rows = last - first

            for row in range(rows):
                fill_zero(h_rows, row * plan.h_row + units.first, width)
            load_state(dstate_out, plan.states, layer, order, first, rows, units, dstate, plan)

            for step in range(min(last_step, lengths[first]) - 1, first_step - 1, -1):
                running_rows = running(offset, step, first, last)
                for row in range(running_rows):
                    n = order[first + row]
                    t = time_index(step, lengths[first + row], reverse)
                    h = row * plan.h_row + units.first
                    walk = (order, lengths, first + row, first + running_rows, step, reverse)
                    prefetch_ahead(y, *walk, previous, units.first, units.real)
                    if has_dy:
                        prefetch_ahead(dy, *walk, 0, units.first, units.real)
                        add_row(dy, n, t, units.first, dstate, h, units.real)
                    previous_h(
                        y, initial[0], layer, n, step, t, reverse, units.first, h_rows, h,
                        units.real,
                    )  # fmt: skip
                packed_row = offset[step] + first
                values = pointer(values_of_all, packed_row * plan.value_row)
                d = pointer(d_out, (packed_row - offset[first_step]) * plan.d_row)
                ahead, ahead_size = values, 0
                # The members of a team read a part of these values each.
                if step > first_step and share.members == 1:
                    ahead = pointer(values_of_all, (offset[step - 1] + first) * plan.value_row)
                    ahead_size = running_rows * plan.value_row
                own_values = Strided(pointer(values, units.first), plan.value_row, plan.unit)
                for number in range(plan.phases):
                    phase = record(BackwardPhase, table, _LOOP + _PLAN + number * _PHASE)
                    own_d = Strided(pointer(d, phase.first + units.first), plan.d_row, plan.unit)
                    constants = pointer(weights, phase.first + units.first)
                    call_at(
                        phase.equations, own_h, own_values, Strided(constants, 0, plan.unit),
                        own_dstate, own_dvalues, own_d,
                        running_rows, width,
                    )  # fmt: skip
                    # To the operand, and through it to h and to the values of earlier phases.
                    if phase.recurrents == 0:
                        continue
                    wait(barrier, share.members)
                    of_recurrents = pointer(d, phase.recurrent)
                    if share.members > 1:
                        for row in range(running_rows):
                            at = row * plan.d_row
                            count = phase.recurrents * plan.unit
                            prefetch_run(of_recurrents, at, count, itemsize)
                    if phase.norm_values >= 0:
                        normalise_rows_backward(
                            Strided(of_recurrents, plan.d_row, plan.unit),
                            Strided(
                                pointer(values, phase.norm_values), plan.value_row, plan.unit
                            ),
                            running_rows, phase.recurrents, H,
                        )  # fmt: skip
                    multiply(
                        phase, plan, doperand, of_recurrents, weights, units, running_rows, step, H,
                        ahead, ahead_size,
                    )  # fmt: skip
                    if phase.operand_gradient == 0:  # the operand is h
                        for row in range(running_rows):
                            at = row * plan.h_row
                            add(dstate, at + units.first, doperand, at, width)
                        continue
                    operand_out = Strided(pointer(d, phase.operand + units.first), plan.d_row, 0)
                    call_at(
                        phase.operand_gradient, own_h, own_doperand, own_values, own_dstate,
                        own_dvalues, operand_out, running_rows, width,
                    )  # fmt: skip

            store_state(dstate_out, plan.states, layer, order, first, rows, units, dstate, plan)
        restore_mode(mode)

    return backward
