"""Params in files of the safetensors format, with what else they are, notes, and a checksum."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .archive import OWN, checked_notes, read, write
from .archive import on_host as arrays_on_host
from .check import check_path, check_type
from .kernels.cells import CELLS
from .params import Params
from .safetensors import DAMAGED, Allowed, RefusedError, naming

KEYS = "cell", "dtype", "input_size", "hidden_size", "num_layers", "bidirectional", "bias"
# Of what other files of fastgru hold.
_NOTED = Allowed(("F32", "F64"), dimensions=2)
_ALLOWED = Allowed(("F32", "F64"), least=1, dimensions=2, remedy="save float32 or float64 params")


def save(
    path: str | os.PathLike[str], params: Params, metadata: Mapping[str, str] | None = None
) -> None:
    """Write params into a file of the safetensors format.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file; one that is there is replaced, when the new one is complete.
    params : Params
        CuPy arrays are written from copies in memory.
    metadata : mapping of str to str, optional
        Notes to keep with the weights, for `load_metadata`. Keys that start with ``fastgru.`` are
        taken.

    Raises
    ------
    TypeError
        If an argument is not as described.
    ValueError
        If the params lack running statistics, as gradients do, or a note cannot be written.
    OSError
        If the file cannot be written. An old one is then still there.

    Notes
    -----
    Arrays have the names of `Params.to_dict`, which are PyTorch's. What else the params are (cell,
    sizes, dtype) and a checksum are in the metadata, under keys that start with ``fastgru.``. The
    package ``safetensors`` and all that use it can read the file; fastgru does not need it.

    Examples
    --------
    >>> import fastgru
    >>> params = fastgru.init_params(input_size=3, hidden_size=16, rng=0)
    >>> fastgru.save("weights.safetensors", params, {"trained on": "2024"})  # doctest: +SKIP
    >>> params = fastgru.load("weights.safetensors")  # doctest: +SKIP
    """
    check_path(path)
    check_type("params", params, Params)
    notes = checked_notes(metadata)
    write(path, whole(params), description(params), notes)


def whole(params: Params) -> dict[str, Any]:
    """The arrays of params, in NumPy's memory, if no running statistics are missing."""
    arrays = on_host(params)
    try:
        Params.from_dict(arrays, cell=params.cell)
    except ValueError as error:
        raise ValueError(
            f"params: expected all weights that load needs, as fastgru.init_params makes: {error}"
        ) from error
    return arrays


def on_host(params: Params) -> dict[str, Any]:
    """Arrays by their full names, C-contiguous, in NumPy's memory: copies, where they are not."""
    return arrays_on_host(params.to_dict(), params.library)


def load(path: str | os.PathLike[str]) -> Params:
    """Read params that `save` wrote.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file.

    Returns
    -------
    Params
        Of NumPy arrays in memory of their own.

    Raises
    ------
    TypeError
        If `path` is no name of a file.
    ValueError
        If the file was not written by `save`, has been damaged, changed or cut, comes from a later
        version, or is of a cell that is not registered.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> params = fastgru.load("weights.safetensors")  # doctest: +SKIP
    """
    return _read(path)


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the notes that `save` wrote beside params, or `training.save_model` beside a model.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file.

    Returns
    -------
    dict of str to str
        The `metadata` of `save`; empty if there was none.

    Raises
    ------
    TypeError, ValueError, OSError
        As for `load`: the whole file is read and checked.

    Examples
    --------
    >>> fastgru.load_metadata("weights.safetensors")  # doctest: +SKIP
    {'trained on': '2024'}
    """
    check_path(path)
    with naming(path):
        content = read(path, _NOTED, ())
        if f"{OWN}kind" not in content.own:
            described(content.arrays, content.own)
    return content.notes


def description(params: Params) -> dict[str, str]:
    """What a file says of params."""
    return {
        "cell": params.cell,
        "dtype": np.dtype(params.dtype).name,
        "input_size": str(params.input_size),
        "hidden_size": str(params.hidden_size),
        "num_layers": str(params.num_layers),
        "bidirectional": str(params.bidirectional),
        "bias": str(params.bias),
    }


def described(arrays: Mapping[str, Any], own: Mapping[str, str]) -> Params:
    """Params of arrays, if these are what the file says.

    Raises
    ------
    RefusedError
        If they are not.
    """
    cell = own[f"{OWN}cell"]
    if cell not in CELLS:
        raise RefusedError(
            f"it is of cell {cell!r}, which is not among {', '.join(CELLS)}: register a cell of "
            "your own by fastgru.register_cell before loading, or upgrade fastgru"
        )
    try:
        params = Params.from_dict(arrays, cell=cell)
    except (TypeError, ValueError) as error:
        raise RefusedError(
            f"its weights are not those of cell {cell!r}: {error}; save it again"
        ) from error
    for key, value in description(params).items():
        said = own.get(OWN + key)
        if said != value:
            raise RefusedError(
                f"{OWN}{key} is {said!r}, but by its weights it is {value!r}; {DAMAGED}"
            )
    return params


def _read(path: Any) -> Params:
    """Params of a file.

    Raises
    ------
    ValueError
        That names the file.
    """
    check_path(path)
    with naming(path):
        content = read(path, _ALLOWED, KEYS)
        kind = content.own.get(f"{OWN}kind")
        if kind is not None:
            raise RefusedError(f"it holds a {kind} of fastgru.training, not params alone")
        return described(content.arrays, content.own)
