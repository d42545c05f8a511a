"""What a model's configuration says of its layers, in Keras 2 and 3. Nothing is made from it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..safetensors import RefusedError
from .keras_errors import DAMAGED

_DEEPEST = 32  # models in models
_LAYERS = {
    "GRU": ("GRU", False),
    "LSTM": ("LSTM", False),
    "SimpleRNN": ("SimpleRNN", False),
    "CuDNNGRU": ("GRU", True),
    "CuDNNLSTM": ("LSTM", True),
}
_CELLS = {"GRUCell": "GRU", "LSTMCell": "LSTM", "SimpleRNNCell": "SimpleRNN"}
# Of Keras; classes of other modules may compute anything.
_MODULES = ("keras", "tf_keras", "tensorflow")
_MERGED = {
    "sum": "y[..., :H] + y[..., H:]",
    "mul": "y[..., :H] * y[..., H:]",
    "ave": "(y[..., :H] + y[..., H:]) / 2",
    None: "y[..., :H] and y[..., H:]",
}


@dataclass(frozen=True)
class CellConfig:
    """A recurrent cell in one direction.

    Attributes
    ----------
    kind : str
        Key of `keras_cells.KINDS`.
    settings : mapping
    path : str
        Of its weights within those of the layer, in files of Keras 3.
    is_cudnn, frozen : bool
    """

    kind: str
    settings: Mapping[str, Any]
    path: str
    is_cudnn: bool = False
    frozen: bool = False


@dataclass(frozen=True)
class LayerConfig:
    """A layer of a model, or of a model in it.

    Attributes
    ----------
    name : str
        With the names of inner models before it, ``"encoder/gru"``.
    class_name : str
    path : str
        Of its weights, in files of Keras 3.
    top : str
        Name of the layer of the outermost model.
    cells : tuple of CellConfig
        One a direction; none if the layer is not recurrent, or of an unknown class.
    notes : tuple of str
    makes_mask : bool
    """

    name: str
    class_name: str
    path: str
    top: str
    cells: tuple[CellConfig, ...] = ()
    notes: tuple[str, ...] = ()
    makes_mask: bool = False


def layers_in(text: str | bytes) -> list[LayerConfig]:
    """The layers of a model by its configuration, in their order.

    Raises
    ------
    RefusedError
        If the text is not JSON, or not of a model.
    """
    try:
        model = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"its configuration is not JSON ({error}); {DAMAGED}") from error
    _, config = _class_and_config(model)
    found = [*_layers(config, "", "", "", False, 0)]
    masks = ", ".join(layer.name for layer in found if layer.makes_mask)
    note = f"the model makes a mask ({masks}): give lengths; y is 0 in padding"
    return [
        replace(layer, notes=(*layer.notes, note)) if layer.cells and masks else layer
        for layer in found
    ]


def snake_case(name: str) -> str:
    """A class's name as Keras 3 has it in paths."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    return made


def _class_and_config(value: Any) -> tuple[str, Any]:
    """Class and configuration of a layer; the class is "" where it is not Keras's own."""
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        raise RefusedError(f"configuration: expected a layer, got {_short(value)}; {DAMAGED}")
    module = value.get("module") or "keras"
    is_own = isinstance(module, str) and module.split(".")[0] in _MODULES
    return (value["class_name"] if is_own else ""), value.get("config")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:76] + " ..."


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RefusedError(f"{name}: expected a configuration, got {_short(value)}; {DAMAGED}")
    return value


def _layers(
    config: Any, prefix: str, path: str, top: str, frozen: bool, depth: int
) -> Iterator[LayerConfig]:
    """The layers of a model; those of models in it have its name before theirs."""
    if depth > _DEEPEST:
        raise RefusedError(f"configuration: models are nested deeper than {_DEEPEST}; {DAMAGED}")
    # Sequential models of early Keras 2 are lists.
    members = config.get("layers", []) if isinstance(config, dict) else config
    if not isinstance(members, list):
        raise RefusedError(f"configuration: expected layers, got {_short(members)}; {DAMAGED}")
    used: dict[str, int] = {}
    for member in members:
        class_name, inner = _class_and_config(member)
        written = str(member["class_name"])
        base = snake_case(written)
        number = used[base] = used.get(base, -1) + 1
        at = f"{path}layers/{base}_{number}" if number else f"{path}layers/{base}"
        name = inner.get("name") if isinstance(inner, dict) else None
        name = member.get("name") if name is None else name
        if not isinstance(name, str) or not name:
            raise RefusedError(f"configuration: expected a layer's name, got {name!r}; {DAMAGED}")
        yield from _layer(
            LayerConfig(prefix + name, written, at, top or name), class_name, inner, frozen, depth
        )


def _layer(
    layer: LayerConfig, class_name: str, config: Any, frozen: bool, depth: int
) -> Iterator[LayerConfig]:
    """A layer, or all layers that are in it."""
    own = config if isinstance(config, dict) else {}
    frozen = frozen or own.get("trainable") is False
    if isinstance(config, list) or "layers" in own:
        yield from _layers(config, f"{layer.name}/", f"{layer.path}/", layer.top, frozen, depth + 1)
    elif class_name == "TimeDistributed":
        inner_class, inner = _class_and_config(own.get("layer"))
        name = f"{layer.name}/{_mapping(layer.name, inner).get('name')}"
        nested = LayerConfig(
            name, str(own["layer"]["class_name"]), f"{layer.path}/layer", layer.top
        )
        if depth > _DEEPEST:
            raise RefusedError(f"configuration: nested deeper than {_DEEPEST}; {DAMAGED}")
        for found in _layer(nested, inner_class, inner, frozen, depth + 1):
            note = (f"of TimeDistributed {layer.name!r}: each step of its input is a sequence",)
            yield replace(found, notes=found.notes + note * bool(found.cells))
    elif class_name == "Masking" or (class_name == "Embedding" and own.get("mask_zero")):
        yield replace(layer, makes_mask=True)
    elif class_name == "Bidirectional":
        yield _bidirectional(layer, own, frozen)
    else:
        yield from _one_direction(layer, class_name, own, frozen)


def _one_direction(
    layer: LayerConfig, class_name: str, config: dict[str, Any], frozen: bool
) -> Iterator[LayerConfig]:
    """A layer; those of stacked cells one by one."""
    cells = _cells(layer.name, class_name, config, frozen)
    notes = _notes(config, *(cell.settings for cell in cells))
    if config.get("go_backwards"):
        notes += (
            "go_backwards: Keras runs it from the last step to the first: give x[:, ::-1], and y "
            "comes in that order",
        )
    if len(cells) < 2:
        yield replace(layer, cells=cells, notes=notes if cells else ())
        return
    for number, cell in enumerate(cells):
        name = f"{layer.name}/{cell.settings.get('name', number)}"
        note = f"cell {number + 1} of {len(cells)} of {layer.name!r}: stack_layers joins them"
        yield replace(layer, name=name, cells=(cell,), notes=(*notes, note))


def _cells(
    name: str, class_name: str, config: dict[str, Any], frozen: bool
) -> tuple[CellConfig, ...]:
    """The cells of a layer, the lowest first; none if it is not recurrent or not Keras's own."""
    if class_name in _LAYERS:
        kind, is_cudnn = _LAYERS[class_name]
        return (CellConfig(kind, config, "" if is_cudnn else "cell", is_cudnn, frozen),)
    if class_name != "RNN":
        return ()
    cell_class, inner = _class_and_config(config.get("cell"))
    if cell_class != "StackedRNNCells":
        if cell_class not in _CELLS:
            return ()
        settings = _mapping(name, inner)
        return (CellConfig(_CELLS[cell_class], settings, "cell", frozen=frozen),)
    members = _mapping(name, inner).get("cells")
    if not isinstance(members, list):
        raise RefusedError(f"{name}: expected cells, got {_short(members)}; {DAMAGED}")
    used: dict[str, int] = {}
    found = []
    for member in members:
        cell_class, settings = _class_and_config(member)
        base = snake_case(str(member["class_name"]))
        number = used[base] = used.get(base, -1) + 1
        path = f"cell/cells/{base}_{number}" if number else f"cell/cells/{base}"
        if cell_class not in _CELLS:
            return ()  # not without the one between
        found.append(CellConfig(_CELLS[cell_class], _mapping(name, settings), path, frozen=frozen))
    return tuple(found)


def _bidirectional(layer: LayerConfig, config: dict[str, Any], frozen: bool) -> LayerConfig:
    """A layer of two directions."""
    pair = []
    forward = config.get("layer")
    for key, member in (("forward", forward), ("backward", config.get("backward_layer", forward))):
        class_name, inner = _class_and_config(member)
        settings = _mapping(layer.name, inner)
        held = frozen or settings.get("trainable") is False
        cells = _cells(layer.name, class_name, settings, held)
        if len(cells) != 1:
            return layer  # not recurrent in a way that is known, or several cells a direction
        runs_backward = settings.get("go_backwards", False)
        expected = key == "backward" and "backward_layer" in config
        if runs_backward is not expected:
            raise RefusedError(
                f"{layer.name}: expected go_backwards={expected} of its {key} layer, got "
                f"{runs_backward!r}; use two layers of one direction"
            )
        (cell,) = cells
        pair.append(replace(cell, path=f"{key}_layer/{cell.path}".rstrip("/")))
    notes = _notes(settings, *(cell.settings for cell in pair))
    merge = config.get("merge_mode", "concat")
    if merge != "concat":
        if not isinstance(merge, str | None) or merge not in _MERGED:
            raise RefusedError(f"{layer.name}: unknown merge_mode {_short(merge)}; {DAMAGED}")
        notes += (f"merge_mode={merge!r}: Keras's output is {_MERGED[merge]}",)
    if not settings.get("return_sequences", False):
        notes += (
            "return_sequences=False: Keras's output is made of h_n[0] and h_n[1], not of y[:, -1]",
        )
    return replace(layer, cells=tuple(pair), notes=notes)


def _notes(*settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What a user should know of the settings of a layer and its cells, a sentence each."""
    said = {
        "stateful": "stateful: Keras starts a batch from the last state of the one before: give h0",
        "time_major": "time_major: call forward with time_major=True",
        "dropout": "dropout: in use in training alone, not here",
        "recurrent_dropout": "recurrent_dropout: in use in training alone, not here",
    }
    return tuple(note for key, note in said.items() if any(of.get(key) for of in settings))
