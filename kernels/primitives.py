"""The elementary functions that cells are written in, as plain NumPy.

Each target (the CPU's vectors, a GPU's threads) teaches Numba its own version of these functions,
so a cell that calls them compiles there unchanged. The versions here run a cell as plain Python, on
scalars and on arrays, and never raise nor warn on overflow. They take complex numbers too, near the
real axis: so the complex step gives derivatives of cells.

Cells hold no numeric literals: a bare ``1.0`` would turn float32 arithmetic into float64.
`one_like`, `zero_like` and `constant_like` give constants in the type of the data.
"""

from typing import Any

import numpy as np


def one_like(a: Any) -> Any:
    """1 in the type of `a`."""
    return np.ones_like(a)[()]


def zero_like(a: Any) -> Any:
    """0 in the type of `a`."""
    return np.zeros_like(a)[()]


def constant_like(a: Any, value: float) -> Any:
    """A number in the type of `a`."""
    return np.full_like(a, value)[()]


def relu(a: Any) -> Any:
    """`a` where it is positive, else 0; NaN stays."""
    return np.where(a <= 0, zero_like(a), a)[()]


def is_positive(a: Any) -> Any:
    """1 where `a` is positive, else 0, in the type of `a`; 0 of NaN."""
    return np.where(a > 0, one_like(a), zero_like(a))[()]


def log(a: Any) -> Any:
    """Natural logarithm; of 0 it is -infinity and of negative numbers NaN, in silence."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(a)


def exp(a: Any) -> Any:
    """Exponential; overflows to infinity in silence."""
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(a)


def sigmoid(a: Any) -> Any:
    """Logistic function 1 / (1 + exp(-a)), accurate for both signs of `a`."""
    if np.iscomplexobj(a):
        return one_like(a) / (one_like(a) + exp(-a))
    e = exp(-np.abs(a))  # in (0, 1]: never overflows
    return np.where(a >= 0, one_like(e), e)[()] / (one_like(e) + e)


def tanh(a: Any) -> Any:
    """Hyperbolic tangent."""
    return np.tanh(a)
