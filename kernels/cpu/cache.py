"""Compiled kernels on disk: one checksummed file for each, named by what it was made from.

Numba's own cache watches only the file of the function itself, keeps one index for all closures of
a factory, and fails on torn files and unwritable folders. Here a file's name is a hash of
everything that decides its content, so files are never stale, need no index and no lock, and are
replaced atomically. A file that cannot be read or written means compiling, never failing.
"""

import contextlib
import functools
import hashlib
import inspect
import os
import pickle
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

_KERNELS = Path(__file__).resolve().parent.parent
_DIGEST_BYTES = hashlib.sha256().digest_size


@functools.cache
def _sources_digest() -> str:
    """Digest of the sources: each file, those for GPUs excepted, may go into any kernel."""
    digest = hashlib.sha256()
    for path in sorted((*_KERNELS.glob("*.py"), *_KERNELS.glob("cpu/*.py"))):
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


class KernelCache(_Cache):
    """Numba's cache interface over one file per compiled signature.

    Parameters
    ----------
    key : str
        What, beyond the kernels' sources, decides the code: function, cell, options.

    Attributes
    ----------
    digest : str
        Of the key, the sources and the versions of the compilers.
    """

    def __init__(self, key: str) -> None:
        parts = (
            *(sys.implementation.cache_tag, numba.__version__, llvmlite.__version__),
            *(_sources_digest(), key),
        )
        self.digest = hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def cache_path(self) -> str:
        return str(folder())

    def enable(self) -> None:
        pass

    def disable(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def _path(self, sig: Any, target: Any) -> Path | None:
        where = folder()
        if where is None:
            return None
        parts = (self.digest, str(sig), target.codegen().magic_tuple())
        return where / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:40]}.kernel"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        path = self._path(sig, target_context)
        try:
            if path is None or not _is_private(path.parent):
                return None
            blob = path.read_bytes()
        except OSError:
            return None
        digest, body = blob[:_DIGEST_BYTES], blob[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(body))

    def save_overload(self, sig: Any, data: Any) -> None:
        path = self._path(sig, data.target_context)
        if path is None:
            return
        body = dumps(data._reduce())
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
