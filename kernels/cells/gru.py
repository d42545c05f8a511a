"""Gated recurrent units with both gates, the reset before or after the recurrent product."""

from typing import Any

from ..primitives import one_like, sigmoid, tanh, zero_like
from .base import BIAS, INPUT, RECURRENT, Cell, Operand, Phase, PreActivation, Weight

_GATES = "r", "z", "n"
_WEIGHTS = (
    Weight("weight_ih", INPUT, _GATES),
    Weight("weight_hh", RECURRENT, _GATES),
    Weight("bias_ih", BIAS, _GATES, part=INPUT),
    Weight("bias_hh", BIAS, _GATES, part=RECURRENT),
)

# --- gru: reset after the product ---------------------------------------------------------------


def _gru_forward(a: Any, state: Any, values: Any) -> Any:
    x_n, a_r, a_z, u_n = a
    (h,) = state
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    n = tanh(x_n + r * u_n)
    return (n + z * (h - n),), (r, z, n, u_n)


def _gru_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    r, z, n, u_n = values
    (dh,) = dstate
    one = one_like(dh)
    d_n = dh * (one - z) * (one - n * n)
    d_r = d_n * u_n * r * (one - r)
    d_z = dh * (h - n) * z * (one - z)
    return (d_n, d_r, d_z, d_n * r), (dh * z,), ()


GRU = Cell(
    name="gru",
    gates=_GATES,
    states=("h",),
    weights=_WEIGHTS,
    phases=(
        Phase(
            (
                PreActivation("n", recurrent=False),
                PreActivation("r"),
                PreActivation("z"),
                PreActivation("n", input=False),
            ),
            ("r", "z", "n", "u_n"),
            _gru_forward,
            _gru_backward,
        ),
    ),
    source="Cho et al. 2014, arXiv:1406.1078, reset applied after the product "
    "as in cuDNN and PyTorch: n = tanh(W x + b + r * (U h + b))",
)

# --- gru_reset_before: reset before the product ---------------------------------------------------


def _gates_forward(a: Any, state: Any, values: Any) -> Any:
    a_r, a_z = a
    return state, (sigmoid(a_r), sigmoid(a_z))


def _gates_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    r, z = values
    dr, dz = dvalues
    one = one_like(r)
    return (dr * r * (one - r), dz * z * (one - z)), dstate, ()


def _candidate_forward(a: Any, state: Any, values: Any) -> Any:
    (a_n,) = a
    (h,) = state
    r, z = values
    n = tanh(a_n)
    return (n + z * (h - n),), (n,)


def _candidate_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    r, z, n = values
    (dh,) = dstate
    one = one_like(dh)
    return (dh * (one - z) * (one - n * n),), (dh * z,), (zero_like(dh), dh * (h - n))


def _reset(h: Any, values: Any) -> Any:
    r, z = values
    return r * h


def _reset_gradient(h: Any, values: Any, d: Any) -> Any:
    r, z = values
    return d * r, (d * h,)


GRU_RESET_BEFORE = Cell(
    name="gru_reset_before",
    gates=_GATES,
    states=("h",),
    weights=_WEIGHTS,
    phases=(
        Phase(
            (PreActivation("r"), PreActivation("z")),
            ("r", "z"),
            _gates_forward,
            _gates_backward,
        ),
        Phase(
            (PreActivation("n"),),
            ("n",),
            _candidate_forward,
            _candidate_backward,
            Operand(_reset, _reset_gradient),
        ),
    ),
    source="Cho et al. 2014, arXiv:1406.1078, reset applied before the product "
    "as in ONNX's default: n = tanh(W x + b + U (r * h) + b)",
)
