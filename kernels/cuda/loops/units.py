"""The loop for cells whose units do not see each other: a thread takes a unit through many steps.

Such a cell has no recurrent product, so nothing waits for anything, and a time block is one launch.
The state stays in registers. `steps` would launch a kernel for each step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...cells import INPUT, Cell
from ...layout import PhasePlan, gates_of_terms, phase_plans
from ...primitives import zero_like
from ...store import cell_digest
from .. import tuning
from ..context import BackwardArrays, Context, ForwardArrays, Layer, RunSteps
from ..launch import Kernel, unit_grid
from ..pointwise import make_alone, make_inputs, time_index, unit_of_thread
from ..terms import alone_before
from ..unit_values import compiled, make_load, make_store, make_zeros


def _only_phase(cell: Cell) -> PhasePlan:
    (part,) = phase_plans(cell)
    return part


def make_forward_units(cell: Cell) -> Callable[..., None]:
    """Build the kernel of many steps, forward."""
    part, states = _only_phase(cell), range(len(cell.states))
    alone, inputs = make_alone(cell, 0), make_inputs(cell, 0)
    load_state, store_state = make_load(states), make_store(states)
    store_values = make_store(range(part.values))
    equations = compiled(cell.phases[0].forward)

    def forward_units(
        x_sums,  # (packed rows of the time block, input gates, H): W x
        constants,  # (1, pre-activations, H): sums of biases, or weights of units
        step_inputs,  # (packed rows of the time block, 1); read by cells that take them
        state,  # (N, states, H), updated
        values,  # (packed rows, values, H) if they are kept, else (N, values, H); written
        y_out,  # (N, T, H), any strides; written
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        rows,  # that run at the first step
        first_step,  # of steps first_step to last_step - 1
        last_step,
        reverse,  # whether rows are walked from their last step
        keep,
    ):
        row, unit = unit_of_thread()
        if row >= rows or unit >= state.shape[2]:
            return
        n, length = order[row], lengths[row]
        h = load_state(state, row, unit)
        for step in range(first_step, min(last_step, length)):
            packed = offset[step] + row
            at = packed - offset[first_step]
            a = alone(constants, step_inputs, at, unit) + inputs(x_sums, at, constants, unit)
            h, new = equations(a, h, ())
            store_values(values, packed if keep else row, unit, new)
            y_out[n, time_index(step, length, reverse), unit] = h[0]
        store_state(state, row, unit, h)

    return forward_units


def make_backward_units(cell: Cell) -> Callable[..., None]:
    """Build the kernel of many steps, backward."""
    part, states = _only_phase(cell), range(len(cell.states))
    load_weights = make_load(range(part.first, part.first + cell.phases[0].unit_weights))
    load_state, store_state = make_load(states), make_store(states)
    load_values, zeros = make_load(range(part.values)), make_zeros(part.values)
    before_ih, at_alone = part.first_input - part.first, alone_before(cell, part)
    store_alone = make_store(range(at_alone, at_alone + before_ih))
    store_ih = make_store(gates_of_terms(cell, part, INPUT))
    equations = compiled(cell.phases[0].backward)

    def backward_units(
        h_before,  # (packed rows of the time block, 1, H): h before each step
        values,  # (packed rows, values, H)
        constants,  # (1, pre-activations, H); read by cells with weights of units
        dy,  # (N, T, H), any strides; read where valid, if `has_dy`
        dstate,  # (N, states, H): gradient of the state after these steps; becomes that before them
        d_ih,  # (packed rows of the time block, input gates, H): gradients of W x + b; written
        d_alone,  # (packed rows of the time block, pre-activations that no product feeds, H);
        #           written
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        rows,  # that run at the first step
        first_step,  # of steps first_step to last_step - 1, from the last one on
        last_step,
        reverse,  # whether rows are walked from their last step
        has_dy,
    ):
        row, unit = unit_of_thread()
        if row >= rows or unit >= dstate.shape[2]:
            return
        n, length = order[row], lengths[row]
        weights = load_weights(constants, 0, unit)
        d_state = load_state(dstate, row, unit)
        for step in range(min(last_step, length) - 1, first_step - 1, -1):
            packed = offset[step] + row
            at = packed - offset[first_step]
            h = h_before[at, 0, unit]
            if has_dy:
                dh = d_state[0] + dy[n, time_index(step, length, reverse), unit]
                d_state = (dh,) + d_state[1:]
            saved = load_values(values, packed, unit) + weights
            d, d_state, _ = equations(h, saved, d_state, zeros(zero_like(h)))
            store_alone(d_alone, at, unit, d)
            store_ih(d_ih, at, unit, d[before_ih:])
        store_state(dstate, row, unit, d_state)

    return backward_units


class UnitKernels(NamedTuple):
    """Both passes."""

    forward: Kernel
    backward: Kernel


@functools.cache
def unit_kernels(cell: Cell, dtype: np.dtype[Any]) -> UnitKernels:
    """The kernels of a cell."""
    digest = cell_digest(cell)
    return UnitKernels(
        Kernel(make_forward_units(cell), dtype, digest),
        Kernel(make_backward_units(cell), dtype, digest),
    )


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer: one phase without a recurrent product."""
    return [part.recurrents for part in phase_plans(layer.cell)] == [0]


def forward(context: Context, arrays: ForwardArrays) -> RunSteps:
    """Prepare the loop of a forward pass."""
    launch = unit_kernels(context.cell, context.dtype).forward.bind(
        context.device, arrays.x_sums, arrays.constants, arrays.step_inputs, arrays.state,
        arrays.values, arrays.y_out, *context.indices,
    )  # fmt: skip
    return _many_steps(context, launch, arrays.keep)


def backward(context: Context, arrays: BackwardArrays) -> RunSteps:
    """Prepare the loop of a backward pass."""
    launch = unit_kernels(context.cell, context.dtype).backward.bind(
        context.device, arrays.h_before, arrays.values, arrays.constants, arrays.dy, arrays.dstate,
        arrays.d_ih, arrays.d_alone, *context.indices,
    )  # fmt: skip
    return _many_steps(context, launch, arrays.has_dy)


def _many_steps(context: Context, launch: Any, last: bool) -> RunSteps:
    """What launches a kernel of many steps, whose last argument this is."""

    def run(first_step: int, last_step: int) -> None:
        rows = context.rows(first_step, first_step + 1)
        if rows > 0:
            launch(
                unit_grid(rows, context.H), tuning.UNIT_THREADS, context.stream, rows, first_step,
                last_step, context.reverse, last,
            )  # fmt: skip

    return run
