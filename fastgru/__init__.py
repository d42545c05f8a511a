"""Gated recurrent units for NumPy arrays: forward, exact backward and streaming.

>>> import numpy as np, fastgru
>>> params = fastgru.init_params(input_size=3, hidden_size=16, rng=0)
>>> x = np.ones((8, 50, 3), np.float32)  # samples, time steps, features
>>> y, h_n = fastgru.forward(x, params)
>>> y.shape, h_n.shape
((8, 50, 16), (1, 8, 16))
"""

from .cell import check_cell, register_cell
from .config import show_config
from .files import load, load_metadata, save
from .ops import Gradients, backward, forward, forward_train, step
from .packed import Packed, pack
from .params import Params, Weights, cells, init_params
from .saved import Saved
from .stream import Stream

__version__ = "0.1.0"

__all__ = [
    "Gradients",
    "Packed",
    "Params",
    "Saved",
    "Stream",
    "Weights",
    "__version__",
    "backward",
    "cells",
    "check_cell",
    "forward",
    "forward_train",
    "init_params",
    "load",
    "load_metadata",
    "pack",
    "register_cell",
    "save",
    "show_config",
    "step",
]
