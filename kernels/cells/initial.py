"""Distributions of initial weights: functions of a generator, a shape and the hidden size."""

from collections.abc import Callable
from typing import Any

import numpy as np

# Of a generator of NumPy, which loads its random numbers when they are asked for.
Initial = Callable[[Any, tuple[int, ...], int], Any]


def uniform(rng: Any, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Uniform between -1/sqrt(H) and 1/sqrt(H), as PyTorch draws recurrent layers."""
    limit = hidden_size**-0.5
    return rng.uniform(-limit, limit, shape)


def zeros(rng: Any, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Zeros."""
    return np.zeros(shape)


def ones(rng: Any, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Ones."""
    return np.ones(shape)


def inverse_root_inputs(rng: Any, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Uniform between -1/sqrt(I) and 1/sqrt(I), as PyTorch draws linear layers."""
    limit = shape[1] ** -0.5
    return rng.uniform(-limit, limit, shape)


def glorot_uniform(rng: Any, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Uniform between -sqrt(6 / (rows + columns)) and that. Glorot & Bengio 2010."""
    limit = (6 / sum(shape)) ** 0.5
    return rng.uniform(-limit, limit, shape)


def orthogonal(rng: Any, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Orthonormal columns. Saxe et al. 2013, arXiv:1312.6120."""
    q, r = np.linalg.qr(rng.standard_normal(shape))
    return q * np.sign(np.diag(r))
