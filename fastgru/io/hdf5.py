"""HDF5 files, read so that a damaged or hostile one can do no more than raise ValueError.

Only what a file holds by itself is read: groups, arrays that lie in one piece, short attributes of
text. Links to elsewhere, storage in other files, filters and references are refused before the
library follows them. What is read of a file is never more than the file is long.
"""

import bisect
import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..safetensors import RefusedError
from .convention import bfloat16_to_float32
from .hdf5_texts import Texts
from .keras_errors import DAMAGED

_DEEPEST = 64  # groups in groups
# What h5py raises on damaged files, as experience with such files shows.
_FAILURES = (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError, MemoryError)


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """What h5py raises on damaged files as `RefusedError`."""
    try:
        yield
    except _FAILURES as error:
        raise RefusedError(f"cannot be read as HDF5 ({error}); {DAMAGED}") from error


class Array:
    """An array of a file, not yet read.

    Attributes
    ----------
    path : str
        In the file.
    shape : tuple of int
    dtype : str
        By NumPy's name; ``"bfloat16"`` too.
    """

    def __init__(self, path: str, dataset: Any) -> None:
        self.path = path
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype = str(np.dtype(dataset.dtype))
        # Keras writes bfloat16 as bytes without a meaning, and nothing else of that kind.
        if dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2:
            self.dtype = "bfloat16"
        self._dataset = dataset

    def read(self) -> Any:
        """The numbers; bfloat16 as float32."""
        with damage():
            array = self._dataset[()]
        if self.dtype == "bfloat16":
            return bfloat16_to_float32(array.view("<u2"))
        return array


class Store:
    """An open file.

    Parameters
    ----------
    file : binary file
    size : int
        Its length.
    """

    def __init__(self, file: Any, size: int) -> None:
        h5py = _h5py()
        self._texts = Texts(file, size)
        try:
            self.root = h5py.File(file, "r")
        except BaseException:
            self._texts.close()
            raise
        self._h5 = h5py
        self._size = size
        self._seen: set[int] = set()  # addresses of groups
        self._places: list[
            tuple[int, int, str]
        ] = []  # of arrays: first and last byte, path; sorted

    def close(self) -> None:
        """Release the file."""
        self.root.close()
        self._texts.close()

    def children(self, group: Any) -> list[str]:
        """Names in a group, in the file's order, which is alphabetical.

        Raises
        ------
        RefusedError
            If one is a link to elsewhere.
        """
        names = [*group]
        for name in names:
            if not isinstance(group.get(name, getlink=True), self._h5.HardLink):
                raise RefusedError(
                    f"{_path(group)}/{name}: expected a group or an array, got a link to another "
                    "place, which is not followed"
                )
        return names

    def group(self, parent: Any, name: str) -> Any:
        """A group in another, by a name that may be a path of several.

        Raises
        ------
        RefusedError
            If there is none, or it has been met before: groups may hold themselves.
        """
        member = parent
        for part in name.split("/"):
            member = self._member(member, part)
        if not isinstance(member, self._h5.Group):
            raise RefusedError(f"{member.name}: expected a group, got an array; {DAMAGED}")
        address = self._h5.h5o.get_info(member.id).addr
        if address in self._seen or member.name.count("/") > _DEEPEST:
            raise RefusedError(
                f"{member.name}: expected a tree of groups at most {_DEEPEST} deep, got one that "
                f"is deeper or holds itself; {DAMAGED}"
            )
        self._seen.add(address)
        return member

    def is_group(self, parent: Any, name: str) -> bool:
        """Whether a child is a group."""
        return isinstance(self._member(parent, name), self._h5.Group)

    def array(self, parent: Any, name: str) -> Array:
        """An array in a group, by a name that may be a path of several.

        Raises
        ------
        RefusedError
            If there is none, or its numbers are not in one piece of this file.
        """
        *groups, last = name.split("/")
        for part in groups:
            parent = self._member(parent, part)
        dataset = self._member(parent, last)
        if not isinstance(dataset, self._h5.Dataset):
            raise RefusedError(f"{dataset.name}: expected an array, got a group; {DAMAGED}")
        self._check_place(dataset)
        return Array(dataset.name.lstrip("/"), dataset)

    def text(self, owner: Any, name: str) -> str | None:
        """An attribute of one string; None if there is none."""
        values = self.texts(owner, name)
        if values is None:
            return None
        if len(values) != 1:
            raise RefusedError(f"{name}: expected one string, got {len(values)}; {DAMAGED}")
        return values[0]

    def texts(self, owner: Any, name: str) -> list[str] | None:
        """An attribute of strings; None if there is none."""
        return self._texts.of(self._h5.h5o.get_info(owner.id).addr, name)

    def _member(self, parent: Any, name: str) -> Any:
        """A child that lies in this file."""
        if not isinstance(parent, self._h5.Group):
            raise RefusedError(f"{parent.name}: expected a group, got an array; {DAMAGED}")
        if name in ("", ".", ".."):
            raise RefusedError(f"{_path(parent)}: expected names, got {name!r}; {DAMAGED}")
        link = parent.get(name, getlink=True)
        if link is None:
            raise RefusedError(f"{_path(parent)}/{name}: missing; {DAMAGED}")
        if not isinstance(link, self._h5.HardLink):
            raise RefusedError(
                f"{_path(parent)}/{name}: expected a group or an array, got a link to another "
                "place, which is not followed"
            )
        return parent[name]

    def _check_place(self, dataset: Any) -> None:
        """Refuse arrays that are not one piece of this file, which no other array shares."""
        name, layout = dataset.name, dataset.id.get_create_plist().get_layout()
        in_one_piece = (self._h5.h5d.CONTIGUOUS, self._h5.h5d.COMPACT)
        if dataset.external or dataset.is_virtual or layout not in in_one_piece:
            raise RefusedError(
                f"{name}: expected an array in one piece, as Keras writes it, got one that is "
                "compressed, in chunks, or in other files; `h5repack -l CONTI -f NONE` makes one"
            )
        kind = dataset.dtype
        if kind.kind not in "fiubV" or kind.hasobject or kind.names is not None or kind.subdtype:
            raise RefusedError(f"{name}: expected numbers, got {kind}; {DAMAGED}")
        if kind.kind == "f" and not self._is_ieee(dataset.id.get_type()):
            raise RefusedError(f"{name}: expected IEEE numbers, got a type of the file's own")
        nbytes = math.prod(dataset.shape) * kind.itemsize
        stored = dataset.id.get_storage_size()
        if nbytes > self._size or stored != nbytes:
            raise RefusedError(
                f"{name}: expected {nbytes} bytes for shape {dataset.shape} in a file of "
                f"{self._size}, got {stored}; {DAMAGED}"
            )
        first = dataset.id.get_offset()
        if first is None or not nbytes:
            return
        place = (first, first + nbytes, name)
        at = bisect.bisect(self._places, place)
        for other_first, other_last, other in self._places[max(at - 1, 0) : at + 1]:
            if first < other_last and other_first < first + nbytes:
                raise RefusedError(f"{name}: shares its bytes with {other}; {DAMAGED}")
        self._places.insert(at, place)

    def _is_ieee(self, kind: Any) -> bool:
        """Whether a type of floating-point numbers is one of NumPy's."""
        types = self._h5.h5t
        return any(
            kind.equal(getattr(types, f"IEEE_F{bits}{order}"))
            for bits in (16, 32, 64)
            for order in ("LE", "BE")
        )


def _path(group: Any) -> str:
    return str(group.name).rstrip("/")


def _h5py() -> Any:
    """The package h5py.

    Raises
    ------
    ModuleNotFoundError
        If it is not there.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'files of Keras need the package h5py: pip install "fastgru[keras]"', name="h5py"
        ) from error
    return h5py
