"""Training without a framework: models, losses, optimisers, schedules and `fit`."""

from .ensemble import Ensemble, fit_ensemble
from .files import Checkpoint, load_model, save_model
from .fit import Progress, fit
from .history import Fitted, History
from .losses import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    GaussianNLLLoss,
    HuberLoss,
    L1Loss,
    Loss,
    MSELoss,
    QuantileLoss,
)
from .model import Model, init_model
from .optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from .schedules import Constant, Cosine, OneCycle, Polynomial, ReduceOnPlateau, Schedule, Step
from .tree import clip_by_norm, norm_of, tree_map

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BCEWithLogitsLoss",
    "Checkpoint",
    "Constant",
    "Cosine",
    "CrossEntropyLoss",
    "Ensemble",
    "Fitted",
    "GaussianNLLLoss",
    "History",
    "HuberLoss",
    "L1Loss",
    "Loss",
    "MSELoss",
    "Model",
    "OneCycle",
    "Optimizer",
    "Polynomial",
    "Progress",
    "QuantileLoss",
    "RMSprop",
    "ReduceOnPlateau",
    "Schedule",
    "Step",
    "clip_by_norm",
    "fit",
    "fit_ensemble",
    "init_model",
    "load_model",
    "norm_of",
    "save_model",
    "tree_map",
]
