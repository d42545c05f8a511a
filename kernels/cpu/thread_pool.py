"""Numba's thread pool: whether this process may use it, and how it is started.

The pool does not survive a fork, whoever used it: a forked child that enters a parallel region of
GNU OpenMP hangs, or is ended by Numba. So a child of a process that may have had such threads stays
on one thread; a process that was started anew (spawned, or by loky) does not.
"""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel as numba_pool

# Libraries whose threads a fork leaves behind.
_RUNTIMES = re.compile(r"/lib(gomp|omp|iomp5|tbb)\b[^/]*$", re.MULTILINE)
# Linux: "forked but did not exec", a bit of the ninth field of /proc/self/stat.
_FORKED_WITHOUT_EXEC = 0x40
_FLAGS_FIELD = 9

_is_usable: bool | None = None  # None: not decided in this process yet
_seen_fork = False  # whether a fork made this process after this module was loaded


def _begin_child() -> None:
    global _is_usable, _seen_fork
    _is_usable, _seen_fork = None, True
    with contextlib.suppress(RuntimeError):  # a host that forks in C may have left `before` out
        global_compiler_lock.release()


if hasattr(os, "register_at_fork"):
    # Nobody compiles while a process forks: the child would wait for ever for Numba's lock, which
    # it inherits as taken by a thread that it does not have.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_begin_child,
    )


def is_usable() -> bool:
    """Whether this process may run parallel regions."""
    global _is_usable
    if _is_usable is None:
        _is_usable = not (_was_forked() and _may_have_had_threads())
    return _is_usable


def _was_forked() -> bool:
    """Whether a fork made this process, and no new program was started in it."""
    if _seen_fork:
        return True
    flags = _process_flags()
    if flags:
        return bool(flags & _FORKED_WITHOUT_EXEC)
    # Where the system does not tell: children of `multiprocessing` that were not started anew.
    process = multiprocessing.current_process()
    method = getattr(process, "_start_method", None) or multiprocessing.get_start_method(True)
    return multiprocessing.parent_process() is not None and method in ("fork", "forkserver")


def _process_flags() -> int:
    """What Linux notes of this process; 0 where it does not tell."""
    try:
        text = Path("/proc/self/stat").read_text()
    except OSError:
        return 0
    # The second field, a name in parentheses, may hold spaces and parentheses.
    return int(text.rpartition(")")[2].split()[_FLAGS_FIELD - 3])


def _may_have_had_threads() -> bool:
    """Whether a library is loaded whose threads a fork leaves behind; True if that is not known."""
    return numba_pool._is_initialized or _has_openmp()


def _has_openmp() -> bool:
    """Whether OpenMP or TBB is loaded; True where the system does not tell."""
    try:
        return _RUNTIMES.search(Path("/proc/self/maps").read_text()) is not None
    except OSError:
        return True


def start() -> None:
    """Start the pool, which alone knows its layer and its number of threads.

    Numba then sets how many threads OpenMP uses, and that regions may be nested, for every library
    of this process that shares it; here that is put back. Nested regions are Numba's own wish, so
    they stay where no other library has loaded OpenMP.
    """
    if not numba_pool._is_initialized:
        with _openmp_settings_kept():
            numba.get_num_threads()


@contextlib.contextmanager
def _openmp_settings_kept() -> Iterator[None]:
    """Put OpenMP's settings back as they were."""
    names = ["num_threads"]
    if _has_openmp():
        names.append("max_active_levels")
    kept = [(write, read()) for read, write in _openmp_settings(names)]
    yield
    for write, value in kept:
        write(value)


def _openmp_settings(
    names: list[str],
) -> list[tuple[Callable[[], int], Callable[[int], None]]]:
    """Pairs of functions that read and write these settings."""
    try:
        pool = importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:  # Numba has no OpenMP here
        return []
    # As the linker does: a library that was loaded for all (PyTorch does so with its own OpenMP)
    # comes before those that Numba's file names.
    scopes = [ctypes.CDLL(None)] if os.name == "posix" else []
    scopes.append(ctypes.CDLL(pool.__file__))
    found = []
    for name in names:
        reader = "omp_get_max_threads" if name == "num_threads" else f"omp_get_{name}"
        scope = next((s for s in scopes if hasattr(s, reader)), None)
        if scope is not None:
            found.append((getattr(scope, reader), getattr(scope, f"omp_set_{name}")))
    return found
