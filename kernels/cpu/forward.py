"""The forward pass of one layer and direction: project and recur, for every cell.

A row block, some of the sorted rows, runs through the whole sequence by itself, in time blocks:
gather x of some steps, project all of it, then go step by step. Threads take row blocks of their
own and never wait for each other, or, as a team, they share the units of each row block and wait
for each other after every phase's equations. docs/architecture.md follows one step.

The loop is compiled once for each dtype. A table tells it what depends on the cell: a `ForwardPlan`
and then a `ForwardPhase` for each phase, with the addresses of products and equations.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import prange

from .barrier import join, prefetch_run, row_block_of, turns, wait
from .calling import call_at, record
from .equations import Strided
from .float_mode import enter_ieee_mode, restore_mode
from .normalise import float_of, normalise_rows
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
from .rows import load_row, make_state_rows, running, store_row, time_index, units_of
from .simd import (
    inlined,
    jitable,
    load_vectors,
    make_sweeps,
    pointer,
    select_pointer,
    store_vectors,
)
from .tuning import ROWS_OF_COPY, STRIP, STRIP_BITS


class ForwardPlan(NamedTuple):
    """What the forward loop is told of a layer and of how threads run it; lengths in elements."""

    phases: int
    states: int
    has_products: int  # whether a unit sees what others have computed
    first_operand: int  # address of the equations of the first phase's operand; 0 where it is h
    worker_size: int  # a worker's part of the workspace
    block_rows: int  # rows at once
    steps: int  # steps of a time block
    unit: int  # of `layout.Rows`, likewise the next ones
    x_row: int
    pre_row: int
    value_row: int
    h_row: int
    state: int  # of `layout.ForwardWorkspace`, likewise the next ones
    operand: int
    x: int
    pre: int
    values: int


class ForwardPhase(NamedTuple):
    """What the forward loop is told of a phase; positions in a row are elements."""

    equations: int  # address
    first: int  # its first pre-activation
    step_input: int  # its pre-activation that is the step's input; -1 if none is
    constants_end: int  # first of those that x feeds, after those that no product feeds
    inputs: int  # how many x feeds
    input_product: int  # address of the product with so many gates
    input_weights: int  # where they lie in packed weights
    inputs_end: int  # first of those that the operand alone feeds
    end: int  # after its last pre-activation
    recurrent: int  # first that the operand feeds
    recurrents: int  # how many it feeds
    product: int  # address of the product with so many gates
    row_product: int  # and of that for one row
    weights: int  # where the recurrent weights lie in packed weights
    full_rows: int  # of `TileCounts` of that product, likewise the next ones
    full_panels: int
    pairs: int
    norm_values: int  # where what a normaliser keeps lies in a row of values; -1 if there is none
    norm_eps: int  # a float64, see `float_of`


_PLAN, _PHASE = len(ForwardPlan._fields), len(ForwardPhase._fields)


def _make_project(lanes: int, itemsize: int) -> Callable[..., None]:
    """Build the projection of a phase: constants and, where x feeds it, W x, of a time block."""

    @jitable
    def spread(to, i, to_row, source, j, rows, count):
        # Copy some vectors to each row; a few rows at once, as row by row took 3 % of forward.
        for first in range(0, rows, ROWS_OF_COPY):
            last = min(first + ROWS_OF_COPY, rows)
            for at in range(0, count, lanes):
                vector = load_vectors(source, j + at, 0, 1)
                for row in range(first, last):
                    store_vectors(to, row * to_row + i + at, 0, vector)

    def project(phase, plan, work, weights, units, rows, I):
        # work, weights: pointers
        if phase.inputs > 0:
            panel = I * phase.inputs * lanes
            first_panel = pointer(weights, phase.input_weights + units.first * I * phase.inputs)
            call_at(
                phase.input_product,
                Sums(
                    pointer(work, plan.pre + phase.constants_end + units.first),
                    plan.pre_row, plan.unit,
                ),
                Sums(pointer(weights, phase.constants_end + units.first), 0, plan.unit),
                Factors(pointer(work, plan.x), plan.x_row, 0, 1),
                Panels(first_panel, panel, phase.inputs * lanes),
                Prefetch(first_panel, first_panel, 0, 0),
                Extent(1, I, rows, units.vectors),
            )  # fmt: skip
        pre = pointer(work, plan.pre + units.first)
        constants = pointer(weights, units.first)
        for at in range(phase.first, phase.constants_end, plan.unit):
            spread(pre, at, plan.pre_row, constants, at, rows, units.vectors * lanes)
        for at in range(phase.inputs_end, phase.end, plan.unit):
            spread(pre, at, plan.pre_row, constants, at, rows, units.vectors * lanes)
        if phase.step_input >= 0:
            for row in range(rows):
                number = work[plan.x + (row + 1) * plan.x_row - 1]
                first = row * plan.pre_row + phase.step_input
                for unit in range(units.vectors * lanes):
                    pre[first + unit] = number

    return inlined(project)


def _make_multiply(lanes: int, itemsize: int) -> Callable[..., None]:
    """Build a phase's recurrent product for one step, strip by strip."""

    def multiply(phase, plan, sums, operand, weights, units, running_rows, step, H, values, saves):
        # sums, operand, weights, values: pointers; saves: elements of `values` that all rows keep,
        # if they are to be prefetched
        panel = H * phase.recurrents * lanes
        first_panel = pointer(weights, phase.weights + units.first * H * phase.recurrents)
        if running_rows == 1:
            call_at(
                phase.row_product, RowSums(sums, plan.unit), RowFactors(operand, 0), first_panel,
                RowExtent(1, H, units.vectors), step,
            )  # fmt: skip
            return
        tiles = TileCounts(phase.full_rows, phase.full_panels, phase.pairs)
        # The values saved are written to lines that are in no cache.
        share = share_of_strip(
            saves, running_rows, units.vectors, H, units.vectors * panel * itemsize, tiles
        )
        for strip in range((units.vectors + STRIP - 1) // STRIP):
            vector = first_of_strip(strip, units.vectors, STRIP_BITS, step)
            next_vector = first_of_strip(strip + 1, units.vectors, STRIP_BITS, step)
            of_strip = Sums(pointer(sums, vector * lanes), plan.pre_row, plan.unit)
            call_at(
                phase.product,
                of_strip,
                of_strip,
                Factors(operand, plan.h_row, 0, 1),
                Panels(pointer(first_panel, vector * panel), panel, lanes * phase.recurrents),
                Prefetch(
                    pointer(first_panel, next_vector * panel),
                    pointer(values, strip * share.strip), share.tile, share.round,
                ),
                Extent(1, H, running_rows, min(STRIP, units.vectors - vector)),
            )  # fmt: skip

    return inlined(multiply)


def make_forward(lanes: int, itemsize: int) -> Callable[..., None]:
    """Build the forward pass of one layer and direction."""
    load_state, store_state = make_state_rows(lanes)
    project, multiply = _make_project(lanes, itemsize), _make_multiply(lanes, itemsize)
    copy = make_sweeps(lanes).copy

    def forward(
        table,  # a ForwardPlan, then a ForwardPhase for each phase
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row, longest first
        offset,  # (T + 1,) packed rows before each step
        x,  # (N, T, I), any strides
        step_input,  # (N, T, 1), any strides: a number a sample and step; (0, 0, 0) if none is
        initial,  # for each member of the state (layers * directions, N, H), any strides
        layer,  # which layer and direction of `initial` and `final_out`
        reverse,  # whether rows are walked from their last step
        packed,  # flat, packed weights
        y_out,  # (N, T, H), any strides; valid steps are written
        final_out,  # like `initial`; written
        values_out,  # (packed rows * value row,) saved for backward; written if `keep`
        keep,
        workspace,  # (workers * worker_size,)
        barrier,  # of the workers if they are a team, else empty; see `barrier`
        worker,  # which of the workers this is
        workers,
    ):
        share = join(barrier, worker, workers)
        if share.row_block < 0:
            return
        mode = enter_ieee_mode()
        plan = record(ForwardPlan, table, 0)
        N, I, H = order.shape[0], x.shape[2], y_out.shape[2]
        units = units_of(share.rank, share.members, H, lanes)
        width = units.vectors * lanes
        weights = pointer(packed, 0)
        work = pointer(workspace, worker * plan.worker_size)
        state = pointer(work, plan.state)
        # The members of a team see each other's operand, and nothing else of each other.
        waiting = share.members if plan.has_products else 1
        operands = pointer(workspace, share.area * plan.worker_size + plan.operand)
        to_following = plan.block_rows * plan.h_row
        for turn in range(turns(share, (N + plan.block_rows - 1) // plan.block_rows)):
            first = row_block_of(share, turn) * plan.block_rows
            if first >= N:
                continue
            last = min(first + plan.block_rows, N)
            rows = last - first

            load_state(initial, plan.states, layer, order, first, rows, units, state, plan)
            operand, following = operands, pointer(operands, to_following)
            members = Strided(pointer(state, units.first), plan.h_row, to_following)
            if plan.first_operand != 0:
                own = Strided(pointer(operand, units.first), plan.h_row, 0)
                call_at(plan.first_operand, members, own, rows, width)
            else:
                for row in range(rows):
                    h = row * plan.h_row + units.first
                    copy(operand, h, state, h, width)
            wait(barrier, waiting)

            longest = lengths[first]
            for step0 in range(0, longest, plan.steps):
                step1 = min(step0 + plan.steps, longest)
                packed_rows = 0
                for step in range(step0, step1):
                    for row in range(running(offset, step, first, last)):
                        t = time_index(step, lengths[first + row], reverse)
                        at = plan.x + packed_rows * plan.x_row
                        load_row(x, order[first + row], t, 0, work, at, I)
                        if step_input.shape[2] > 0:  # in the last element of the padding
                            last_of_row = at + plan.x_row - 1
                            load_row(step_input, order[first + row], t, 0, work, last_of_row, 1)
                        packed_rows += 1
                for number in range(plan.phases):
                    phase = record(ForwardPhase, table, _PLAN + number * _PHASE)
                    project(phase, plan, work, weights, units, packed_rows, I)

                pre = pointer(work, plan.pre)
                for step in range(step0, step1):
                    running_rows = running(offset, step, first, last)
                    values = select_pointer(
                        keep,
                        pointer(values_out, (offset[step] + first) * plan.value_row),
                        pointer(work, plan.values),
                    )
                    # The members of a team write a part of these values each.
                    saves = running_rows * plan.value_row if keep and share.members == 1 else 0
                    for number in range(plan.phases):
                        phase = record(ForwardPhase, table, _PLAN + number * _PHASE)
                        if phase.recurrents > 0:
                            if share.members > 1:
                                for row in range(running_rows):
                                    prefetch_run(operand, row * plan.h_row, H, itemsize)
                            sums = pointer(pre, phase.recurrent + units.first)
                            multiply(
                                phase, plan, sums, operand, weights, units, running_rows, step, H,
                                values, saves,
                            )  # fmt: skip
                            if phase.norm_values >= 0:
                                normalise_rows(
                                    Strided(sums, plan.pre_row, plan.unit),
                                    Strided(
                                        pointer(values, phase.norm_values), plan.value_row,
                                        plan.unit,
                                    ),
                                    running_rows, phase.recurrents, H, float_of(phase.norm_eps),
                                )  # fmt: skip
                        call_at(
                            phase.equations,
                            Strided(
                                pointer(pre, phase.first + units.first), plan.pre_row, plan.unit
                            ),
                            members,
                            Strided(pointer(values, units.first), plan.value_row, plan.unit),
                            Strided(pointer(following, units.first), plan.h_row, 0),
                            running_rows,
                            width,
                        )
                        wait(barrier, waiting)
                        operand, following = following, operand
                    for row in range(running_rows):
                        t = time_index(step, lengths[first + row], reverse)
                        h = row * plan.h_row + units.first
                        store_row(y_out, order[first + row], t, units.first, state, h, units.real)
                    pre = pointer(pre, running_rows * plan.pre_row)

            store_state(final_out, plan.states, layer, order, first, rows, units, state, plan)
        restore_mode(mode)

    return forward


def forward_threads(
    address, table, order, lengths, offset, x, step_input, initial, layer, reverse, packed, y_out,
    final_out, values_out, keep, workspace, barrier, worker, workers,
):  # fmt: skip
    """Run the forward pass's workers on threads."""
    for number in prange(worker, workers):
        call_at(
            address, table, order, lengths, offset, x, step_input, initial, layer, reverse, packed,
            y_out, final_out, values_out, keep, workspace, barrier, np.intp(number), workers,
        )  # fmt: skip
