"""What a cell is: its gates, its weights, and its equations, forward and backward.

All equations of a recurrent cell are elementwise over hidden units, except its products and its
normalisers. A cell is therefore a list of *phases*: a phase forms one recurrent product, then
applies a pointwise function to its pre-activations. The loops know phases, not cells. For one time
step and each phase:

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

Two more things stand in the place of a weighted sum: a `UnitWeight`, a weight with one number a
unit, and a `StepInput`, a number that the user gives for each sample and time step. To the
equations they are elements of `a` like any other, with a gradient like any other. `backward` gets
the weights of units of its phase after all values, so forward need not return them.

A cell may normalise: the input parts of all gates over the batch (`BatchNorm`), the recurrent parts
of a phase over a row's units (`LayerNorm`). The equations see what is normalised.

The functions are compiled for vectors of units (CPU) and for single units (GPU), and run as plain
Python; they use tuples, arithmetic and `primitives`, nothing else.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from .. import primitives
from .initial import Initial, uniform

# Kinds of weights: what a weight does, and with that its shape, for the gates that it covers.
INPUT = "input"  # (gates * H, I): multiplies x
RECURRENT = "recurrent"  # (gates * H, H): multiplies the operand of the gate's phase
BIAS = "bias"  # (gates * H,): is added to a pre-activation
UNIT = "unit"  # (gates * H,): a number of each unit, which the equations take
NORM_SCALE = "norm scale"  # (gates * H,): of batch norm, likewise the next ones
NORM_SHIFT = "norm shift"
NORM_MEAN = "norm mean"  # running statistics
NORM_VARIANCE = "norm variance"
# In the order in which users see weights.
KINDS = INPUT, RECURRENT, UNIT, BIAS, NORM_SCALE, NORM_SHIFT, NORM_MEAN, NORM_VARIANCE

_MATRICES = INPUT, RECURRENT
_OPTIONAL = BIAS, NORM_SHIFT
_STATISTICS = NORM_MEAN, NORM_VARIANCE


@dataclass(frozen=True)
class Weight:
    """One array of a layer's weights: a row of the cell's table.

    Parameters
    ----------
    name : str
        Of the array, as users see it: ``weight_ih``.
    kind : str
        One of the kinds above.
    gates : tuple of str
        Gates whose rows it stacks, in this order.
    part : str
        Of a bias: the part of a gate, INPUT or RECURRENT, that it is added to, where the two are
        used apart.
    initial : callable
        Draws initial values: ``initial(rng, shape, hidden_size)``.
    """

    name: str
    kind: str
    gates: tuple[str, ...]
    part: str = INPUT
    initial: Initial = uniform

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies, and so has columns."""
        return self.kind in _MATRICES

    @property
    def is_optional(self) -> bool:
        """Whether ``bias=False`` leaves it out."""
        return self.kind in _OPTIONAL

    @property
    def is_trainable(self) -> bool:
        """Whether it has a gradient."""
        return self.kind not in _STATISTICS

    def shape(self, input_size: int, hidden_size: int) -> tuple[int, ...]:
        """Shape of the array."""
        rows = len(self.gates) * hidden_size
        if not self.is_matrix:
            return (rows,)
        return rows, input_size if self.kind == INPUT else hidden_size


@dataclass(frozen=True)
class PreActivation:
    """One weighted sum of a gate: its input part, its recurrent part, both in one sum, or a bias.

    A gate whose parts are used apart (the candidate of a reset-after GRU) has two of these.

    Parameters
    ----------
    gate : str
    input, recurrent : bool
        Whether it has this part; a bias alone has neither.
    """

    gate: str
    input: bool = True
    recurrent: bool = True


@dataclass(frozen=True)
class UnitWeight:
    """A weight of kind UNIT: its number for a unit.

    Parameters
    ----------
    weight : str
        Name of the weight.
    gate : str
        One of its gates.
    input, recurrent : bool
        Leave them as they are.
    """

    weight: str
    gate: str
    input: bool = False
    recurrent: bool = False


@dataclass(frozen=True)
class StepInput:
    """A number that the user gives for each sample and time step, the same for all units.

    Parameters
    ----------
    name : str
        Of the argument: ``attention``.
    input, recurrent : bool
        Leave them as they are.
    """

    name: str
    input: bool = False
    recurrent: bool = False


Term = PreActivation | UnitWeight | StepInput


@dataclass(frozen=True, eq=False)
class Operand:
    """What a phase's recurrent weights multiply, from the previous h and earlier phases' values.

    Parameters
    ----------
    value : callable
        ``value(h, values)``.
    gradient : callable
        ``gradient(h, values, d)`` returns the contributions to dh and to the gradients of the
        leading values (of as many of them as it returns).
    """

    value: Callable[[Any, Any], Any]
    gradient: Callable[[Any, Any, Any], Any]


def _hidden(h: Any, values: Any) -> Any:
    return h


def _hidden_gradient(h: Any, values: Any, d: Any) -> Any:
    return d, ()


HIDDEN = Operand(_hidden, _hidden_gradient)


@dataclass(frozen=True)
class BatchNorm:
    """Normalisation of the input parts W x of all gates, over the valid steps of a batch.

    ``scale * (a - mean) / sqrt(variance + eps) + shift``, with the biased variance; the unbiased
    one goes into the running variance. Its weights have the gates of the input weights.

    Parameters
    ----------
    eps : float
    momentum : float
        Of the running statistics: how much of the new ones they take.
    """

    eps: float = 1e-5
    momentum: float = 0.05


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation of a phase's recurrent sums over the gates and units of a row, jointly.

    ``(u - mean) / sqrt(variance + eps)``, with the biased variance.

    Parameters
    ----------
    eps : float
    """

    eps: float = 1e-5


def _rank(term: Term) -> tuple[bool, bool, bool]:
    """Order of terms: weights of units, others without products, input parts, sums, the rest."""
    is_fed = term.recurrent, not term.input if term.recurrent else term.input
    return *is_fed, not isinstance(term, UnitWeight)


@dataclass(frozen=True, eq=False)
class Phase:
    """One recurrent product and the pointwise function that follows it.

    Pre-activations are listed in this order: those that no product feeds, input parts, sums,
    recurrent parts. So those which the input feeds are a run and those which the operand feeds a
    trailing one: each product writes one contiguous part of a row.

    Parameters
    ----------
    pre_activations : tuple of PreActivation, UnitWeight or StepInput
        What the equations take, beside the state.
    values : tuple of str
        Names of what `forward` returns for later phases and for `backward`.
    forward, backward : callable
        The equations; see `fastgru.kernels.cells.base`.
    operand : Operand
        What the recurrent weights multiply: h, unless another one is given.
    norm : LayerNorm, optional
        How the recurrent parts are normalised, if they are.
    """

    pre_activations: tuple[Term, ...]
    values: tuple[str, ...]
    forward: Callable[[Any, Any, Any], Any]
    backward: Callable[[Any, Any, Any, Any], Any]
    operand: Operand = HIDDEN
    norm: LayerNorm | None = None

    @property
    def unit_weights(self) -> int:
        """How many weights of units the equations take: they are the first pre-activations."""
        return sum(isinstance(term, UnitWeight) for term in self.pre_activations)

    def __post_init__(self) -> None:
        order = [_rank(term) for term in self.pre_activations]
        if order != sorted(order):
            raise ValueError(
                "pre-activations: expected weights of units, then others without products, then "
                f"input parts, then sums, then recurrent parts; got {self.pre_activations}"
            )
        if self.norm and any(t.input and t.recurrent for t in self.pre_activations):
            raise ValueError(
                "pre-activations: expected recurrent parts apart from input parts in a phase that "
                f"normalises them; got {self.pre_activations}"
            )


@dataclass(frozen=True, eq=False)
class Cell:
    """A recurrent cell.

    Parameters
    ----------
    name : str
        Name by which users select it.
    gates : tuple of str
        Gates in the order in which the weights stack their rows.
    states : tuple of str
        Members of the state; the first is the output h.
    weights : tuple of Weight
        The weights of one layer and direction, in the order in which users see them.
    phases : tuple of Phase
        The equations.
    source : str
        Where the equations come from.
    norm : BatchNorm, optional
        How the input parts are normalised, if they are.
    bounded : str, optional
        Where states can grow without bound: the cell to take instead.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    weights: tuple[Weight, ...]
    phases: tuple[Phase, ...]
    source: str
    norm: BatchNorm | None = None
    bounded: str = ""

    def __post_init__(self) -> None:
        for kind in (INPUT, RECURRENT):
            fed = [t.gate for t in self.sums if getattr(t, kind)]
            covered = self.gates_of(kind)
            if sorted(fed) != sorted(covered):
                raise ValueError(
                    f"cell {self.name!r}: expected one {kind} part for each gate of the {kind} "
                    f"weights {covered}, got {fed}"
                )
        # So that the recurrent weights of each phase are a run of rows, in the phase's order.
        if fed != list(covered):
            raise ValueError(
                f"cell {self.name!r}: expected recurrent parts in the order of {covered}, got {fed}"
            )
        for weight in self.weights:
            if not set(weight.gates) <= set(self.gates):
                raise ValueError(
                    f"cell {self.name!r}, {weight.name}: expected gates of {self.gates}, "
                    f"got {weight.gates}"
                )
        order = [KINDS.index(w.kind) for w in self.weights]
        if order != sorted(order):
            raise ValueError(
                f"cell {self.name!r}: expected weights in the order of their kinds, {KINDS}; got "
                f"{[w.kind for w in self.weights]}"
            )
        kinds = [w.kind for w in self.weights if w.kind not in (BIAS, UNIT)]
        if INPUT not in kinds or len(set(kinds)) != len(kinds):
            raise ValueError(
                f"cell {self.name!r}: expected input weights, and one weight at most of every kind "
                f"but biases and weights of units; got {kinds}"
            )
        terms = self.pre_activations
        given = [t for t in terms if isinstance(t, StepInput)]
        if len(given) > 1:
            raise ValueError(f"cell {self.name!r}: expected at most one step input, got {given}")
        taken = sorted((t.weight, t.gate) for t in terms if isinstance(t, UnitWeight))
        listed = sorted((w.name, g) for w in self.weights if w.kind == UNIT for g in w.gates)
        if taken != listed:
            raise ValueError(
                f"cell {self.name!r}: expected each weight of units in one phase, {listed}; "
                f"got {taken}"
            )
        alone = [t.gate for t in self.sums if not t.input and not t.recurrent]
        if len(set(alone)) != len(alone):
            raise ValueError(f"cell {self.name!r}: expected one bias alone a gate, got {alone}")
        norms = {w.kind: w.gates for w in self.weights if w.kind in KINDS[4:]}
        needed = {NORM_SCALE, NORM_MEAN, NORM_VARIANCE} if self.norm else set()
        if not needed <= norms.keys() <= needed | ({NORM_SHIFT} if self.norm else set()):
            raise ValueError(
                f"cell {self.name!r}: expected weights of kinds {sorted(needed)} for its batch "
                f"norm, got {sorted(norms)}"
            )
        if set(norms.values()) - {self.input_gates}:
            raise ValueError(
                f"cell {self.name!r}: expected a batch norm's weights to have the gates "
                f"{self.input_gates}, got {norms}"
            )

    @functools.cached_property
    def pre_activations(self) -> tuple[Term, ...]:
        """Those of all phases, in order."""
        return tuple(p for phase in self.phases for p in phase.pre_activations)

    @functools.cached_property
    def sums(self) -> tuple[PreActivation, ...]:
        """The weighted sums among them."""
        return tuple(t for t in self.pre_activations if isinstance(t, PreActivation))

    @functools.cached_property
    def step_inputs(self) -> tuple[str, ...]:
        """Names of what the user gives for each step, beside x."""
        return tuple(dict.fromkeys(t.name for t in self.pre_activations if type(t) is StepInput))

    @functools.cached_property
    def input_gates(self) -> tuple[str, ...]:
        """Gates that have input weights, in the order of their rows."""
        return self.gates_of(INPUT)

    @functools.cached_property
    def recurrent_gates(self) -> tuple[str, ...]:
        """Gates that have recurrent weights, in the order of their rows."""
        return self.gates_of(RECURRENT)

    @functools.cached_property
    def input_weight(self) -> Weight:
        """The weight that multiplies x, which every cell has."""
        return next(w for w in self.weights if w.kind == INPUT)

    def weight_of(self, kind: str) -> Weight | None:
        """The weight of a kind of which a cell has one at most; None if it has none."""
        return next((w for w in self.weights if w.kind == kind), None)

    def gates_of(self, kind: str) -> tuple[str, ...]:
        """Gates that the weight of a kind covers."""
        weight = self.weight_of(kind)
        return () if weight is None else weight.gates

    @functools.cached_property
    def num_values(self) -> int:
        """Values that one unit saves a step, those for normalisers left out."""
        return sum(len(phase.values) for phase in self.phases)

    @functools.cached_property
    def can_lack_biases(self) -> bool:
        """Whether every gate has something but a bias."""
        return all(term.input or term.recurrent for term in self.sums)

    def weights_with(self, bias: bool) -> tuple[Weight, ...]:
        """The weights, without the optional ones if there is no bias."""
        return tuple(w for w in self.weights if bias or not w.is_optional)

    def weight_shapes(
        self, input_size: int, hidden_size: int, bias: bool
    ) -> dict[str, tuple[int, ...]]:
        """Shape of each weight of one layer and direction, by name; absent weights are left out."""
        return {w.name: w.shape(input_size, hidden_size) for w in self.weights_with(bias)}

    @property
    def functions(self) -> list[Callable[..., Any]]:
        """The equations, and the functions that these call, primitives excepted."""
        of_phases = [
            (p.forward, p.backward, p.operand.value, p.operand.gradient) for p in self.phases
        ]
        return functions_called([f for phase in of_phases for f in phase])


def functions_called(functions: list[Callable[..., Any]]) -> list[Callable[..., Any]]:
    """Functions, and those that they call by a global name, primitives excepted."""
    found: dict[Callable[..., Any], None] = {}
    left = list(functions)
    while left:
        function = left.pop(0)
        if function in found or function.__module__ == primitives.__name__:
            continue
        found[function] = None
        named = (function.__globals__.get(name) for name in function.__code__.co_names)
        left += [f for f in named if isinstance(f, FunctionType)]
    return list(found)
