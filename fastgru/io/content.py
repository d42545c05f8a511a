"""What a file is, by its first bytes, and why some files are not read."""

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..check import check_path
from ..safetensors import RefusedError, naming

_PICKLE = (
    "it is a pickle, as torch.save writes it; a pickle can run any code, so fastgru opens none: in "
    "PyTorch, safetensors.torch.save_file(torch.load(path, weights_only=True), "
    '"model.safetensors"), or give from_torch the state dict itself'
)
_TORCHSCRIPT = (
    "it is a TorchScript program, which holds pickles; fastgru opens none: in PyTorch, "
    'safetensors.torch.save_file(torch.jit.load(path).state_dict(), "model.safetensors")'
)
_NPZ = "it holds NumPy arrays, which do not say their convention: numpy.load and from_arrays do"
_TFLITE = (
    "it is a TensorFlow Lite model, which is not read: save the Keras model that it was made from"
)
_UNKNOWN = (
    "expected a file of safetensors, Keras (.keras, HDF5), ONNX or RTNeural (JSON), got none of "
    "these by its content"
)

# Kinds of content that are refused, with the reason.
REFUSED = {
    "pickle": _PICKLE,
    "torchscript": _TORCHSCRIPT,
    "npz": _NPZ,
    "npy": _NPZ,
    "tflite": _TFLITE,
    "unknown": _UNKNOWN,
}

HDF5_START, ZIP_START = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_STARTS = {
    "hdf5": (HDF5_START,),
    "npy": (b"\x93NUMPY",),
    "zip": (ZIP_START,),
    "pickle": tuple(bytes([0x80, protocol]) for protocol in range(2, 6)),
}
# Kinds of zip archives, by how the name of a member ends; the first that fits counts.
_MEMBERS = (
    ("model.weights.h5", "keras"),
    ("constants.pkl", "torchscript"),
    ("data.pkl", "pickle"),
    (".npy", "npz"),
)
_HEAD = 4096  # bytes of a file that are looked at
_ONNX_GRAPH, _BYTES = 7, 2  # field and wire type of a model's graph
_ONNX_FIRST = 8  # field 1, the version, which is written first
_WIRE_SIZES = {1: 8, 5: 4}


def kind_of(path: Any) -> str:
    """What a file is: safetensors, json, keras, hdf5, onnx, or one of `REFUSED`.

    Raises
    ------
    TypeError
        If `path` is no name of a file.
    OSError
        If it cannot be read.
    """
    name = check_path(path)
    with name.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD)
    kind = next((kind for kind, fits in _FORMS.items() if fits(head, size)), "unknown")
    return _zip_kind(name) if kind == "zip" else kind


def check_source(source: Any, kind: str) -> None:
    """Refuse what is neither a mapping, which the caller has told, nor the name of a file."""
    if not isinstance(source, str | os.PathLike):
        own = "; its .state_dict() is one" if hasattr(source, "state_dict") else ""
        raise TypeError(
            f"source: expected a mapping of names to arrays, or the path of a {kind} "
            f"file, got {type(source).__qualname__}{own}"
        )


def expect(path: Any, *kinds: str) -> None:
    """Refuse a file whose content is none of these kinds.

    Raises
    ------
    TypeError, OSError
        As for `kind_of`.
    ValueError
        That names the file, what it is, and the remedy.
    """
    found = kind_of(path)
    if found not in kinds:
        with naming(path):
            refuse(found, kinds)


def refuse(found: str, expected: tuple[str, ...] = ()) -> NoReturn:
    """Say why a kind of content is not read."""
    other = f"expected {' or '.join(expected)}, got {found}: io.read reads it"
    raise RefusedError(REFUSED.get(found, other))


# --- forms ----------------------------------------------------------------------------------------


def _zip_kind(path: Path) -> str:
    """What an archive is, by the names of its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # What zipfile raises for archives that are damaged, besides its own error.
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return "unknown"
    return next((k for end, k in _MEMBERS if any(n.endswith(end) for n in names)), "unknown")


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether a length and a JSON object fit into the file."""
    return head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= size


def _is_json(head: bytes, size: int) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _is_tflite(head: bytes, size: int) -> bool:
    return head[4:8] == b"TFL3"


def _is_onnx(head: bytes, size: int) -> bool:
    """Whether its fields are those of a message, and the graph is among them."""
    return head[:1] == bytes([_ONNX_FIRST]) and (_ONNX_GRAPH, _BYTES) in _fields(head)


def _fields(head: bytes) -> Iterator[tuple[int, int]]:
    """Numbers and wire types of a message's fields, as far as they begin in `head`."""
    at = 0
    while at < len(head):
        tag, at = _varint(head, at)
        yield divmod(tag, 8)
        length, after = (_WIRE_SIZES.get(tag % 8, 0), at)
        if tag % 8 in (0, _BYTES):
            length, after = _varint(head, at)
        elif not length:
            return
        at = after + (length if tag % 8 else 0)


def _varint(head: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf, and where it ends."""
    value = shift = 0
    while at < len(head) and shift < 64:
        byte = head[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            break
    return value, at


def _starts(*starts: bytes) -> Callable[[bytes, int], bool]:
    return lambda head, size: head.startswith(starts)


# By the first bytes and the size. Safetensors come first: the length of a header may look like the
# start of a pickle.
_FORMS: dict[str, Callable[[bytes, int], bool]] = {
    "safetensors": _is_safetensors,
    **{kind: _starts(*starts) for kind, starts in _STARTS.items()},
    "tflite": _is_tflite,
    "json": _is_json,
    "onnx": _is_onnx,
}
