"""Which loop takes a layer through its time steps: the one table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from . import resident, steps
from .context import BackwardArrays, Context, ForwardArrays, Loop


class Choice(NamedTuple):
    """A loop, for what it is, and why."""

    name: str
    suits: Callable[[Cell, int, np.dtype[Any], str | None], bool]  # cell, H, dtype, precision
    forward: Callable[[Context, ForwardArrays], Loop]
    backward: Callable[[Context, BackwardArrays], Loop]
    why: str


RESIDENT = Choice(
    "resident",
    resident.suits,
    resident.forward,
    resident.backward,
    "all recurrent weights stay in the registers of a block: one launch for many steps",
)

# The first that suits is taken. `RESIDENT` stays out until it has run on a GPU: what has never done
# so could hang one.
CHOICES: tuple[Choice, ...] = (
    Choice(
        "steps",
        lambda cell, H, dtype, precision: True,
        steps.forward,
        steps.backward,
        "any cell and size; every product at the speed of cuBLAS, two or three launches a step",
    ),
)


def choose(cell: Cell, H: int, dtype: np.dtype[Any], precision: str | None) -> Choice:
    """The first of the table that suits."""
    return next(c for c in CHOICES if c.suits(cell, H, dtype, precision))
