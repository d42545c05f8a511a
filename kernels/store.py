"""Compiled kernels on disk: one checksummed file for each, named by what it was made from.

A file's name is a hash of everything that decides its content, so files are never stale, need no
index and no lock, and are replaced atomically. A file that cannot be read or written means
compiling, never failing.
"""

import contextlib
import functools
import hashlib
import inspect
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba

from .cells import Cell

_KERNELS = Path(__file__).resolve().parent
_DIGEST_BYTES = hashlib.sha256().digest_size


@functools.cache
def sources_digest(target: str) -> str:
    """Digest of the sources that may go into a kernel for a target, "cpu" or "cuda"."""
    digest = hashlib.sha256()
    for path in sorted((*_KERNELS.glob("*.py"), *_KERNELS.glob(f"{target}/*.py"))):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_KERNELS)} {len(content)} ".encode() + content)
    return digest.hexdigest()


def functions_digest(functions: Iterable[Callable[..., Any]]) -> str | None:
    """Digest of these functions and of the files that define them.

    None where it cannot be told: there is no file to read, or a function holds outer variables.
    """
    digest = hashlib.sha256()
    paths = set()
    for function in functions:
        if function.__closure__:
            return None
        code = function.__code__
        # The file alone would not tell two of its lambdas apart.
        parts = (code.co_code, code.co_consts, code.co_names)
        digest.update(repr(parts).encode())
        paths.add(inspect.getsourcefile(function))
    for path in sorted(str(p) for p in paths):
        try:
            digest.update(Path(path).read_bytes())
        except OSError:
            return None
    return digest.hexdigest()


def folder() -> Path | None:
    """Folder of the cache: NUMBA_CACHE_DIR, else the user's cache folder; None if there is none."""
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR) / "fastgru"
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "fastgru"
    except RuntimeError:  # no home folder
        return None


def _is_private(path: Path) -> bool:
    """Whether only its owner, this user, can put files into a folder: they are pickles."""
    status = path.stat()
    if os.name != "posix":
        return True
    open_to_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.geteuid() and not open_to_others


def cell_digest(cell: Cell) -> str | None:
    """Digest of a cell's structure and equations; None where it cannot be told."""
    functions: list[Callable[..., Any]] = []
    for phase in cell.phases:
        functions += [phase.forward, phase.backward]
        functions += [phase.operand.value, phase.operand.gradient]
    equations = functions_digest(functions)
    if equations is None:
        return None
    forms = [(phase.pre_activations, phase.values) for phase in cell.phases]
    parts = (cell.name, cell.gates, cell.states, forms, equations)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _path(parts: tuple[Any, ...]) -> Path | None:
    """The file for what these parts decide."""
    where = folder()
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:40]
    return None if where is None else where / f"{name}.kernel"


def read(parts: tuple[Any, ...]) -> bytes | None:
    """What was written for these parts, if it is there and whole."""
    path = _path(parts)
    try:
        if path is None or not _is_private(path.parent):
            return None
        blob = path.read_bytes()
    except OSError:
        return None
    digest, body = blob[:_DIGEST_BYTES], blob[_DIGEST_BYTES:]
    return body if hashlib.sha256(body).digest() == digest else None


def write(parts: tuple[Any, ...], body: bytes) -> None:
    """Keep something for these parts, if that is possible."""
    path = _path(parts)
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(path.parent):
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(hashlib.sha256(body).digest() + body)
                file.close()
                Path(file.name).replace(path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
