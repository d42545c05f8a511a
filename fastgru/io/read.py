"""`read`: the weights of a file, whatever program wrote it."""

import importlib
import os
from collections.abc import Callable
from typing import Any

from ..archive import is_own
from ..files import load, load_metadata
from ..safetensors import naming, opened
from .content import kind_of, refuse
from .found import Found, Layer

# The reader of each kind of content: its module, which is imported when it is needed, and name.
_READERS = {
    "safetensors": (".pytorch", "from_torch"),
    "json": (".rtneural", "from_rtneural"),
    "keras": (".keras", "from_keras"),
    "hdf5": (".keras", "from_keras"),
    "onnx": (".onnx", "from_onnx"),
}


def read(path: str | os.PathLike[str], **options: Any) -> Found:
    """Read the recurrent layers of a file, whatever program wrote it.

    Parameters
    ----------
    path : str or os.PathLike
        Of a file of `fastgru.save`; of PyTorch's weights as safetensors; of Keras (``.keras``,
        HDF5); of ONNX; of RTNeural (JSON). It is recognised by its content, not by its name.
    **options
        Of the reader: `from_torch`, `from_keras`, `from_onnx`, `from_rtneural`. Files of
        `fastgru.save` take none.

    Returns
    -------
    Found
        The layers by name, with where each weight came from, and what was left out.

    Raises
    ------
    TypeError
        If `path` is no name of a file, or the reader has no such option.
    ValueError
        If the content is not recognised, cannot be read without running code, as pickles, or is
        damaged.
    ImportError
        If the reader needs a package that is not installed.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> from fastgru import io
    >>> found = io.read("model.safetensors")  # doctest: +SKIP
    >>> print(found)  # doctest: +SKIP
    >>> params = found["encoder.gru"].params  # doctest: +SKIP
    """
    kind = kind_of(path)
    if kind == "safetensors" and _fastgru_wrote(path):
        return _read_own(path, options)
    if kind not in _READERS:
        with naming(path):
            refuse(kind)
    module, name = _READERS[kind]
    reader: Callable[..., Found] = getattr(importlib.import_module(module, __package__), name)
    return reader(path, **options)


def _fastgru_wrote(path: Any) -> bool:
    with opened(path) as file:
        return is_own(file.metadata)


def _read_own(path: Any, options: dict[str, Any]) -> Found:
    """The params of a file of `fastgru.save` as one layer without a name."""
    if options:
        raise TypeError(
            f"{', '.join(options)}: files of fastgru.save say all that counts, and take no options"
        )
    params, notes = load(path), load_metadata(path)
    sources = {key: key for key in params.to_dict()}
    layer = Layer("", params, sources, notes=tuple(f"{k}: {text}" for k, text in notes.items()))
    return Found(os.fspath(path), [layer])
