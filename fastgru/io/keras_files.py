"""Files of Keras, opened: archives ``.keras``, and HDF5 of models or of weights alone."""

import contextlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..safetensors import RefusedError
from .content import HDF5_START, ZIP_START
from .hdf5 import Store, damage
from .keras_config import LayerConfig, layers_in
from .keras_errors import DAMAGED
from .keras_weights import NamedWeights, VariableGroups

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
# Members of an archive may be that many times as long as the archive; small ones, that long.
_LARGEST_RATIO, _SMALL = 4, 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP_FAILURES = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError),
    *(KeyError, IndexError, OverflowError, OSError),
)


class Content(NamedTuple):
    """What a file holds."""

    weights: VariableGroups | NamedWeights
    layers: list[LayerConfig] | None  # None where there is no configuration
    left_out: list[str]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """A file of Keras, of whatever kind.

    Raises
    ------
    RefusedError
        If it is none, is damaged, or holds what is not read.
    OSError
        If it cannot be opened.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(HDF5_START))
        file.seek(0)
        layers: list[LayerConfig] | None = None
        source: Any = file
        if start.startswith(ZIP_START):
            config, content = _members(file, size)
            layers, source, size = layers_in(config), io.BytesIO(content), len(content)
        elif start != HDF5_START:
            raise RefusedError(
                "expected a file of Keras, which is a zip archive (.keras) or HDF5 (.h5), got "
                f"neither: it starts with {start!r}"
            )
        with damage():
            store = Store(source, size)
        try:
            with damage():
                found = _content(store, layers)
            yield found
        finally:
            store.close()


def _content(store: Store, layers: list[LayerConfig] | None) -> Content:
    """What an HDF5 file holds; `layers` are those of an archive."""
    names = store.children(store.root)
    if any(store.texts(store.root, name) is not None for name in ("layer_names", "layer_names0")):
        return Content(NamedWeights(store, store.root), layers, [])
    if "model_weights" not in names:
        return Content(VariableGroups(store), layers, [])
    config = store.text(store.root, "model_config")
    if config is None:
        raise RefusedError(f"expected the attribute model_config, got none; {DAMAGED}")
    others = [name for name in names if name != "model_weights"]
    weights = NamedWeights(store, store.group(store.root, "model_weights"))
    return Content(weights, layers_in(config), others)


def _members(file: Any, size: int) -> tuple[bytes, bytes]:
    """Configuration and weights of an archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                raise RefusedError(f"a name comes twice in the archive; {DAMAGED}")
            for name in names:
                parts = name.replace("\\", "/").split("/")
                if ".." in parts or not parts[0] or ":" in parts[0]:
                    raise RefusedError(f"{name!r}: expected names inside the archive; {DAMAGED}")
            for name in (_CONFIG, _WEIGHTS):
                if name not in names:
                    raise RefusedError(
                        f"expected {name} in the archive, got {', '.join(names[:9]) or 'nothing'}"
                    )
            return _member(archive, _CONFIG, size), _member(archive, _WEIGHTS, size)
    except _ZIP_FAILURES as error:
        raise RefusedError(f"cannot be read as a zip archive ({error}); {DAMAGED}") from error


def _member(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """A member of an archive, whose checksum is compared."""
    member = archive.getinfo(name)
    largest = max(_SMALL, _LARGEST_RATIO * size)
    if member.file_size > largest or member.compress_type not in _METHODS:
        raise RefusedError(
            f"{name}: expected at most {largest} bytes, stored or deflated, got {member.file_size} "
            f"by method {member.compress_type}"
        )
    with archive.open(member) as file:
        # Asked for all at once, zipfile would take in whatever there is.
        content = file.read(member.file_size)
        if len(content) != member.file_size or file.read(1):
            raise RefusedError(f"{name}: expected {member.file_size} bytes; {DAMAGED}")
    return content
