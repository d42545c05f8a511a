"""Every cell, written once: the table `CELLS`, and what cells are made of; see `base`.

Numba is not needed to read it.
"""

from .base import (
    BIAS,
    HIDDEN,
    INPUT,
    KINDS,
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
    functions_called,
)
from .gru import AUGRU, GRU, GRU_RESET_BEFORE
from .light import LIBRU, LIGRU, SLIGRU
from .lstm import CIFG, LSTM, LSTM_PEEPHOLE
from .rnn import RNN_RELU, RNN_TANH, UGRNN
from .scan import INDRNN, MINGRU, MINLSTM, PARAGRU
from .slim import GRU1, GRU2, GRU3, MGU, MGU1, MGU2, MGU3

__all__ = [
    "BIAS",
    "CELLS",
    "HIDDEN",
    "INPUT",
    "KINDS",
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
    "functions_called",
]

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        *(GRU, GRU_RESET_BEFORE, LSTM),
        *(GRU1, GRU2, GRU3, MGU, MGU1, MGU2, MGU3),
        *(LIGRU, SLIGRU, LIBRU),
        *(MINGRU, MINLSTM, AUGRU, PARAGRU, INDRNN),
        *(RNN_TANH, RNN_RELU, LSTM_PEEPHOLE, CIFG, UGRNN),
    )
}
