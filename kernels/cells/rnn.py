"""Plain recurrent networks, and the update gate RNN."""

from typing import Any

from ..primitives import is_positive, one_like, relu, sigmoid, tanh, zero_like
from .base import BIAS, INPUT, RECURRENT, Cell, Phase, PreActivation, Weight


def _weights(gates: tuple[str, ...]) -> tuple[Weight, ...]:
    return (
        Weight("weight_ih", INPUT, gates),
        Weight("weight_hh", RECURRENT, gates),
        Weight("bias_ih", BIAS, gates, part=INPUT),
        Weight("bias_hh", BIAS, gates, part=RECURRENT),
    )


def _tanh_forward(a: Any, state: Any, values: Any) -> Any:
    (a_n,) = a
    n = tanh(a_n)
    return (n,), (n,)


def _tanh_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (n,) = values
    (dh,) = dstate
    return (dh * (one_like(n) - n * n),), (zero_like(dh),), ()


def _relu_forward(a: Any, state: Any, values: Any) -> Any:
    (a_n,) = a
    n = relu(a_n)
    return (n,), (n,)


def _relu_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (n,) = values
    (dh,) = dstate
    return (dh * is_positive(n),), (zero_like(dh),), ()


RNN_TANH = Cell(
    name="rnn_tanh",
    gates=("n",),
    states=("h",),
    weights=_weights(("n",)),
    phases=(Phase((PreActivation("n"),), ("n",), _tanh_forward, _tanh_backward),),
    source="Elman 1990; as PyTorch's RNN",
)

RNN_RELU = Cell(
    name="rnn_relu",
    gates=("n",),
    states=("h",),
    weights=_weights(("n",)),
    phases=(Phase((PreActivation("n"),), ("n",), _relu_forward, _relu_backward),),
    source="Le et al. 2015, arXiv:1504.00941; as PyTorch's RNN",
)


def _ugrnn_forward(a: Any, state: Any, values: Any) -> Any:
    a_z, a_n = a
    (h,) = state
    z = sigmoid(a_z)
    n = tanh(a_n)
    return (n + z * (h - n),), (z, n)


def _ugrnn_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    z, n = values
    (dh,) = dstate
    one = one_like(dh)
    d_z = dh * (h - n) * z * (one - z)
    return (d_z, dh * (one - z) * (one - n * n)), (dh * z,), ()


UGRNN = Cell(
    name="ugrnn",
    gates=("z", "n"),
    states=("h",),
    weights=(
        Weight("weight_ih", INPUT, ("z", "n")),
        Weight("weight_hh", RECURRENT, ("z", "n")),
        Weight("bias", BIAS, ("z", "n")),
    ),
    phases=(
        Phase(
            (PreActivation("z"), PreActivation("n")), ("z", "n"), _ugrnn_forward, _ugrnn_backward
        ),
    ),
    source="Collins et al. 2016, arXiv:1611.09913",
)
