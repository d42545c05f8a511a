"""Weights laid out for the kernels."""

import functools
from collections.abc import Sequence
from typing import Any

from .backends import Backend, backend
from .check import cell_named, check_type, common_device
from .params import Params, arrays_of

Layouts = Sequence[Sequence[Any]]  # [layer][direction], in the form that the kernels take


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


class Operands:
    """Params, and what calls need of them.

    Attributes
    ----------
    params : Params
    architecture : Architecture
    layouts : sequence of sequence, or None
        Of packed weights, which keep them; None where every call makes its own, by `lay_out`, and
        returns them by `give_back`.
    """

    __slots__ = "_device", "architecture", "layouts", "params"

    def __init__(self, params: Params) -> None:
        self.params = params
        self.architecture = _architecture(
            params.cell,
            params.input_size,
            params.hidden_size,
            params.num_layers,
            params.num_directions,
            params.dtype,
            params.library,
        )
        self.layouts: Layouts | None = None
        self._device: Any = None

    def lay_out(self) -> Layouts:
        """Lay out the weights, in memory that `give_back` returns."""
        layers = zip(self.architecture.packings, self.params.layers, strict=True)
        return [[packing.pack(arrays_of(w)) for w in layer] for packing, layer in layers]

    def give_back(self, layouts: Layouts) -> None:
        """Return the memory of layouts that nobody reads any more."""
        for packing, layer in zip(self.architecture.packings, layouts, strict=True):
            for weights in layer:
                packing.give_back(weights)

    @property
    def device(self) -> Any:
        """Where the weights are, for libraries with devices.

        Raises
        ------
        ValueError
            If they are on several.
        """
        if self._device is None:
            arrays = [a for layer in self.params.layers for w in layer for _, a in w.items()]
            device_of = self.architecture.backend.kernels.device_of
            self._device = common_device("params", arrays, device_of)
        return self._device


class Packed:
    """Weights laid out for the kernels, made by `pack`; accepted wherever params are.

    Parameters
    ----------
    params : Params
        The weights it is made from, which are kept as an attribute.
    """

    # Private: whoever gave these layouts back would lend out what calls of other threads read.
    _operands: Operands

    def __init__(self, params: Params) -> None:
        check_type("params", params, Params)
        self.params = params
        self._operands = Operands(params)
        self._operands.layouts = self._operands.lay_out()

    def __reduce__(self) -> Any:
        """Pickled as params: layouts depend on the machine."""
        return pack, (self.params,)

    def __repr__(self) -> str:
        return f"Packed({self.params!r})"


def operands_of(params: Params | Packed) -> Operands:
    """Those that packed weights keep; new ones for params."""
    if isinstance(params, Packed):
        return params._operands
    check_type("params", params, Params, Packed)
    return Operands(params)


def pack(params: Params | Packed) -> Packed:
    """Lay out weights for the kernels, once for many calls.

    `forward` and `step` otherwise do it in every call, which makes small calls slower.

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

    Examples
    --------
    >>> import fastgru
    >>> weights = fastgru.pack(fastgru.init_params(3, 16, rng=0))
    >>> weights.params.hidden_size
    16
    """
    if isinstance(params, Packed):
        return params
    if not isinstance(params, Params):
        check_type("params", params, Params, Packed)
    return Packed(params.map(backend(params.library).kernels.copy))
