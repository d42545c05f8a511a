"""Numba's cache interface over `store`.

Numba's own cache watches only the file of the function itself, keeps one index for all closures of
a factory, and fails on torn files and unwritable folders.
"""

import hashlib
import pickle
import sys
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from .. import store


class KernelCache(_Cache):
    """Numba's cache interface over one file per compiled signature.

    Parameters
    ----------
    key : str
        What, beyond the kernels' sources and Numba's settings, decides the code: function, cell,
        options.

    Attributes
    ----------
    digest : str
        Of the key, the sources, the versions of the compilers and their settings.
    is_exact : bool
        Whether that is all that decides the code: else nothing may be kept.
    """

    def __init__(self, key: str) -> None:
        sources = store.sources_digest("cpu")
        parts = (
            *(sys.implementation.cache_tag, numba.__version__, llvmlite.__version__),
            *(sources, store.compiler_settings(numba.config), key),
        )
        self.digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        self.is_exact = sources is not None
        self._last_parts: tuple[Any, ...] = ()

    @property
    def cache_path(self) -> str:
        return str(store.folder())

    def enable(self) -> None:
        pass

    def disable(self) -> None:
        pass

    def flush(self) -> None:
        pass

    @property
    def is_kept(self) -> bool:
        """Whether what was last looked up is on disk."""
        return store.read(self._last_parts) is not None

    def _parts(self, sig: Any, target: Any) -> tuple[Any, ...]:
        self._last_parts = self.digest, str(sig), target.codegen().magic_tuple()
        return self._last_parts

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        body = store.read(self._parts(sig, target_context))
        if body is None:
            return None
        return CompileResult._rebuild(target_context, *pickle.loads(body))

    def save_overload(self, sig: Any, data: Any) -> None:
        store.write(self._parts(sig, data.target_context), dumps(data._reduce()))
