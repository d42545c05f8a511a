"""Light GRUs: no reset gate, and input parts normalised over the batch."""

from typing import Any

from ..primitives import constant_like, is_positive, log, one_like, relu, sigmoid
from .base import (
    INPUT,
    NORM_MEAN,
    NORM_SCALE,
    NORM_SHIFT,
    NORM_VARIANCE,
    RECURRENT,
    BatchNorm,
    Cell,
    LayerNorm,
    Operand,
    Phase,
    PreActivation,
    Weight,
)
from .initial import Initial, glorot_uniform, inverse_root_inputs, ones, orthogonal, zeros


def _weights(gates: tuple[str, ...], matrix: Initial) -> tuple[Weight, ...]:
    return (
        Weight("weight_ih", INPUT, gates, initial=matrix),
        Weight("weight_hh", RECURRENT, gates, initial=orthogonal),
        Weight("norm_weight", NORM_SCALE, gates, initial=ones),
        Weight("norm_bias", NORM_SHIFT, gates, initial=zeros),
        Weight("running_mean", NORM_MEAN, gates, initial=zeros),
        Weight("running_var", NORM_VARIANCE, gates, initial=ones),
    )


# --- ligru, sligru --------------------------------------------------------------------------------


def _ligru_forward(a: Any, state: Any, values: Any) -> Any:
    a_z, a_n = a
    (h,) = state
    z = sigmoid(a_z)
    n = relu(a_n)
    return (n + z * (h - n),), (z, n)


def _ligru_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    z, n = values
    (dh,) = dstate
    one = one_like(dh)
    d_z = dh * (h - n) * z * (one - z)
    return (d_z, dh * (one - z) * is_positive(n)), (dh * z,), ()


def _sligru_forward(a: Any, state: Any, values: Any) -> Any:
    x_z, x_n, u_z, u_n = a
    return _ligru_forward((x_z + u_z, x_n + u_n), state, values)


def _sligru_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (d_z, d_n), before, earlier = _ligru_backward(h, values, dstate, dvalues)
    return (d_z, d_n, d_z, d_n), before, earlier


_GATES = "z", "n"

LIGRU = Cell(
    name="ligru",
    gates=_GATES,
    states=("h",),
    weights=_weights(_GATES, inverse_root_inputs),
    phases=(
        Phase(
            (PreActivation("z"), PreActivation("n")), ("z", "n"), _ligru_forward, _ligru_backward
        ),
    ),
    source="Ravanelli et al. 2018, arXiv:1803.10225",
    norm=BatchNorm(),
    bounded="sligru",
)

SLIGRU = Cell(
    name="sligru",
    gates=_GATES,
    states=("h",),
    weights=_weights(_GATES, inverse_root_inputs),
    phases=(
        Phase(
            (
                PreActivation("z", recurrent=False),
                PreActivation("n", recurrent=False),
                PreActivation("z", input=False),
                PreActivation("n", input=False),
            ),
            ("z", "n"),
            _sligru_forward,
            _sligru_backward,
            norm=LayerNorm(),
        ),
    ),
    source="Moumen & Parcollet 2023, arXiv:2302.10144",
    norm=BatchNorm(),
)

# --- libru: states are probabilities --------------------------------------------------------------

# Keeps the logarithm of a state that is 0 finite.
_SMALLEST = 1e-11


def _libru_forward(a: Any, state: Any, values: Any) -> Any:
    a_z, a_c = a
    (h,) = state
    z = sigmoid(a_z)
    rest = sigmoid(-a_z)  # 1 - z would be 0 long before
    c = sigmoid(a_c)
    mixed = z * h + rest * c
    # z + rest rounds to more than 1 at times, where z is 1 even at every step.
    return (mixed - relu(mixed - one_like(mixed)),), (z, rest, c)


def _libru_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    z, rest, c = values
    (dh,) = dstate
    one = one_like(dh)
    return (dh * (h - c) * z * rest, dh * rest * c * (one - c)), (dh * z,), ()


def _log_of_state(h: Any, values: Any) -> Any:
    return log(h + constant_like(h, _SMALLEST))


def _log_of_state_gradient(h: Any, values: Any, d: Any) -> Any:
    return d / (h + constant_like(h, _SMALLEST)), ()


LIBRU = Cell(
    name="libru",
    gates=("z", "c"),
    states=("h",),
    weights=_weights(("z", "c"), glorot_uniform),
    phases=(
        Phase(
            (PreActivation("z"), PreActivation("c")),
            ("z", "rest", "c"),
            _libru_forward,
            _libru_backward,
            Operand(_log_of_state, _log_of_state_gradient),
        ),
    ),
    source="Bittar & Garner, A Bayesian interpretation of the light gated recurrent unit; each "
    "gate has its own batch norm",
    norm=BatchNorm(),
)
