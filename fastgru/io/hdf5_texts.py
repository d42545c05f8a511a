"""Attributes of text in HDF5 files, read without the HDF5 library.

The library takes the lengths of texts from the file as they are: a wrong one makes it fill
gigabytes of memory, or loop without end. Here every length is held against what is there. What is
understood is what h5py writes by default, as Keras has it: version 1 of object headers, texts of
fixed length or in a heap.
"""

import io
import math
import mmap
from collections.abc import Iterator
from typing import Any

from ..safetensors import RefusedError
from .keras_errors import DAMAGED

# Where the first block of a file says how long addresses and lengths are, by its version.
_WIDTHS = {0: 13, 1: 13, 2: 9, 3: 9}
_CONTINUATION, _ATTRIBUTE = 0x10, 0x0C  # kinds of messages
_MESSAGE, _HEADER, _HEAP, _OBJECT = 8, 16, 16, 16  # bytes before what they describe
_FIXED, _VARIABLE = 3, 9  # classes of types


class Texts:
    """The attributes of text in a file.

    Parameters
    ----------
    file : binary file
    size : int
        Its length.

    Raises
    ------
    RefusedError
        If it is no HDF5 of the kind that Keras writes.
    """

    def __init__(self, file: Any, size: int) -> None:
        try:
            self._content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except io.UnsupportedOperation:  # it is in memory already
            self._content = file.getvalue()
        self._size = size
        width = _WIDTHS.get(self._content[8]) if size > _HEADER else None
        if width is None or self._content[width : width + 2] != b"\x08\x08":
            raise RefusedError(f"expected HDF5 as Keras writes it; {DAMAGED}")

    def close(self) -> None:
        """Release the file."""
        if isinstance(self._content, mmap.mmap):
            self._content.close()

    def of(self, address: int, name: str) -> list[str] | None:
        """The texts of an attribute of the object whose header is there; None if there is none.

        Raises
        ------
        RefusedError
            If it holds no text, or is damaged.
        """
        for message in self._attributes(address):
            version = message[0]
            if version not in (1, 2, 3):
                raise RefusedError(f"attribute of version {version}: expected 1 to 3; {DAMAGED}")
            sizes = [_number(message, at, 2) for at in (2, 4, 6)]
            start = 9 if version == 3 else 8
            parts = []
            for size in sizes:
                parts.append(message[start : start + size])
                start += -(-size // 8) * 8 if version == 1 else size
            if parts[0].rstrip(b"\0") == name.encode():
                if version > 1 and message[1]:
                    raise RefusedError(f"attribute {name}: its type is elsewhere; {DAMAGED}")
                return self._texts(name, parts[1], parts[2], message[start:])
        return None

    def _attributes(self, address: int) -> Iterator[bytes]:
        """The messages of an object's header that are attributes."""
        if self._at(address, 1) != b"\1":
            raise RefusedError(
                "expected version 1 of object headers, as h5py writes by default; h5py's "
                'File(..., libver="earliest") copies into such a file'
            )
        left = _number(self._at(address + 2, 2), 0, 2)
        blocks = [(address + _HEADER, _number(self._at(address + 8, 4), 0, 4))]
        budget = self._size  # no byte is looked at twice in a file that is as it should be
        for first, size in blocks:  # which grow
            block, at = self._at(first, min(size, budget + 1)), 0
            budget -= size
            if budget < 0:
                raise RefusedError(f"the header at byte {address} holds itself; {DAMAGED}")
            while at + _MESSAGE <= len(block) and left > 0:
                kind, length = _number(block, at, 2), _number(block, at + 2, 2)
                content = block[at + _MESSAGE : at + _MESSAGE + length]
                if len(content) != length:
                    raise RefusedError(f"the header at byte {address} is cut; {DAMAGED}")
                if kind == _CONTINUATION and length >= 16:
                    blocks.append((_number(content, 0, 8), _number(content, 8, 8)))
                # Flag 2: the message is elsewhere.
                elif kind == _ATTRIBUTE and length >= 9 and not block[at + 4] & 2:
                    yield content
                at, left = at + _MESSAGE + length, left - 1

    def _texts(self, name: str, kind: bytes, space: bytes, data: bytes) -> list[str]:
        """The texts of an attribute, out of its type, its shape and its content."""
        if len(kind) < 8 or len(space) < 4:
            raise RefusedError(f"attribute {name}: cut; {DAMAGED}")
        # The first version has four bytes more before the sizes; the second knows empty ones.
        start = 8 if space[0] == 1 else 4
        sizes = [_number(space, start + 8 * n, 8) for n in range(space[1])]
        count = 0 if space[0] == 2 and space[3] == 2 else math.prod(sizes)
        if not count:
            return []  # of no type in particular
        form, size = kind[0] & 15, _number(kind, 4, 4)
        if form != _FIXED and (form != _VARIABLE or kind[1] & 15 != 1 or size != 16):
            raise RefusedError(f"attribute {name}: expected text; {DAMAGED}")
        if count * size > len(data):
            raise RefusedError(f"attribute {name}: expected {count} texts in it; {DAMAGED}")
        items = [data[n * size : (n + 1) * size] for n in range(count)]
        if form == _VARIABLE:
            items = self._from_heaps(name, items)
        try:
            return [item.partition(b"\0")[0].decode() for item in items]
        except UnicodeDecodeError as error:
            raise RefusedError(f"attribute {name}: expected UTF-8; {DAMAGED}") from error

    def _from_heaps(self, name: str, items: list[bytes]) -> list[bytes]:
        """Texts by where they are: length, address of a heap, number in it."""
        objects: dict[int, dict[int, tuple[int, int]]] = {}
        found, left = [], self._size
        for item in items:
            length, heap, number = _number(item, 0, 4), _number(item, 4, 8), _number(item, 12, 4)
            if not length:
                found.append(b"")
                continue
            if heap not in objects:
                objects[heap] = dict(self._objects(heap))
                if sum(map(len, objects.values())) > self._size // _OBJECT:
                    raise RefusedError(f"attribute {name}: heaps hold each other; {DAMAGED}")
            first, size = objects[heap].get(number, (0, -1))
            left -= length
            if length > size or left < 0:
                raise RefusedError(f"attribute {name}: its text is not there; {DAMAGED}")
            found.append(self._at(first, length))
        return found

    def _objects(self, heap: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Number, first byte and length of the objects in a heap."""
        if self._at(heap, 4) != b"GCOL":
            raise RefusedError(f"expected a heap of texts at byte {heap}; {DAMAGED}")
        end = heap + _number(self._at(heap + 8, 8), 0, 8)
        at = heap + _HEAP
        while at + _OBJECT <= min(end, self._size):
            header = self._at(at, _OBJECT)
            number, length = _number(header, 0, 2), _number(header, 8, 8)
            if not number:
                return  # free to the end
            yield number, (at + _OBJECT, length)
            at += _OBJECT + -(-length // 8) * 8

    def _at(self, first: int, size: int) -> bytes:
        """Some bytes of the file."""
        if first + size > self._size:
            raise RefusedError(f"expected {size} bytes at byte {first}, after the end; {DAMAGED}")
        return bytes(self._content[first : first + size])


def _number(content: bytes, at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], "little")
