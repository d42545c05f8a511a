"""The gradient of a step's input: of a number that all units of a row take."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from ..cells import Cell
from ..layout import phase_plans, step_input_terms
from . import tuning
from .pointwise import time_index
from .reduction import make_block_sum
from .terms import alone_before
from .unit_values import make_load, make_total


def make_step_gradient(cell: Cell, dtype: np.dtype[Any]) -> Callable[..., None]:
    """Build the kernel that adds up the gradients of each row's units, for all steps at once.

    A block takes one step, which is the grid's first dimension, and some rows.
    """
    terms = set(step_input_terms(cell))
    places = [
        alone_before(cell, plan) + term - plan.first
        for plan in phase_plans(cell)
        for term in range(plan.first, plan.first_input)
        if term in terms
    ]
    load, total_of = make_load(places), make_total(len(places))
    threads, block_sum = tuning.SUM_THREADS, make_block_sum(1)
    shape, kind = (1, threads), types.float32 if dtype.itemsize == 4 else types.float64
    zero = dtype.type(0)

    def step_gradient(
        sequence,  # (N, T, 1), any strides: the gradient, added to
        d_alone,  # (packed rows of the steps from `first_step` on,
        #           pre-activations that no product feeds, H)
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,
        reverse,
    ):
        thread, step = cuda.threadIdx.x, first_step + cuda.blockIdx.x
        start = offset[step] - offset[first_step]
        partial = cuda.shared.array(shape, kind)
        row = cuda.blockIdx.y
        while row < offset[step + 1] - offset[step]:
            total = zero
            unit = thread
            while unit < d_alone.shape[2]:
                total += total_of(load(d_alone, start + row, unit))
                unit += threads
            partial[0, thread] = total
            block_sum(partial)
            if thread == 0:
                sequence[order[row], time_index(step, lengths[row], reverse), 0] += partial[0, 0]
            cuda.syncthreads()  # before it is overwritten
            row += cuda.gridDim.y

    return step_gradient
