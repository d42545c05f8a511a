"""Weights laid out for the kernels."""

import functools
from typing import Any

from .backends import Backend, backend
from .check import cell_named
from .params import Params, arrays_of


class Architecture:
    """Everything about params but the values of the weights.

    Attributes
    ----------
    calls : dict
        Prepared calls by the kinds of their arguments; see `calls`.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_directions: int,
        dtype: Any,
        library: str,
    ) -> None:
        self.cell = cell_named(cell)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_directions = num_directions
        self.dtype = dtype
        self.backend: Backend = backend(library)
        self.calls: dict[Any, Any] = {}
        self._packings: list[Any] | None = None

    @property
    def input_sizes(self) -> list[int]:
        """Features that each layer takes."""
        features = self.num_directions * self.hidden_size
        return [self.input_size] + [features] * (self.num_layers - 1)

    @property
    def packings(self) -> list[Any]:
        """How the backend lays out the weights of each layer."""
        # Not by `cached_property`: in Python 3.11 that holds a lock, which a child that is forked
        # while kernels compile would wait for.
        if self._packings is None:
            make, own = self.backend.kernels.Packing, (self.hidden_size, self.dtype)
            self._packings = [make(self.cell, size, *own) for size in self.input_sizes]
        return self._packings


# Params change at every step of training, their architecture does not.
_architecture = functools.lru_cache(maxsize=64)(Architecture)


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
        self._layouts: tuple[tuple[Any, ...], ...] | None = None
        self.architecture = _architecture(
            params.cell,
            params.input_size,
            params.hidden_size,
            params.num_layers,
            params.num_directions,
            params.dtype,
            params.library,
        )

    @property
    def layouts(self) -> tuple[tuple[Any, ...], ...]:
        """``layouts[layer][direction]``, in the form that the backend's `forward` takes.

        Made when first asked for: after all arguments of a call have been checked.
        """
        if self._layouts is None:
            layers = zip(self.architecture.packings, self.params.layers, strict=True)
            self._layouts = tuple(
                [
                    tuple([packing.pack(arrays_of(weights)) for weights in layer])
                    for packing, layer in layers
                ]
            )
        return self._layouts

    @functools.cached_property
    def device(self) -> Any:
        """Where the weights are, for libraries with devices.

        Raises
        ------
        ValueError
            If they are on several.
        """
        device_of = self.architecture.backend.kernels.device_of
        arrays = [a for layer in self.params.layers for w in layer for _, a in w.items()]
        device = device_of(arrays[0])
        for other in map(device_of, arrays):  # CuPy's cannot be hashed
            if other != device:
                raise ValueError(
                    f"params: expected all arrays on one device, got {device!r} and {other!r}"
                )
        return device

    def give_back(self) -> None:
        """Let go of the layouts, which are made anew if they are asked for again."""
        layouts, self._layouts = self._layouts, None
        if layouts is None:
            return
        for packing, layer in zip(self.architecture.packings, layouts, strict=True):
            for weights in layer:
                packing.give_back(weights)

    def __reduce__(self) -> Any:
        """Pickled as params: layouts depend on the machine."""
        return pack, (self.params,)

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
        If `params` is neither.
    ModuleNotFoundError
        If what the kernels for its array library need is not installed.
    """
    if isinstance(params, Params):
        params = params.map(backend(params.library).kernels.copy)
    packed = as_packed(params)
    packed.layouts  # noqa: B018 - made now, which is what packing is for
    return packed
