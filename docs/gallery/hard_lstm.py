"""An LSTM with hard sigmoids, as in old models of Keras: 0 below -2.5, 1 above 2.5, else linear."""

from fastgru.cell import (
    BIAS,
    INPUT,
    RECURRENT,
    Cell,
    Phase,
    PreActivation,
    Weight,
    constant_like,
    is_positive,
    one_like,
    relu,
    tanh,
    zero_like,
)

SLOPE, HALF = 0.2, 0.5
GATES = "i", "f", "g", "o"


# Equations: 25 lines.
def hard(a):
    """The smaller of 1 and ReLU(0.2 a + 0.5)."""
    line = constant_like(a, SLOPE) * a + constant_like(a, HALF)
    return relu(line) - relu(line - one_like(a))


def slope(s):
    """Of a hard sigmoid that is s: 0.2 between its ends, 0 beyond."""
    return constant_like(s, SLOPE) * is_positive(s) * is_positive(one_like(s) - s)


def forward(a, state, values):
    i, f, g, o = hard(a[0]), hard(a[1]), tanh(a[2]), hard(a[3])
    h, c = state
    new = f * c + i * g
    return (o * tanh(new), new), (i, f, g, o, c)


def backward(h, values, dstate, dvalues):
    i, f, g, o, c = values
    dh, dc = dstate
    t = tanh(f * c + i * g)
    dc = dc + dh * o * (one_like(t) - t * t)
    d_i, d_f, d_o = dc * g * slope(i), dc * c * slope(f), dh * t * slope(o)
    return (d_i, d_f, dc * i * (one_like(g) - g * g), d_o), (zero_like(dh), dc * f), ()


HARD_LSTM = Cell(
    name="hard_lstm",
    gates=GATES,
    states=("h", "c"),
    weights=(
        Weight("weight_ih", INPUT, GATES),
        Weight("weight_hh", RECURRENT, GATES),
        Weight("bias_ih", BIAS, GATES, part=INPUT),
        Weight("bias_hh", BIAS, GATES, part=RECURRENT),
    ),
    phases=(
        Phase(
            tuple(PreActivation(gate) for gate in GATES),
            ("i", "f", "g", "o", "c"),
            forward,
            backward,
        ),
    ),
    source="the LSTM with hard sigmoids",
)
