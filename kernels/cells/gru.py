"""Gated recurrent units with both gates, the reset before or after the recurrent product."""

from typing import Any

from ..primitives import one_like, sigmoid, tanh, zero_like
from .base import (
    BIAS,
    INPUT,
    RECURRENT,
    Cell,
    Operand,
    Phase,
    PreActivation,
    StepInput,
    Weight,
)

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


def gates_forward(a: Any, state: Any, values: Any) -> Any:
    a_r, a_z = a
    return state, (sigmoid(a_r), sigmoid(a_z))


def gates_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
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


RESET = Operand(_reset, _reset_gradient)
# The second phase of every GRU with reset before the product.
CANDIDATE = Phase((PreActivation("n"),), ("n",), _candidate_forward, _candidate_backward, RESET)

GRU_RESET_BEFORE = Cell(
    name="gru_reset_before",
    gates=_GATES,
    states=("h",),
    weights=_WEIGHTS,
    phases=(
        Phase(
            (PreActivation("r"), PreActivation("z")),
            ("r", "z"),
            gates_forward,
            gates_backward,
        ),
        CANDIDATE,
    ),
    source="Cho et al. 2014, arXiv:1406.1078, reset applied before the product "
    "as in ONNX's default: n = tanh(W x + b + U (r * h) + b)",
)

# --- augru: reset before the product, updates held back by attention ------------------------------


def _attentive_forward(a: Any, state: Any, values: Any) -> Any:
    attention, a_n = a
    (h,) = state
    r, z = values
    n = tanh(a_n)
    z = (one_like(z) - attention) * z
    return (n + z * (h - n),), (n, attention)


def _attentive_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    r, z, n, attention = values
    (dh,) = dstate
    one = one_like(dh)
    share = one - attention
    own = share * z
    d = dh * (h - n)
    d_n = dh * (one - own) * (one - n * n)
    return (zero_like(d) - d * z, d_n), (dh * own,), (zero_like(dh), d * share)


AUGRU = Cell(
    name="augru",
    gates=_GATES,
    states=("h",),
    weights=(
        Weight("weight_ih", INPUT, _GATES),
        Weight("weight_hh", RECURRENT, _GATES),
        Weight("bias", BIAS, _GATES),
    ),
    phases=(
        Phase((PreActivation("r"), PreActivation("z")), ("r", "z"), gates_forward, gates_backward),
        Phase(
            (StepInput("attention"), PreActivation("n")),
            ("n", "attention"),
            _attentive_forward,
            _attentive_backward,
            RESET,
        ),
    ),
    source="Zhou et al. 2019, arXiv:1809.03672, as its code and as in oneDNN and OpenVINO: "
    "(1 - attention) * z in place of z",
)
