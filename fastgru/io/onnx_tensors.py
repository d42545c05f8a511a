"""Models and tensors of ONNX files as they are stored, checked before memory is taken."""

import os
import reprlib
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .convention import bfloat16_to_float32

# For each type of elements: the dtype that raw bytes have, the field that holds elements one by
# one, and the dtype that those bits are stored in there.
_KINDS: dict[int, tuple[str, str, str]] = {
    1: ("<f4", "float_data", "<f4"),
    2: ("u1", "int32_data", "u1"),
    3: ("i1", "int32_data", "i1"),
    4: ("<u2", "int32_data", "<u2"),
    5: ("<i2", "int32_data", "<i2"),
    6: ("<i4", "int32_data", "<i4"),
    7: ("<i8", "int64_data", "<i8"),
    9: ("?", "int32_data", "?"),
    10: ("<f2", "int32_data", "<u2"),
    11: ("<f8", "double_data", "<f8"),
    12: ("<u4", "uint64_data", "<u4"),
    13: ("<u8", "uint64_data", "<u8"),
    16: ("<u2", "int32_data", "<u2"),  # bfloat16, whose bits become float32
}
BFLOAT16 = 16
_FIELDS = sorted({field for _, field, _ in _KINDS.values()})

# What may be made from a file, in multiples of its size: weights of 8 bits that become float32,
# as folded ones and as a layer's, for two branches that share them, take 16 times theirs.
_TIMES, _AT_LEAST = 16, 1 << 16


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


def shown(name: Any) -> str:
    """A name of a file for a message: a long one is cut."""
    return _REPR.repr(name)


def check_text(*names: Any) -> None:
    """Refuse names that are no UTF-8, which some versions of protobuf give as bytes."""
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"expected names in UTF-8, got {shown(name)}")


class Budget:
    """How many bytes reading a model may take: a small multiple of the file's size.

    Parameters
    ----------
    size : int
        Bytes of the file.
    """

    def __init__(self, size: int) -> None:
        self.size, self.spent = size, 0
        self._files: set[Path] = set()

    def grow(self, path: Path, size: int) -> None:
        """Take in a file in which a part of the model lies, once."""
        if path not in self._files:
            self._files.add(path)
            self.size += size

    def spend(self, nbytes: int, what: str) -> None:
        """Refuse to go on when the model makes more than its size can stand for."""
        self.spent += nbytes
        most = _TIMES * self.size + _AT_LEAST
        if self.spent > most:
            raise ValueError(
                f"{what}: would make {self.spent} bytes of a model of {self.size}, expected at "
                f"most {most}; it repeats constants, or has been damaged"
            )


def element_dtype(code: int, what: str) -> Any:
    """The dtype of elements by ONNX's number, as tensors are read and cast.

    Raises
    ------
    ValueError
        If they are no plain numbers: text, complex numbers, or less than 8 bits.
    """
    if code not in _KINDS:
        raise ValueError(
            f"{what}: expected elements of float16, bfloat16, float32, float64, bool or whole "
            f"numbers of 8 to 64 bits, got type {code} of onnx.TensorProto"
        )
    return np.dtype(np.float32) if code == BFLOAT16 else np.dtype(_KINDS[code][0])


def array_of(tensor: Any, folder: Path | None, budget: Budget) -> Any:
    """The array of a TensorProto, which nobody may write to.

    Parameters
    ----------
    tensor : onnx.TensorProto
    folder : Path or None
        Where the file of the model lies, and where alone data outside of it may lie.
    budget : Budget

    Returns
    -------
    array
        In the machine's byte order; bfloat16 as float32, which is exact.

    Raises
    ------
    ValueError
        If sizes are negative, do not fit the data, or external data lies elsewhere.
    """
    what = f"tensor {shown(tensor.name)}"
    element_dtype(tensor.data_type, what)
    stored, field, in_field = _KINDS[tensor.data_type]
    dims = [int(n) for n in tensor.dims]
    if any(n < 0 for n in dims) or len(dims) > 32:
        raise ValueError(f"{what}: expected sizes from 0 up, got {dims[:32]}")
    count = 1
    for n in dims:
        count *= n
    dtype = np.dtype(stored)
    if tensor.data_location == tensor.EXTERNAL:
        raw = _external(tensor, folder, count * dtype.itemsize, what, budget)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        raw = None
    used = [name for name in _FIELDS if len(getattr(tensor, name))]
    if used and (raw is not None or used != [field]):
        raise ValueError(f"{what}: expected data in one place, got {', '.join(used)} as well")
    got = len(getattr(tensor, field)) * dtype.itemsize if raw is None else len(raw)
    if got != count * dtype.itemsize:
        raise ValueError(
            f"{what}: expected {count * dtype.itemsize} bytes for shape {tuple(dims)}, got {got}"
        )
    budget.spend(got, what)
    if raw is None:
        array = _from_field(np.array(getattr(tensor, field)), in_field, stored, what)
    else:
        array = np.frombuffer(raw, dtype)
    if tensor.data_type == BFLOAT16:
        array = bfloat16_to_float32(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False).reshape(dims)
    array.flags.writeable = False
    return array


def _from_field(numbers: Any, in_field: str, stored: str, what: str) -> Any:
    """Elements that a tensor has one by one; 16-bit floats come as their bits."""
    narrow = numbers.astype(in_field)
    if not np.array_equal(narrow, numbers, equal_nan=narrow.dtype.kind == "f"):
        raise ValueError(f"{what}: expected numbers of {np.dtype(in_field)}, got larger ones")
    return narrow.view(stored)


def _external(tensor: Any, folder: Path | None, nbytes: int, what: str, budget: Budget) -> bytes:
    """The bytes of a tensor that lie in a file beside the model's."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    check_text(*entries, *entries.values())
    location = entries.get("location", "")
    if folder is None:
        raise ValueError(
            f"{what}: its data is in the file {shown(location)} beside the model's; give the "
            "model by the name of its file"
        )
    path = _inside(location, folder, what)
    offset, length = _number(entries, "offset", 0, what), _number(entries, "length", nbytes, what)
    try:
        descriptor = os.open(path, os.O_RDONLY | _CAUTIOUS)
    except OSError as error:
        raise ValueError(f"{what}: its data should be in {shown(str(path))}: {error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{what}: expected a regular file for its data, got {path}")
        if length != nbytes or offset + length > status.st_size:
            raise ValueError(
                f"{what}: expected {nbytes} bytes within the {status.st_size} of {path}, got "
                f"{length} from byte {offset} on"
            )
        budget.grow(path, status.st_size)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            file.seek(offset)
            return file.read(length)
    finally:
        os.close(descriptor)


# Neither follow a link that has taken the file's place, nor wait for a pipe's other end.
_CAUTIOUS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def _inside(location: str, folder: Path, what: str) -> Path:
    """The file of that name in a folder, if neither the name nor a link leads out of it."""
    base = Path(os.path.realpath(folder))
    if not location or "\0" in location or "\\" in location or ":" in location:
        raise ValueError(f"{what}: expected the name of a file for its data, got {shown(location)}")
    path = Path(os.path.realpath(base / location))
    if Path(location).is_absolute() or ".." in Path(location).parts or base not in path.parents:
        raise ValueError(
            f"{what}: expected its data in the model's folder, got {shown(location)}; a file "
            "elsewhere is not opened, nor a link to one"
        )
    return path


def _number(entries: Mapping[str, str], key: str, default: int, what: str) -> int:
    """A whole number from 0 up, as external data has it: text."""
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"{what}: expected {key} of its data from 0 up, got {shown(text)}")
    return int(text)
