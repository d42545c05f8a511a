"""Params in files of the safetensors format, with what else they are, notes, and a checksum.

`hashlib` is imported when files are written or read: `import fastgru` does not load it.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .check import check_metadata, check_path, check_type
from .kernels.cells import CELLS
from .params import Params
from .safetensors import (
    DAMAGED,
    DTYPES,
    Allowed,
    Entry,
    RefusedError,
    compact,
    entries_of,
    entry_of,
    header_text,
    members_of,
    metadata_of,
    naming,
    native,
    read_array,
    read_header,
)

_OWN = "fastgru."  # how the names of its metadata start; the user's do not
_VERSION = 1  # of what the keys below mean
_CHECKSUM = f"{_OWN}sha256"
_KEYS = tuple(
    _OWN + key
    for key in (
        *("cell", "dtype", "input_size", "hidden_size", "num_layers", "bidirectional", "bias"),
        "sha256",
    )
)
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
    target = Path(os.path.realpath(check_path(path)))
    check_type("params", params, Params)
    notes = check_metadata(metadata)
    for key in notes:
        if key.startswith(_OWN):
            raise ValueError(
                f"metadata: expected keys that do not start with {_OWN!r}, as fastgru's own do, "
                f"got {key!r}"
            )
    arrays = on_host(params)
    try:
        Params.from_dict(arrays, cell=params.cell)
    except ValueError as error:
        raise ValueError(
            f"params: expected all weights that load needs, as fastgru.init_params makes: {error}"
        ) from error
    dtype = next(kind for kind in _ALLOWED.dtypes if DTYPES[kind].itemsize == params.dtype.itemsize)
    entries, first = {}, 0
    for name, array in arrays.items():
        arrays[name] = array = array.astype(DTYPES[dtype], copy=False)
        entries[name] = Entry(dtype, array.shape, first, first + array.nbytes)
        first += array.nbytes
    own = _description(params)
    own[_CHECKSUM] = _checksum(own | notes, entries, arrays.values())
    replace_file(target, [header_text(own | notes, entries), *arrays.values()])


def on_host(params: Params) -> dict[str, Any]:
    """Arrays by their full names, C-contiguous, in NumPy's memory: copies, where they are not."""
    # A library that has other memory than NumPy's copies its arrays into that.
    to_numpy = getattr(sys.modules[params.library], "asnumpy", np.asarray)
    return {name: np.ascontiguousarray(to_numpy(a)) for name, a in params.to_dict().items()}


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
    return _read(path)[0]


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the notes that `save` wrote beside params.

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
    return _read(path)[1]


def is_own(metadata: Mapping[str, str]) -> bool:
    """Whether `save` wrote a file of these strings, even if they are damaged."""
    return any(key.startswith(_OWN) for key in metadata)


# --- what a file says -----------------------------------------------------------------------------


def _description(params: Params) -> dict[str, str]:
    """The metadata of fastgru's own, but for the checksum."""
    return {
        f"{_OWN}version": str(_VERSION),
        f"{_OWN}cell": params.cell,
        f"{_OWN}dtype": np.dtype(params.dtype).name,
        f"{_OWN}input_size": str(params.input_size),
        f"{_OWN}hidden_size": str(params.hidden_size),
        f"{_OWN}num_layers": str(params.num_layers),
        f"{_OWN}bidirectional": str(params.bidirectional),
        f"{_OWN}bias": str(params.bias),
    }


def _checksum(metadata: Mapping[str, str], entries: Mapping[str, Entry], arrays: Any) -> str:
    """Of everything that a file says, in whatever order and spelling of JSON."""
    import hashlib

    said = {key: text for key, text in sorted(metadata.items()) if key != _CHECKSUM}
    of = hashlib.sha256(compact([said, dict(sorted(members_of(entries).items()))]))
    for array in arrays:  # in the order of the file
        of.update(array.data)
    return of.hexdigest()


def replace_file(target: Path, parts: Sequence[Any]) -> None:
    """Write a file that takes the place of `target` when it is complete."""
    written = target.with_name(f".fastgru-{os.urandom(8).hex()}.tmp")
    try:
        with written.open("xb") as file:
            for part in parts:
                file.write(memoryview(part))
            file.flush()
            os.fsync(file.fileno())  # or the name could reach the disk before the content
        written.replace(target)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


# --- reading --------------------------------------------------------------------------------------


_OTHER_PROGRAM = (
    "if another program wrote it, read it by safetensors.numpy.load_file and "
    "fastgru.Params.from_dict(arrays, cell=...)"
)


def _read(path: Any) -> tuple[Params, dict[str, str]]:
    """Params and notes of a file.

    Raises
    ------
    ValueError
        That names the file.
    """
    name = check_path(path)
    with naming(path), name.open("rb") as file:
        return _content(file, os.fstat(file.fileno()).st_size)


def _content(file: Any, size: int) -> tuple[Params, dict[str, str]]:
    """Params and notes of an open file of so many bytes."""
    header, data_size = read_header(file, size, " of fastgru")
    metadata = _own_metadata(metadata_of(header))
    entries = entries_of({name: _entry(name, value) for name, value in header.items()}, data_size)
    cell = _known_cell(metadata)
    in_order = sorted(entries.items(), key=lambda item: item[1].first)
    arrays = {name: read_array(file, entry) for name, entry in in_order}
    if _checksum(metadata, entries, arrays.values()) != metadata[_CHECKSUM]:
        raise RefusedError(f"its content does not match its checksum; {DAMAGED}")
    try:
        params = Params.from_dict({n: native(a) for n, a in arrays.items()}, cell=cell)
    except (TypeError, ValueError) as error:
        raise RefusedError(
            f"its weights are not those of cell {cell!r}: {error}; save it again"
        ) from error
    for key, value in _description(params).items():
        if metadata.get(key) != value:
            raise RefusedError(
                f"{key} is {metadata.get(key)!r}, but by its weights it is {value!r}; {DAMAGED}"
            )
    return params, {key: text for key, text in metadata.items() if not key.startswith(_OWN)}


def _own_metadata(checked: dict[str, str]) -> dict[str, str]:
    """All strings of a header, if those are there that must be."""
    version = checked.get(f"{_OWN}version")
    if version is None:
        raise RefusedError(f"expected metadata of fastgru.save, got none; {_OTHER_PROGRAM}")
    if version != str(_VERSION):
        if re.fullmatch("[1-9][0-9]{0,8}", version):
            raise RefusedError(
                f"version {version} of the format, which a later fastgru wrote; this one reads "
                f"version {_VERSION}: upgrade fastgru"
            )
        raise RefusedError(f"expected version {_VERSION} of the format, got {version!r}; {DAMAGED}")
    missing = [key for key in _KEYS if key not in checked]
    if missing:
        raise RefusedError(f"metadata lacks {', '.join(missing)}; {DAMAGED}")
    return checked


def _known_cell(metadata: Mapping[str, str]) -> str:
    """The cell's name, if there is one."""
    cell = metadata[f"{_OWN}cell"]
    if cell not in CELLS:
        raise RefusedError(
            f"it is of cell {cell!r}, which is not among {', '.join(CELLS)}: register a cell of "
            "your own by fastgru.register_cell before loading, or upgrade fastgru"
        )
    return cell


def _entry(name: str, value: Any) -> Entry:
    """Dtype, shape and place of an array, if it can be one of params."""
    return entry_of(name, value, _ALLOWED)
