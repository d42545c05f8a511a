"""Kernels that copy rows between a user's arrays and packed rows; see `ragged`.

A block takes one step, which is the grid's first dimension, and some rows; its threads take the
features. Loops are written out: Numba counts the rounds of a `range` by a long division.
"""

from collections.abc import Callable

from numba import cuda
from numba.cuda.extending import register_jitable

from .pointwise import time_index


def _make_sequence_kernel(move_element: Callable[..., None]) -> Callable[..., None]:
    """Build a kernel from ``move(sequence, n, t, packed, at, k)``, which moves one element."""
    move = register_jitable(move_element)

    def move_sequence(
        sequence,  # (N, T, F), any strides
        packed,  # (packed rows of the steps from `first_step` on, F)
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,
        reverse,
    ):
        step = first_step + cuda.blockIdx.x
        start = offset[step] - offset[first_step]
        row = cuda.blockIdx.y
        while row < offset[step + 1] - offset[step]:
            n, t = order[row], time_index(step, lengths[row], reverse)
            k = cuda.threadIdx.x
            while k < sequence.shape[2]:
                move(sequence, n, t, packed, start + row, k)
                k += cuda.blockDim.x
            row += cuda.gridDim.y

    return move_sequence


def _make_state_kernel(move_element: Callable[..., None]) -> Callable[..., None]:
    """Build a kernel from ``move(states, layer, n, state, row, member, k)``."""
    move = register_jitable(move_element)

    def move_state(
        states,  # (layers * directions, N, H), any strides: one member of a user's state
        state,  # (N, states, H)
        order,  # (N,) sample of each sorted row
        layer,  # index into `states`
        member,  # index into `state`
    ):
        row = cuda.blockIdx.y
        while row < order.shape[0]:
            k = cuda.threadIdx.x
            while k < states.shape[2]:
                move(states, layer, order[row], state, row, member, k)
                k += cuda.blockDim.x
            row += cuda.gridDim.y

    return move_state


def _pack(sequence, n, t, packed, at, k):
    packed[at, k] = sequence[n, t, k]


def _add(sequence, n, t, packed, at, k):
    sequence[n, t, k] += packed[at, k]


def _take(states, layer, n, state, row, member, k):
    state[row, member, k] = states[layer, n, k]


def _put(states, layer, n, state, row, member, k):
    states[layer, n, k] = state[row, member, k]


def _gather_before(
    sequence,  # (N, T, I), any strides: the inputs
    packed,  # (packed rows of the steps from `first_step` on, I); written
    y,  # (N, T, H), any strides: the outputs
    h0,  # (layers * directions, N, H), any strides: h before the first step
    h_before,  # (packed rows of the steps from `first_step` on, 1, H); written
    order,  # (N,) sample of each sorted row
    lengths,  # (N,) steps of each sorted row
    offset,  # (T + 1,) packed rows before each step
    layer,  # index into h0
    first_step,
    reverse,
):
    """Gather what each step started from: x, and h of the step before."""
    step = first_step + cuda.blockIdx.x
    start = offset[step] - offset[first_step]
    row = cuda.blockIdx.y
    while row < offset[step + 1] - offset[step]:
        n = order[row]
        t = time_index(step, lengths[row], reverse)
        before = time_index(step - 1, lengths[row], reverse)
        k = cuda.threadIdx.x
        while k < sequence.shape[2]:
            packed[start + row, k] = sequence[n, t, k]
            k += cuda.blockDim.x
        k = cuda.threadIdx.x
        while k < h0.shape[2]:
            h_before[start + row, 0, k] = h0[layer, n, k] if step == 0 else y[n, before, k]
            k += cuda.blockDim.x
        row += cuda.gridDim.y


FUNCTIONS: dict[str, Callable[..., None]] = {
    "gather_sequence": _make_sequence_kernel(_pack),
    "add_sequence": _make_sequence_kernel(_add),
    "gather_before": _gather_before,
    "gather_state": _make_state_kernel(_take),
    "scatter_state": _make_state_kernel(_put),
}
