"""The safetensors format, read and written without the package of that name; and checked JSON.

A file is the length of the header, 8 bytes, little-endian; the header, JSON, with dtype, shape and
place of each array by its name, and strings by their keys in ``__metadata__``; then the arrays, one
after the other, without gaps. Everything in it is checked before it is believed.

`json` is imported when files are written or read: `import fastgru` does not load it.
"""

import contextlib
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .check import check_metadata, check_path

# Bits of an element, for all dtypes of the format.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# Those that NumPy has, and the bits of bfloat16.
DTYPES: dict[str, Any] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
DAMAGED = "it has been cut, damaged, or changed by another program: take an undamaged copy"
_LENGTH_BYTES, _ALIGNMENT = 8, 8
# A header that is read takes up to 20 times its length in memory. This one has room for 40 000
# arrays.
LONGEST_HEADER = 4 << 20
_DEPTH_OF = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_DEPTH = 3  # of the header's nested objects and arrays
# Strings, which may hold brackets, are passed over; one without an end goes to the end of the text,
# so no part of it is looked at twice.
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


class Entry(NamedTuple):
    """An array of a file."""

    dtype: str
    shape: tuple[int, ...]
    first: int  # byte of the data
    last: int  # the first byte after it


class Allowed(NamedTuple):
    """What the arrays of a file may be.

    Attributes
    ----------
    dtypes : collection of str
        Of the format.
    least : int
        The smallest size that a shape may have.
    dimensions : int
        How many sizes it may have; more than 8 would be a sign of damage.
    remedy : str
        For other dtypes.
    """

    dtypes: Collection[str]
    least: int = 0
    dimensions: int = 8
    remedy: str = DAMAGED


ANY = Allowed(BITS)


class RefusedError(Exception):
    """Why the content of a file is refused; `naming` makes a ValueError of it."""


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
    """Raise a ValueError that names the file in place of a `RefusedError`."""
    try:
        yield
    except RefusedError as refusal:
        raise ValueError(f"{os.fspath(path)}: {refusal}") from refusal.__cause__


class File:
    """A safetensors file of any program, open, its header checked.

    Attributes
    ----------
    metadata : dict of str to str
    entries : dict of str to Entry
        Arrays by name, in the order of the header.
    """

    def __init__(self, file: Any, size: int) -> None:
        header, data_size = read_header(file, size)
        self.metadata = metadata_of(header)
        self.entries = entries_of({n: entry_of(n, e, ANY) for n, e in header.items()}, data_size)
        self._file, self._start = file, size - data_size

    def read(self, name: str) -> Any:
        """An array in memory of its own; bfloat16 as 16-bit patterns.

        Raises
        ------
        RefusedError
            If its dtype is not among `DTYPES`.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise RefusedError(
                f"{name!r}: expected dtype {', '.join(DTYPES)}, got {entry.dtype}: convert it"
            )
        self._file.seek(self._start + entry.first)
        return native(read_array(self._file, entry))


@contextlib.contextmanager
def opened(path: Any) -> Iterator[File]:
    """Open a file of any program. What is refused in the block is a ValueError that names it."""
    name = check_path(path)
    with naming(path), name.open("rb") as file:
        yield File(file, os.fstat(file.fileno()).st_size)


# --- parts of a file ------------------------------------------------------------------------------


def read_header(file: Any, size: int, whose: str = "") -> tuple[dict[str, Any], int]:
    """The header, unchecked but for its form, and the size of what follows it."""
    most = min(size - _LENGTH_BYTES, LONGEST_HEADER)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if most < 2 or not 2 <= length <= most:
        raise RefusedError(
            f"expected a header of 2 to {max(most, 2)} bytes in a file of {size}, got {length}: it "
            f"is no safetensors file{whose}, or {DAMAGED}"
        )
    text = file.read(length)
    if not is_shallow(text, _DEPTH):
        raise RefusedError(
            f"its header is nested deeper than that of a safetensors file; {DAMAGED}"
        )
    try:
        header = parsed(text)
    except ValueError as error:
        raise RefusedError(f"its header is not JSON ({error}); {DAMAGED}") from error
    if type(header) is not dict:
        raise RefusedError(f"its header is no JSON object; {DAMAGED}")
    return header, size - _LENGTH_BYTES - length


def metadata_of(header: dict[str, Any]) -> dict[str, str]:
    """The strings of a header, which are taken out of it."""
    try:
        return check_metadata(header.pop("__metadata__", {}))
    except (TypeError, ValueError) as error:
        raise RefusedError(f"{error}; {DAMAGED}") from error


def entries_of(entries: dict[str, Entry], data_size: int) -> dict[str, Entry]:
    """The same entries, if together they are all of the data."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.first != at:
            raise RefusedError(
                f"{name!r}: expected data from byte {at} on, after the array before, got "
                f"{entry.first}; {DAMAGED}"
            )
        at = entry.last
    if at != data_size:
        raise RefusedError(f"expected {at} bytes of data, got {data_size}; {DAMAGED}")
    return entries


def entry_of(name: str, value: Any, allowed: Allowed) -> Entry:
    """Dtype, shape and place of an array, if they are allowed and fit each other."""
    if type(value) is not dict or set(value) != {"dtype", "shape", "data_offsets"}:
        raise RefusedError(
            f"{name!r}: expected dtype, shape and data_offsets, got {value!r}; {DAMAGED}"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in allowed.dtypes:
        raise RefusedError(
            f"{name!r}: expected dtype {' or '.join(allowed.dtypes)}, got {dtype!r}: "
            f"{allowed.remedy}"
        )
    if not _are_sizes(shape, allowed.dimensions) or min(shape, default=1) < allowed.least:
        raise RefusedError(
            f"{name!r}: expected a shape of sizes from {allowed.least} up, got {shape!r}; {DAMAGED}"
        )
    bits = math.prod(shape) * BITS[dtype]
    if not _are_sizes(offsets) or len(offsets) != 2 or 8 * (offsets[1] - offsets[0]) != bits:
        raise RefusedError(
            f"{name!r}: expected the first and last of {bits // 8} bytes, got {offsets!r}; "
            f"{DAMAGED}"
        )
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: Any, at_most: int = 2) -> bool:
    """Whether it is a short list of whole numbers that a size or an offset can be."""
    return (
        type(value) is list
        and len(value) <= at_most
        and all(type(number) is int and 0 <= number < 2**63 for number in value)
    )


def read_array(file: Any, entry: Entry) -> Any:
    """The next array of an open file, in memory of its own and the file's byte order."""
    array: Any = np.empty(entry.shape, DTYPES[entry.dtype])
    if array.size and file.readinto(memoryview(array).cast("B")) != array.nbytes:
        raise RefusedError(f"it was cut while it was read; {DAMAGED}")
    return array


def native(array: Any) -> Any:
    """An array in the machine's byte order, which nearly always it has."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def header_text(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> bytes:
    """The beginning of a file, up to its data.

    Raises
    ------
    ValueError
        If it is longer than one that is read.
    """
    header = compact({"__metadata__": metadata} | members_of(entries))
    header += b" " * (-len(header) % _ALIGNMENT)
    if len(header) > LONGEST_HEADER:
        raise ValueError(
            f"metadata: expected a header of at most {LONGEST_HEADER} bytes, got {len(header)}; "
            "keep long notes in a file of their own"
        )
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header


def members_of(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Arrays as the header has them."""
    return {
        name: {"dtype": e.dtype, "shape": e.shape, "data_offsets": (e.first, e.last)}
        for name, e in entries.items()
    }


# --- JSON -----------------------------------------------------------------------------------------


def compact(value: Any) -> bytes:
    """JSON without spaces."""
    import json

    return json.dumps(value, separators=(",", ":")).encode()


def is_shallow(text: bytes, depth: int) -> bool:
    """Whether nothing is nested deeper than that: parsers of JSON call themselves."""
    reached = 0
    for found in _BRACKETS.finditer(text):
        reached += _DEPTH_OF.get(text[found.start()], 0)
        if reached > depth:
            return False
    return True


def parsed(text: bytes) -> Any:
    """JSON whose names are all different, and whose numbers are numbers.

    Raises
    ------
    ValueError
        Of JSON, of UTF-8, of numbers with thousands of digits.
    """
    import json

    return json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_number)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different, and can be printed."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    "".join(made).encode()  # a ValueError for half a character
    return made


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
