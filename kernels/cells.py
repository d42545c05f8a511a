"""Every cell, written once: its gates, its equations forward and backward, and the table `CELLS`.

All equations of a recurrent cell are elementwise over hidden units, except its recurrent
products.
A cell is therefore a list of *phases*: a phase forms one recurrent product, then applies a
pointwise function to the pre-activations. Drivers know phases, not cells. For one time step and
each phase:

    a_j = bias_j + W_j x + U_j operand(h, values)       the phase's pre-activations
    state, new_values = forward(a, state, values)       pointwise, one call per unit
    values = values + new_values                        seen by the later phases and by backward

and, backward, the phases in reverse:

    da, dstate, dvalues = backward(h, values, dstate, dvalues)
    dh, dv = operand.gradient(h, values, sum_j U_j^T da_j);  dstate[0] += dh;  dvalues += dv

Here `h` is the state's first member before the step, which only the last phase changes: the only
part of the state that backward is given, because the output sequence already holds it. Whatever
else backward needs, forward returns among its values. `backward` receives the values of its own and
all earlier phases with their gradients so far, and returns the gradients of the earlier phases'
values alone. `dstate` comes in as the gradient of the state after the phase and leaves as that of
the state before it, the path through the recurrent product excepted.

The functions are compiled for vectors of units (CPU) and for single units (GPU), and run as plain
Python; they use tuples, arithmetic and `primitives`, nothing else.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .primitives import one_like, sigmoid, tanh, zero_like


@dataclass(frozen=True)
class PreActivation:
    """One weighted sum of a gate: its input part, its recurrent part, or both in one sum.

    A gate whose parts are used apart (the candidate of a reset-after GRU) has two of these.
    """

    gate: str
    input: bool = True
    recurrent: bool = True


@dataclass(frozen=True, eq=False)
class Operand:
    """What a phase's recurrent weights multiply, from the previous h and earlier phases' values.

    ``gradient(h, values, d)`` returns the contributions to dh and to the gradients of the leading
    values (of as many of them as it returns).
    """

    value: Callable[[Any, Any], Any]
    gradient: Callable[[Any, Any, Any], Any]


def _hidden(h: Any, values: Any) -> Any:
    return h


def _hidden_gradient(h: Any, values: Any, d: Any) -> Any:
    return d, ()


HIDDEN = Operand(_hidden, _hidden_gradient)


@dataclass(frozen=True, eq=False)
class Phase:
    """One recurrent product and the pointwise function that follows it.

    Pre-activations are listed input parts first, then sums, then recurrent parts, so that those
    which the input feeds are a leading run and those which the operand feeds a trailing one: each
    product writes one contiguous block.
    """

    pre_activations: tuple[PreActivation, ...]
    values: tuple[str, ...]
    forward: Callable[[Any, Any, Any], Any]
    backward: Callable[[Any, Any, Any, Any], Any]
    operand: Operand = HIDDEN

    def __post_init__(self) -> None:
        order = [(not p.input, p.recurrent) for p in self.pre_activations]
        if order != sorted(order) or not all(p.input or p.recurrent for p in self.pre_activations):
            raise ValueError(
                "pre-activations: expected input parts, then sums, then recurrent parts; "
                f"got {self.pre_activations}"
            )


@dataclass(frozen=True, eq=False)
class Cell:
    """A recurrent cell.

    Attributes
    ----------
    name : str
        Name by which users select it.
    gates : tuple of str
        Gates in the order in which the weights stack their rows.
    states : tuple of str
        Members of the state; the first is the output h.
    phases : tuple of Phase
        The equations.
    source : str
        Where the equations come from.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    phases: tuple[Phase, ...]
    source: str

    def __post_init__(self) -> None:
        for part in ("input", "recurrent"):
            fed = [p.gate for p in self.pre_activations if getattr(p, part)]
            if len(set(fed)) != len(fed) or not set(fed) <= set(self.gates):
                raise ValueError(
                    f"cell {self.name!r}: expected at most one {part} part for each of "
                    f"{self.gates}, got {fed}"
                )
        # So that the recurrent weights of each phase are a run of rows, in the phase's order.
        if fed != [gate for gate in self.gates if gate in fed]:
            raise ValueError(
                f"cell {self.name!r}: expected recurrent parts in the order of {self.gates}, "
                f"got {fed}"
            )

    @functools.cached_property
    def pre_activations(self) -> tuple[PreActivation, ...]:
        """Those of all phases, in order."""
        return tuple(p for phase in self.phases for p in phase.pre_activations)

    @functools.cached_property
    def input_gates(self) -> tuple[str, ...]:
        """Gates that have input weights, in the order of their rows."""
        fed = {p.gate for p in self.pre_activations if p.input}
        return tuple(g for g in self.gates if g in fed)

    @functools.cached_property
    def recurrent_gates(self) -> tuple[str, ...]:
        """Gates that have recurrent weights, in the order of their rows."""
        fed = {p.gate for p in self.pre_activations if p.recurrent}
        return tuple(g for g in self.gates if g in fed)

    @functools.cached_property
    def num_values(self) -> int:
        """Values that one unit saves a step."""
        return sum(len(phase.values) for phase in self.phases)

    def weight_shapes(
        self, input_size: int, hidden_size: int, bias: bool
    ) -> dict[str, tuple[int, ...]]:
        """Shape of each weight of one layer and direction, by name; absent weights are left out."""
        rows_ih = len(self.input_gates) * hidden_size
        rows_hh = len(self.recurrent_gates) * hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows_ih, input_size)}
        if rows_hh:
            shapes["weight_hh"] = (rows_hh, hidden_size)
        if bias:
            shapes["bias_ih"] = (rows_ih,)
            if rows_hh:
                shapes["bias_hh"] = (rows_hh,)
        return shapes


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


# --- lstm -----------------------------------------------------------------------------------------


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


# --- the table ------------------------------------------------------------------------------------

_INPUT = {"recurrent": False}
_RECURRENT = {"input": False}

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell(
            name="gru",
            gates=("r", "z", "n"),
            states=("h",),
            phases=(
                Phase(
                    (
                        PreActivation("n", **_INPUT),
                        PreActivation("r"),
                        PreActivation("z"),
                        PreActivation("n", **_RECURRENT),
                    ),
                    ("r", "z", "n", "u_n"),
                    _gru_forward,
                    _gru_backward,
                ),
            ),
            source="Cho et al. 2014, arXiv:1406.1078, reset applied after the product "
            "as in cuDNN and PyTorch: n = tanh(W x + b + r * (U h + b))",
        ),
        Cell(
            name="gru_reset_before",
            gates=("r", "z", "n"),
            states=("h",),
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
        ),
        Cell(
            name="lstm",
            gates=("i", "f", "g", "o"),
            states=("h", "c"),
            phases=(
                Phase(
                    tuple(PreActivation(gate) for gate in ("i", "f", "g", "o")),
                    ("i", "f", "g", "o", "c"),
                    _lstm_forward,
                    _lstm_backward,
                ),
            ),
            source="Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, "
            "gates ordered as in PyTorch",
        ),
    )
}
