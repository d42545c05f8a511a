"""The equations of one phase of one step, for all its rows and units: a thread for each unit.

Products are made by cuBLAS before and after; see `loops.steps`. Sizes in shape comments: N rows at
most, H units, and for a cell its input gates, recurrent gates, states and values. A *time block* is
a run of time steps whose packed rows fit the workspace; see `recurrence`.
"""

from collections.abc import Callable
from typing import Any

from numba import cuda
from numba.cuda.extending import register_jitable

from ..cells import INPUT, Cell
from ..layout import PhasePlan, gates_of_terms, phase_plans, step_input_terms
from ..primitives import zero_like
from .terms import alone_before
from .unit_values import compiled, make_load, make_store, make_sum, make_zeros


@register_jitable
def time_index(step, length, reverse):
    """Which time step of a sample a step is."""
    return length - 1 - step if reverse else step


@register_jitable
def unit_of_thread():
    """A thread's row and unit. Rows are the grid's first dimension, which may be the largest."""
    row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
    return row, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x


def make_alone(cell: Cell, number: int) -> Callable[..., Any]:
    """Build ``alone(constants, step_inputs, step_row, unit)``: what no product of a phase feeds.

    As a tuple; these pre-activations are the phase's leading ones.
    """
    part, from_user = phase_plans(cell)[number], step_input_terms(cell)

    def up_to(end: int) -> Callable[..., Any]:
        last = end - 1
        if end == part.first:

            def load(constants, step_inputs, step_row, unit):
                return ()

        elif last in from_user:
            before = up_to(last)

            def load(constants, step_inputs, step_row, unit):
                # step_inputs: (rows, 1)
                return before(constants, step_inputs, step_row, unit) + (step_inputs[step_row, 0],)

        else:
            before = up_to(last)

            def load(constants, step_inputs, step_row, unit):
                # constants: (1, pre-activations, H)
                return before(constants, step_inputs, step_row, unit) + (constants[0, last, unit],)

        return register_jitable(load)

    return up_to(part.first_input)


def make_inputs(cell: Cell, number: int) -> Callable[..., Any]:
    """Build ``inputs(x_sums, x_row, constants, unit)``: W x + b of a phase, as a tuple."""
    part = phase_plans(cell)[number]
    load = make_load(gates_of_terms(cell, part, INPUT))
    load_constants = make_load(range(part.first_input, part.first_input + part.inputs))
    add = make_sum(part.inputs)

    def inputs(x_sums, x_row, constants, unit):
        # x_sums: (rows, input gates, H); constants: (1, pre-activations, H)
        return add(load(x_sums, x_row, unit), load_constants(constants, 0, unit))

    return register_jitable(inputs)


def _both_parts(part: PhasePlan) -> int:
    """How many pre-activations of a phase x and the operand feed both."""
    return part.first_input + part.inputs - part.first_recurrent


def make_recurrent(cell: Cell, number: int) -> Callable[..., Any]:
    """Build ``recurrent(h_sums, row, column, constants, unit)``: recurrent sums of a phase.

    As a tuple. The constants of those that x feeds as well are with W x.
    """
    part = phase_plans(cell)[number]
    both = _both_parts(part)
    only = part.recurrents - both
    load = make_load(range(part.recurrents))
    load_constants = make_load(range(part.first + part.terms - only, part.first + part.terms))
    add = make_sum(only)

    def recurrent(h_sums, row, column, constants, unit):
        # h_sums: (rows, recurrent gates of the phase, columns), the unit's in `column`;
        # constants: (1, pre-activations, H)
        sums = load(h_sums, row, column)
        return sums[:both] + add(sums[both:], load_constants(constants, 0, unit))

    return register_jitable(recurrent)


def make_join(cell: Cell, number: int) -> Callable[..., Any]:
    """Build what joins a phase's inputs with its recurrent sums, as a tuple.

    Of the pre-activations that products feed, those that x feeds are the leading ones, those that
    the operand feeds the trailing ones; those in the middle have both parts.
    """
    part = phase_plans(cell)[number]
    both = _both_parts(part)
    inputs_only = part.inputs - both
    add_both = make_sum(both)

    def join(inputs, recurrent):
        with_both = add_both(inputs[inputs_only:], recurrent[:both])
        return inputs[:inputs_only] + with_both + recurrent[both:]

    return register_jitable(join)


def _make_sums_for_equations(cell: Cell, number: int) -> Callable[..., Any]:
    """Build what the equations take as recurrent sums: normalised ones in a phase that normalises.

    A normaliser leaves these among the values; see `normalise`.
    """
    part = phase_plans(cell)[number]
    if cell.phases[number].norm is None:
        plain = make_recurrent(cell, number)

        def sums(h_sums, row, constants, values, value_row, unit):
            return plain(h_sums, row, unit, constants, unit)

    else:
        first = part.first_norm_value
        load = make_load(range(first, first + part.recurrents))

        def sums(h_sums, row, constants, values, value_row, unit):
            # values: (rows, values, H)
            return load(values, value_row, unit)

    return register_jitable(sums)


def make_forward_phase(cell: Cell, number: int) -> Callable[..., None]:
    """Build the kernel of one phase of one step, forward."""
    part = phase_plans(cell)[number]
    is_last = number == len(cell.phases) - 1
    alone, inputs, join = (make(cell, number) for make in (make_alone, make_inputs, make_join))
    recurrent = _make_sums_for_equations(cell, number)
    load_state, store_state = (make(range(len(cell.states))) for make in (make_load, make_store))
    load_values = make_load(range(part.first_value))
    store_values = make_store(range(part.first_value, part.first_value + part.values))
    equations = compiled(cell.phases[number].forward)

    if is_last:

        def write_output(y_out, n, t, unit, state):
            y_out[n, t, unit] = state[0]

    else:

        def write_output(y_out, n, t, unit, state):
            return

    output = register_jitable(write_output)

    def forward_phase(
        x_sums,  # (packed rows of the time block, input gates, H): W x
        h_sums,  # (N, recurrent gates of the phase, H): U times the operand
        constants,  # (1, pre-activations, H): sums of biases, or weights of units
        step_inputs,  # (packed rows of the time block, 1); read by cells that take them
        state,  # (N, states, H), updated
        values,  # (rows, values, H), this phase's are written
        y_out,  # (N, T, H), any strides; written by the last phase
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        rows,  # of them run at this step
        step,
        reverse,  # whether rows are walked from their last step
        x_start,  # the step's first row in `x_sums` and `step_inputs`
        value_start,  # the step's first row in `values`
    ):
        row, unit = unit_of_thread()
        if row >= rows or unit >= state.shape[2]:
            return
        n, t = order[row], time_index(step, lengths[row], reverse)
        sums = recurrent(h_sums, row, constants, values, value_start + row, unit)
        fed = join(inputs(x_sums, x_start + row, constants, unit), sums)
        a = alone(constants, step_inputs, x_start + row, unit) + fed
        before = load_state(state, row, unit)
        after, new = equations(a, before, load_values(values, value_start + row, unit))
        store_values(values, value_start + row, unit, new)
        store_state(state, row, unit, after)
        output(y_out, n, t, unit, after)

    return forward_phase


def make_operand(cell: Cell, number: int) -> Callable[..., None]:
    """Build the kernel for what a phase's recurrent weights multiply."""
    part = phase_plans(cell)[number]
    load_values = make_load(range(part.first_value))
    value = compiled(cell.phases[number].operand.value)

    def operand(
        h,  # (rows, states or 1, H), the first of which is h before the step
        values,  # (rows, values, H)
        operand_out,  # (rows, H)
        rows,
        value_start,  # the first row in `values`
    ):
        row, unit = unit_of_thread()
        if row < rows and unit < h.shape[2]:
            earlier = load_values(values, value_start + row, unit)
            operand_out[row, unit] = value(h[row, 0, unit], earlier)

    return operand


def make_backward_phase(cell: Cell, number: int) -> Callable[..., None]:
    """Build the kernel of one phase of one step, backward."""
    part = phase_plans(cell)[number]
    is_last = number == len(cell.phases) - 1
    seen = part.first_value + part.values
    load_weights = make_load(range(part.first, part.first + cell.phases[number].unit_weights))
    load_state, store_state = (make(range(len(cell.states))) for make in (make_load, make_store))
    load_values = make_load(range(seen))
    store_dvalues = make_store(range(part.first_value))
    before_ih, before_hh = part.first_input - part.first, part.first_recurrent - part.first
    at_alone = alone_before(cell, part)
    store_alone = make_store(range(at_alone, at_alone + before_ih))
    store_ih = make_store(gates_of_terms(cell, part, INPUT))
    at_hh = part.recurrents_before
    store_hh = make_store(range(at_hh, at_hh + part.recurrents))
    equations = compiled(cell.phases[number].backward)

    if is_last:
        zeros = make_zeros(seen)

        def gradients_so_far(dvalues, row, unit, one):
            return zeros(zero_like(one))  # no later phase has used these values

        def add_output(dstate, dy, n, t, unit):
            return (dstate[0] + dy[n, t, unit],) + dstate[1:]

    else:

        def gradients_so_far(dvalues, row, unit, one):
            return load_values(dvalues, row, unit)

        def add_output(dstate, dy, n, t, unit):
            return dstate

    load_dvalues, with_output = register_jitable(gradients_so_far), register_jitable(add_output)

    def backward_phase(
        h_before,  # (packed rows of the time block, 1, H): h before each step
        values,  # (packed rows, values, H)
        constants,  # (1, pre-activations, H); read by cells with weights of units
        dy,  # (N, T, H), any strides; read where valid by the last phase, if `has_dy`
        dstate,  # (N, states, H): gradient of the state after the phase; becomes that before it
        dvalues,  # (N, values, H): gradients of values; those of earlier phases are written
        d_ih,  # (packed rows of the time block, input gates, H): gradients of W x + b; written
        d_hh,  # (packed rows of the time block, recurrent gates, H): of U operand + b; written
        d_alone,  # (packed rows of the time block, pre-activations that no product feeds, H);
        #           written
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        rows,  # of them run at this step
        step,
        reverse,  # whether rows were walked from their last step
        has_dy,
        packed_start,  # the step's first row in `h_before`, `d_ih`, `d_hh` and `d_alone`
        value_start,  # the step's first row in `values`
    ):
        row, unit = unit_of_thread()
        if row >= rows or unit >= dstate.shape[2]:
            return
        h = h_before[packed_start + row, 0, unit]
        after = load_state(dstate, row, unit)
        if has_dy:
            n, t = order[row], time_index(step, lengths[row], reverse)
            after = with_output(after, dy, n, t, unit)
        saved = load_values(values, value_start + row, unit)
        weights = load_weights(constants, 0, unit)
        so_far = load_dvalues(dvalues, row, unit, h)
        d, before, earlier = equations(h, saved + weights, after, so_far)
        store_alone(d_alone, packed_start + row, unit, d)
        store_ih(d_ih, packed_start + row, unit, d[before_ih:])
        store_hh(d_hh, packed_start + row, unit, d[before_hh:])
        store_state(dstate, row, unit, before)
        store_dvalues(dvalues, row, unit, earlier)

    return backward_phase


def make_operand_gradient(cell: Cell, number: int) -> Callable[..., None]:
    """Build the kernel that passes a phase's operand's gradient on to h and to earlier values."""
    part = phase_plans(cell)[number]
    load_values = make_load(range(part.first_value))
    plain = cell.phases[number].operand.gradient
    _, reached = plain(1.0, (1.0,) * part.first_value, 1.0)
    add_h, add_values = make_store([0], add=True), make_store(range(len(reached)), add=True)
    gradient = compiled(plain)

    def operand_gradient(
        h_before,  # (packed rows of the time block, 1, H): h before each step
        values,  # (packed rows, values, H)
        doperand,  # (N, H)
        dstate,  # (N, states, H), that of h is added to
        dvalues,  # (N, values, H), added to
        rows,
        packed_start,  # the step's first row in `h_before`
        value_start,  # the step's first row in `values`
    ):
        row, unit = unit_of_thread()
        if row >= rows or unit >= dstate.shape[2]:
            return
        h = h_before[packed_start + row, 0, unit]
        earlier = load_values(values, value_start + row, unit)
        dh, dearlier = gradient(h, earlier, doperand[row, unit])
        add_h(dstate, row, unit, (dh,))
        add_values(dvalues, row, unit, dearlier)

    return operand_gradient
