"""The loop for medium H: recurrent weights spread over blocks that run at the same time.

See `exchange_kernels`.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ...cells import Cell
from .. import tuning
from ..context import BackwardArrays, Context, ForwardArrays, Layer, RunSteps
from ..launch import Kernel
from .exchange_kernels import make_exchange_backward, make_exchange_forward
from .on_chip import Pair, has_one_product, make_kernels
from .register_product import Tile


def tiles_for(cell: Cell, H: int, dtype: np.dtype[Any]) -> Pair[Tile] | None:
    """Tiles with as few parts as a thread's registers allow; None if there are none.

    Those of the two directions differ in how many rows fit the shared memory.
    """
    if not has_one_product(cell, dtype):
        return None
    gates, parts, threads = len(cell.recurrent_gates), 1, tuning.EXCHANGE_THREADS
    registers = tuning.MOST_REGISTERS_OF_THREAD - tuning.OTHER_REGISTERS
    most = min(tuning.LONGEST_PART, registers // gates // 4 * 4)
    while parts * most < H and parts <= threads:
        parts *= 2
    if parts > threads:
        return None
    length, units = -(-H // (4 * parts)) * 4, min(H, threads // parts)

    def tile(vectors: int, sums: int) -> Tile | None:
        """With as many rows as fit, given how many vectors and sums each has."""
        rows = parts
        a_row = 4 * parts * (vectors * length + sums * units)  # bytes
        while rows * a_row > tuning.STATIC_SHARED_BYTES:
            rows //= 2
        return Tile(H, units, parts, length, rows) if rows else None

    forward, backward = tile(vectors=1, sums=gates), tile(vectors=gates, sums=1)
    return None if forward is None or backward is None else Pair(forward, backward)


class _Kernels(NamedTuple):
    """The kernels of a cell for one H."""

    tiles: Pair[Tile]
    kernels: Pair[Kernel]


@functools.cache
def kernels_for(cell: Cell, H: int, dtype: np.dtype[Any]) -> _Kernels:
    """Those of a cell and size that the loop suits."""
    tiles = tiles_for(cell, H, dtype)
    if tiles is None:
        raise ValueError(f"H: expected weights that fit blocks of threads, got {H} units")
    makers = Pair(make_exchange_forward, make_exchange_backward)
    kernels = make_kernels(cell, dtype, makers, tiles, lambda tile: {"cooperative": True})
    return _Kernels(tiles, kernels)


def multiprocessors(device: Any) -> int:
    """Number of a device's multiprocessors: so many blocks run at the same time."""
    return int(device.attributes["MultiProcessorCount"])


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer: also whether all blocks of a group can run together."""
    device = layer.device
    tiles = tiles_for(layer.cell, layer.H, layer.dtype) if layer.precision is None else None
    able = (
        int(device.compute_capability) >= tuning.EXCHANGE_CAPABILITY
        and device.attributes["CooperativeLaunch"]
    )
    return tiles is not None and bool(able) and tiles.forward.slices <= multiprocessors(device)


class _Exchanges:
    """The tagged words of one pass, and the numbers of its exchanges."""

    def __init__(self, context: Context, tile: Tile, vectors: int) -> None:
        count = -(-context.N // tile.rows)
        self.groups = max(1, min(count, multiprocessors(context.device) // tile.slices))
        self.grid, self.block = (self.groups, tile.slices), (tile.threads, 1)
        shape = (2 * self.groups, tile.rows * vectors, tile.H)
        self.words = context.xp.zeros(shape, np.uint64)
        self._tiles_of_group = -(-count // self.groups)
        self._next = 1  # words are 0 before their first exchange

    def number(self, steps: int) -> int:
        """Number of the first exchange of a launch over so many steps: one a step at most."""
        number, self._next = self._next, self._next + steps * self._tiles_of_group
        return number


def forward(context: Context, arrays: ForwardArrays) -> RunSteps:
    """Prepare the loop of a forward pass."""
    tiles, kernels = kernels_for(context.cell, context.H, context.dtype)
    exchanges = _Exchanges(context, tiles.forward, 1)
    state_before = context.xp.empty(arrays.state.shape, context.dtype)
    launch = kernels.forward.bind(
        context.device, arrays.x_sums, arrays.hh, arrays.constants, state_before, arrays.state,
        arrays.values, arrays.y_out, exchanges.words, *context.indices,
    )  # fmt: skip

    def run(first: int, last: int) -> None:
        state_before[...] = arrays.state
        numbers = first, last, context.reverse, arrays.keep, exchanges.number(last - first)
        launch(exchanges.grid, exchanges.block, context.stream, *numbers)

    return run


def backward(context: Context, arrays: BackwardArrays) -> RunSteps:
    """Prepare the loop of a backward pass."""
    tiles, kernels = kernels_for(context.cell, context.H, context.dtype)
    exchanges = _Exchanges(context, tiles.backward, len(context.cell.recurrent_gates))
    launch = kernels.backward.bind(
        context.device, arrays.h_before, arrays.hh, arrays.values, arrays.dy, arrays.dstate,
        arrays.d_ih, arrays.d_hh, exchanges.words, *context.indices,
    )  # fmt: skip

    def run(first: int, last: int) -> None:
        numbers = first, last, context.reverse, arrays.has_dy, exchanges.number(last - first)
        launch(exchanges.grid, exchanges.block, context.stream, *numbers)

    return run
