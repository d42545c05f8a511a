"""Weights laid out for the kernels."""

import functools
from typing import Any

from .backends import Backend, backend
from .params import Params, cell_named


class Packed:
    """Weights laid out for the kernels, made by `pack`; accepted wherever params are.

    Attributes
    ----------
    params : Params
        The weights it was made from.
    """

    def __init__(self, params: Params) -> None:
        if not isinstance(params, Params):
            raise TypeError(f"params: expected Params, got {type(params).__qualname__}")
        self.params = params
        self.backend: Backend = backend("params", params.library)
        self.cell = cell_named(params.cell)

    @functools.cached_property
    def layouts(self) -> tuple[tuple[Any, ...], ...]:
        """``layouts[layer][direction]``, in the form that the backend's `forward` takes.

        Made when first asked for: after all arguments of a call have been checked.
        """
        return tuple(
            tuple(self.backend.kernels.pack(self.cell, dict(w.items())) for w in layer)
            for layer in self.params.layers
        )

    def __repr__(self) -> str:
        return f"Packed({self.params!r})"


def as_packed(params: Params | Packed) -> Packed:
    """Packed weights as they are; params packed anew."""
    if isinstance(params, Packed):
        return params
    if isinstance(params, Params):
        return Packed(params)
    raise TypeError(f"params: expected Params or Packed, got {type(params).__qualname__}")


def pack(params: Params | Packed) -> Packed:
    """Lay out weights for the kernels, once for many calls.

    `forward` and `step` otherwise do it at every call, which small calls feel.

    Parameters
    ----------
    params : Params
        Or packed weights, which are returned as they are.

    Returns
    -------
    Packed
        A snapshot: arrays changed in place afterwards are not seen.

    Raises
    ------
    TypeError
        If `params` is neither, or there are no kernels for its array library.
    """
    if isinstance(params, Params):
        backend("params", params.library)  # refused before anything is copied
        params = params.map(lambda array: array.copy())
    packed = as_packed(params)
    packed.layouts  # noqa: B018 - made now, which is what packing is for
    return packed
