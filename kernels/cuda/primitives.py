"""The elementary functions that cells are written in, on the GPU.

Importing this module teaches them to Numba. Beside each stands what it becomes in the machine code
(SASS) of sm_80 and sm_90.
"""

import math
from typing import Any

import numpy as np
from numba.cuda import types
from numba.cuda.extending import overload

from .. import primitives


def _constant(kind: Any, value: float) -> Any:
    """A number of a Numba type: a bare one would turn float32 arithmetic into float64."""
    return np.float32(value) if kind == types.float32 else np.float64(value)


@overload(primitives.one_like)
def _one_like(a):
    """An immediate operand."""
    one = _constant(a, 1)
    return lambda a: one


@overload(primitives.zero_like)
def _zero_like(a):
    """An immediate operand."""
    zero = _constant(a, 0)
    return lambda a: zero


@overload(primitives.exp)
def _exp(a):
    """float32: FMUL and FFMA around MUFU.EX2, 2 ulp."""
    return lambda a: math.exp(a)


@overload(primitives.tanh)
def _tanh(a):
    """float32: a polynomial near 0, else MUFU.EX2 and MUFU.RCP, 2 ulp."""
    return lambda a: math.tanh(a)


@overload(primitives.sigmoid)
def _sigmoid(a):
    """float32: MUFU.EX2 and a rounded division; where exp overflows, 0."""
    one = _constant(a, 1)
    return lambda a: one / (one + math.exp(-a))


@overload(primitives.constant_like)
def _constant_like(a, value):
    """An immediate operand, where the value is a constant."""
    cast = np.float32 if a == types.float32 else np.float64
    return lambda a, value: cast(value)


@overload(primitives.relu)
def _relu(a):
    """FSETP and FSEL."""
    zero = _constant(a, 0)
    return lambda a: zero if a <= zero else a


@overload(primitives.is_positive)
def _is_positive(a):
    """FSETP and FSEL."""
    zero, one = _constant(a, 0), _constant(a, 1)
    return lambda a: one if a > zero else zero


@overload(primitives.log)
def _log(a):
    """float32: a polynomial after the exponent is split off, 1 ulp."""
    return lambda a: math.log(a)
