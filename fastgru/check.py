"""What refuses arguments: values, arrays and weights. For what `forward` takes see `check_calls`.

A check raises, or returns its argument as the type that the caller needs.
"""

import contextlib
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .backends import KERNELS, library_of_type
from .kernels.cells import CELLS, Cell, Weight
from .names import FULL_NAME, named_arrays, suffix

# --- values ---------------------------------------------------------------------------------------


def check_type(name: str, value: Any, *kinds: type) -> None:
    """Refuse what is none of these classes of the package."""
    if not isinstance(value, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name}: expected {expected}, got {type(value).__qualname__}")


def check_callable(name: str, value: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name}: expected a callable, got {value!r}")


def check_flag(name: str, value: Any) -> bool:
    """`value`, if it is a bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def whole_number(name: str, value: Any, expected: str = "a whole number") -> int:
    """`value` as an int, if it is a whole number and no bool."""
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name}: expected {expected}, got {value!r}")


def check_size(name: str, value: Any) -> int:
    """`value` as an int, if it is a whole number that a size can be."""
    size = whole_number(name, value)
    if size < 1:
        raise ValueError(f"{name}: expected at least 1, got {size}")
    if size >= 2**31:
        raise ValueError(f"{name}: expected less than 2**31, got {size}")
    return size


def check_rng(rng: Any) -> "np.random.Generator":
    """`rng` as a generator, if it is None, one, or the seed of one."""
    if rng is not None and not isinstance(rng, np.random.Generator):
        rng = whole_number("rng", rng, "None, a seed or a Generator")
        if rng < 0:
            raise ValueError(f"rng: expected a seed from 0 up, got {rng}")
    return np.random.default_rng(rng)


def check_members(name: str, value: Any, of: str) -> tuple[Any, ...]:
    """The members of an argument that is a sequence of something."""
    if not isinstance(value, str | bytes | Mapping):
        with contextlib.suppress(TypeError):
            return tuple(value)
    raise TypeError(f"{name}: expected a sequence of {of}, got {value!r}")


def check_path(path: Any) -> Path:
    """`path` as a path, if it is the name of a file."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected a str or an os.PathLike, got {path!r}")
    return Path(path)


def check_metadata(metadata: Any) -> dict[str, str]:
    """`metadata` as a dict, if it maps text to text; an empty one for None."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected a mapping of str to str, got {metadata!r}")
    for key, value in metadata.items():
        for what, text in ((f"key {key!r}", key), (f"metadata[{key!r}]", value)):
            if not isinstance(text, str):
                raise TypeError(
                    f"metadata: {what}: expected a str, got {text!r}; json.dumps makes one of it"
                )
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"metadata: {what}: expected text, got half a character: {text!r}")
    return dict(metadata)


def cell_named(name: Any) -> Cell:
    """The cell of that name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not isinstance(name, str) or name not in CELLS:
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {name!r}")
    return CELLS[name]


# --- arrays ---------------------------------------------------------------------------------------


def library_of(name: str, value: Any) -> str:
    """Name of the library of an array argument.

    Raises
    ------
    TypeError
        If `value` is not exactly an array of a known library: lists, scalars, masked arrays and
        other subclasses are refused. `numpy.memmap` is NumPy memory, and is taken.
    """
    kind: Any = type(value)
    library = library_of_type(kind)
    if library is None:
        raise TypeError(
            f"{name}: expected a {' or '.join(KERNELS)} ndarray (no subclass, no list), "
            f"got {kind.__module__}.{kind.__qualname__}{_conversion(value)}"
        )
    return library


def _conversion(value: Any) -> str:
    """How to make an array of something that is none, where there is a usual way."""
    if hasattr(value, "to_numpy"):  # pandas, polars
        return '; its .to_numpy(dtype="float32") is one'
    if hasattr(value, "detach"):  # PyTorch
        return "; its .detach().numpy() is one"
    if hasattr(value, "filled"):  # masked arrays
        return "; its .filled(...) is one"
    if isinstance(value, np.ndarray):
        return "; numpy.asarray makes one of it"
    if isinstance(value, list):
        return '; numpy.array(..., "float32") makes one of it'
    return ""


def common_library(arrays: Mapping[str, Any]) -> str:
    """The library that all these arguments, by name, belong to.

    Raises
    ------
    TypeError
        If they belong to several, or one is no array.
    """
    libraries = {library_of(name, value): name for name, value in arrays.items()}
    if len(libraries) > 1:
        found = ", ".join(f"{library} ({name})" for library, name in libraries.items())
        raise TypeError(f"expected arrays of one library, got {found}")
    return next(iter(libraries))


def check_dtype(name: str, dtype: Any) -> None:
    """Refuse every dtype but native float32 and float64."""
    if dtype not in (np.dtype("float32"), np.dtype("float64")):
        raise TypeError(
            f"{name}: expected dtype float32 or float64 in native byte order, got {dtype!r}; "
            'numpy.asarray(..., "float32") converts'
        )


def check_kind(dtype: Any) -> np.dtype[Any]:
    """`dtype` as a NumPy dtype, if it is native float32 or float64."""
    kind: np.dtype[Any] | None = None
    if dtype is not None:  # which NumPy would take for float64
        with contextlib.suppress(TypeError, ValueError, SyntaxError):
            kind = np.dtype(dtype)
    if kind is None:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")
    check_dtype("dtype", kind)
    return kind


def check_shape(name: str, value: Any, expected: tuple[int, ...], meaning: str) -> None:
    """Refuse an array of another shape; `meaning` explains the one expected."""
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {expected} {meaning}, got {value.shape}")


def common_device(name: str, arrays: Sequence[Any], device_of: Callable[[Any], Any]) -> Any:
    """The device that holds all these arrays.

    Raises
    ------
    ValueError
        If they are on several.
    """
    device = device_of(arrays[0])
    for other in map(device_of, arrays):  # CuPy's cannot be hashed
        if other != device:
            raise ValueError(
                f"{name}: expected all arrays on one device, got {device!r} and {other!r}"
            )
    return device


# --- weights --------------------------------------------------------------------------------------


def check_arrays(arrays: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse weights that have none of these names, or that are neither arrays nor None."""
    for name, array in arrays.items():
        if name not in names:
            raise TypeError(f"{name}: expected a weight's name ({', '.join(names)})")
        if array is not None:
            library_of(name, array)


def check_weights(
    cell: Cell, layers: Sequence[Sequence[Mapping[str, Any]]], weights: Sequence[Weight]
) -> str:
    """The library of ``layers[layer][direction][name]``, if they are these weights of a stack.

    Raises
    ------
    TypeError, ValueError
        As for `Params`.
    """
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    if {len(layer) for layer in layers} not in ({1}, {2}):
        found = [len(layer) for layer in layers]
        raise ValueError(f"layers: expected 1 or 2 directions, alike in all, got {found}")
    named = named_arrays(layers)
    name = cell.input_weight.name + suffix(0, 0)
    if name not in named:
        raise ValueError(f"{name}: missing (cell {cell.name!r})")
    library = common_library(named)
    first = named[name]
    check_dtype(name, first.dtype)
    for key, array in named.items():
        if array.dtype != first.dtype:
            raise TypeError(f"{key}: expected dtype {first.dtype}, as {name}, got {array.dtype}")
    gates = len(cell.input_gates)
    if first.ndim != 2 or 0 in first.shape or first.shape[0] % gates:
        raise ValueError(
            f"{name}: expected shape ({gates}*H, I) for cell {cell.name!r}, "
            f"got {first.shape}{_other_cells(cell, layers[0][0])}"
        )
    hidden_size, size = first.shape[0] // gates, first.shape[1]
    for number, layer in enumerate(layers):
        bias = has_biases(cell, layers[0][0])
        expected = {
            w.name: w.shape(size, hidden_size) for w in weights if bias or not w.is_optional
        }
        for direction, arrays in enumerate(layer):
            try:
                _check_shapes(arrays, expected, suffix(number, direction), cell)
            except ValueError as error:
                raise ValueError(f"{error}{_other_cells(cell, layers[0][0])}") from None
        size = hidden_size * len(layer)
    return library


def has_biases(cell: Cell, arrays: Collection[str]) -> bool:
    """Whether one of these names is a weight that ``bias=False`` leaves out."""
    return any(w.name in arrays for w in cell.weights if w.is_optional) or not cell.can_lack_biases


def check_bias(cell: Cell, bias: bool) -> None:
    """Refuse cells without biases whose gates have nothing else."""
    if not bias and not cell.can_lack_biases:
        raise ValueError(f"bias: expected True for cell {cell.name!r}, got False")


def _check_shapes(
    arrays: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], end: str, cell: Cell
) -> None:
    """Refuse arrays of one layer and direction that are not the cell's weights."""
    for name, shape in expected.items():
        if name not in arrays:
            zeros = f"; zeros of shape {shape} stand for none" if name.startswith("bias") else ""
            raise ValueError(f"{name}{end}: missing (cell {cell.name!r}){zeros}")
        check_shape(name + end, arrays[name], shape, f"for cell {cell.name!r}")
    unknown = [name for name in arrays if name not in expected]
    if unknown:
        raise ValueError(
            f"{unknown[0]}{end}: expected only {', '.join(expected)} (cell {cell.name!r}; biases "
            f"in all layers or in none)"
        )


def _other_cells(cell: Cell, arrays: Mapping[str, Any]) -> str:
    """Which cells the first layer's weights are shaped for, if not for this one."""
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(shapes[cell.input_weight.name]) != 2:
        return ""
    rows, columns = shapes[cell.input_weight.name]
    fitting = []
    for name, table in CELLS.items():
        hidden_size, left = divmod(rows, len(table.input_gates))
        expected = table.weight_shapes(columns, hidden_size, has_biases(table, shapes))
        if name != cell.name and left == 0 and shapes == expected:
            fitting.append(name)
    return f"; these are shapes of cell {' or '.join(map(repr, fitting))}" if fitting else ""


def check_mapping(mapping: Any) -> None:
    """Refuse what is no mapping of full names to arrays."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping: expected a mapping of names to arrays, got {mapping!r}")


def check_key(key: Any, names: Collection[str]) -> tuple[str, int, int]:
    """Name, layer and direction of a key of a mapping, if it is the full name of a weight."""
    match = FULL_NAME.fullmatch(key) if isinstance(key, str) else None
    if match is None or match["name"] not in names:
        expected = ", ".join(f"{name}_l0" for name in names)
        raise ValueError(
            f"mapping: expected keys like {expected} (l0, l1, …; with _reverse for the "
            f"second direction), got {key!r}"
        )
    return match["name"], int(match["layer"]), int(match["reverse"] is not None)


def check_places(found: Collection[tuple[int, int]], expected: Iterable[tuple[int, int]]) -> None:
    """Refuse a mapping that lacks all weights of a layer and direction."""
    missing = [suffix(*place) for place in expected if place not in found]
    if missing or not found:
        raise ValueError(f"mapping: weights are missing for {', '.join(missing) or '_l0'}")


def check_structure(
    params: Any, names: Iterable[str], expected: Any, expected_names: Iterable[str]
) -> None:
    """Refuse params whose cell, or full names of trainable arrays, are not those of others."""
    own, others = list(names), list(expected_names)
    trainable = {w.name for w in cell_named(expected.cell).weights if w.is_trainable}
    needed = [name for name in others if name.rpartition("_l")[0] in trainable]
    if params.cell != expected.cell or own not in (others, needed):
        raise ValueError(f"others: expected the structure of {expected!r}, got {params!r}")
