"""Which loop takes a layer through its time steps: the one table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from . import exchange, resident, steps
from .context import BackwardArrays, Context, ForwardArrays, Loop


class Choice(NamedTuple):
    """A loop, for what it is, and why."""

    name: str
    suits: Callable[[Cell, int, np.dtype[Any], str | None, Any], bool]  # as `choose`
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

EXCHANGE = Choice(
    "exchange",
    exchange.suits,
    exchange.forward,
    exchange.backward,
    "all recurrent weights stay in the registers of many blocks, which exchange h at every step",
)

# The first that suits is taken. `RESIDENT` and `EXCHANGE` stay out until they have run on a GPU:
# what has never done so could hang one.
CHOICES: tuple[Choice, ...] = (
    Choice(
        "steps",
        lambda cell, H, dtype, precision, device: True,
        steps.forward,
        steps.backward,
        "any cell and size; every product at the speed of cuBLAS, two or three launches a step",
    ),
)


def choose(cell: Cell, H: int, dtype: np.dtype[Any], precision: str | None, device: Any) -> Choice:
    """The first of the table that suits."""
    return next(c for c in CHOICES if c.suits(cell, H, dtype, precision, device))
