"""The recurrent layers in a state dict of PyTorch, by the names of its keys and by shapes."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ..check import cell_named
from ..kernels.cells import CELLS, Cell
from ..names import FULL_NAME, suffix
from ..params import Params
from .convention import Convention
from .found import Layer

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_MATRICES, _BIASES = _NAMES[:2], _NAMES[2:]
_PROJECTION = "weight_hr"
# Keys of what PyTorch computes a weight from: parametrizations, pruning, and older weight norm.
_PART = re.compile(
    r"(?P<start>(?:.*\.)?)"
    r"(?:parametrizations\.(?P<new>\w+)\.original\d*|(?P<old>\w+)_(?P<end>orig|g|v))"
)
# Cells by how many gates weight_hh stacks.
_BY_GATES = {4: "lstm", 3: "gru", 1: "rnn_tanh"}
_RNN_NOTE = (
    "The weights of an RNN do not say which nonlinearity it has: this is the default, tanh; "
    "cell='rnn_relu' makes it ReLU, and so does Params.from_dict(params.to_dict(), "
    "cell='rnn_relu')."
)

Place = tuple[int, int]  # layer and direction
ByPlace = dict[Place, dict[str, Any]]  # of a module: by place, then by the weight's name


def check_cells(cell: Any) -> None:
    """Refuse cells whose weights have other names than PyTorch's."""
    for name in cell.values() if isinstance(cell, Mapping) else [] if cell is None else [cell]:
        table = cell_named(name)
        if tuple(weight.name for weight in table.weights) != _NAMES:
            fitting = [n for n, c in CELLS.items() if tuple(w.name for w in c.weights) == _NAMES]
            raise ValueError(
                f"cell: expected one whose weights are {', '.join(_NAMES)}: {', '.join(fitting)}; "
                f"got {name!r}"
            )


def layers_of(
    keys: Iterable[str],
    read: Callable[[str], Any],
    cell: str | Mapping[str, str] | None = None,
) -> tuple[list[Layer], list[str]]:
    """The layers in a state dict, and its other keys.

    Parameters
    ----------
    keys : iterable of str
        All keys of the state dict.
    read : callable
        Gives the array of a key.
    cell : str or mapping of str to str, optional
        As for `from_torch`.

    Raises
    ------
    TypeError, ValueError
        As for `from_torch`.
    """
    modules: dict[str, ByPlace] = {}
    left_out, every = [], [*keys]
    for key in every:
        module, _, last = key.rpartition(".")
        match = FULL_NAME.fullmatch(last)
        name = match["name"] if match else last
        place = (int(match["layer"]), int(match["reverse"] is not None)) if match else (0, 0)
        if name == _PROJECTION:
            raise ValueError(
                f"{key}: the LSTM {module!r} has a projection (proj_size), for which there is no "
                "cell"
            )
        if name not in _NAMES:
            left_out.append(key)
            continue
        named = modules.setdefault(module, {}).setdefault(place, {})
        if name in named:
            raise ValueError(f"{key}: stands for the same weight as {named[name]}: leave one out")
        named[name] = key
    _check_computed(left_out, {*every})
    if isinstance(cell, Mapping):
        unknown = [name for name in cell if name not in modules]
        if unknown:
            raise ValueError(
                f"cell: expected names among {', '.join(map(repr, modules)) or 'none'}, got "
                f"{unknown[0]!r}"
            )
    wanted = cell if isinstance(cell, Mapping) else dict.fromkeys(modules, cell)
    layers = [_layer(name, of, read, wanted.get(name)) for name, of in modules.items()]
    return layers, left_out


def _check_computed(left_out: Iterable[str], known: Collection[str]) -> None:
    """Refuse weights that PyTorch computes from others: without them, layers would be others."""
    for key in left_out:
        part = _PART.fullmatch(key)
        if part is None:
            continue
        of = part["new"] or part["old"]
        match, whole = FULL_NAME.fullmatch(of), part["start"] + of
        is_weight = (match["name"] if match else of) in _NAMES
        # A g alone may be a gate; weight norm has g and v.
        is_gate = part["end"] in ("g", "v") and not {whole + "_g", whole + "_v"}.issubset(known)
        if is_weight and not is_gate and whole not in known:
            raise ValueError(
                f"{key}: PyTorch computes {whole} from it (weight norm, pruning, another "
                "parametrization): make that a plain weight, by remove_parametrizations, "
                "remove_weight_norm or prune.remove, and take the state dict again"
            )


def _layer(name: str, keys: ByPlace, read: Callable[[str], Any], wanted: str | None) -> Layer:
    """The layer of a module, all of whose weights are read."""
    for place, named in keys.items():
        for matrix in _MATRICES:
            if matrix not in named:
                raise ValueError(f"module {name!r}: {matrix}{suffix(*place)} is missing")
    arrays: ByPlace = {place: {n: read(key) for n, key in of.items()} for place, of in keys.items()}
    for place, named in arrays.items():
        for matrix in _MATRICES:
            if named[matrix].ndim != 2 or 0 in named[matrix].shape:
                raise ValueError(
                    f"{keys[place][matrix]}: expected a matrix, got shape {named[matrix].shape}"
                )
    first = next(iter(keys))
    table = _cell_of(name, keys[first]["weight_hh"], arrays[first]["weight_hh"].shape, wanted)
    if any(bias in named for named in arrays.values() for bias in _BIASES):
        for named in arrays.values():  # in all layers or in none
            if not any(bias in named for bias in _BIASES):
                matrix = named["weight_ih"]
                named["bias_ih"] = np.zeros(len(matrix), matrix.dtype)
    convention = Convention(table.gates)
    made = {place: convention.read(table.name, named) for place, named in arrays.items()}
    full = {n + suffix(*place): array for place, of in made.items() for n, array in of.items()}
    try:
        params = Params.from_dict(full, cell=table.name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"module {name!r}: {error}") from error
    named_keys = {n + suffix(*place): key for place, of in keys.items() for n, key in of.items()}
    sources = {key: named_keys.get(key, "zeros") for key in params.to_dict()}
    is_guess = wanted is None and table.name == _BY_GATES[1]
    return Layer(name, params, sources, notes=(_RNN_NOTE,) if is_guess else ())


def _cell_of(module: str, key: str, shape: tuple[int, int], wanted: str | None) -> Cell:
    """The cell of a module, by the shape of its recurrent weights."""
    gates, left = divmod(shape[0], shape[1])
    found = None if left else _BY_GATES.get(gates)
    if found is None:
        raise ValueError(
            f"{key}: expected shape (G*H, H), G 4 for an LSTM, 3 for a GRU, 1 for an RNN, got "
            f"{shape}"
        )
    table = CELLS[wanted or found]
    if len(table.gates) != gates:
        raise ValueError(
            f"cell: {table.name!r} has {len(table.gates)} gates, but {key}, of shape {shape}, has "
            f"{gates}; a mapping gives each module its cell: cell={{{module!r}: {found!r}}}"
        )
    return table
