"""A whole backward pass of one layer and direction, in one compiled call.

For each block of steps, the last ones first, `backward` makes the gradients of pre-activations, and
`gradients` those of x and of the weights from them. The kernels are called by their addresses, so
this is compiled for a type of number and a count of states, not for each cell. From Python, every
kernel cost some 15 µs: after the one before, the interpreter was in no cache any more.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import prange

from .gradients import rows_at_once
from .launch import call_at


class InputProduct(NamedTuple):
    """What the input gradient needs to know of a phase that x feeds."""

    pre: int  # index of the first pre-activation within a row
    blocks: int  # how many x feeds
    weights_start: int  # where its weights are


class WeightProduct(NamedTuple):
    """How the gradient of one phase's input or recurrent weights is made."""

    address: int  # of its kernel
    of_y: int  # 1: recurrent weights, from y by way of the operand; 0: input weights, from x
    pre: int  # index of its first pre-activation within a row
    first_gate: int  # where its gates are in the list of all products' gates
    gates: int
    groups: int  # of units, which threads share
    sums_size: int


_OF_INPUT, _OF_PRODUCT = len(InputProduct._fields), len(WeightProduct._fields)


def make_backpropagation() -> Callable[..., None]:
    """Build the backward pass. Its loops over workers run on threads where Numba is told so.

    A new function each time: compiled both ways, each needs a name of its own (see `build`).
    """

    def backpropagate(
        backward_address,  # of the kernels
        input_address,
        inputs,  # (products * _OF_INPUT,) of `InputProduct`
        products,  # (products * _OF_PRODUCT,) of `WeightProduct`
        gate_rows,  # which gate of the weights each block of pre-activations belongs to, by product
        H,
        unit,  # H in whole vectors
        d_row,  # elements of a row of `d`
        value_row,  # and of `saved`
        worker_size,  # elements of `work` that a worker has
        block_rows,  # rows a block, of the loop over steps
        loop_workers,  # threads of that loop
        threads,  # threads that may be used
        ends,  # (blocks + 1,) where blocks of steps end, the last ones first, and 0
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
        weights,  # flat, packed by columns
        saved,  # (packed rows * value_row,) what forward kept
        dx_out,  # (N, T, I), any strides; added to where valid
        dstate_out,  # like `initial`; gradients of the final state, which become the initial one's
        dweight_ih_out,  # (gates * H, I); written, likewise the next ones
        dweight_hh_out,  # (gates * H, H)
        dbias_ih_out,  # (gates * H,), or empty
        dbias_hh_out,
        d,  # (packed rows of a block of steps * d_row + `weight_gradient_overrun`,) scratch
        sums,  # (sum of the products' sums_size,) scratch; twice as many where totals are needed
        work,  # (threads * worker_size,) scratch
        meeting,  # of the loop's workers if they share blocks, else empty; see `team`
    ):
        for block in range(len(ends) - 1):
            last, first = ends[block], ends[block + 1]
            rows = offset[last] - offset[first]
            # A kernel is done before the next one starts, so all can have the same workspace.
            for i in range(len(meeting)):
                meeting[i] = 0
            for number in prange(loop_workers):
                call_at(
                    backward_address, dy, has_dy, layer, y, initial, order, lengths, offset,
                    reverse, weights, saved, first, last, d, dstate_out, work, worker_size,
                    block_rows, meeting, np.intp(number), loop_workers,
                )  # fmt: skip
            at_once = rows_at_once(rows, threads)
            workers = max(1, min(threads, (rows + at_once - 1) // at_once))
            for i in range(0, len(inputs), _OF_INPUT):
                pre, blocks, weights_start = inputs[i], inputs[i + 1], inputs[i + 2]
                for number in prange(workers):
                    call_at(
                        input_address, d, d_row, pre, blocks, unit, H, weights, weights_start,
                        order, lengths, offset, first, last, reverse, dx_out, at_once, work,
                        worker_size, np.intp(number), workers,
                    )  # fmt: skip
            to_totals = 0  # totals come after the sums of all products
            for i in range(0, len(products), _OF_PRODUCT):
                to_totals += products[i + 6]
            sums_start = 0
            for i in range(0, len(products), _OF_PRODUCT):
                # One by one, in the order of `WeightProduct`: parallel loops take no named tuples.
                address, of_y, pre = products[i], products[i + 1], products[i + 2]
                first_gate, gates = products[i + 3], products[i + 4]
                groups, sums_size = products[i + 5], products[i + 6]
                source = y if of_y else x
                dweight_out = dweight_hh_out if of_y else dweight_ih_out
                dbias_out = dbias_hh_out if of_y else dbias_ih_out
                rows_of_gates = gate_rows[first_gate : first_gate + gates]
                members = min(threads, groups)
                for number in prange(members):
                    call_at(
                        address, source, initial[0], layer, order, lengths, offset, first, last,
                        reverse, saved, value_row, d, d_row, pre, unit, H, rows_of_gates,
                        dweight_out, dbias_out, sums, sums_start, to_totals, block == 0, first == 0,
                        work, worker_size, np.intp(number), members,
                    )  # fmt: skip
                sums_start += sums_size

    return backpropagate
