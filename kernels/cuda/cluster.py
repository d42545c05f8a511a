"""The loop for H of at most 512 in reduced precision: clusters of blocks and their tensor cores.

See `cluster_kernels`.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..store import cell_digest
from .cluster_kernels import make_cluster_backward, make_cluster_forward
from .context import (
    BackwardArrays,
    Context,
    ForwardArrays,
    Layer,
    Loop,
    launches_backward,
    launches_forward,
)
from .launch import Kernel
from .product import has_one_product
from .tensor_product import NUMBERS, ROWS, UNITS, TensorTile

_LEAST_CAPABILITY = 90
_MOST_BLOCKS = 16  # of a cluster; more than 8 need not fit every GPU
_MOST_UNITS = 32  # of a block, so that its 256 threads may have 255 registers each
_SHARED_BYTES = 227 * 1024  # of a block, at most


class _Tiles(NamedTuple):
    """How blocks share a layer: they differ in the vectors that they exchange."""

    forward: TensorTile
    backward: TensorTile


def _bytes(tile: TensorTile) -> int:
    """Shared memory of a block."""
    return 4 * (tile.words + int(np.prod(tile.sums)))


def _fits(tile: TensorTile) -> bool:
    return _bytes(tile) <= _SHARED_BYTES


def tiles_for(cell: Cell, H: int, dtype: np.dtype[Any], precision: str | None) -> _Tiles | None:
    """Tiles with as few blocks as the units of one allow; None if there are none."""
    if precision not in NUMBERS or not has_one_product(cell, dtype):
        return None
    blocks, gates = -(-H // _MOST_UNITS), len(cell.recurrent_gates)
    if blocks > _MOST_BLOCKS:
        return None
    units = -(-H // (blocks * UNITS)) * UNITS

    def tile(vectors: int, *places: int) -> TensorTile | None:
        sizes = H, precision, gates, vectors, blocks, units
        return next(filter(_fits, (TensorTile(*sizes, count) for count in places)), None)

    forward, backward = tile(1, 2), tile(gates, 2, 1)
    return None if forward is None or backward is None else _Tiles(forward, backward)


class _Kernels(NamedTuple):
    """The kernels of a cell for one H and precision."""

    tiles: _Tiles
    forward: Kernel
    backward: Kernel


@functools.cache
def _kernels(cell: Cell, H: int, dtype: np.dtype[Any], precision: str) -> _Kernels:
    tiles = tiles_for(cell, H, dtype, precision)
    if tiles is None:
        raise ValueError(f"H: expected weights that fit a cluster of blocks, got {H} units")
    digest = cell_digest(cell)

    def kernel(make: Any, tile: TensorTile) -> Kernel:
        key = None if digest is None else f"{digest} {tile}"
        return Kernel(
            make(cell, tile), dtype, key, tile.threads, cluster=tile.blocks,
            shared_bytes=4 * tile.words,
        )  # fmt: skip

    forward = kernel(make_cluster_forward, tiles.forward)
    return _Kernels(tiles, forward, kernel(make_cluster_backward, tiles.backward))


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer: also whether the device can run such clusters."""
    if int(layer.device.compute_capability) < _LEAST_CAPABILITY or layer.precision is None:
        return False
    tiles = tiles_for(layer.cell, layer.H, layer.dtype, layer.precision)
    room = layer.device.attributes["MaxSharedMemoryPerBlockOptin"]
    if tiles is None or max(map(_bytes, tiles)) > room:
        return False
    _, *kernels = _kernels(layer.cell, layer.H, layer.dtype, layer.precision)
    return all(kernel.clusters_at_once(layer.device) > 0 for kernel in kernels)


def forward(context: Context, arrays: ForwardArrays) -> Loop:
    """Prepare the loop of a forward pass."""
    assert context.precision is not None
    tiles, kernel, _ = _kernels(context.cell, context.H, context.dtype, context.precision)
    grid = -(-context.N // ROWS), tiles.forward.blocks
    return launches_forward(context, arrays, kernel, grid, tiles.forward.threads)


def backward(context: Context, arrays: BackwardArrays) -> Loop:
    """Prepare the loop of a backward pass."""
    assert context.precision is not None
    tiles, _, kernel = _kernels(context.cell, context.H, context.dtype, context.precision)
    grid = -(-context.N // ROWS), tiles.backward.blocks
    return launches_backward(context, arrays, kernel, grid, tiles.backward.threads)
