"""Cells of one's own: what they are made of, how they are checked, and how they are registered.

A cell is written once, as elementwise functions of the primitives below, and then runs compiled, on
every backend, like the ones that come with fastgru; see `fastgru.kernels.cells.base` for what the
functions take and give.

>>> from fastgru.cell import BIAS, INPUT, RECURRENT, Cell, Phase, PreActivation, Weight
>>> from fastgru.cell import one_like, tanh, zero_like
>>> def forward(a, state, values):
...     (a_n,) = a
...     n = tanh(a_n)
...     return (n,), (n,)
>>> def backward(h, values, dstate, dvalues):
...     (n,) = values
...     (dh,) = dstate
...     return (dh * (one_like(n) - n * n),), (zero_like(dh),), ()
>>> cell = Cell(
...     name="my_rnn",
...     gates=("n",),
...     states=("h",),
...     weights=(
...         Weight("weight_ih", INPUT, ("n",)),
...         Weight("weight_hh", RECURRENT, ("n",)),
...         Weight("bias", BIAS, ("n",)),
...     ),
...     phases=(Phase((PreActivation("n"),), ("n",), forward, backward),),
...     source="Elman 1990",
... )
>>> import fastgru
>>> fastgru.check_cell(cell)
>>> fastgru.register_cell(cell)
>>> params = fastgru.init_params(3, 16, cell="my_rnn", rng=0)
"""

import re
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from .kernels import primitives
from .kernels.cells import (
    BIAS,
    CELLS,
    HIDDEN,
    INPUT,
    NORM_MEAN,
    NORM_SCALE,
    NORM_SHIFT,
    NORM_VARIANCE,
    RECURRENT,
    UNIT,
    BatchNorm,
    Cell,
    LayerNorm,
    Operand,
    Phase,
    PreActivation,
    StepInput,
    UnitWeight,
    Weight,
    functions_called,
)
from .kernels.primitives import (
    constant_like,
    exp,
    is_positive,
    log,
    one_like,
    relu,
    sigmoid,
    tanh,
    zero_like,
)

__all__ = [
    "BIAS",
    "HIDDEN",
    "INPUT",
    "NORM_MEAN",
    "NORM_SCALE",
    "NORM_SHIFT",
    "NORM_VARIANCE",
    "RECURRENT",
    "UNIT",
    "BatchNorm",
    "Cell",
    "LayerNorm",
    "Operand",
    "Phase",
    "PreActivation",
    "StepInput",
    "UnitWeight",
    "Weight",
    "check_cell",
    "constant_like",
    "exp",
    "is_positive",
    "log",
    "one_like",
    "register_cell",
    "relu",
    "sigmoid",
    "tanh",
    "zero_like",
]

_PRIMITIVES = [name for name, value in vars(primitives).items() if isinstance(value, FunctionType)]
_STEP = 2.0**-100  # of the complex step: its square vanishes beside 1
_UNITS = 7
# Derivatives are exact to rounding; equations are a few dozen operations.
_TOLERANCE = 1e-12


def register_cell(cell: Cell) -> None:
    """Make a cell known: from now on every function takes its name.

    Parameters
    ----------
    cell : Cell

    Raises
    ------
    TypeError, ValueError
        If it is no cell, its name is taken, or its equations do not fit; the message says which
        part. Derivatives are not looked at: see `check_cell`.

    Examples
    --------
    `fastgru.cell` has one: ``help("fastgru.cell")``.
    """
    _check_structure(cell)
    if cell.name in CELLS:
        raise ValueError(f"cell: expected a new name, got {cell.name!r}, which is taken")
    CELLS[cell.name] = cell


def check_cell(cell: Cell) -> None:
    """Check that the equations of a cell fit, and every derivative of them.

    Each derivative that `backward` and `Operand.gradient` give is held against the complex step of
    the forward equations, at random numbers: exact to rounding.

    Parameters
    ----------
    cell : Cell
        Registered or not.

    Raises
    ------
    TypeError, ValueError
        What is off, and where: ``backward of phase 0: d_z differs, 0.31 for 0.29 at unit 2``.

    Examples
    --------
    >>> import fastgru
    >>> from fastgru.kernels.cells import CELLS
    >>> fastgru.check_cell(CELLS["gru"])
    """
    _check_structure(cell)
    rng = np.random.default_rng(0)
    state = tuple(rng.uniform(0.1, 0.9, _UNITS) for _ in cell.states)
    earlier: tuple[Any, ...] = ()
    names: list[str] = []
    for number, phase in enumerate(cell.phases):
        a = tuple(rng.normal(0, 1, _UNITS) for _ in phase.pre_activations)
        _check_operand(f"phase {number}", phase, state[0], earlier, names, rng)
        _check_backward(cell, number, a, state, earlier, names, rng)
        state, new = phase.forward(a, state, earlier)
        earlier, names = earlier + new, [*names, *phase.values]


def _check_backward(
    cell: Cell,
    number: int,
    a: tuple[Any, ...],
    state: tuple[Any, ...],
    earlier: tuple[Any, ...],
    names: Sequence[str],
    rng: Any,
) -> None:
    """Refuse derivatives of a phase that are not those of its forward equations."""
    phase = cell.phases[number]
    is_last = number == len(cell.phases) - 1
    dstate = tuple(rng.normal(0, 1, _UNITS) for _ in state)
    # Nothing but later phases looks at values.
    scale = 0.0 if is_last else 1.0
    seen = len(earlier) + len(phase.values)
    dvalues = tuple(scale * rng.normal(0, 1, _UNITS) for _ in range(seen))

    def loss(a: Any, state: Any, earlier: Any) -> Any:
        after, new = phase.forward(a, state, earlier)
        ends, weights = (*after, *earlier, *new), (*dstate, *dvalues)
        return sum(end * weight for end, weight in zip(ends, weights, strict=True))

    given = _gradients_of(cell, number, a, state, earlier, dstate, dvalues)
    where = f"backward of phase {number}"
    groups = (
        [_term_names(phase), a],
        [[f"d{name}" for name in cell.states], state],
        [[f"d{name}" for name in names], earlier],
    )
    for place, (labels, arguments) in enumerate(groups):
        for index, label in enumerate(labels):
            moved = [list(a), list(state), list(earlier)]
            moved[place][index] = arguments[index] + 1j * _STEP
            want = np.imag(loss(*map(tuple, moved))) / _STEP
            _check_equal(f"{where}: {label}", given[place][index], want)


def _gradients_of(
    cell: Cell, number: int, a: Any, state: Any, earlier: Any, dstate: Any, dvalues: Any
) -> Any:
    """What backward of a phase gives, if it is as much as it should be."""
    phase, where = cell.phases[number], f"backward of phase {number}"
    _, new = phase.forward(a, state, earlier)
    units = a[: phase.unit_weights]
    given = phase.backward(state[0], (*earlier, *new, *units), dstate, dvalues)
    expected = {"pre-activations": len(a), "states": len(state), "values": len(earlier)}
    if not isinstance(given, tuple) or len(given) != len(expected):
        raise TypeError(f"{where}: expected three tuples, got {given!r}")
    for (what, count), gradients in zip(expected.items(), given, strict=True):
        if len(gradients) != count:
            raise ValueError(f"{where}: expected gradients of {count} {what}, got {len(gradients)}")
    return given


def _check_operand(
    where: str, phase: Phase, h: Any, earlier: tuple[Any, ...], names: Sequence[str], rng: Any
) -> None:
    """Refuse derivatives of an operand that are not its own."""
    d = rng.normal(0, 1, _UNITS)
    dh, dvalues = phase.operand.gradient(h, earlier, d)
    label = f"operand of {where}"
    want = np.imag(d * phase.operand.value(h + 1j * _STEP, earlier)) / _STEP
    _check_equal(f"{label}: dh", dh, want)
    if len(dvalues) > len(earlier):
        raise ValueError(
            f"{label}: expected gradients of {len(earlier)} values, got {len(dvalues)}"
        )
    for index, name in enumerate(names):
        moved = list(earlier)
        moved[index] = moved[index] + 1j * _STEP
        want = np.imag(d * phase.operand.value(h, tuple(moved))) / _STEP
        got = dvalues[index] if index < len(dvalues) else np.zeros(_UNITS)
        _check_equal(f"{label}: d{name}", got, want)


def _check_equal(label: str, got: Any, want: Any) -> None:
    got = np.broadcast_to(np.asarray(got, float), (_UNITS,))
    off = ~(np.abs(got - want) <= _TOLERANCE * np.maximum(1, np.abs(want)))
    if off.any():
        unit = int(np.argmax(off))
        raise ValueError(f"{label} differs, {got[unit]:.6g} for {want[unit]:.6g} at unit {unit}")


def _term_names(phase: Phase) -> list[str]:
    """Names of the gradients of a phase's pre-activations."""
    names = []
    gates = [t.gate for t in phase.pre_activations if isinstance(t, PreActivation)]
    for term in phase.pre_activations:
        if isinstance(term, StepInput):
            names.append(f"d_{term.name}")
        elif isinstance(term, UnitWeight):
            names.append(f"d_{term.weight}[{term.gate}]")
        elif gates.count(term.gate) > 1:
            names.append(f"d_{term.gate} ({'input' if term.input else 'recurrent'} part)")
        else:
            names.append(f"d_{term.gate}")
    return names


def _check_structure(cell: Any) -> None:
    """Refuse what is no cell, and equations that do not run or do not fit."""
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a Cell, got {type(cell).__qualname__}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", cell.name):
        raise ValueError(f"cell: expected a name of a-z, 0-9 and _, got {cell.name!r}")
    for weight in cell.weights:
        if not re.fullmatch(r"[a-z][a-z_]*", weight.name) or weight.name == "items":
            raise ValueError(f"weight {weight.name!r}: expected a name of a-z and _")
    state: Any = tuple(np.full(_UNITS, 0.5) for _ in cell.states)
    values: Any = ()
    for number, phase in enumerate(cell.phases):
        equations: dict[str, Callable[..., Any]] = {
            f"forward of phase {number}": phase.forward,
            f"backward of phase {number}": phase.backward,
            f"operand of phase {number}": phase.operand.value,
            f"operand of phase {number}, gradient": phase.operand.gradient,
        }
        for where, function in equations.items():
            _check_function(where, function)
        where = f"forward of phase {number}"
        a = tuple(np.full(_UNITS, 0.25) for _ in phase.pre_activations)
        try:
            result = phase.forward(a, state, values)
            phase.operand.value(state[0], values)
        except Exception as error:
            raise ValueError(f"{where}: it does not run: {error}") from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"{where}: expected (state, values), got {result!r}")
        before = state
        state, new = result
        if len(new) == len(phase.values) and len(state) == len(before):
            seen = [np.zeros(_UNITS)] * (len(values) + len(new))
            try:
                _gradients_of(cell, number, a, before, values, before, tuple(seen))
                _, dvalues = phase.operand.gradient(before[0], values, before[0])
            except (IndexError, NameError, AttributeError) as error:
                raise ValueError(f"backward of phase {number}: it does not run: {error}") from error
            if len(dvalues) > len(values):
                raise ValueError(
                    f"operand of phase {number}: expected gradients of {len(values)} values, "
                    f"got {len(dvalues)}"
                )
        if len(state) != len(cell.states) or len(new) != len(phase.values):
            raise ValueError(
                f"{where}: expected {len(cell.states)} states and {len(phase.values)} values, "
                f"got {len(state)} and {len(new)}"
            )
        # Backward is given h before the step, in every phase.
        if phase is not cell.phases[-1] and not np.array_equal(state[0], before[0]):
            raise ValueError(
                f"{where}: expected {cell.states[0]} as it was: only the last phase changes it"
            )
        values = values + tuple(new)


def _check_function(where: str, function: Callable[..., Any]) -> None:
    """Refuse what cannot be compiled for every target."""
    if not isinstance(function, FunctionType) or function.__closure__:
        raise TypeError(f"{where}: expected a function at module level, got {function!r}")
    for called in functions_called([function]):
        code = called.__code__
        literals = [c for c in code.co_consts if isinstance(c, float | complex)]
        if literals:
            raise ValueError(
                f"{where}: {called.__name__} holds {literals[0]}, which would turn float32 into "
                "float64; one_like, zero_like and constant_like give constants"
            )
        for name in code.co_names:
            value = called.__globals__.get(name)
            if value is None or isinstance(value, FunctionType | int | float):
                continue
            raise ValueError(
                f"{where}: {called.__name__} uses {name!r}, which is no primitive "
                f"({', '.join(_PRIMITIVES)})"
            )
