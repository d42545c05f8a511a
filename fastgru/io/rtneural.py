"""`from_rtneural`, `to_rtneural`: models of RTNeural, in JSON, as audio plugins load them.

RTNeural reads two forms: layers in the manner of Keras, in a list, and state dicts of PyTorch.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..archive import replace_file
from ..check import check_kind, check_path, check_type
from ..files import on_host
from ..kernels.cells import CELLS
from ..names import named_arrays, suffix
from ..params import Params
from ..safetensors import RefusedError, compact, naming
from .content import check_source, expect
from .convention import Convention, fused_biases
from .found import Found, Layer
from .json_model import model_of, numbers
from .state_dict import layers_of

# Layers of RTNeural that are cells here: a GRU is one that resets after the product.
_CONVENTIONS = {
    "gru": Convention(gates=("z", "r", "n"), transposed=True),
    "lstm": Convention(gates=("i", "f", "g", "o"), transposed=True),
}
_ACTIVATIONS = (None, "", "tanh")  # of a recurrent layer: RTNeural has no other, and does not look
_STYLES = ("keras", "pytorch")


def from_rtneural(
    source: Mapping[str, Any] | str | os.PathLike[str], *, dtype: Any = "float32"
) -> Found:
    """Find the GRUs and LSTMs in a model of RTNeural.

    Parameters
    ----------
    source : mapping, str or os.PathLike
        The path of a JSON file, or what it holds: ``"in_shape"`` and ``"layers"``, as Keras models
        are written, or a state dict of PyTorch as nested lists, which may stand under
        ``"state_dict"``.
    dtype : dtype
        Of the params, float32 or float64: JSON has decimal numbers.

    Returns
    -------
    Found
        Layers of the first form by their names, or as ``"layers[0]"``; modules of the second as by
        `from_torch`. Other layers are left out.

    Raises
    ------
    TypeError
        If an argument is not as described.
    ValueError
        If the file is damaged, or its content is not such a model.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import fastgru
    >>> from fastgru import io
    >>> model = io.to_rtneural(fastgru.init_params(1, 16, cell="lstm", rng=0))
    >>> io.from_rtneural(model)["layers[0]"].params.cell
    'lstm'
    """
    kind = check_kind(dtype)
    if isinstance(source, Mapping):
        try:
            return Found("mapping", *_content(source, kind))
        except RefusedError as refusal:
            raise ValueError(f"mapping: {refusal}") from refusal.__cause__
    check_source(source, "JSON")
    path = check_path(source)
    expect(path, "json")
    with naming(path):
        return Found(os.fspath(path), *_content(model_of(path), kind))


def to_rtneural(
    params: Params,
    path: str | os.PathLike[str] | None = None,
    *,
    style: str = "keras",
    prefix: str = "",
) -> dict[str, Any]:
    """Make a model that RTNeural loads, and write it into a JSON file.

    Parameters
    ----------
    params : Params
        Of the cell `gru` or `lstm`, of one direction.
    path : str or os.PathLike, optional
        Of the file; one that is there is replaced, when the new one is complete.
    style : {"keras", "pytorch"}
        What RTNeural's ``json_parser`` loads, a list of layers; or what its ``torch_helpers`` load,
        a state dict, of one layer.
    prefix : str
        Of the names in a state dict: ``"gru"``.

    Returns
    -------
    dict
        What the file holds: lists and Python numbers.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, RTNeural has no such layer, or a weight is not finite.
    OSError
        If the file cannot be written.

    Notes
    -----
    Numbers are written so that they are read as the same ones. A layer in the manner of Keras has
    biases, and an LSTM one array of them: missing biases are zeros there, and the two of an LSTM
    are added, in float64. Other layers of a model are for you to append to ``["layers"]``.

    Examples
    --------
    >>> import fastgru
    >>> from fastgru import io
    >>> model = io.to_rtneural(fastgru.init_params(1, 16, num_layers=2, rng=0))
    >>> [layer["type"] for layer in model["layers"]]
    ['gru', 'gru']
    """
    check_type("params", params, Params)
    check_type("prefix", prefix, str)
    if style not in _STYLES:
        raise ValueError(f"style: expected one of {', '.join(_STYLES)}, got {style!r}")
    if params.cell not in _CONVENTIONS:
        raise ValueError(
            f"params: RTNeural has no layer for cell {params.cell!r}: expected one of "
            f"{', '.join(_CONVENTIONS)}"
        )
    if params.bidirectional:
        raise ValueError("params: RTNeural has no second direction: expected bidirectional=False")
    arrays = on_host(params)
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"params: {key}: JSON has finite numbers alone, got others")
    made = _keras_model(params, arrays, prefix) if style == "keras" else _state_dict(arrays, prefix)
    if path is not None:
        replace_file(Path(os.path.realpath(check_path(path))), [compact(made)])
    return made


def _keras_model(params: Params, arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    if prefix:
        raise ValueError("prefix: expected none, as layers of style 'keras' have no names")
    convention, names = _CONVENTIONS[params.cell], [w.name for w in CELLS[params.cell].weights]
    layers = []
    for number in range(params.num_layers):
        of = {n: arrays[n + suffix(number, 0)] for n in names if n + suffix(number, 0) in arrays}
        written = convention.write(params.cell, of)
        rows = len(of["weight_hh"])
        biases = [written.get(n, np.zeros(rows)).astype(np.float64) for n in names[2:]]
        bias = np.stack(biases) if params.cell == "gru" else np.sum(biases, axis=0)
        layers.append(
            {
                "type": params.cell,
                "activation": "tanh",
                "shape": [None, None, params.hidden_size],
                "weights": [
                    array.tolist() for array in (written["weight_ih"], written["weight_hh"], bias)
                ],
            }
        )
    return {"in_shape": [None, None, params.input_size], "layers": layers}


def _state_dict(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    more = [key for key in arrays if not key.endswith(suffix(0, 0))]
    if more:
        raise ValueError(
            f"params: RTNeural's torch_helpers load one layer, and not {more[0]}: expected "
            "num_layers=1, or style='keras'"
        )
    start = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
    return {start + key: array.tolist() for key, array in arrays.items()}


# --- reading --------------------------------------------------------------------------------------


def _content(model: Mapping[str, Any], dtype: Any) -> tuple[list[Layer], list[str]]:
    """Layers, and what is left out."""
    try:
        if "layers" in model:
            return _keras_layers(model, dtype)
        nested = model.get("state_dict")
        state_dict = nested if isinstance(nested, Mapping) else model
        beside = [key for key in model if state_dict is nested and key != "state_dict"]
        layers, left_out = layers_of(state_dict, lambda key: numbers(key, state_dict[key], dtype))
    except (TypeError, ValueError) as error:
        raise RefusedError(str(error)) from error
    if not layers:
        raise RefusedError(
            "expected 'layers', or keys such as weight_ih_l0, as a model of RTNeural has them, got "
            f"{', '.join(map(repr, [*model][:5])) or 'nothing'}"
        )
    return layers, [*left_out, *beside]


def _keras_layers(model: Mapping[str, Any], dtype: Any) -> tuple[list[Layer], list[str]]:
    listed = model["layers"]
    if not isinstance(listed, list) or not all(isinstance(of, Mapping) for of in listed):
        raise ValueError(f"layers: expected a list of objects, got {type(listed).__name__}")
    names = [of.get("name") for of in listed]
    named = all(isinstance(name, str) for name in names) and len({*names}) == len(names)
    layers, left_out = [], []
    inputs = _width("in_shape", model.get("in_shape"))
    for number, of in enumerate(listed):
        place = f"layers[{number}]"
        name = names[number] if named else place
        if of.get("type") in [*_CONVENTIONS]:  # it may be anything, and not hashable
            layers.append(_keras_layer(name, place, of, inputs, dtype))
        else:
            left_out.append(f"{name} {of.get('type')!r}")
        inputs = None  # which layers of other kinds may change
    beside = [key for key in model if key not in ("in_shape", "layers")]
    return layers, [*left_out, *beside]


def _width(name: str, shape: Any) -> int | None:
    """The last size of a shape, if it has one that is known."""
    if shape is None:
        return None
    if not isinstance(shape, list | tuple) or not shape:
        raise ValueError(f"{name}: expected a list of sizes, got {shape!r}")
    return shape[-1] if type(shape[-1]) is int else None


def _keras_layer(
    name: str, place: str, of: Mapping[str, Any], inputs: int | None, dtype: Any
) -> Layer:
    """The layer of an entry of the list."""
    cell, weights = of["type"], of.get("weights")
    if of.get("activation") not in _ACTIVATIONS:
        raise ValueError(f"{place}: expected activation 'tanh', got {of['activation']!r}")
    if not isinstance(weights, list) or len(weights) not in (2, 3):
        raise ValueError(f"{place}: weights: expected kernel, recurrent kernel, bias")
    places = [f"{place}.weights[{number}]" for number in range(len(weights))]
    arrays = [numbers(*item, dtype) for item in zip(places, weights, strict=True)]
    for where, array in zip(places, arrays[:2], strict=False):
        if array.ndim != 2:
            raise ValueError(f"{where}: expected a matrix, got shape {array.shape}")
    own = dict(zip(("weight_ih", "weight_hh"), arrays, strict=False))
    sources = dict(zip(own, places, strict=False))
    for bias in arrays[2:]:
        if cell == "gru" and bias.ndim != 2:
            raise ValueError(
                f"{places[2]}: expected shape (2, 3*H), as a GRU that resets after the product has "
                f"it, got {bias.shape}: RTNeural has no other GRU"
            )
        biases = fused_biases(places[2], CELLS[cell], bias, len(arrays[1]))
        own |= biases
        sources |= dict.fromkeys(biases, places[2])
    read = _CONVENTIONS[cell].read(cell, own)
    params = Params.from_dict(named_arrays([[read]]), cell=cell)
    sizes = {"inputs": (inputs, params.input_size)}
    sizes["units"] = (_width(f"{place}: shape", of.get("shape")), params.hidden_size)
    for what, (said, found) in sizes.items():
        if said not in (None, found):
            raise ValueError(f"{place}: expected {said} {what}, by the shapes, got {found}")
    keys = dict(zip(params.to_dict(), read, strict=True))
    return Layer(name, params, {key: sources.get(n, "zeros") for key, n in keys.items()})
