"""From an array to its library and the kernels that compute on it: the one place that dispatches.

A backend's kernels are a module that offers `Packing`, `Recurrence`, `ragged_rows`, `precisions`,
`copy`, `device_of` and `describe`; see `fastgru.kernels.cpu`. Libraries are imported
when an array of theirs comes, never before.
"""

import functools
import importlib
import sys
import threading
from typing import Any, NamedTuple

import numpy as np

# Array library -> module of its kernels.
KERNELS: dict[str, str] = {
    "numpy": "fastgru.kernels.cpu",
    "cupy": "fastgru.kernels.cuda",
}


class Backend(NamedTuple):
    """An array library and the kernels for its arrays."""

    name: str
    xp: Any
    kernels: Any


@functools.lru_cache(maxsize=64)
def library_of_type(kind: type) -> str | None:
    """Name of the library whose array type this is, if one is, without importing any."""
    library = kind.__module__.partition(".")[0]
    is_array = kind.__name__ == "ndarray" or kind is np.memmap
    return library if is_array and library in KERNELS else None


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
    if KERNELS[library] not in sys.modules and _interrupted_packages():
        _was_interrupted = True
        with _repairing:
            for package in _interrupted_packages():
                for name in [m for m in list(sys.modules) if m.startswith(f"{package}.")]:
                    sys.modules.pop(name, None)
    try:
        return importlib.import_module(KERNELS[library])
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


def describe_backends() -> dict[str, str]:
    """What each backend computes with, by label."""
    lines: dict[str, str] = {}
    for library in KERNELS:
        try:
            lines |= backend(library).kernels.describe()
        except Exception as error:  # whatever an installation lacks: this is where one looks
            lines[f"{library} arrays"] = f"not supported here: {error}"
    return lines
