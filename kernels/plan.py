"""Where the blocks of a cell's phases lie: what every target derives from the table of cells."""

import functools
from typing import NamedTuple

from .cells import Cell


class PhasePlan(NamedTuple):
    """Where a phase's blocks lie among the cell's."""

    number: int
    first: int  # its first pre-activation
    blocks: int  # its pre-activations
    inputs: int  # how many of them the input feeds: the leading ones
    recurrents: int  # how many of them the operand feeds: the trailing ones
    first_value: int  # values of earlier phases
    values: int  # its own values
    inputs_before: int  # `inputs` of the earlier phases together
    recurrents_before: int  # `recurrents` of the earlier phases together

    @property
    def first_recurrent(self) -> int:
        """The first pre-activation that the operand feeds."""
        return self.first + self.blocks - self.recurrents


@functools.cache
def phase_plans(cell: Cell) -> tuple[PhasePlan, ...]:
    """The plan of each phase."""
    plans: list[PhasePlan] = []
    first = first_value = inputs_before = recurrents_before = 0
    for number, phase in enumerate(cell.phases):
        pre = phase.pre_activations
        inputs, recurrents = (sum(getattr(p, part) for p in pre) for part in ("input", "recurrent"))
        own = (number, first, len(pre), inputs, recurrents, first_value, len(phase.values))
        plans.append(PhasePlan(*own, inputs_before, recurrents_before))
        first += len(pre)
        first_value += len(phase.values)
        inputs_before += inputs
        recurrents_before += recurrents
    return tuple(plans)
