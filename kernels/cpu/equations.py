"""A cell's equations, compiled: all that the CPU backend compiles for each cell.

Each kernel here applies the pointwise functions of one phase to some rows and units. The loops over
steps call them by their addresses, as they call the product, so these loops know no cell.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ..cells import Cell, Operand, functions_called
from ..layout import phase_plans
from .simd import add_vectors, jitable, load_vectors, store_vectors, zero_vectors


def _compiled(function: Callable[..., Any]) -> Any:
    """An equation that kernels may call, with all the functions that it calls."""
    for called in functions_called([function]):
        jitable(called)
    return function


class Strided(NamedTuple):
    """Vectors of units of some rows: a pointer to the first; distances in elements."""

    memory: Any
    row: Any  # from row to row
    member: Any  # from one member of a unit's tuple to the next


def _make_next_operand(cell: Cell, number: int) -> Callable[[Any, Any], Any]:
    """The operand of the phase after this one, from this phase's results."""
    is_last = number + 1 == len(cell.phases)
    operand = _compiled(cell.phases[0 if is_last else number + 1].operand.value)
    if is_last:
        # The next step's first phase has no earlier values.
        def next_operand(state, values):
            return operand(state[0], ())

    else:

        def next_operand(state, values):
            return operand(state[0], values)

    return next_operand


def make_forward_phase(cell: Cell, number: int, lanes: int) -> Callable[..., None]:
    """Build a phase's equations, forward, with the operand of the phase after it."""
    plan, states = phase_plans(cell)[number], len(cell.states)
    terms, first_value = plan.terms, plan.first_value
    equations = _compiled(cell.phases[number].forward)
    next_operand = jitable(_make_next_operand(cell, number))

    def forward_phase(
        a_in,  # Strided: the phase's pre-activations
        state,  # Strided: members of the state, updated
        values,  # Strided: values of all phases, of which its own are written
        operand_out,  # Strided: written
        rows,
        units,  # whole vectors of them
    ):
        for row in range(rows):
            for unit in range(0, units, lanes):
                at, v = row * state.row + unit, row * values.row + unit
                a = load_vectors(a_in.memory, row * a_in.row + unit, a_in.member, terms)
                before = load_vectors(state.memory, at, state.member, states)
                earlier = load_vectors(values.memory, v, values.member, first_value)
                after, new = equations(a, before, earlier)
                store_vectors(values.memory, v + first_value * values.member, values.member, new)
                store_vectors(state.memory, at, state.member, after)
                following = (next_operand(after, earlier + new),)
                store_vectors(operand_out.memory, row * operand_out.row + unit, 0, following)

    return forward_phase


def make_first_operand(cell: Cell, lanes: int) -> Callable[..., None]:
    """Build the operand of the first phase of the first step, from the initial h."""
    operand = _compiled(cell.phases[0].operand.value)

    def first_operand(
        h,  # Strided
        operand_out,  # Strided: written
        rows,
        units,  # whole vectors of them
    ):
        for row in range(rows):
            for unit in range(0, units, lanes):
                (value,) = load_vectors(h.memory, row * h.row + unit, 0, 1)
                at = row * operand_out.row + unit
                store_vectors(operand_out.memory, at, 0, (operand(value, ()),))

    return first_operand


def make_backward_phase(cell: Cell, number: int, lanes: int) -> Callable[..., None]:
    """Build a phase's equations, backward."""
    plan, states = phase_plans(cell)[number], len(cell.states)
    seen, unit_weights = plan.first_value + plan.values, cell.phases[number].unit_weights
    equations = _compiled(cell.phases[number].backward)

    if number + 1 < len(cell.phases):

        def gradients_so_far(memory, start, stride):
            return load_vectors(memory, start, stride, seen)

    else:

        def gradients_so_far(memory, start, stride):
            return zero_vectors(memory, seen)  # no later phase has used these values

    value_gradients = jitable(gradients_so_far)

    def backward_phase(
        h,  # Strided: h before the step
        values,  # Strided: values of all phases
        constants,  # Strided: those of the phase's pre-activations, weights of units first
        dstate,  # Strided: gradients of the state, after the phase, then before it
        dvalues,  # Strided: gradients of values; those of earlier phases are written
        d_out,  # Strided: gradients of the phase's pre-activations; written
        rows,
        units,  # whole vectors of them
    ):
        for row in range(rows):
            for unit in range(0, units, lanes):
                at = row * dstate.row + unit
                at_dv = row * dvalues.row + unit
                (before,) = load_vectors(h.memory, row * h.row + unit, 0, 1)
                saved = load_vectors(values.memory, row * values.row + unit, values.member, seen)
                weights = load_vectors(constants.memory, unit, constants.member, unit_weights)
                after = load_vectors(dstate.memory, at, dstate.member, states)
                so_far = value_gradients(dvalues.memory, at_dv, dvalues.member)
                d, dbefore, dearlier = equations(before, saved + weights, after, so_far)
                store_vectors(d_out.memory, row * d_out.row + unit, d_out.member, d)
                store_vectors(dstate.memory, at, dstate.member, dbefore)
                store_vectors(dvalues.memory, at_dv, dvalues.member, dearlier)

    return backward_phase


def make_operand_gradient(operand: Operand, earlier_values: int, lanes: int) -> Callable[..., None]:
    """Build what passes an operand's gradient on: to h, and to the values of earlier phases."""
    gradient, value = _compiled(operand.gradient), _compiled(operand.value)

    def operand_gradient(
        h,  # Strided: h before the step
        doperand,  # Strided
        values,  # Strided: values of all phases
        dstate,  # Strided: that of h is added to
        dvalues,  # Strided: added to
        operand_out,  # Strided: the operand itself, for the gradients of weights; written
        rows,
        units,  # whole vectors of them
    ):
        for row in range(rows):
            for unit in range(0, units, lanes):
                at, at_v = row * dstate.row + unit, row * values.row + unit
                at_dv = row * dvalues.row + unit
                (before,) = load_vectors(h.memory, row * h.row + unit, 0, 1)
                (d,) = load_vectors(doperand.memory, row * doperand.row + unit, 0, 1)
                earlier = load_vectors(values.memory, at_v, values.member, earlier_values)
                so_far = load_vectors(dstate.memory, at, 0, 1)
                dearlier = load_vectors(dvalues.memory, at_dv, dvalues.member, earlier_values)
                dh, dv = gradient(before, earlier, d)
                store_vectors(dstate.memory, at, 0, add_vectors(so_far, (dh,)))
                store_vectors(dvalues.memory, at_dv, dvalues.member, add_vectors(dearlier, dv))
                multiplied = (value(before, earlier),)
                store_vectors(operand_out.memory, row * operand_out.row + unit, 0, multiplied)

    return operand_gradient
