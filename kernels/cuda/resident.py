"""The loop for small H: whole blocks of time steps in one launch; see `resident_kernels`."""

import functools
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..store import cell_digest
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
from .product import LONGEST_PART, MOST_REGISTERS, OTHER_REGISTERS, Tile, has_one_product
from .resident_kernels import make_resident_backward, make_resident_forward

_MOST_THREADS = 1024
_REGISTERS = 65_536  # of a multiprocessor


def tile_for(cell: Cell, H: int, dtype: np.dtype[Any]) -> Tile | None:
    """A tile with as few parts as the registers allow; None if the weights do not fit a block."""
    if not has_one_product(cell, dtype):
        return None
    for parts in (1, 2, 4, 8, 16):
        length = -(-H // (4 * parts)) * 4
        threads = H * parts
        weights = len(cell.recurrent_gates) * length
        if threads > _MOST_THREADS:
            return None
        allotted = -(-threads // 128) * 128  # a warp for each of the four schedulers
        fit = weights + OTHER_REGISTERS <= min(MOST_REGISTERS, _REGISTERS // allotted)
        if fit and length <= LONGEST_PART:
            return Tile(H, H, parts, length, parts)
    return None


class _Kernels(NamedTuple):
    """The kernels of a cell for one H."""

    tile: Tile
    forward: Kernel
    backward: Kernel


@functools.cache
def _kernels(cell: Cell, H: int, dtype: np.dtype[Any]) -> _Kernels:
    tile = tile_for(cell, H, dtype)
    if tile is None:
        raise ValueError(f"H: expected weights that fit a block of threads, got {H} units")
    forward, backward = make_resident_forward(cell, tile), make_resident_backward(cell, tile)
    digest = cell_digest(cell)
    key = None if digest is None else f"{digest} {tile}"
    kernels = (Kernel(function, dtype, key, tile.threads) for function in (forward, backward))
    return _Kernels(tile, *kernels)


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer."""
    return layer.precision is None and tile_for(layer.cell, layer.H, layer.dtype) is not None


def forward(context: Context, arrays: ForwardArrays) -> Loop:
    """Prepare the loop of a forward pass."""
    tile, kernel, _ = _kernels(context.cell, context.H, context.dtype)
    grid = -(-context.N // tile.parts), 1
    return launches_forward(context, arrays, kernel, grid, tile.threads)


def backward(context: Context, arrays: BackwardArrays) -> Loop:
    """Prepare the loop of a backward pass."""
    tile, _, kernel = _kernels(context.cell, context.H, context.dtype)
    grid = -(-context.N // tile.parts), 1
    return launches_backward(context, arrays, kernel, grid, tile.threads)
