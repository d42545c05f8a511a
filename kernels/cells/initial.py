"""Distributions of initial weights: functions of a generator, a shape and the hidden size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Initial = Callable[["np.random.Generator", tuple[int, ...], int], Any]


def uniform(rng: np.random.Generator, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Uniform between -1/sqrt(H) and 1/sqrt(H), as PyTorch draws recurrent layers."""
    limit = hidden_size**-0.5
    return rng.uniform(-limit, limit, shape)


def zeros(rng: np.random.Generator, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Zeros."""
    return np.zeros(shape)


def ones(rng: np.random.Generator, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Ones."""
    return np.ones(shape)
