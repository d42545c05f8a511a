"""Kernels that move rows between a user's arrays and packed rows; see `ragged`.

A block takes one step, which is the grid's first dimension, and some rows; its threads take the
features. Loops are written out: Numba counts the rounds of a `range` by a long division.
"""

from numba import cuda

from .pointwise import time_index


def gather_sequence(
    source,  # (N, T, F), any strides
    order,  # (N,) sample of each sorted row
    lengths,  # (N,) steps of each sorted row
    offset,  # (T + 1,) packed rows before each step
    packed_out,  # (packed rows of these steps, F)
    first_step,
    reverse,
):
    """Pack the rows of a step for each block, from `first_step` on."""
    step = first_step + cuda.blockIdx.x
    start = offset[step] - offset[first_step]
    row = cuda.blockIdx.y
    while row < offset[step + 1] - offset[step]:
        n, t = order[row], time_index(step, lengths[row], reverse)
        k = cuda.threadIdx.x
        while k < source.shape[2]:
            packed_out[start + row, k] = source[n, t, k]
            k += cuda.blockDim.x
        row += cuda.gridDim.y


def add_sequence(
    packed,  # (packed rows of these steps, F)
    order,  # (N,) sample of each sorted row
    lengths,  # (N,) steps of each sorted row
    offset,  # (T + 1,) packed rows before each step
    target,  # (N, T, F), any strides; added to
    first_step,
    reverse,
):
    """Add packed rows of a step for each block, from `first_step` on, to those they came from."""
    step = first_step + cuda.blockIdx.x
    start = offset[step] - offset[first_step]
    row = cuda.blockIdx.y
    while row < offset[step + 1] - offset[step]:
        n, t = order[row], time_index(step, lengths[row], reverse)
        k = cuda.threadIdx.x
        while k < target.shape[2]:
            target[n, t, k] += packed[start + row, k]
            k += cuda.blockDim.x
        row += cuda.gridDim.y


def gather_h_before(
    y,  # (N, T, H), any strides: the outputs
    h0,  # (layers * directions, N, H), any strides: h before the first step
    order,  # (N,) sample of each sorted row
    lengths,  # (N,) steps of each sorted row
    offset,  # (T + 1,) packed rows before each step
    h_before_out,  # (packed rows of these steps, 1, H)
    layer,  # index into h0
    first_step,
    reverse,
):
    """Pack h before a step for each block, from `first_step` on."""
    step = first_step + cuda.blockIdx.x
    start = offset[step] - offset[first_step]
    row = cuda.blockIdx.y
    while row < offset[step + 1] - offset[step]:
        n, t = order[row], time_index(step - 1, lengths[row], reverse)
        k = cuda.threadIdx.x
        while k < h0.shape[2]:
            h_before_out[start + row, 0, k] = h0[layer, n, k] if step == 0 else y[n, t, k]
            k += cuda.blockDim.x
        row += cuda.gridDim.y


def gather_state(
    source,  # (layers * directions, N, H), any strides: one member of a state
    order,  # (N,) sample of each sorted row
    state_out,  # (N, states, H)
    layer,  # index into `source`
    member,  # index into `state_out`
):
    """Sort one member of a state."""
    row = cuda.blockIdx.y
    while row < order.shape[0]:
        k = cuda.threadIdx.x
        while k < source.shape[2]:
            state_out[row, member, k] = source[layer, order[row], k]
            k += cuda.blockDim.x
        row += cuda.gridDim.y


def scatter_state(
    state,  # (N, states, H)
    order,  # (N,) sample of each sorted row
    target_out,  # (layers * directions, N, H), any strides: one member of a state
    layer,  # index into `target_out`
    member,  # index into `state`
):
    """Put one member of a sorted state where it belongs."""
    row = cuda.blockIdx.y
    while row < order.shape[0]:
        k = cuda.threadIdx.x
        while k < target_out.shape[2]:
            target_out[layer, order[row], k] = state[row, member, k]
            k += cuda.blockDim.x
        row += cuda.gridDim.y
