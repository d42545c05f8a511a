"""Where everything lies: the only arithmetic on positions, from a cell's tables and the sizes.

Numbers of pre-activations, values and gates serve every backend. The CPU's memory is flat: a row
holds runs of `unit` elements, which are H hidden units in whole vectors of `lanes`; positions in it
are elements. Rows of scratch get one vector of padding: strides of a power of two would put all
rows of a tile into the same few cache sets.

Kernels get these numbers in tables of whole numbers; they add multiples of strides to them, and
nothing else.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .cells import (
    BIAS,
    HIDDEN,
    INPUT,
    NORM_MEAN,
    NORM_SCALE,
    NORM_SHIFT,
    NORM_VARIANCE,
    RECURRENT,
    UNIT,
    Cell,
    PreActivation,
    UnitWeight,
    Weight,
)

# The name of what a batch norm adds to its pre-activations once it is folded into the weights.
FOLDED_SHIFT = "folded shift"


class PhasePlan(NamedTuple):
    """Which of a cell's pre-activations, values and gates are a phase's."""

    number: int
    first: int  # its first pre-activation
    terms: int  # its pre-activations
    first_input: int  # the first that x feeds
    inputs: int  # how many x feeds: a run
    first_recurrent: int  # the first that the operand feeds
    recurrents: int  # how many the operand feeds: the trailing ones
    first_value: int  # values of earlier phases
    values: int  # its own values
    first_norm_value: int  # its first value that a normaliser keeps; these come after all others
    norm_values: int
    inputs_before: int  # `inputs` of the earlier phases together
    recurrents_before: int  # `recurrents` of the earlier phases together
    packed_operand: int  # number among the operands that backward writes down; -1 if it does not


@functools.cache
def phase_plans(cell: Cell) -> tuple[PhasePlan, ...]:
    """The plan of each phase."""
    plans: list[PhasePlan] = []
    first = first_value = inputs_before = recurrents_before = operands = 0
    first_norm_value = cell.num_values
    for number, phase in enumerate(cell.phases):
        pre = phase.pre_activations
        inputs, recurrents = (sum(getattr(p, part) for p in pre) for part in (INPUT, RECURRENT))
        alone = sum(not p.input and not p.recurrent for p in pre)
        # Normalised sums, and one over their deviation.
        norm_values = recurrents + 1 if phase.norm else 0
        is_packed = phase.operand is not HIDDEN and recurrents > 0
        plans.append(
            PhasePlan(
                number, first, len(pre), first + alone, inputs, first + len(pre) - recurrents,
                recurrents, first_value, len(phase.values), first_norm_value, norm_values,
                inputs_before, recurrents_before, operands if is_packed else -1,
            )
        )  # fmt: skip
        first += len(pre)
        first_value += len(phase.values)
        first_norm_value += norm_values
        inputs_before += inputs
        recurrents_before += recurrents
        operands += is_packed
    return tuple(plans)


def total_values(cell: Cell) -> int:
    """Values that one unit saves a step, those of normalisers included."""
    return cell.num_values + sum(plan.norm_values for plan in phase_plans(cell))


def num_operands(cell: Cell) -> int:
    """Operands that backward writes down: those that are not h."""
    return sum(plan.packed_operand >= 0 for plan in phase_plans(cell))


def gates_of_terms(cell: Cell, plan: PhasePlan, kind: str) -> tuple[int, ...]:
    """Gate, by its number in the weight of a kind, of each pre-activation that it feeds."""
    first, count = part_of(plan, kind)
    gates = cell.gates_of(kind)
    fed = cell.pre_activations[first : first + count]
    return tuple(gates.index(t.gate) for t in fed if isinstance(t, PreActivation))


def part_of(plan: PhasePlan, kind: str) -> tuple[int, int]:
    """First pre-activation that the weights of a kind feed, and how many."""
    if kind == INPUT:
        return plan.first_input, plan.inputs
    return plan.first_recurrent, plan.recurrents


def vector_weights(cell: Cell) -> tuple[Weight, ...]:
    """The weights that have one number a unit and gate, which pre-activations consist of.

    What a batch norm leaves to add, once it is folded into the weights, is one more.
    """
    own = tuple(w for w in cell.weights if w.kind in (BIAS, UNIT))
    return own if cell.norm is None else (*own, Weight(FOLDED_SHIFT, BIAS, cell.input_gates))


@functools.cache
def terms_of_vector(cell: Cell, weight: Weight) -> tuple[int, ...]:
    """The pre-activation that a vector of weights is part of, for each of its gates.

    A bias belongs to the part of the gate that it names; where the gate has no such part, to the
    one that it has.
    """
    found = []
    for gate in weight.gates:
        if weight.kind == UNIT:
            found.append(cell.pre_activations.index(UnitWeight(weight.name, gate)))
            continue
        own = [
            n
            for n, t in enumerate(cell.pre_activations)
            if isinstance(t, PreActivation) and t.gate == gate
        ]
        named = [n for n in own if getattr(cell.pre_activations[n], weight.part)]
        found.append((named or own)[0])
    return tuple(found)


def step_input_terms(cell: Cell) -> tuple[int, ...]:
    """The pre-activations that are the step's input."""
    names = set(cell.step_inputs)
    return tuple(n for n, t in enumerate(cell.pre_activations) if getattr(t, "name", "") in names)


def multiply_adds(cell: Cell, I: int, H: int) -> int:
    """Multiply-adds of all forward products, for one packed row."""
    return H * (len(cell.input_gates) * I + len(cell.recurrent_gates) * H)


# --- flat memory ----------------------------------------------------------------------------------


def padded(size: int, lanes: int) -> int:
    """`size` rounded up to whole vectors."""
    return -(-size // lanes) * lanes


class Rows(NamedTuple):
    """Lengths in elements of one row of each kind."""

    H: int  # hidden units
    unit: int  # H in whole vectors
    x: int  # inputs of one packed row
    pre: int  # its pre-activations
    value: int  # its saved values
    d: int  # gradients of its pre-activations, and operands that are not h
    h: int  # one member of the state


@functools.cache
def rows_of(cell: Cell, I: int, H: int, lanes: int) -> Rows:
    """Row lengths of a layer."""
    unit, terms = padded(H, lanes), len(cell.pre_activations)
    return Rows(
        H,
        unit,
        padded(I, lanes) + lanes,
        terms * unit + lanes,
        total_values(cell) * unit,
        (terms + num_operands(cell)) * unit + lanes,
        unit + lanes,
    )


class ForwardWorkspace(NamedTuple):
    """Where the forward loop's scratch lies in a worker's part of the workspace."""

    state: int  # (states, rows, h)
    operand: int  # (2, rows, h): the one being multiplied and the next one take turns
    x: int  # (rows * steps, x)
    pre: int  # (rows * steps, pre)
    values: int  # (rows, value), used when values are not kept
    size: int


def forward_workspace(rows: Rows, states: int, block_rows: int, steps: int) -> ForwardWorkspace:
    """Lay out the forward workspace, for so many rows and steps at once."""
    operand = states * block_rows * rows.h
    x = operand + 2 * block_rows * rows.h
    pre = x + block_rows * steps * rows.x
    values = pre + block_rows * steps * rows.pre
    return ForwardWorkspace(0, operand, x, pre, values, values + block_rows * rows.value)


class BackwardWorkspace(NamedTuple):
    """Where the backward loop's scratch lies in a worker's part of the workspace."""

    dstate: int  # (states, rows, h)
    h: int  # (rows, h): h before the step
    doperand: int  # (rows, h)
    dvalues: int  # (rows, value)
    size: int


def backward_workspace(rows: Rows, states: int, block_rows: int) -> BackwardWorkspace:
    """Lay out the backward workspace, for so many rows at once."""
    h = states * block_rows * rows.h
    doperand = h + block_rows * rows.h
    dvalues = doperand + block_rows * rows.h
    return BackwardWorkspace(0, h, doperand, dvalues, dvalues + block_rows * rows.value)


class PackedPart(NamedTuple):
    """The weights of one kind and phase in packed weights."""

    plan: PhasePlan
    kind: str
    gates: tuple[int, ...]  # their numbers in the weight
    first: int  # the first pre-activation that they feed
    start: int  # where they lie


class PackedWeights(NamedTuple):
    """How all weights of a layer and direction lie in one flat array.

    First the constants (pre-activations, unit): sums of biases, or weights of units. Then, by
    units, for forward: for each phase its input weights (panels, I, gates, lanes) and its recurrent
    weights (panels, H, gates, lanes), where a panel is a vector of units.

    Or, by columns, for the gradients of operands and of x: for each phase its recurrent weights
    (panels, gates, H, lanes), then for each phase its input weights likewise, where a panel is a
    vector of columns.
    """

    parts: tuple[PackedPart, ...]
    size: int

    def start_of(self, plan: PhasePlan, kind: str) -> int:
        """Where the weights of one kind and phase lie; 0 if there are none."""
        number = plan.number
        found = [p.start for p in self.parts if p.plan.number == number and p.kind == kind]
        return found[0] if found else 0


@functools.cache
def packed_weights(cell: Cell, I: int, H: int, lanes: int, by_columns: bool) -> PackedWeights:
    """Lay out the weights of a layer and direction."""
    unit = padded(H, lanes)
    at = len(cell.pre_activations) * unit
    places = [(plan, kind) for plan in phase_plans(cell) for kind in (INPUT, RECURRENT)]
    if by_columns:  # recurrent weights of all phases come first: their loop does not know I
        places.sort(key=lambda place: place[1], reverse=True)
    parts = []
    for plan, kind in places:
        gates, K = gates_of_terms(cell, plan, kind), I if kind == INPUT else H
        if gates:
            parts.append(PackedPart(plan, kind, gates, part_of(plan, kind)[0], at))
        at += len(gates) * (padded(K, lanes) * H if by_columns else unit * K)
    return PackedWeights(tuple(parts), at)


class ColumnPanels(NamedTuple):
    """How the columns of a weight gradient are taken: in panels of (rows at once, row)."""

    total: int
    columns: int  # of each; the last one may have fewer
    row: int  # elements of a row
    size: int  # elements of a panel


def column_panels(columns: int, lanes: int, most: int, rows: int) -> ColumnPanels:
    """As few panels of `most` columns as may be, of whole vectors, as wide as each other."""
    total = -(-columns // most)
    width = padded(-(-columns // total), lanes)
    return ColumnPanels(total, width, width + lanes, rows * (width + lanes))


# --- batch norm -----------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """Of the input parts W x over the valid steps of a batch; (normalised gates * H,) float64."""

    mean: Any
    variance: Any  # biased
    steps: int  # how many


def folded_weights(
    cell: Cell, weights: Mapping[str, Any], statistics: Statistics | None
) -> dict[str, Any]:
    """Weights without a batch norm that compute what these do with it.

    ``scale * (W x - mean) / deviation + shift`` is ``W' x + b'``. By the statistics given, else by
    the running ones. Any array library.
    """
    norm = cell.norm
    if norm is None:
        raise ValueError(f"cell {cell.name!r}: expected one with batch norm")
    found: dict[str, Any] = {w.kind: weights.get(w.name) for w in cell.weights}
    matrix, scale, shift = (found[kind] for kind in (INPUT, NORM_SCALE, NORM_SHIFT))
    if statistics is None:
        running = found[NORM_MEAN], found[NORM_VARIANCE]
        if None in [a if a is None else 0 for a in running]:
            raise ValueError(
                f"params: expected running statistics for cell {cell.name!r}, got none; gradients "
                "have none"
            )
        mean, variance = (array.astype("float64") for array in running)
    else:
        mean, variance, _ = statistics
    kept = {w.name: weights[w.name] for w in cell.weights if w.name in weights}
    name = next(w.name for w in cell.weights if w.kind == INPUT)
    with np.errstate(all="ignore"):  # what overflows does so silently, as in kernels
        factor = scale / (variance + norm.eps) ** 0.5
        rest = -factor * mean if shift is None else shift - factor * mean
        kept[name] = (matrix * factor[:, None]).astype(matrix.dtype)
        kept[FOLDED_SHIFT] = rest.astype(matrix.dtype)
    return kept


def running_statistics(
    cell: Cell, weights: Mapping[str, Any], statistics: Statistics
) -> dict[str, Any]:
    """The running statistics after a batch, by name; of no valid step they stay as they are."""
    norm = cell.norm
    if norm is None:
        raise ValueError(f"cell {cell.name!r}: expected one with batch norm")
    mean, variance, steps = statistics
    moved = {}
    with np.errstate(all="ignore"):
        unbiased = variance * (steps / max(1, steps - 1))
        for kind, new in ((NORM_MEAN, mean), (NORM_VARIANCE, unbiased)):
            name = next(w.name for w in cell.weights if w.kind == kind)
            running = weights[name]
            if steps > 1:
                running = (1 - norm.momentum) * running + norm.momentum * new
            moved[name] = running.astype(weights[name].dtype, copy=False)
    return moved
