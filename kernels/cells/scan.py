"""Cells without a recurrent product: affine in their state, or with a weight of each unit."""

from typing import Any

import numpy as np

from ..primitives import constant_like, exp, is_positive, one_like, relu, sigmoid, tanh, zero_like
from .base import BIAS, INPUT, UNIT, Cell, Phase, PreActivation, UnitWeight, Weight
from .initial import glorot_uniform, uniform

# --- mingru, minlstm ------------------------------------------------------------------------------

_HALF = 0.5


def _g(a: Any) -> Any:
    """a + 1/2 where a >= 0, else sigmoid(a)."""
    positive = relu(a)
    return positive + sigmoid(a - positive)


def _g_gradient(n: Any) -> Any:
    """The derivative of `_g` where it is n."""
    one = one_like(n)
    linear = is_positive(n - constant_like(n, _HALF))
    return linear + (one - linear) * n * (one - n)


def _mingru_forward(a: Any, state: Any, values: Any) -> Any:
    a_z, a_n = a
    (h,) = state
    z = sigmoid(a_z)
    n = _g(a_n)
    # Not (1 - z) h + z n: of a small z, 1 - z keeps few digits.
    return (h + z * (n - h),), (z, n)


def _mingru_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    z, n = values
    (dh,) = dstate
    rest = one_like(z) - z
    return (dh * (n - h) * z * rest, dh * z * _g_gradient(n)), (dh * rest,), ()


MINGRU = Cell(
    name="mingru",
    gates=("z", "n"),
    states=("h",),
    weights=(Weight("weight_ih", INPUT, ("z", "n")), Weight("bias", BIAS, ("z", "n"))),
    phases=(
        Phase(
            tuple(PreActivation(gate, recurrent=False) for gate in ("z", "n")),
            ("z", "n"),
            _mingru_forward,
            _mingru_backward,
        ),
    ),
    source="Feng et al. 2024, arXiv:2410.01201",
)


def _minlstm_forward(a: Any, state: Any, values: Any) -> Any:
    """With sigmoid(a) = 1 / (1 + exp(-a)), f / (f + i) is (1 + exp(-a_i)) / (2 + exp(-a_f) + ...).

    Divided by the largest of the three terms, none of them overflows.
    """
    a_f, a_i, a_n = a
    (h,) = state
    larger = is_positive(a_f - a_i)
    unit = one_like(a_f)
    low = larger * a_i + (unit - larger) * a_f
    low = low * (unit - is_positive(low))  # the least of a_f, a_i and 0
    one, of_f, of_i = exp(low), exp(low - a_f), exp(low - a_i)
    total = one + of_i + one + of_f
    f = (one + of_i) / total
    i = (one + of_f) / total
    n = _g(a_n)
    # Not f h + i n: of a small i, f keeps few digits of what it lacks to 1.
    return (h + i * (n - h),), (f, i, n, a_f, a_i)


def _minlstm_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    f, i, n, a_f, a_i = values
    (dh,) = dstate
    d = dh * (h - n) * f * i
    d_f = d * sigmoid(zero_like(a_f) - a_f)
    d_i = d * sigmoid(zero_like(a_i) - a_i)
    return (d_f, zero_like(d) - d_i, dh * i * _g_gradient(n)), (dh * f,), ()


MINLSTM = Cell(
    name="minlstm",
    gates=("f", "i", "n"),
    states=("h",),
    weights=(Weight("weight_ih", INPUT, ("f", "i", "n")), Weight("bias", BIAS, ("f", "i", "n"))),
    phases=(
        Phase(
            tuple(PreActivation(gate, recurrent=False) for gate in ("f", "i", "n")),
            ("f", "i", "n", "a_f", "a_i"),
            _minlstm_forward,
            _minlstm_backward,
        ),
    ),
    source="Feng et al. 2024, arXiv:2410.01201; gates normalised to a sum of 1",
)

# --- paragru --------------------------------------------------------------------------------------


def _paragru_forward(a: Any, state: Any, values: Any) -> Any:
    u_r, u_z, u_n, x_r, x_z, x_n = a
    (h,) = state
    r = sigmoid(x_r + u_r * h)
    z = sigmoid(x_z + u_z * h)
    n = tanh(x_n + u_n * (h * r))
    return (h + z * (n - h),), (r, z, n)


def _paragru_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    r, z, n, u_r, u_z, u_n = values
    (dh,) = dstate
    one = one_like(dh)
    d_z = dh * (n - h) * z * (one - z)
    d_n = dh * z * (one - n * n)
    d_r = d_n * u_n * h * r * (one - r)
    before = dh * (one - z) + d_z * u_z + d_r * u_r + d_n * u_n * r
    return (d_r * h, d_z * h, d_n * h * r, d_r, d_z, d_n), (before,), ()


def _narrow_normal(rng: Any, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Normal, of variance 4 / (5 H)."""
    return rng.normal(0, (4 / (5 * hidden_size)) ** 0.5, shape)


def _slow_updates(rng: Any, shape: tuple[int, ...], hidden_size: int) -> Any:
    """Zeros, but for the update gate, which goes from 0 to -1 over the units."""
    bias = np.zeros((3, hidden_size))
    bias[1] = -np.linspace(0, 1, hidden_size)
    return bias.reshape(shape)


_GRU_GATES = "r", "z", "n"

PARAGRU = Cell(
    name="paragru",
    gates=_GRU_GATES,
    states=("h",),
    weights=(
        Weight("weight_ih", INPUT, _GRU_GATES, initial=glorot_uniform),
        Weight("diag_hh", UNIT, _GRU_GATES, initial=_narrow_normal),
        Weight("bias", BIAS, _GRU_GATES, initial=_slow_updates),
    ),
    phases=(
        Phase(
            (
                *(UnitWeight("diag_hh", gate) for gate in _GRU_GATES),
                *(PreActivation(gate, recurrent=False) for gate in _GRU_GATES),
            ),
            ("r", "z", "n"),
            _paragru_forward,
            _paragru_backward,
        ),
    ),
    source="Danieli et al. 2025, arXiv:2510.21450",
)

# --- indrnn ---------------------------------------------------------------------------------------


def _indrnn_forward(a: Any, state: Any, values: Any) -> Any:
    u, x_n = a
    (h,) = state
    n = relu(x_n + u * h)
    return (n,), (n,)


def _indrnn_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    n, u = values
    (dh,) = dstate
    d = dh * is_positive(n)
    return (d * h, d), (d * u,), ()


INDRNN = Cell(
    name="indrnn",
    gates=("n",),
    states=("h",),
    weights=(
        Weight("weight_ih", INPUT, ("n",)),
        Weight("diag_hh", UNIT, ("n",), initial=uniform),
        Weight("bias", BIAS, ("n",)),
    ),
    phases=(
        Phase(
            (UnitWeight("diag_hh", "n"), PreActivation("n", recurrent=False)),
            ("n",),
            _indrnn_forward,
            _indrnn_backward,
        ),
    ),
    source="Li et al. 2018, arXiv:1803.04831; ReLU",
)
