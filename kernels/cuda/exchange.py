"""The loop for medium H: recurrent weights spread over blocks that run together.

See `exchange_kernels`.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..store import cell_digest
from .context import BackwardArrays, Context, ForwardArrays, Layer, Loop
from .exchange_kernels import make_exchange_backward, make_exchange_forward
from .launch import Kernel
from .product import LONGEST_PART, MOST_REGISTERS, OTHER_REGISTERS, Tile, has_one_product

# A block of so many threads, of at most 255 registers each, fits on a multiprocessor, and so does
# its shared memory: as many blocks as there are multiprocessors can run together.
_THREADS = 256
_SHARED_BYTES = 48 * 1024  # what any kernel may have
_LEAST_CAPABILITY = 70  # see `exchange_kernels`


class _Tiles(NamedTuple):
    """How blocks share a layer: they differ in how many rows fit the shared memory."""

    forward: Tile
    backward: Tile

    @property
    def slices(self) -> int:
        """Blocks that have all units together."""
        return -(-self.forward.H // self.forward.units)


def tiles_for(cell: Cell, H: int, dtype: np.dtype[Any]) -> _Tiles | None:
    """Tiles with as few parts as a thread's registers allow; None if there are none."""
    if not has_one_product(cell, dtype):
        return None
    gates, parts = len(cell.recurrent_gates), 1
    most = min(LONGEST_PART, (MOST_REGISTERS - OTHER_REGISTERS) // gates // 4 * 4)
    while parts * most < H and parts <= _THREADS:
        parts *= 2
    if parts > _THREADS:
        return None
    length, units = -(-H // (4 * parts)) * 4, min(H, _THREADS // parts)

    def tile(vectors: int, sums: int) -> Tile | None:
        """With as many rows as fit, given how many vectors and sums each has."""
        rows = parts
        while rows * 4 * parts * (vectors * length + sums * units) > _SHARED_BYTES:
            rows //= 2
        return Tile(H, units, parts, length, rows) if rows else None

    forward, backward = tile(vectors=1, sums=gates), tile(vectors=gates, sums=1)
    return None if forward is None or backward is None else _Tiles(forward, backward)


class _Kernels(NamedTuple):
    """The kernels of a cell for one H."""

    tiles: _Tiles
    forward: Kernel
    backward: Kernel


@functools.cache
def _kernels(cell: Cell, H: int, dtype: np.dtype[Any]) -> _Kernels:
    tiles = tiles_for(cell, H, dtype)
    if tiles is None:
        raise ValueError(f"H: expected weights that fit blocks of threads, got {H} units")
    digest = cell_digest(cell)

    def kernel(make: Any, tile: Tile) -> Kernel:
        key = None if digest is None else f"{digest} {tile}"
        return Kernel(make(cell, tile), dtype, key, tile.threads, together=True)

    forward = kernel(make_exchange_forward, tiles.forward)
    return _Kernels(tiles, forward, kernel(make_exchange_backward, tiles.backward))


def _multiprocessors(device: Any) -> int:
    return int(device.attributes["MultiProcessorCount"])


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer: also whether all blocks of a group can run together."""
    device = layer.device
    tiles = tiles_for(layer.cell, layer.H, layer.dtype) if layer.precision is None else None
    able = (
        int(device.compute_capability) >= _LEAST_CAPABILITY
        and device.attributes["CooperativeLaunch"]
    )
    return tiles is not None and bool(able) and tiles.slices <= _multiprocessors(device)


class _Exchanges:
    """The words of one pass, and the numbers of its exchanges."""

    def __init__(self, context: Context, tiles: _Tiles, tile: Tile, vectors: int) -> None:
        count = -(-context.N // tile.rows)
        self.groups = max(1, min(count, _multiprocessors(context.device) // tiles.slices))
        self.grid, self.block = (self.groups, tiles.slices), (tile.threads, 1)
        shape = (2 * self.groups, tile.rows * vectors, tile.H)
        self.words = context.xp.zeros(shape, np.uint64)
        self._tiles_a_group = -(-count // self.groups)
        self._next = 1  # words are 0 before their first exchange

    def number(self, steps: int) -> int:
        """Number of the first exchange of a launch over so many steps: one a step at most."""
        number, self._next = self._next, self._next + steps * self._tiles_a_group
        return number


def forward(context: Context, arrays: ForwardArrays) -> Loop:
    """Prepare the loop of a forward pass."""
    tiles, kernel, _ = _kernels(context.cell, context.H, context.dtype)
    exchanges = _Exchanges(context, tiles, tiles.forward, 1)
    weights, state_before = arrays.weights, context.xp.empty(arrays.state.shape, context.dtype)
    launch = kernel.bind(
        context.device, arrays.x_sums, weights.hh, weights.bias_ih, weights.bias_hh,
        state_before,
        arrays.state, arrays.values, arrays.y_out, exchanges.words, *context.indices,
    )  # fmt: skip

    def run(first: int, last: int) -> None:
        state_before[...] = arrays.state
        numbers = first, last, context.reverse, arrays.keep, exchanges.number(last - first)
        launch(exchanges.grid, exchanges.block, context.stream, *numbers)

    return run


def backward(context: Context, arrays: BackwardArrays) -> Loop:
    """Prepare the loop of a backward pass."""
    tiles, _, kernel = _kernels(context.cell, context.H, context.dtype)
    exchanges = _Exchanges(context, tiles, tiles.backward, len(context.cell.recurrent_gates))
    launch = kernel.bind(
        context.device, arrays.h_before, arrays.weights.hh, arrays.values, arrays.dy, arrays.dstate,
        arrays.d_ih, arrays.d_hh, exchanges.words, *context.indices,
    )  # fmt: skip

    def run(first: int, last: int) -> None:
        numbers = first, last, context.reverse, arrays.has_dy, exchanges.number(last - first)
        launch(exchanges.grid, exchanges.block, context.stream, *numbers)

    return run
