"""Long short-term memory."""

from typing import Any

from ..primitives import one_like, sigmoid, tanh, zero_like
from .base import BIAS, INPUT, RECURRENT, UNIT, Cell, Phase, PreActivation, UnitWeight, Weight


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


def _weights(gates: tuple[str, ...]) -> tuple[Weight, ...]:
    return (
        Weight("weight_ih", INPUT, gates),
        Weight("weight_hh", RECURRENT, gates),
        Weight("bias_ih", BIAS, gates, part=INPUT),
        Weight("bias_hh", BIAS, gates, part=RECURRENT),
    )


LSTM = Cell(
    name="lstm",
    gates=_GATES,
    states=("h", "c"),
    weights=_weights(_GATES),
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

# --- lstm_peephole: gates see the cell state ------------------------------------------------------


def _peephole_forward(a: Any, state: Any, values: Any) -> Any:
    p_i, p_f, p_o, a_i, a_f, a_g, a_o = a
    h, c = state
    i = sigmoid(a_i + p_i * c)
    f = sigmoid(a_f + p_f * c)
    g = tanh(a_g)
    c_next = f * c + i * g
    o = sigmoid(a_o + p_o * c_next)
    return (o * tanh(c_next), c_next), (i, f, g, o, c)


def _peephole_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    i, f, g, o, c, p_i, p_f, p_o = values
    dh, dc = dstate
    one = one_like(dh)
    c_next = f * c + i * g
    t = tanh(c_next)
    d_o = dh * t * o * (one - o)
    dc = dc + dh * o * (one - t * t) + d_o * p_o
    d_i = dc * g * i * (one - i)
    d_f = dc * c * f * (one - f)
    d_g = dc * i * (one - g * g)
    before = dc * f + d_i * p_i + d_f * p_f
    return (d_i * c, d_f * c, d_o * c_next, d_i, d_f, d_g, d_o), (zero_like(dh), before), ()


_SEEING = "i", "f", "o"

LSTM_PEEPHOLE = Cell(
    name="lstm_peephole",
    gates=_GATES,
    states=("h", "c"),
    weights=(*_weights(_GATES)[:2], Weight("peephole", UNIT, _SEEING), *_weights(_GATES)[2:]),
    phases=(
        Phase(
            (
                *(UnitWeight("peephole", gate) for gate in _SEEING),
                *(PreActivation(gate) for gate in _GATES),
            ),
            ("i", "f", "g", "o", "c"),
            _peephole_forward,
            _peephole_backward,
        ),
    ),
    source="Gers et al. 2002; i and f see c, o sees the new c, as in ONNX",
)

# --- cifg: input and forget gate coupled ----------------------------------------------------------


def _cifg_forward(a: Any, state: Any, values: Any) -> Any:
    a_f, a_g, a_o = a
    h, c = state
    f = sigmoid(a_f)
    g = tanh(a_g)
    o = sigmoid(a_o)
    c_next = g + f * (c - g)
    return (o * tanh(c_next), c_next), (f, g, o, c)


def _cifg_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    f, g, o, c = values
    dh, dc = dstate
    one = one_like(dh)
    t = tanh(g + f * (c - g))
    dc = dc + dh * o * (one - t * t)
    d_f = dc * (c - g) * f * (one - f)
    d_g = dc * (one - f) * (one - g * g)
    d_o = dh * t * o * (one - o)
    return (d_f, d_g, d_o), (zero_like(dh), dc * f), ()


CIFG = Cell(
    name="cifg",
    gates=("f", "g", "o"),
    states=("h", "c"),
    weights=_weights(("f", "g", "o")),
    phases=(
        Phase(
            tuple(PreActivation(gate) for gate in ("f", "g", "o")),
            ("f", "g", "o", "c"),
            _cifg_forward,
            _cifg_backward,
        ),
    ),
    source="Greff et al. 2015, arXiv:1503.04069: the LSTM with i = 1 - f",
)
