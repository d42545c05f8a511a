"""From an array to its library and the kernels that compute on it: the one place that dispatches.

A backend's kernels are a module that offers `Packing`, `Recurrence`, `ragged_rows`, `precisions`,
`copy`, `device_of` and `describe`; see `fastgru.kernels.cpu`. Libraries are imported
when an array of theirs comes, never before.
"""

import functools
import importlib
import sys
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# Array library -> module of its kernels.
_KERNELS: dict[str, str] = {
    "numpy": "fastgru.kernels.cpu",
    "cupy": "fastgru.kernels.cuda",
}


class Backend(NamedTuple):
    """An array library and the kernels for its arrays."""

    name: str
    xp: Any
    kernels: Any


def library_of(name: str, value: Any) -> str:
    """Name of the library of an array argument.

    Raises
    ------
    TypeError
        If `value` is not exactly an array of a known library: lists, scalars, masked arrays and
        other subclasses are refused. `numpy.memmap` is NumPy memory, and is taken.
    """
    kind: Any = type(value)
    library = _library_of_type(kind)
    if library is None:
        raise TypeError(
            f"{name}: expected a {' or '.join(_KERNELS)} ndarray (no subclass, no list), "
            f"got {kind.__module__}.{kind.__qualname__}{_conversion(value)}"
        )
    return library


@functools.lru_cache(maxsize=64)
def _library_of_type(kind: type) -> str | None:
    """Name of the library whose array type this is, without importing any."""
    library = kind.__module__.partition(".")[0]
    is_array = kind.__name__ == "ndarray" or kind is np.memmap
    return library if is_array and library in _KERNELS else None


def _conversion(value: Any) -> str:
    """How to make an array of something that is none, where there is a usual way."""
    if hasattr(value, "to_numpy"):  # pandas, polars
        return '; its .to_numpy(dtype="float32") is one'
    if hasattr(value, "detach"):  # PyTorch
        return "; its .detach().numpy() is one"
    if hasattr(value, "filled"):  # masked arrays
        return "; its .filled(...) is one"
    if isinstance(value, np.ndarray):
        return "; numpy.asarray makes one of it"
    if isinstance(value, list):
        return '; numpy.array(..., "float32") makes one of it'
    return ""


def common_library(arrays: Mapping[str, Any]) -> str:
    """The library that all these arguments, by name, belong to.

    Raises
    ------
    TypeError
        If they belong to several, or one is no array.
    """
    libraries = {library_of(name, value): name for name, value in arrays.items()}
    if len(libraries) > 1:
        found = ", ".join(f"{library} ({name})" for library, name in libraries.items())
        raise TypeError(f"expected arrays of one library, got {found}")
    return next(iter(libraries))


def backend(library: str) -> Backend:
    """The backend for an array library.

    Raises
    ------
    ModuleNotFoundError
        If what its kernels need is not installed; the message says how to install it.
    RuntimeError
        If an earlier import of Numba was interrupted, and it could not be made again.
    """
    kernels = _kernels_of(library)
    return Backend(library, importlib.import_module(library), kernels)


_repairing = threading.Lock()
_was_interrupted = False  # whether an import of kernels was, by Ctrl-C say


def _kernels_of(library: str) -> Any:
    """The module of the kernels for an array library."""
    global _was_interrupted
    # Not where they are loaded: looking through all modules takes longer than packing a small
    # layer, and `pack` comes here each time.
    if _KERNELS[library] not in sys.modules and _interrupted_packages():
        _was_interrupted = True
        with _repairing:
            for package in _interrupted_packages():
                for name in [m for m in list(sys.modules) if m.startswith(f"{package}.")]:
                    sys.modules.pop(name, None)
    try:
        return importlib.import_module(_KERNELS[library])
    except KeyboardInterrupt:
        _was_interrupted = True
        raise
    except Exception as error:
        if not _was_interrupted:
            raise
        raise RuntimeError(
            "an earlier import of Numba in this process was interrupted (by Ctrl-C?), and it "
            "cannot be imported again: start a new process"
        ) from error


def _interrupted_packages() -> set[str]:
    """Packages whose import did not end: Python forgets them, but not their modules so far.

    Numba cannot go on from those modules, but can start again without them.
    """
    parents = {
        name.rpartition(".")[0]
        for name in list(sys.modules)
        if name.startswith(("numba.", "llvmlite."))
    }
    return parents - set(sys.modules)


def check_dtype(name: str, dtype: Any) -> None:
    """Refuse every dtype but native float32 and float64."""
    if dtype not in (np.dtype("float32"), np.dtype("float64")):
        raise TypeError(
            f"{name}: expected dtype float32 or float64 in native byte order, got {dtype!r}; "
            'numpy.asarray(..., "float32") converts'
        )


def check_shape(name: str, value: Any, expected: tuple[int, ...], meaning: str) -> None:
    """Refuse an array of another shape; `meaning` explains the one expected."""
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {expected} {meaning}, got {value.shape}")


def describe_backends() -> dict[str, str]:
    """What each backend computes with, by label."""
    lines: dict[str, str] = {}
    for library in _KERNELS:
        try:
            lines |= backend(library).kernels.describe()
        except Exception as error:  # whatever an installation lacks: this is where one looks
            lines[f"{library} arrays"] = f"not supported here: {error}"
    return lines
