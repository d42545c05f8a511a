"""The loop for small H: a whole time block in one launch; see `resident_kernels`."""

import functools
from typing import Any, NamedTuple

import numpy as np

from ...cells import Cell
from .. import tuning
from ..context import BackwardArrays, Context, ForwardArrays, Layer, RunSteps
from ..launch import Kernel
from .on_chip import Pair, has_one_product, launch_backward, launch_forward, make_kernels
from .register_product import Tile
from .resident_kernels import make_resident_backward, make_resident_forward


def tile_for(cell: Cell, H: int, dtype: np.dtype[Any]) -> Tile | None:
    """A tile with as few parts as the registers allow; None if the weights do not fit a block."""
    if not has_one_product(cell, dtype):
        return None
    for parts in (1, 2, 4, 8, 16):
        length = -(-H // (4 * parts)) * 4
        threads = H * parts
        weights = len(cell.recurrent_gates) * length
        if threads > tuning.MOST_THREADS:
            return None
        allotted = -(-threads // 128) * 128  # a warp for each of the four schedulers
        registers = tuning.REGISTERS_OF_MULTIPROCESSOR // allotted
        most = min(tuning.MOST_REGISTERS_OF_THREAD, registers)
        if weights + tuning.OTHER_REGISTERS <= most and length <= tuning.LONGEST_PART:
            return Tile(H, H, parts, length, parts)
    return None


class _Kernels(NamedTuple):
    """The kernels of a cell for one H."""

    tile: Tile
    kernels: Pair[Kernel]


@functools.cache
def kernels_for(cell: Cell, H: int, dtype: np.dtype[Any]) -> _Kernels:
    """Those of a cell and size that the loop suits."""
    tile = tile_for(cell, H, dtype)
    if tile is None:
        raise ValueError(f"H: expected weights that fit a block of threads, got {H} units")
    makers = Pair(make_resident_forward, make_resident_backward)
    return _Kernels(tile, make_kernels(cell, dtype, makers, Pair(tile, tile)))


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer."""
    return layer.precision is None and tile_for(layer.cell, layer.H, layer.dtype) is not None


def forward(context: Context, arrays: ForwardArrays) -> RunSteps:
    """Prepare the loop of a forward pass."""
    tile, kernels = kernels_for(context.cell, context.H, context.dtype)
    grid = -(-context.N // tile.rows), 1
    return launch_forward(context, arrays, kernels.forward, grid, tile.threads)


def backward(context: Context, arrays: BackwardArrays) -> RunSteps:
    """Prepare the loop of a backward pass."""
    tile, kernels = kernels_for(context.cell, context.H, context.dtype)
    grid = -(-context.N // tile.rows), 1
    return launch_backward(context, arrays, kernels.backward, grid, tile.threads)
