"""What the tests of the kernels for GPUs have in common; fixtures are in `gpu/conftest.py`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from problems import Library, Problem

from fastgru.kernels.cells import CELLS

LENGTHS = [2, 0, 4]
EPS = float(np.finfo("float32").eps)

# Changes numbers of `fastgru.kernels.cuda.tuning`, by name.
Tune = Callable[..., None]
# Names the loops that are tried before the default.
UseLoops = Callable[[str], None]


def forget_choices() -> None:
    """Forget loops that were chosen and kernels that were made."""
    from fastgru import packed
    from fastgru.kernels.cuda.loops import cluster, exchange, resident

    packed._architecture.cache_clear()
    for loop in (cluster, exchange, resident):
        loop.kernels_for.cache_clear()


def chosen(problem: Problem, library: Library, precision: Any = None, time_blocks: int = 1) -> str:
    """Name of the loop that takes a problem."""
    import cupy

    from fastgru.kernels.cuda.context import Layer
    from fastgru.kernels.cuda.loops import choose

    params, (N, T, _) = problem.params, problem.x.shape
    sizes = CELLS[params.cell], params.hidden_size, params.dtype
    return choose(Layer(*sizes, precision, cupy.cuda.Device(), N, T, time_blocks)).name
