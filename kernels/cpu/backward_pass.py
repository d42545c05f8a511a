"""A whole backward pass of one layer and direction, in one compiled call.

For each time block, the last one first: `backward` makes the gradients of pre-activations; the
gradients of recurrent weights and of biases are made from them; a batch norm turns them into
gradients of W x; and from these come the gradients of input weights and of x. The kernels are
called by their addresses. From Python, every kernel cost some 15 µs, as the one before had driven
the interpreter out of all caches.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import prange

from .backward import LoopPlan
from .calling import call_at, record
from .float_mode import enter_ieee_mode, restore_mode
from .gradients import FROM_INPUT, FROM_ONE, InputProduct, WeightProduct, rows_at_once
from .rows import step_of, time_index
from .simd import jitable


class PassPlan(NamedTuple):
    """What a backward pass is told of a layer; lengths in elements."""

    backward: int  # addresses of kernels
    input_gradient: int
    weight_gradient: int
    input_norm: int  # 0 where input parts are not normalised
    product: int  # with one gate
    H: int
    unit: int  # of `layout.Rows`, likewise the next ones
    d_row: int
    inputs: int  # how many `InputProduct`s follow
    products: int  # how many `WeightProduct`s follow these, those from x last
    step_input: int  # the pre-activation that is the step's input, in a row of `d`; -1 if none is
    terms: int  # number of pre-activations


_PLAN, _INPUT = len(PassPlan._fields), len(InputProduct._fields)
_PRODUCT = len(WeightProduct._fields)


@jitable
def _add_step_gradients(d, plan, order, lengths, offset, first_step, last_step, reverse, dstep_out):
    """Add the gradients of the step's input, which are sums over units."""
    begin, end = offset[first_step], offset[last_step]
    step = step_of(offset, begin)
    for packed in range(begin, end):
        while packed >= offset[step + 1]:
            step += 1
        row = packed - offset[step]
        t = time_index(step, lengths[row], reverse)
        total = 0.0
        at = (packed - begin) * plan.d_row + plan.step_input
        for j in range(plan.H):
            total += d[at + j]
        dstep_out[order[row], t, 0] += total


def make_backward_pass() -> Callable[..., None]:
    """Build the backward pass. Its loops over workers run on threads where Numba is told so.

    A new function each time: compiled both ways, each needs a name of its own (see `build`).
    """

    def backward_pass(
        table,  # a PassPlan, then its InputProducts, then its WeightProducts
        gate_rows,  # which gate of the weights each pre-activation belongs to, by product
        vector_places,  # (3 * rows,): vector of weights, its gate, the pre-activation that it is in
        loop_table,  # of `backward`: a LoopPlan, and more
        norm_table,  # of the kernel that normalises, if there is one
        ends,  # (time blocks + 1,) where these end, the last ones first, and 0
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row, longest first
        offset,  # (T + 1,) packed rows before each step
        dy,  # (N, T, H), any strides; read where valid, if `has_dy`
        has_dy,
        layer,  # which layer and direction of `initial` and `dstate_out`
        x,  # (N, T, I), any strides
        y,  # (N, T, H), any strides: what forward gave
        initial,  # for each member of the state (layers * directions, N, H), any strides
        reverse,  # whether rows were walked from their last step
        packed,  # flat, weights packed by columns
        saved,  # (packed rows * value_row,) what forward kept
        packed_inputs,  # flat, weights packed by units, where they are normalised; else empty
        norm,  # (5, normalised gates * H) float64: mean, one over the deviation, scale; gradients
        #        of scale and shift, written; or (0, 0)
        dx_out,  # (N, T, I), any strides; added to where valid
        dstep_out,  # (N, T, 1), any strides; added to where valid; (0, 0, 0) without step input
        dstate_out,  # like `initial`; gradients of the final state, which become the initial one's
        dweight_ih_out,  # (gates * H, I); written, likewise the next ones
        dweight_hh_out,  # (gates * H, H)
        dconstants,  # (pre-activations * H, 1) scratch: gradients of biases and weights of units
        dvectors_out,  # for each vector of weights (gates * H,); written
        d,  # (packed rows of a time block * d_row + `weight_gradient_overrun`,) scratch
        sums,  # (sum of the products' sums_size,) scratch; twice as many where totals are needed
        workspace,  # (threads * worker_size,) scratch
        barrier,  # of the loop's workers if they are a team, else empty; see `barrier`
    ):
        mode = enter_ieee_mode()
        plan, loop = record(PassPlan, table, 0), record(LoopPlan, loop_table, 0)
        # One by one: parallel loops take no named tuples.
        backward_address, input_address = plan.backward, plan.input_gradient
        weight_address, product = plan.weight_gradient, plan.product
        H, unit, d_row, inputs, products = plan.H, plan.unit, plan.d_row, plan.inputs, plan.products
        worker_size, loop_workers, threads = loop.worker_size, loop.workers, loop.threads
        input_start, product_start = _PLAN, _PLAN + inputs * _INPUT
        for block in range(len(ends) - 1):
            last, first = ends[block], ends[block + 1]
            rows = offset[last] - offset[first]
            # A kernel is done before the next one starts, so all can have the same workspace.
            for i in range(len(barrier)):
                barrier[i] = 0
            for number in prange(loop_workers):
                call_at(
                    backward_address, loop_table, dy, has_dy, layer, y, initial, order, lengths,
                    offset, reverse, packed, saved, first, last, d, dstate_out, workspace, barrier,
                    np.intp(number), loop_workers,
                )  # fmt: skip
            if plan.step_input >= 0:
                _add_step_gradients(
                    d, plan, order, lengths, offset, first, last, reverse, dstep_out
                )
            to_totals = 0  # totals come after the sums of all products
            for i in range(products):
                to_totals += record(WeightProduct, table, product_start + i * _PRODUCT).sums_size
            at_once = rows_at_once(rows, threads)
            workers = max(1, min(threads, (rows + at_once - 1) // at_once))
            sums_start, is_of_input = 0, False
            for i in range(products + 1):
                at = product_start + min(i, products - 1) * _PRODUCT
                of = record(WeightProduct, table, at)
                if not is_of_input and (i == products or of.source == FROM_INPUT):
                    is_of_input = True
                    if plan.input_norm != 0:
                        call_at(
                            plan.input_norm, norm_table, order, lengths, offset, x, reverse,
                            packed_inputs, norm, d, workspace,
                        )  # fmt: skip
                    for j in range(inputs):
                        input_at = input_start + j * _INPUT
                        for number in prange(workers):
                            call_at(
                                input_address, table, input_at, product, d, d_row, unit, H, packed,
                                order, lengths, offset, first, last, reverse, dx_out, at_once,
                                workspace, worker_size, np.intp(number), workers,
                            )  # fmt: skip
                if i == products:
                    break
                source = x if of.source == FROM_INPUT else y
                dweight_out = dweight_hh_out
                if of.source == FROM_INPUT:
                    dweight_out = dweight_ih_out
                elif of.source == FROM_ONE:
                    dweight_out = dconstants
                rows_of_gates = gate_rows[of.first_gate : of.first_gate + of.gates]
                members = min(threads, of.strips)
                for number in prange(members):
                    call_at(
                        weight_address, table, at, source, initial[0], layer, order, lengths,
                        offset, first, last, reverse, d, d_row, unit, H, rows_of_gates, dweight_out,
                        sums, sums_start, to_totals, block == 0, first == 0, workspace, worker_size,
                        np.intp(number), members,
                    )  # fmt: skip
                sums_start += of.sums_size
        for i in range(0, len(vector_places), 3):
            vector, gate, term = vector_places[i], vector_places[i + 1], vector_places[i + 2]
            for j in range(H):
                dvectors_out[vector][gate * H + j] = dconstants[term * H + j, 0]
        restore_mode(mode)

    return backward_pass
