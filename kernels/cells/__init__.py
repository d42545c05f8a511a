"""Every cell, written once: the table `CELLS`, and what cells are made of; see `base`.

Numba is not needed to read it.
"""

from .base import (
    BIAS,
    HIDDEN,
    INPUT,
    NORM_MEAN,
    NORM_SCALE,
    NORM_SHIFT,
    NORM_VARIANCE,
    RECURRENT,
    UNIT,
    BatchNorm,
    Cell,
    LayerNorm,
    Operand,
    Phase,
    PreActivation,
    StepInput,
    UnitWeight,
    Weight,
)
from .gru import GRU, GRU_RESET_BEFORE
from .lstm import LSTM

__all__ = [
    "BIAS",
    "CELLS",
    "HIDDEN",
    "INPUT",
    "NORM_MEAN",
    "NORM_SCALE",
    "NORM_SHIFT",
    "NORM_VARIANCE",
    "RECURRENT",
    "UNIT",
    "BatchNorm",
    "Cell",
    "LayerNorm",
    "Operand",
    "Phase",
    "PreActivation",
    "StepInput",
    "UnitWeight",
    "Weight",
]

CELLS: dict[str, Cell] = {cell.name: cell for cell in (GRU, GRU_RESET_BEFORE, LSTM)}
