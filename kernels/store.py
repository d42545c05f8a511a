"""Compiled kernels on disk: one checksummed file for each, named by what it was made from.

A file's name is a hash of everything that decides its content, so files are never stale, need no
index and no lock, and are replaced atomically. A file that cannot be read or written means
compiling, never failing.
"""

import contextlib
import functools
import hashlib
import importlib.abc
import importlib.util
import inspect
import os
import pkgutil
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numba

from .cells import Cell

# Subpackages, each with the kernels for one kind of hardware.
_TARGETS = "cpu", "cuda"
_DIGEST_BYTES = hashlib.sha256().digest_size

# Numba's settings that leave the code as it is: where it is kept, what is shown, how threads run.
# All others belong to a kernel's key, those of later versions included. The CPU belongs to it too,
# as the target that they have led to.
_SETTINGS_WITHOUT_EFFECT = re.compile(
    r"""_.* | CUDA_(?!DEBUG|ENABLE_NRT).* | DUMP_.* | .*NUM_THREADS | THREADING_LAYER.* | CACHE_.*
    | FUNCTION_CACHE_SIZE | COLOR_SCHEME | SHOW_HELP | FULL_TRACEBACKS | DEVELOPER_MODE
    | CAPTURED_ERRORS | DISABLE_CUDA | ENABLE_CUDASIM | FORCE_CUDA_CC | TRACE | CHROME_TRACE
    | DEBUG_(CACHE|FRONTEND|JIT|PRINT_.*|TYPEINFER|INLINE_CLOSURE) | LLVM_PASS_TIMINGS
    | PARALLEL_DIAGNOSTICS | GDB_BINARY | HTML | ANNOTATE | HIGHLIGHT_DUMPS | DIFF_IR
    | DISABLE_PERFORMANCE_WARNINGS | DISABLE_TYPEINFER_FAIL_CACHE | USE_LLVMLITE_MEMORY_MANAGER
    | CPU_NAME | CPU_FEATURES | ENABLE_AVX""",
    re.VERBOSE,
)


def compiler_settings(config: ModuleType) -> list[tuple[str, str]]:
    """Settings of a compiler, Numba's or numba-cuda's, that may change the code of a kernel."""
    return [
        (name, repr(value))
        for name, value in sorted(vars(config).items())
        if name.isupper() and not _SETTINGS_WITHOUT_EFFECT.fullmatch(name)
    ]


@functools.cache
def sources_digest(target: str) -> str | None:
    """Digest of the modules that may go into a kernel for a target, "cpu" or "cuda".

    All of this package, but for other targets. Of their code where sources are not there, as in
    frozen applications; None where there is neither.
    """
    digest = hashlib.sha256()
    others = tuple(f"{__package__}.{other}" for other in _TARGETS if other != target)
    names = _modules(__package__, others)
    if __name__ not in names:  # they cannot be listed here
        return None
    for name in sorted(names):
        content = _content(name)
        if content is None:
            return None
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _modules(package: str, left_out: tuple[str, ...]) -> list[str]:
    """Names of a package, of its modules and of those of its subpackages, but for some of these."""
    names = [package]
    spec = importlib.util.find_spec(package)  # imports nothing but the packages above
    places = spec.submodule_search_locations if spec else None
    for module in pkgutil.iter_modules(places or [], f"{package}."):
        if module.name not in left_out:
            names += _modules(module.name, left_out) if module.ispkg else [module.name]
    return names


def _content(name: str) -> bytes | None:
    """What a module is made of: its source, else its code; None if its loader gives neither."""
    spec = importlib.util.find_spec(name)
    loader = spec.loader if spec else None
    if not isinstance(loader, importlib.abc.InspectLoader):
        return None
    source = loader.get_source(name)
    if source is not None:
        return source.encode()
    code = loader.get_code(name)
    return None if code is None else _code_digest(code)


def _code_digest(code: CodeType) -> bytes:
    """Digest of what a code object does; where it stands in its file does not count."""
    digest = hashlib.sha256()
    constants = [_code_digest(c) if isinstance(c, CodeType) else c for c in code.co_consts]
    # A set of constants is listed in another order in each process.
    constants = [sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in constants]
    parts = (
        *(code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars),
        *(code.co_argcount, code.co_kwonlyargcount, code.co_flags),
    )
    digest.update(repr(parts).encode())
    return digest.digest()


def functions_digest(functions: Iterable[Callable[..., Any]]) -> str | None:
    """Digest of these functions and of the files that define them.

    None where it cannot be told: there is no file to read, or a function holds outer variables.
    Files of this package go into `sources_digest`.
    """
    digest = hashlib.sha256()
    paths = set()
    for function in functions:
        if function.__closure__:
            return None
        # The file alone would not tell two of its lambdas apart, nor what was imported into it.
        digest.update(_code_digest(function.__code__))
        named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
        numbers = {name: v for name, v in named.items() if isinstance(v, int | float)}
        defaults = function.__defaults__, function.__kwdefaults__
        digest.update(repr((sorted(numbers.items()), defaults)).encode())
        if not function.__module__.startswith(f"{__package__}."):
            paths.add(inspect.getsourcefile(function))
    for path in sorted(str(p) for p in paths):
        try:
            digest.update(Path(path).read_bytes())
        except OSError:
            return None
    return digest.hexdigest()


def folder() -> Path | None:
    """Folder of the cache: NUMBA_CACHE_DIR, else the user's cache folder; None if there is none.

    A relative path in XDG_CACHE_HOME is ignored, as that variable's specification requires.
    """
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR) / "fastgru"
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "fastgru"
    try:
        home = Path.home()
    except RuntimeError:  # no home folder
        return None
    return home / ".cache" / "fastgru" if home.is_absolute() else None


def _is_private(path: Path) -> bool:
    """Whether only this user or root can put files into a folder: they are pickles."""
    status = path.stat()
    if os.name != "posix":
        return True
    open_to_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid in (os.geteuid(), 0) and not open_to_others


def describe() -> str:
    """Where compiled kernels are kept, or why they are not."""
    where = folder()
    if where is None:
        return "not kept: no home folder"
    try:
        return str(where) if _is_private(where) else f"not kept: others can write to {where}"
    except OSError:
        return str(where)  # not made yet


def cell_digest(cell: Cell) -> str | None:
    """Digest of a cell's structure and equations; None where it cannot be told."""
    equations = functions_digest(cell.functions)
    if equations is None:
        return None
    # Of each phase its functions too: the digest above does not say which is which.
    forms = [
        (
            *(p.pre_activations, p.values, p.norm),
            *(_code_digest(f.__code__) for f in (p.forward, p.backward)),
            *(_code_digest(f.__code__) for f in (p.operand.value, p.operand.gradient)),
        )
        for p in cell.phases
    ]
    weights = [(w.name, w.kind, w.gates, w.part) for w in cell.weights]
    parts = (cell.name, cell.gates, cell.states, weights, cell.norm, forms, equations)
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
        # Others may read: root can compile for all users of a machine or an image.
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not _is_private(path.parent):
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(hashlib.sha256(body).digest() + body)
                file.close()
                Path(file.name).chmod(0o644)
                Path(file.name).replace(path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
