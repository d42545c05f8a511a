"""Arrays with what else they are, notes, and a checksum, in files of the safetensors format.

What fastgru writes goes through here: params, and what training keeps. `hashlib` is imported when
files are written or read: `import fastgru` does not load it.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .check import check_metadata, check_path
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
    native,
    read_array,
    read_header,
)

OWN = "fastgru."  # how the names of its metadata start; the user's do not
VERSION = 1  # of what the keys mean
CHECKSUM = f"{OWN}sha256"
_OTHER_PROGRAM = (
    "if another program wrote it, read it by safetensors.numpy.load_file and "
    "fastgru.Params.from_dict(arrays, cell=...)"
)


class Content(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    arrays : dict of str to array
    own : dict of str to str
        fastgru's own metadata, all of it.
    notes : dict of str to str
        The user's.
    """

    arrays: dict[str, Any]
    own: dict[str, str]
    notes: dict[str, str]


def checked_notes(metadata: Any) -> dict[str, str]:
    """The user's notes, if they are none of fastgru's own."""
    notes = check_metadata(metadata)
    for key in notes:
        if key.startswith(OWN):
            raise ValueError(
                f"metadata: expected keys that do not start with {OWN!r}, as fastgru's own do, "
                f"got {key!r}"
            )
    return notes


def write(
    path: Any, arrays: Mapping[str, Any], own: Mapping[str, str], notes: Mapping[str, str]
) -> None:
    """Write a file; one that is there is replaced, when the new one is complete.

    Parameters
    ----------
    path : str or os.PathLike
    arrays : mapping of str to array
        NumPy's, C-contiguous, of dtypes that the format has.
    own : mapping of str to str
        Keys without their prefix; version and checksum are added.
    notes : mapping of str to str
        Of the user, checked.
    """
    target = Path(os.path.realpath(check_path(path)))
    kinds = {np.dtype(kind): name for name, kind in DTYPES.items()}
    written, entries, first = [], {}, 0
    for name, array in arrays.items():
        kind = kinds[array.dtype.newbyteorder("<")]
        array = array.astype(DTYPES[kind], copy=False)
        entries[name] = Entry(kind, array.shape, first, first + array.nbytes)
        first += array.nbytes
        written.append(array)
    said = {f"{OWN}version": str(VERSION)} | {OWN + key: text for key, text in own.items()}
    said[CHECKSUM] = _checksum(said | dict(notes), entries, written)
    replace_file(target, [header_text(said | dict(notes), entries), *written])


def read(path: Any, allowed: Allowed, keys: Sequence[str]) -> Content:
    """Read a file that `write` wrote.

    Parameters
    ----------
    path : str or os.PathLike
    allowed : Allowed
        What its arrays may be.
    keys : sequence of str
        Of its own metadata, without their prefix, that must be there.

    Raises
    ------
    RefusedError
        If it is none, or damaged: `naming` makes a ValueError of it.
    """
    name = check_path(path)
    with name.open("rb") as file:
        header, data_size = read_header(file, os.fstat(file.fileno()).st_size, " of fastgru")
        metadata = _checked_metadata(metadata_of(header), keys)
        entries = entries_of(
            {name: entry_of(name, value, allowed) for name, value in header.items()}, data_size
        )
        in_order = sorted(entries.items(), key=lambda item: item[1].first)
        arrays = {name: read_array(file, entry) for name, entry in in_order}
    if _checksum(metadata, entries, arrays.values()) != metadata[CHECKSUM]:
        raise RefusedError(f"its content does not match its checksum; {DAMAGED}")
    return Content(
        {name: native(array) for name, array in arrays.items()},
        {k: text for k, text in metadata.items() if k.startswith(OWN)},
        {k: text for k, text in metadata.items() if not k.startswith(OWN)},
    )


def is_own(metadata: Mapping[str, str]) -> bool:
    """Whether fastgru wrote a file of these strings, even if they are damaged."""
    return any(key.startswith(OWN) for key in metadata)


def on_host(arrays: Mapping[str, Any], library: str) -> dict[str, Any]:
    """Arrays, C-contiguous, in NumPy's memory: copies, where they are not."""
    # A library that has other memory than NumPy's copies its arrays into that.
    to_numpy = getattr(sys.modules[library], "asnumpy", np.asarray)
    return {name: np.ascontiguousarray(to_numpy(array)) for name, array in arrays.items()}


def _checksum(metadata: Mapping[str, str], entries: Mapping[str, Entry], arrays: Any) -> str:
    """Of everything that a file says, in whatever order and spelling of JSON."""
    import hashlib

    said = {key: text for key, text in sorted(metadata.items()) if key != CHECKSUM}
    of = hashlib.sha256(compact([said, dict(sorted(members_of(entries).items()))]))
    for array in arrays:  # in the order of the file
        of.update(array.data)
    return of.hexdigest()


def _checked_metadata(found: dict[str, str], keys: Sequence[str]) -> dict[str, str]:
    """All strings of a header, if those are there that must be."""
    version = found.get(f"{OWN}version")
    if version is None:
        raise RefusedError(f"expected metadata of fastgru.save, got none; {_OTHER_PROGRAM}")
    if version != str(VERSION):
        if re.fullmatch("[1-9][0-9]{0,8}", version):
            raise RefusedError(
                f"version {version} of the format, which a later fastgru wrote; this one reads "
                f"version {VERSION}: upgrade fastgru"
            )
        raise RefusedError(f"expected version {VERSION} of the format, got {version!r}; {DAMAGED}")
    missing = [OWN + key for key in (*keys, "sha256") if OWN + key not in found]
    if missing:
        raise RefusedError(f"metadata lacks {', '.join(missing)}; {DAMAGED}")
    return found


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
