"""Long short-term memory."""

from typing import Any

from ..primitives import one_like, sigmoid, tanh, zero_like
from .base import BIAS, INPUT, RECURRENT, Cell, Phase, PreActivation, Weight


def _lstm_forward(a: Any, state: Any, values: Any) -> Any:
    a_i, a_f, a_g, a_o = a
    h, c = state
    i = sigmoid(a_i)
    f = sigmoid(a_f)
    g = tanh(a_g)
    o = sigmoid(a_o)
    c_next = f * c + i * g
    return (o * tanh(c_next), c_next), (i, f, g, o, c)


def _lstm_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    i, f, g, o, c = values
    dh, dc = dstate
    one = one_like(dh)
    t = tanh(f * c + i * g)  # recomputed: cheaper than another saved value
    dc = dc + dh * o * (one - t * t)
    d_i = dc * g * i * (one - i)
    d_f = dc * c * f * (one - f)
    d_g = dc * i * (one - g * g)
    d_o = dh * t * o * (one - o)
    return (d_i, d_f, d_g, d_o), (zero_like(dh), dc * f), ()


_GATES = "i", "f", "g", "o"

LSTM = Cell(
    name="lstm",
    gates=_GATES,
    states=("h", "c"),
    weights=(
        Weight("weight_ih", INPUT, _GATES),
        Weight("weight_hh", RECURRENT, _GATES),
        Weight("bias_ih", BIAS, _GATES, part=INPUT),
        Weight("bias_hh", BIAS, _GATES, part=RECURRENT),
    ),
    phases=(
        Phase(
            tuple(PreActivation(gate) for gate in _GATES),
            ("i", "f", "g", "o", "c"),
            _lstm_forward,
            _lstm_backward,
        ),
    ),
    source="Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, "
    "gates ordered as in PyTorch",
)
