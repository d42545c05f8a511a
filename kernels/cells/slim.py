"""GRUs whose gates depend on less: on the state and a bias, the state, or a bias alone."""

from typing import Any

from ..primitives import one_like, sigmoid, tanh
from .base import BIAS, INPUT, RECURRENT, Cell, Operand, Phase, PreActivation, Weight
from .gru import CANDIDATE, gates_backward, gates_forward

# --- gru1, gru2, gru3: reset before the product ---------------------------------------------------


def _slim_gru(
    name: str, recurrent: bool, biased: tuple[str, ...], weights: tuple[str, ...]
) -> Cell:
    """A GRU with reset before the product, whose gates x does not feed."""
    gates = tuple(PreActivation(g, input=False, recurrent=recurrent) for g in ("r", "z"))
    return Cell(
        name=name,
        gates=("r", "z", "n"),
        states=("h",),
        weights=(
            Weight("weight_ih", INPUT, ("n",)),
            Weight("weight_hh", RECURRENT, weights),
            Weight("bias", BIAS, biased),
        ),
        phases=(Phase(gates, ("r", "z"), gates_forward, gates_backward), CANDIDATE),
        source="Dey & Salem 2017, arXiv:1701.05923; r and z from "
        + ("U h + b", "U h", "b")[int(name[-1]) - 1],
    )


GRU1 = _slim_gru("gru1", True, ("r", "z", "n"), ("r", "z", "n"))
GRU2 = _slim_gru("gru2", True, ("n",), ("r", "z", "n"))
GRU3 = _slim_gru("gru3", False, ("r", "z", "n"), ("n",))


# --- mgu and its slim forms: one gate, which forgets and resets -----------------------------------


def _gate_forward(a: Any, state: Any, values: Any) -> Any:
    (a_f,) = a
    return state, (sigmoid(a_f),)


def _gate_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (f,) = values
    (df,) = dvalues
    return (df * f * (one_like(f) - f),), dstate, ()


def _mix_forward(a: Any, state: Any, values: Any) -> Any:
    (a_n,) = a
    (h,) = state
    (f,) = values
    n = tanh(a_n)
    return (h + f * (n - h),), (n,)


def _mix_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    f, n = values
    (dh,) = dstate
    one = one_like(dh)
    return (dh * f * (one - n * n),), (dh * (one - f),), (dh * (n - h),)


def _forget(h: Any, values: Any) -> Any:
    (f,) = values
    return f * h


def _forget_gradient(h: Any, values: Any, d: Any) -> Any:
    (f,) = values
    return d * f, (d * h,)


def _mgu(
    name: str,
    gate: PreActivation,
    inputs: tuple[str, ...],
    recurrent: tuple[str, ...],
    biased: tuple[str, ...],
    source: str,
) -> Cell:
    return Cell(
        name=name,
        gates=("f", "n"),
        states=("h",),
        weights=(
            Weight("weight_ih", INPUT, inputs),
            Weight("weight_hh", RECURRENT, recurrent),
            Weight("bias", BIAS, biased),
        ),
        phases=(
            Phase((gate,), ("f",), _gate_forward, _gate_backward),
            Phase(
                (PreActivation("n"),),
                ("n",),
                _mix_forward,
                _mix_backward,
                Operand(_forget, _forget_gradient),
            ),
        ),
        source=source,
    )


_BOTH = "f", "n"
_SLIM = "Heck & Salem 2017, arXiv:1701.03452; f from "

MGU = _mgu("mgu", PreActivation("f"), _BOTH, _BOTH, _BOTH, "Zhou et al. 2016, arXiv:1603.09420")
MGU1 = _mgu("mgu1", PreActivation("f", input=False), ("n",), _BOTH, _BOTH, f"{_SLIM}U h + b")
MGU2 = _mgu("mgu2", PreActivation("f", input=False), ("n",), _BOTH, ("n",), f"{_SLIM}U h")
MGU3 = _mgu(
    "mgu3", PreActivation("f", input=False, recurrent=False), ("n",), ("n",), _BOTH, f"{_SLIM}b"
)
