"""Where weights are in HDF5 files of Keras: the layout of Keras 3, and the one of Keras 2.

Keras 3 has groups by classes, ``layers/gru_1/cell/vars/0``. Keras 2 has a group for each layer of
the outermost model, whose weights are named in order, ``gru_1/gru_cell/kernel:0``; Keras 3 writes
it into whole models in HDF5.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..safetensors import RefusedError
from .hdf5 import Array, Store
from .keras_cells import is_cudnn, is_recurrent
from .keras_config import LayerConfig
from .keras_errors import DAMAGED

_LEAVES = ("kernel", "recurrent_kernel", "bias")
# How tf.keras 2.12 and 2.13 call the group of a model's layers.
_LAYERS, _OLD_LAYERS = "layers", "_layer_checkpoint_dependencies"
_SIDES = ("forward_layer", "backward_layer")


class Found(NamedTuple):
    """Weights of a layer that no configuration describes."""

    name: str
    directions: list[list[Array]]


class VariableGroups:
    """Weights as Keras 3 lays them out: arrays by number in groups ``vars``."""

    def __init__(self, store: Store) -> None:
        self._names: dict[str, str] = {}
        self._arrays: dict[str, dict[str, Array]] = {}
        self._walk(store, store.root, ())
        old = {path for path in self._arrays if _OLD_LAYERS in path.split("/")}
        if old:
            self._arrays = dict(_renumbered(self._arrays))
        self._left = dict.fromkeys(self._arrays)

    def _walk(self, store: Store, group: Any, path: tuple[str, ...]) -> None:
        for name in store.children(group):
            if not store.is_group(group, name):
                self._arrays.setdefault("/".join(path), {})[name] = store.array(group, name)
                continue
            child = store.group(group, name)
            if name != "vars":
                self._walk(store, child, (*path, name))
                continue
            at = "/".join(path)
            called = store.text(child, "name")
            if called is not None:
                self._names[at] = called
            keys = store.children(child)
            arrays = {key: store.array(child, key) for key in keys}
            if arrays:
                in_order = sorted(arrays, key=lambda key: (len(key), key))
                self._arrays[at] = {key: arrays[key] for key in in_order}

    def cells_of(self, layers: Iterable[LayerConfig]) -> dict[str, list[list[Array]]]:
        """The weights of each layer and direction, by the layer's name."""
        found = {}
        for layer in layers:
            places = [f"{layer.path}/{cell.path}".rstrip("/") for cell in layer.cells]
            missing = [place for place in places if place not in self._arrays]
            if missing:
                raise RefusedError(
                    f"{layer.name}: expected its weights in {missing[0]}, got none; a layer that "
                    "two models share has them in one of the two alone: save such a model as .h5; "
                    f"otherwise {DAMAGED}"
                )
            found[layer.name] = [self._numbered(place) for place in places]
        return found

    def others(self) -> list[Found]:
        """What else has the weights of a recurrent layer."""
        found: dict[str, dict[int, list[Array]]] = {}
        for path in sorted(self._left, key=_natural):
            parts = path.split("/")
            keys = [*self._arrays[path]]
            shapes = [array.shape for array in self._arrays[path].values()]
            if keys != [*map(str, range(len(keys)))] or not is_recurrent(shapes):
                continue
            if parts[-1] == "cell":
                parts.pop()
            elif parts[-3:-1] != ["cell", "cells"] and not is_cudnn(shapes):
                continue  # of a layer of another kind, whose arrays happen to have such shapes
            side = _SIDES.index(parts.pop()) if parts[-1:] and parts[-1] in _SIDES else 0
            found.setdefault("/".join(parts), {})[side] = self._numbered(path)
        names = {path: self._name(path) for path in found}
        # Layers that are attributes of a model may have one name: their places differ.
        twice = {name for name, number in Counter(names.values()).items() if number > 1}
        return [
            Found(
                path if names[path] in twice else names[path],
                [sides[side] for side in sorted(sides)],
            )
            for path, sides in found.items()
        ]

    def left(self, layers: Sequence[LayerConfig]) -> tuple[Mapping[str, list[str]], list[str]]:
        """Shapes of what has not been taken: by the layer's name, and of no layer."""
        by_path = {layer.path: layer.name for layer in layers}
        of_layers: dict[str, list[str]] = {}
        others: dict[str, list[str]] = {}
        for path in sorted(self._left, key=_natural):
            parts = path.split("/")
            prefixes = ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]
            owner = next((by_path[prefix] for prefix in prefixes if prefix in by_path), None)
            shapes = [str(array.shape) for array in self._arrays[path].values()]
            if owner is not None:
                of_layers.setdefault(owner, []).extend(shapes)
            else:
                name = parts[0] if parts[0] == "optimizer" else self._name(path)
                others.setdefault(name, []).extend(shapes)
        return of_layers, [_described(name, shapes) for name, shapes in others.items()]

    def _numbered(self, path: str) -> list[Array]:
        """The arrays of a group; they are the layer's now."""
        arrays = self._arrays[path]
        if [*arrays] != [*map(str, range(len(arrays)))]:
            raise RefusedError(f"{path}: expected arrays 0, 1, …, got {', '.join(arrays)}")
        self._left.pop(path, None)
        return [*arrays.values()]

    def _name(self, path: str) -> str:
        """Of the layer at a path: its own and those of the models around it, if they are known."""
        parts = path.split("/")
        shown = []
        for n, part in enumerate(parts, 1):
            if part not in (_LAYERS, _OLD_LAYERS, "cell", "cells") or n == len(parts):
                shown.append(self._names.get("/".join(parts[:n]), part))
        return "/".join(shown)


def _natural(path: str) -> list[tuple[str, int]]:
    """A key by which gru_2 comes before gru_10."""
    return [
        (text, int(number or -1)) for text, number in re.findall(r"(\D+|^)(\d{0,9})", path) if text
    ]


def _renumbered(arrays: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Paths of tf.keras 2.12 as Keras 3's: layers with weights took two numbers each there."""
    numbers: dict[str, dict[str, list[int]]] = {}
    pattern = re.compile(r"(.*?)(?:_(\d{1,9}))?")

    def seen(parent: str, part: str) -> tuple[str, int, list[int]]:
        base, number = pattern.fullmatch(part).groups()  # type: ignore[union-attr]
        return base, int(number or 0), numbers.setdefault(parent, {}).setdefault(base, [])

    def members(path: str) -> Iterator[tuple[int, str, str]]:
        parts = path.split("/")
        for n, part in enumerate(parts[:-1], 1):
            if part == _OLD_LAYERS:
                yield n, "/".join(parts[:n]), parts[n]

    for path in arrays:
        for _, parent, part in members(path):
            _, number, known = seen(parent, part)
            if number not in known:
                known.append(number)
    for path, value in arrays.items():
        parts = path.split("/")
        for n, parent, part in members(path):
            base, number, known = seen(parent, part)
            place = sorted(known).index(number)
            parts[n - 1], parts[n] = _LAYERS, f"{base}_{place}" if place else base
        yield "/".join(parts), value


class NamedWeights:
    """Weights as Keras 2 lays them out: a group a layer, with the names of its weights in order."""

    def __init__(self, store: Store, root: Any) -> None:
        # group of a layer -> folder of a cell or part -> its arrays by their last name
        self._groups: dict[str, dict[str, dict[str, Array]]] = {}
        names = _listed(store, root, "layer_names")
        if names is None:
            raise RefusedError(f"expected the attribute layer_names, got none; {DAMAGED}")
        for name in names:
            if name in self._groups:
                raise RefusedError(f"layer_names: {name!r} comes twice; {DAMAGED}")
            folders = self._groups[name] = {}
            group = store.group(root, name)
            for path in _listed(store, group, "weight_names") or ():
                folder, _, leaf = path.rpartition("/")
                key = leaf.removesuffix(":0")
                if key in folders.setdefault(folder, {}):
                    raise RefusedError(f"{name}: {path!r} comes twice; {DAMAGED}")
                folders[folder][key] = store.array(group, path)
        self._left = {(name, f): None for name, fs in self._groups.items() for f in fs}

    def cells_of(self, layers: Iterable[LayerConfig]) -> dict[str, list[list[Array]]]:
        """The weights of each layer and direction, by the layer's name."""
        found: dict[str, list[list[Array]]] = {}
        layers = [*layers]
        for top in dict.fromkeys(layer.top for layer in layers):
            cells = [(la.name, cell.frozen) for la in layers if la.top == top for cell in la.cells]
            # Weights that are not trained come after those that are.
            slots = sorted(enumerate(cells), key=lambda slot: slot[1][1])
            folders = self._cells_in(top)
            if len(folders) != len(slots):
                raise RefusedError(
                    f"{top}: expected weights of {len(slots)} recurrent cells, as the "
                    f"configuration says, got {len(folders)}; {DAMAGED}"
                )
            taken = {}
            for (place, (name, _)), folder in zip(slots, folders, strict=True):
                taken[place] = name, self._take(top, folder)
            for place in sorted(taken):
                name, arrays = taken[place]
                found.setdefault(name, []).append(arrays)
        return found

    def others(self) -> list[Found]:
        """What else has the weights of a recurrent layer."""
        found = []
        for name in self._groups:
            cells = [folder for folder in self._cells_in(name) if (name, folder) in self._left]
            sides = [_side(folder) for folder in cells]
            while cells:
                count = 2 if sides[:2] == [0, 1] else 1
                alone = len(cells) == count and count == len(self._cells_in(name))
                shown = name if alone else f"{name}/{cells[0]}"
                found.append(Found(shown, [self._take(name, folder) for folder in cells[:count]]))
                del cells[:count], sides[:count]
        return found

    def left(self, layers: Sequence[LayerConfig]) -> tuple[Mapping[str, list[str]], list[str]]:
        """Shapes of what has not been taken: by the layer's name, and of no layer."""
        of_layers: dict[str, list[str]] = {}
        others = []
        for name, folder in self._left:
            shapes = [str(array.shape) for array in self._groups[name][folder].values()]
            parts = folder.split("/")
            inside = [la.name for la in layers if la.top == name]
            owner = [n for n in inside if n == name or n.rpartition("/")[2] in parts] or inside
            if len(owner) == 1:
                of_layers.setdefault(owner[0], []).extend(shapes)
            else:
                others.append(_described(f"{name}/{folder}" if folder else name, shapes))
        return of_layers, others

    def _cells_in(self, name: str) -> list[str]:
        """Folders of a layer's group that hold a recurrent cell, in the order of its weights."""
        return [
            folder
            for folder, arrays in self._groups.get(name, {}).items()
            if "recurrent_kernel" in arrays and len(arrays["recurrent_kernel"].shape) == 2
        ]

    def _take(self, name: str, folder: str) -> list[Array]:
        """The arrays of a cell; they are the layer's now."""
        arrays = self._groups[name][folder]
        known = [key for key in _LEAVES if key in arrays]
        if len(known) != len(arrays) or known[:2] != [*_LEAVES[:2]]:
            raise RefusedError(
                f"{name}/{folder}: expected {', '.join(_LEAVES)}, got {', '.join(arrays)}"
            )
        self._left.pop((name, folder), None)
        return [arrays[key] for key in known]


def _side(folder: str) -> int | None:
    """0 of a forward direction, 1 of a backward one, None of a layer that has but one."""
    for part in folder.split("/"):
        for side, start in enumerate(("forward_", "backward_")):
            if part.startswith(start):
                return side
    return None


def _listed(store: Store, owner: Any, name: str) -> list[str] | None:
    """An attribute of strings, which is in parts where it is long."""
    whole = store.texts(owner, name)
    if whole is not None:
        return whole
    parts: list[str] | None = None
    number = 0
    while (part := store.texts(owner, f"{name}{number}")) is not None:
        parts, number = [*(parts or ()), *part], number + 1
    return parts


def _described(name: str, shapes: Sequence[str]) -> str:
    return (
        f"{name}: {', '.join(shapes[:6])}{f', … {len(shapes)} in all' if len(shapes) > 6 else ''}"
    )
