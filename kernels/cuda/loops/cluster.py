"""The loop for H of at most 512 in reduced precision: clusters of blocks and their tensor cores.

See `cluster_kernels`.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ...cells import Cell
from .. import tuning
from ..context import BackwardArrays, Context, ForwardArrays, Layer, RunSteps
from ..launch import Kernel
from .cluster_kernels import make_cluster_backward, make_cluster_forward
from .on_chip import Pair, has_one_product, launch_backward, launch_forward, make_kernels
from .tensor_product import NUMBERS, ROWS, UNITS, TensorTile


def shared_bytes(tile: TensorTile) -> int:
    """Bytes of shared memory of a block."""
    return 4 * (tile.words + int(np.prod(tile.sums)))


def tiles_for(
    cell: Cell, H: int, dtype: np.dtype[Any], precision: str | None
) -> Pair[TensorTile] | None:
    """Tiles with as few blocks as the units of one allow; None if there are none.

    Those of the two directions differ in the vectors that blocks send each other.
    """
    if precision not in NUMBERS or not has_one_product(cell, dtype):
        return None
    blocks, gates = -(-H // tuning.CLUSTER_UNITS), len(cell.recurrent_gates)
    if blocks > tuning.MOST_CLUSTER_BLOCKS:
        return None
    units = -(-H // (blocks * UNITS)) * UNITS

    def tile(vectors: int, *buffers: int) -> TensorTile | None:
        """With the first number of buffers that fits."""
        tiles = (TensorTile(H, precision, gates, vectors, blocks, units, n) for n in buffers)
        return next((t for t in tiles if shared_bytes(t) <= tuning.MOST_SHARED_BYTES), None)

    forward, backward = tile(1, 2), tile(gates, 2, 1)
    return None if forward is None or backward is None else Pair(forward, backward)


class _Kernels(NamedTuple):
    """The kernels of a cell for one H and precision."""

    tiles: Pair[TensorTile]
    kernels: Pair[Kernel]


@functools.cache
def kernels_for(cell: Cell, H: int, dtype: np.dtype[Any], precision: str | None) -> _Kernels:
    """Those of a cell, size and precision that the loop suits."""
    tiles = tiles_for(cell, H, dtype, precision)
    if tiles is None:
        raise ValueError(f"H: expected weights that fit a cluster of blocks, got {H} units")

    def options(tile: TensorTile) -> dict[str, Any]:
        return {"cluster": tile.blocks, "shared_bytes": 4 * tile.words}

    makers = Pair(make_cluster_forward, make_cluster_backward)
    return _Kernels(tiles, make_kernels(cell, dtype, makers, tiles, options))


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer: also whether the device can run such clusters."""
    device = layer.device
    if int(device.compute_capability) < tuning.CLUSTER_CAPABILITY or layer.precision is None:
        return False
    tiles = tiles_for(layer.cell, layer.H, layer.dtype, layer.precision)
    room = device.attributes["MaxSharedMemoryPerBlockOptin"]
    if tiles is None or max(map(shared_bytes, tiles)) > room:
        return False
    _, kernels = kernels_for(layer.cell, layer.H, layer.dtype, layer.precision)
    return all(kernel.clusters_at_once(device) > 0 for kernel in kernels)


def forward(context: Context, arrays: ForwardArrays) -> RunSteps:
    """Prepare the loop of a forward pass."""
    tiles, kernels = kernels_for(context.cell, context.H, context.dtype, context.precision)
    grid = -(-context.N // ROWS), tiles.forward.blocks
    return launch_forward(context, arrays, kernels.forward, grid, tiles.forward.threads)


def backward(context: Context, arrays: BackwardArrays) -> RunSteps:
    """Prepare the loop of a backward pass."""
    tiles, kernels = kernels_for(context.cell, context.H, context.dtype, context.precision)
    grid = -(-context.N // ROWS), tiles.backward.blocks
    return launch_backward(context, arrays, kernels.backward, grid, tiles.backward.threads)
