"""Where gradients of pre-activations lie, summed over rows, and how vectors of weights map to them.

The sums of a layer are one array, (rows, H): first those of what x feeds, in the order of the input
weights' gates; then those of what only an operand feeds, phase after phase; then those of what no
product feeds. So each kind is one product with ones, or one for each phase.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from ..cells import INPUT, Cell, Weight
from ..layout import PhasePlan, gates_of_terms, phase_plans, terms_of_vector


class Run(NamedTuple):
    """Rows of one array that are as many rows of another, in order."""

    source: int
    target: int
    rows: int


def runs(targets: Sequence[int]) -> tuple[Run, ...]:
    """Rows 0, 1, … and where each of them goes, in as few runs as there are."""
    found: list[Run] = []
    for source, target in enumerate(targets):
        if found and target == found[-1].target + found[-1].rows:
            found[-1] = found[-1]._replace(rows=found[-1].rows + 1)
        else:
            found.append(Run(source, target, 1))
    return tuple(found)


def alone_before(cell: Cell, plan: PhasePlan) -> int:
    """How many pre-activations of earlier phases no product feeds."""
    return sum(p.first_input - p.first for p in phase_plans(cell)[: plan.number])


def num_alone(cell: Cell) -> int:
    """How many pre-activations no product feeds."""
    return sum(p.first_input - p.first for p in phase_plans(cell))


def only_recurrent(plan: PhasePlan) -> int:
    """How many pre-activations of a phase an operand feeds and x does not: its last ones."""
    return plan.first + plan.terms - max(plan.first_input + plan.inputs, plan.first_recurrent)


class SumsPart(NamedTuple):
    """Sums that one product with ones makes, of columns of one array of gradients."""

    array: str  # of `context.BackwardArrays`
    first: int  # its first gate there
    gates: int
    row: int  # the first in the sums


@functools.cache
def sums_parts(cell: Cell) -> tuple[SumsPart, ...]:
    """The parts of a layer's sums, in order; those without rows are left out."""
    row = len(cell.input_gates)
    parts = [SumsPart("d_ih", 0, row, 0)]
    for plan in phase_plans(cell):
        count = only_recurrent(plan)
        first = plan.recurrents_before + plan.recurrents - count
        parts.append(SumsPart("d_hh", first, count, row))
        row += count
    parts.append(SumsPart("d_alone", 0, num_alone(cell), row))
    return tuple(part for part in parts if part.gates)


@functools.cache
def rows_of_sums(cell: Cell) -> tuple[int, ...]:
    """The row of each pre-activation in a layer's sums."""
    at_recurrent = len(cell.input_gates)
    at_alone = at_recurrent + sum(map(only_recurrent, phase_plans(cell)))
    rows: list[int] = []
    for plan in phase_plans(cell):
        alone, recurrent = plan.first_input - plan.first, only_recurrent(plan)
        rows += range(at_alone, at_alone + alone)
        rows += gates_of_terms(cell, plan, INPUT)
        rows += range(at_recurrent, at_recurrent + recurrent)
        at_alone, at_recurrent = at_alone + alone, at_recurrent + recurrent
    return tuple(rows)


@functools.cache
def constant_runs(cell: Cell, weight: Weight) -> tuple[Run, ...]:
    """From the gates of a vector of weights to the pre-activations that they are part of."""
    return runs(terms_of_vector(cell, weight))


@functools.cache
def gradient_runs(cell: Cell, weight: Weight) -> tuple[Run, ...]:
    """From the gates of a vector of weights to the rows of the sums that are their gradients."""
    rows = rows_of_sums(cell)
    return runs([rows[term] for term in terms_of_vector(cell, weight)])
