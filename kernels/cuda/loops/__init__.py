"""How a layer gets through its time steps: the one table of loops.

`units` and `steps` are the defaults: plain kernels, none of which waits for another, and cuBLAS.
The other loops are **unproven**: compiled and emulated, but never run on a GPU, where a mistake in
one could hang it. They are used only if the environment variable FASTGRU_CUDA_LOOPS names them, as
in

    FASTGRU_CUDA_LOOPS=resident,graph

The first of those named that suits a layer takes it, else the first default that does. The variable
is read when the loop of a layer is chosen: in the first call for its cell, sizes, device and
precision.
"""

import functools
import importlib
import os
from typing import Any, NamedTuple

from ..context import BackwardArrays, Context, ForwardArrays, Layer, RunSteps

VARIABLE = "FASTGRU_CUDA_LOOPS"


@functools.cache
def _module(name: str) -> Any:
    """The module of a loop, imported when it is used: the default needs none of the others."""
    return importlib.import_module(f"{__name__}.{name}")


class TimeLoop(NamedTuple):
    """A loop: the module of that name here, and what it is for."""

    name: str
    why: str

    def suits(self, layer: Layer) -> bool:
        """Whether this loop can take a layer."""
        return bool(_module(self.name).suits(layer))

    def forward(self, context: Context, arrays: ForwardArrays) -> RunSteps:
        """Prepare the loop of a forward pass."""
        run: RunSteps = _module(self.name).forward(context, arrays)
        return run

    def backward(self, context: Context, arrays: BackwardArrays) -> RunSteps:
        """Prepare the loop of a backward pass."""
        run: RunSteps = _module(self.name).backward(context, arrays)
        return run


UNITS = TimeLoop(
    "units", "cells without a recurrent product: one launch for many steps, a thread for each unit"
)
STEPS = TimeLoop(
    "steps", "any cell and size; every product at the speed of cuBLAS, two or three launches a step"
)

DEFAULTS = UNITS, STEPS

UNPROVEN = (
    TimeLoop(
        "resident",
        "all recurrent weights stay in the registers of a block: one launch for many steps",
    ),
    TimeLoop(
        "exchange",
        "all recurrent weights stay in registers of many blocks, which exchange h at every step",
    ),
    TimeLoop(
        "cluster",
        "tensor cores: recurrent weights stay on chip, blocks of a cluster write h to each other",
    ),
    TimeLoop(
        "graph",
        "many short steps of a shape that comes again: one launch of a CUDA graph for all of them",
    ),
)

LOOPS = {loop.name: loop for loop in (*UNPROVEN, *DEFAULTS)}


def enabled() -> tuple[TimeLoop, ...]:
    """The loops that are tried, in this order: those that the environment names, then the defaults.

    Raises
    ------
    ValueError
        If the environment names a loop that there is none of.
    """
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    unknown = [name for name in names if name and name not in LOOPS]
    if unknown:
        known = ", ".join(map(repr, LOOPS))
        raise ValueError(f"{VARIABLE}: expected names of {known}, got {', '.join(unknown)!r}")
    return (*[LOOPS[name] for name in names if name], *DEFAULTS)


def choose(layer: Layer) -> TimeLoop:
    """The first enabled loop that suits a layer."""
    return next(loop for loop in enabled() if loop.suits(layer))


def describe() -> str:
    """The loops that are tried."""
    names = ", ".join(dict.fromkeys(loop.name for loop in enabled()))
    return f"{names} (the first that suits a layer; {VARIABLE} may name others)"
