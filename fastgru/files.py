"""Params in files of the safetensors format, written and read without the package of that name.

A file is the length of the header, 8 bytes, little-endian; the header, JSON, with dtype, shape and
place of each array by its name, and strings by their keys in ``__metadata__``; then the arrays, one
after the other, without gaps. Everything in it is checked before it is believed.

`json` and `hashlib` are imported when files are written or read: `import fastgru` loads neither.
"""

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .check import check_metadata, check_path, check_type
from .kernels.cells import CELLS
from .params import Params

_VERSION = 1  # of what the keys below mean
_OWN = "fastgru."  # how their names start; the user's do not
_CHECKSUM = f"{_OWN}sha256"
_KEYS = tuple(
    _OWN + key
    for key in (
        *("cell", "dtype", "input_size", "hidden_size", "num_layers", "bidirectional", "bias"),
        "sha256",
    )
)
_DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_LENGTH_BYTES, _ALIGNMENT = 8, 8
# A header that is read takes up to 20 times its length in memory. This one has room for 40 000
# arrays.
_LONGEST_HEADER = 4 << 20
_DEPTH_OF = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_DEPTH = 3  # of the header's nested objects and arrays
# Strings, which may hold brackets, are passed over; one without an end goes to the end of the text,
# so no part of it is looked at twice.
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


class _Entry(NamedTuple):
    """An array of a file."""

    dtype: str
    shape: tuple[int, ...]
    first: int  # byte of the data
    last: int  # the first byte after it


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
    # A library that has other memory than NumPy's copies its arrays into that.
    to_numpy = getattr(sys.modules[params.library], "asnumpy", np.asarray)
    dtype = next(name for name, kind in _DTYPES.items() if kind.itemsize == params.dtype.itemsize)
    arrays = {
        name: np.ascontiguousarray(to_numpy(array), _DTYPES[dtype])
        for name, array in params.to_dict().items()
    }
    try:
        Params.from_dict(arrays, cell=params.cell)
    except ValueError as error:
        raise ValueError(
            f"params: expected all weights that load needs, as fastgru.init_params makes: {error}"
        ) from error
    entries, first = {}, 0
    for name, array in arrays.items():
        entries[name] = _Entry(dtype, array.shape, first, first + array.nbytes)
        first += array.nbytes
    own = _description(params)
    own[_CHECKSUM] = _checksum(own | notes, entries, arrays.values())
    header = _json({"__metadata__": own | notes} | _as_json(entries))
    header += b" " * (-len(header) % _ALIGNMENT)
    if len(header) > _LONGEST_HEADER:
        raise ValueError(
            f"metadata: expected a header of at most {_LONGEST_HEADER} bytes, got {len(header)}; "
            "keep long notes in a file of their own"
        )
    _replace(target, [len(header).to_bytes(_LENGTH_BYTES, "little"), header, *arrays.values()])


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


def _as_json(entries: Mapping[str, _Entry]) -> dict[str, Any]:
    """Arrays as the header has them."""
    return {
        name: {"dtype": e.dtype, "shape": e.shape, "data_offsets": (e.first, e.last)}
        for name, e in entries.items()
    }


def _json(value: Any) -> bytes:
    import json

    return json.dumps(value, separators=(",", ":")).encode()


def _checksum(metadata: Mapping[str, str], entries: Mapping[str, _Entry], arrays: Any) -> str:
    """Of everything that a file says, in whatever order and spelling of JSON."""
    import hashlib

    said = {key: text for key, text in sorted(metadata.items()) if key != _CHECKSUM}
    of = hashlib.sha256(_json([said, dict(sorted(_as_json(entries).items()))]))
    for array in arrays:  # in the order of the file
        of.update(array.data)
    return of.hexdigest()


def _replace(target: Path, parts: Sequence[Any]) -> None:
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


class _RefusedError(Exception):
    """Why a file is none that `save` wrote."""


_OTHER_PROGRAM = (
    "if another program wrote it, read it by safetensors.numpy.load_file and "
    "fastgru.Params.from_dict(arrays, cell=...)"
)
_DAMAGED = "it has been cut, damaged, or changed by another program: take an undamaged copy"


def _read(path: Any) -> tuple[Params, dict[str, str]]:
    """Params and notes of a file.

    Raises
    ------
    ValueError
        That names the file.
    """
    name = check_path(path)
    try:
        with name.open("rb") as file:
            return _content(file, os.fstat(file.fileno()).st_size)
    except _RefusedError as refusal:
        raise ValueError(f"{os.fspath(path)}: {refusal}") from refusal.__cause__


def _content(file: Any, size: int) -> tuple[Params, dict[str, str]]:
    """Params and notes of an open file of so many bytes."""
    header, data_size = _header_of(file, size)
    metadata = _metadata_of(header)
    entries = _entries_of(header, data_size)
    cell = _known_cell(metadata)
    arrays: dict[str, Any] = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1].first):
        array: Any = np.empty(entry.shape, _DTYPES[entry.dtype])
        arrays[name] = array
        if file.readinto(memoryview(array).cast("B")) != array.nbytes:
            raise _RefusedError(f"it was cut while it was read; {_DAMAGED}")
    if _checksum(metadata, entries, arrays.values()) != metadata[_CHECKSUM]:
        raise _RefusedError(f"its content does not match its checksum; {_DAMAGED}")
    try:
        params = Params.from_dict({n: _native(a) for n, a in arrays.items()}, cell=cell)
    except (TypeError, ValueError) as error:
        raise _RefusedError(
            f"its weights are not those of cell {cell!r}: {error}; save it again"
        ) from error
    for key, value in _description(params).items():
        if metadata.get(key) != value:
            raise _RefusedError(
                f"{key} is {metadata.get(key)!r}, but by its weights it is {value!r}; {_DAMAGED}"
            )
    return params, {key: text for key, text in metadata.items() if not key.startswith(_OWN)}


def _native(array: Any) -> Any:
    """An array in the machine's byte order, which nearly always it has."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _header_of(file: Any, size: int) -> tuple[dict[str, Any], int]:
    """The header, unchecked but for its form, and the size of what follows it."""
    import json

    most = min(size - _LENGTH_BYTES, _LONGEST_HEADER)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if most < 2 or not 2 <= length <= most:
        raise _RefusedError(
            f"expected a header of 2 to {max(most, 2)} bytes in a file of {size}, got {length}: it "
            f"is no safetensors file of fastgru, or {_DAMAGED}"
        )
    text = file.read(length)
    if not _is_shallow(text):
        raise _RefusedError(
            f"its header is nested deeper than that of a safetensors file; {_DAMAGED}"
        )
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except ValueError as error:  # of JSON, of UTF-8, of numbers with thousands of digits
        raise _RefusedError(f"its header is not JSON ({error}); {_DAMAGED}") from error
    if type(header) is not dict:
        raise _RefusedError(f"its header is no JSON object; {_DAMAGED}")
    return header, size - _LENGTH_BYTES - length


def _is_shallow(text: bytes) -> bool:
    """Whether nothing is nested deeper than in a header: parsers of JSON call themselves."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth += _DEPTH_OF.get(text[found.start()], 0)
        if depth > _DEPTH:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    return made


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _metadata_of(header: dict[str, Any]) -> dict[str, str]:
    """All strings of a header, with those that must be there."""
    metadata = header.pop("__metadata__", {})
    try:
        checked = check_metadata(metadata)
    except (TypeError, ValueError) as error:
        raise _RefusedError(f"{error}; {_DAMAGED}") from error
    version = checked.get(f"{_OWN}version")
    if version is None:
        raise _RefusedError(f"expected metadata of fastgru.save, got none; {_OTHER_PROGRAM}")
    if version != str(_VERSION):
        if re.fullmatch("[1-9][0-9]{0,8}", version):
            raise _RefusedError(
                f"version {version} of the format, which a later fastgru wrote; this one reads "
                f"version {_VERSION}: upgrade fastgru"
            )
        raise _RefusedError(
            f"expected version {_VERSION} of the format, got {version!r}; {_DAMAGED}"
        )
    missing = [key for key in _KEYS if key not in checked]
    if missing:
        raise _RefusedError(f"metadata lacks {', '.join(missing)}; {_DAMAGED}")
    return checked


def _known_cell(metadata: Mapping[str, str]) -> str:
    """The cell's name, if there is one."""
    cell = metadata[f"{_OWN}cell"]
    if cell not in CELLS:
        raise _RefusedError(
            f"it is of cell {cell!r}, which is not among {', '.join(CELLS)}: register a cell of "
            "your own by fastgru.register_cell before loading, or upgrade fastgru"
        )
    return cell


def _entries_of(header: dict[str, Any], data_size: int) -> dict[str, _Entry]:
    """Dtype, shape and place of each array, if together they are all of the data."""
    entries = {name: _entry(name, value) for name, value in header.items()}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].first):
        if entry.first != at:
            raise _RefusedError(
                f"{name!r}: expected data from byte {at} on, after the array before, got "
                f"{entry.first}; {_DAMAGED}"
            )
        at = entry.last
    if at != data_size:
        raise _RefusedError(f"expected {at} bytes of data, got {data_size}; {_DAMAGED}")
    return entries


def _entry(name: str, value: Any) -> _Entry:
    """Dtype, shape and place of an array, if they fit each other."""
    if type(value) is not dict or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _RefusedError(
            f"{name!r}: expected dtype, shape and data_offsets, got {value!r}; {_DAMAGED}"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in _DTYPES:
        raise _RefusedError(
            f"{name!r}: expected dtype {' or '.join(_DTYPES)}, got {dtype!r}: save float32 or "
            "float64 params"
        )
    if not _are_sizes(shape) or 0 in shape:
        raise _RefusedError(
            f"{name!r}: expected a shape of sizes from 1 up, got {shape!r}; {_DAMAGED}"
        )
    nbytes = math.prod(shape) * _DTYPES[dtype].itemsize
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise _RefusedError(
            f"{name!r}: expected the first and last of {nbytes} bytes, got {offsets!r}; {_DAMAGED}"
        )
    return _Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: Any) -> bool:
    """Whether it is a short list of whole numbers that a size or an offset can be."""
    return (
        type(value) is list
        and len(value) <= 2
        and all(type(number) is int and 0 <= number < 2**63 for number in value)
    )
