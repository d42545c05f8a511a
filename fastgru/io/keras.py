"""`from_keras` and `to_keras`: weights of Keras, from its files or layers, and back."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..check import cell_named, check_kind, check_members, check_path, check_type
from ..files import on_host
from ..kernels.cells import CELLS
from ..params import Params
from .convention import Convention, gates_named
from .found import Found, Layer
from .keras_cells import OF_CELL, Direction, is_recurrent, layer_of
from .keras_config import LayerConfig
from .keras_errors import refusals
from .keras_files import Content, opened

_BOTH = (
    "taken as the two directions of Bidirectional, as four or six arrays are; of two layers, or of "
    "stacked cells, give a list each"
)


def from_keras(
    source: Any,
    *,
    cell: str | Mapping[str, str] | None = None,
    layers: Iterable[str] | None = None,
    dtype: Any = None,
) -> Found:
    """Read the recurrent layers of Keras: GRU, LSTM, SimpleRNN, their cells, and Bidirectional.

    Parameters
    ----------
    source : str, os.PathLike, list of array, or mapping of str to list of array
        The name of a file, as ``model.save`` or ``model.save_weights`` writes it: ``.keras``,
        ``.weights.h5``, ``.h5``, of Keras 3 or Keras 2, CuDNNGRU and CuDNNLSTM too. Or what
        ``layer.get_weights()`` gives; or, by names, several such lists.
    cell : str, or mapping of str to str, optional
        The cell, of all layers or by the layer's name, where the source does not say which: a GRU
        without biases in a list or file of weights; SimpleRNN with ReLU there. Or a cell of one's
        own, for settings that no other has; then the settings are not looked at.
    layers : sequence of str, optional
        Names of the layers to read; all by default. The others are left out.
    dtype : dtype, optional
        Convert to float32 or float64. Without it nothing is converted, and float16 and bfloat16
        are refused.

    Returns
    -------
    Found
        A layer for each recurrent one, by its name. A layer in an inner model has the model's name
        before its own, ``"encoder/gru"``.

    Raises
    ------
    TypeError
        If an argument is not as described.
    ValueError
        If a layer is not what a cell computes (other activations), the source does not say which
        cell it is, or the file is damaged, no file of Keras, or holds what is not read: links,
        compressed arrays, storage in other files.
    OSError
        If the file cannot be opened.
    ModuleNotFoundError
        If the source is a file and the package h5py is not there.

    Notes
    -----
    Nothing of a file is executed. Settings that change no equation (initialisers, `implementation`,
    `unroll`) are not looked at; those that change how a layer is called are in the layer's notes:
    `go_backwards`, `stateful`, `merge_mode`, masks, dropout.

    A list does not say all. With H the rows of the second array: H, 3 H or 4 H columns make a
    SimpleRNN, GRU, or LSTM. A GRU whose bias is (2, 3 H) is ``gru``, Keras's default; (3 H,) is
    ``gru_reset_before``; (6 H,), and an LSTM's of (8 H,), are of CuDNN layers, whose matrices lie
    otherwise. Two or three arrays are one direction, four or six are of Bidirectional. Activations
    are taken to be the default ones.

    HDF5 has no checksums: damage to the numbers of an array, or to where it is, cannot be told from
    other weights. Archives ``.keras`` have.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import io
    >>> draw = np.random.default_rng(0).normal
    >>> weights = [draw(size=(3, 24)), draw(size=(8, 24)), draw(size=(2, 24))]
    >>> io.from_keras(weights).only.cell
    'gru'
    >>> found = io.from_keras("model.keras")  # doctest: +SKIP
    >>> params = found["gru"].params  # doctest: +SKIP
    """
    wanted = _wanted_cells(cell)
    if dtype is not None:
        check_kind(dtype)
    chosen = None if layers is None else check_members("layers", layers, "names of layers")
    if isinstance(source, str | os.PathLike):
        path = check_path(source)
        with refusals(os.fspath(path)), opened(path) as content:
            return _found(os.fspath(path), *_planned(content), wanted, chosen, dtype)
    plan, left_out = _of_lists(source)
    return _found("weights of Keras", plan, left_out, wanted, chosen, dtype)


def to_keras(params: Params) -> list[list[Any]]:
    """The weights of each layer as ``layer.set_weights`` of Keras takes them.

    Parameters
    ----------
    params : Params
        Of a cell that Keras has: ``gru``, ``gru_reset_before``, ``lstm``, ``rnn_tanh``,
        ``rnn_relu``.

    Returns
    -------
    list of list of array
        NumPy arrays, one list a layer: kernel, recurrent kernel, and bias, if there is one; those
        of both directions, for a layer of Bidirectional. Where Keras has one bias for fastgru's
        two, it is their sum.

    Raises
    ------
    TypeError
        If `params` are none.
    ValueError
        If Keras does not have the cell.

    Examples
    --------
    >>> import fastgru
    >>> from fastgru import io
    >>> params = fastgru.init_params(3, 16, num_layers=2, rng=0)
    >>> [[array.shape for array in arrays] for arrays in io.to_keras(params)]
    [[(3, 48), (16, 48), (2, 48)], [(16, 48), (16, 48), (2, 48)]]
    """
    check_type("params", params, Params)
    if params.cell not in OF_CELL:
        raise ValueError(
            f"params: expected a cell that Keras has, {', '.join(OF_CELL)}, got {params.cell!r}"
        )
    kind, table = OF_CELL[params.cell], CELLS[params.cell]
    convention = Convention(gates_named(params.cell, kind.order), transposed=True)
    names = [weight.name for weight in table.weights if weight.is_optional]
    lists = []
    for layer in Params.from_dict(on_host(params), cell=params.cell).layers:
        made: list[Any] = []
        for weights in layer:
            arrays = convention.write(params.cell, dict(weights.items()))
            made += [arrays["weight_ih"], arrays["weight_hh"]]
            if params.bias:
                input_bias, recurrent_bias = (arrays[name] for name in names)
                both = kind.cells[params.cell].get("reset_after", False)
                made.append(
                    np.stack([input_bias, recurrent_bias])
                    if both
                    # Adding zeros would change the sign of a zero.
                    else input_bias + recurrent_bias
                    if recurrent_bias.any()
                    else input_bias
                )
        lists.append(made)
    return lists


@dataclass(frozen=True)
class _Planned:
    """A layer to be read."""

    name: str
    directions: Sequence[Direction]
    notes: tuple[str, ...] = ()
    unknown: bool = False  # of a class that is not known: read where it is asked for


class _Given:
    """An array of a list."""

    def __init__(self, path: str, array: Any) -> None:
        self.path = path
        self._array = np.asarray(array)
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype = str(self._array.dtype)

    def read(self) -> Any:
        return self._array


def _wanted_cells(cell: Any) -> Mapping[str, str]:
    """The cells asked for by names of layers; that of all others by ""."""
    wanted = {"": cell} if isinstance(cell, str) else {} if cell is None else cell
    if not isinstance(wanted, Mapping):
        raise TypeError(f"cell: expected a cell's name, or a mapping to such, got {cell!r}")
    for name in wanted.values():
        cell_named(name)
    return wanted


def _of_lists(source: Any) -> tuple[list[_Planned], list[str]]:
    """The layers of lists of arrays, and what is left out."""
    lists = source if isinstance(source, Mapping) else {"": source}
    plan, left_out = [], []
    for name, arrays in lists.items():
        if not isinstance(name, str) or not isinstance(arrays, list | tuple):
            raise TypeError(
                "source: expected the name of a file, a list of arrays, as layer.get_weights() "
                f"gives, or such lists by name, got {type(arrays).__qualname__}"
            )
        start = f"{name}: " if name else ""
        given = [_Given(f"{start}weights[{n}]", array) for n, array in enumerate(arrays)]
        shapes = [array.shape for array in given]
        half = len(given) // 2
        count = 2 if len(given) in (4, 6) else 1
        parts = [given] if count == 1 else [given[:half], given[half:]]
        if isinstance(source, Mapping) and not all(
            is_recurrent([array.shape for array in part]) for part in parts
        ):
            left_out.append(f"{name}: {', '.join(map(str, shapes)) or 'no weights'}")
            continue
        notes = (_BOTH,) * (count - 1)
        plan.append(_Planned(name, [Direction(part) for part in parts], notes))
    return plan, left_out


def _planned(content: Content) -> tuple[list[_Planned], list[str]]:
    """The layers of a file, and what is left out."""
    configs = content.layers or []
    recurrent = [layer for layer in configs if layer.cells]
    names = [layer.name for layer in configs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"configuration: the layer {twice!r} comes twice")
    weights = content.weights.cells_of(recurrent)
    plan = [_by_config(layer, weights[layer.name]) for layer in recurrent]
    for other in content.weights.others():
        directions = [Direction(arrays) for arrays in other.directions]
        plan.append(_Planned(other.name, directions, unknown=content.layers is not None))
    shapes, left_out = content.weights.left(configs)
    known = {layer.name for layer in recurrent} | {layer.top for layer in recurrent}
    for planned in plan[len(recurrent) :]:  # and the layers that it is in
        parts = planned.name.split("/")
        known |= {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    described = [
        f"{layer.name}: {layer.class_name} {', '.join(shapes.get(layer.name, ['no weights']))}"
        for layer in configs
        if layer.name not in known or layer.name in shapes
    ]
    return plan, [*described, *left_out, *content.left_out]


def _by_config(layer: LayerConfig, weights: Sequence[Sequence[Any]]) -> _Planned:
    """A layer that a configuration describes."""
    directions = [
        Direction(arrays, cell.kind, cell.settings, cell.is_cudnn)
        for cell, arrays in zip(layer.cells, weights, strict=True)
    ]
    return _Planned(layer.name, directions, layer.notes)


def _found(
    origin: str,
    plan: Sequence[_Planned],
    left_out: Sequence[str],
    wanted: Mapping[str, str],
    chosen: Sequence[str] | None,
    dtype: Any,
) -> Found:
    """The layers, read."""
    names = [planned.name for planned in plan]
    for what, asked in (("layers", chosen or ()), ("cell", [key for key in wanted if key])):
        for name in asked:
            if name not in names:
                raise ValueError(
                    f"{what}: expected names among {', '.join(map(repr, names)) or 'none'}, got "
                    f"{name!r}"
                )
    read: list[Layer] = []
    others = []
    for planned in plan:
        cell = wanted.get(planned.name, wanted.get(""))
        if chosen is not None and planned.name not in chosen:
            others.append(f"{planned.name}: not asked for")
        elif planned.unknown and cell is None:
            others.append(
                f"{planned.name}: recurrent by its shapes, but its class, or one around it, is not "
                f"known; cell={{{planned.name!r}: ...}} reads it"
            )
        else:
            read.append(
                layer_of(
                    planned.name, planned.directions, cell=cell, dtype=dtype, notes=planned.notes
                )
            )
    return Found(origin, read, [*left_out, *others])
