"""Training without a framework: models, losses, optimisers, schedules and `fit`."""

from .optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from .tree import clip_by_norm, norm_of, tree_map

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "clip_by_norm",
    "norm_of",
    "tree_map",
]
