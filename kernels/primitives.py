"""The elementary functions that cells are written in, as plain NumPy.

Each target (the CPU's vectors, a GPU's threads) teaches Numba its own version of these functions,
so a cell that calls them compiles there unchanged. The versions here run a cell as plain Python, on
scalars and on arrays, and never raise nor warn on overflow.

Cells hold no numeric literals: a bare ``1.0`` would turn float32 arithmetic into float64.
`one_like` and `zero_like` give constants in the type of the data.
"""

from typing import Any

import numpy as np


def one_like(a: Any) -> Any:
    """1 in the type of `a`."""
    return np.ones_like(a)[()]


def zero_like(a: Any) -> Any:
    """0 in the type of `a`."""
    return np.zeros_like(a)[()]


def exp(a: Any) -> Any:
    """Exponential; overflows to infinity in silence."""
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(a)


def sigmoid(a: Any) -> Any:
    """Logistic function 1 / (1 + exp(-a)), accurate for both signs of `a`."""
    e = exp(-np.abs(a))  # in (0, 1]: never overflows
    return np.where(a >= 0, one_like(e), e)[()] / (one_like(e) + e)


def tanh(a: Any) -> Any:
    """Hyperbolic tangent."""
    return np.tanh(a)
