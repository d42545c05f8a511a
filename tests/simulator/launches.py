"""Launches of kernels, emulated: a kernel runs as the Python that it is, thread by thread."""

import functools
import types
from typing import Any

import numpy as np
import pytest

from fastgru.kernels.cuda import build, launch, normalise, pointwise, reduction, rows, step_input
from fastgru.kernels.cuda.loops import cluster_kernels, exchange_kernels, resident_kernels

from .cupy_module import Device, Stream
from .intrinsics import emulate_intrinsics
from .threads import Cuda

# Those whose functions use `numba.cuda`.
KERNEL_MODULES = (
    cluster_kernels, exchange_kernels, normalise, pointwise, reduction, resident_kernels, rows,
    step_input,
)  # fmt: skip
_WAITING = {"syncthreads", "cluster_arrive"}


def _waits(function: Any) -> bool:
    """Whether a kernel's threads wait for each other, in a function that it calls if not itself."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    called = [content for content in cells if isinstance(content, types.FunctionType)]
    own = not _WAITING.isdisjoint(function.__code__.co_names)
    return own or any(map(_waits, called))


class Launch:
    """Stands for a kernel with its arrays."""

    def __init__(self, kernel: Any, device: Device, arrays: Any) -> None:
        arrays = [a.array if isinstance(a, launch.PreparedArray) else a for a in arrays]
        devices = [Device(), *(array.device for array in arrays)]
        assert all(d == device for d in devices), f"expected all on {device}, got {devices}"
        kinds = build.signature_of(kernel.function, kernel.dtype).args
        expected = [kind.ndim for kind in kinds if hasattr(kind, "ndim")]
        assert [array.ndim for array in arrays] == expected
        self.kernel, self.arrays = kernel, [np.asarray(array) for array in arrays]

    def __call__(self, grid: Any, block: Any, stream: int, *numbers: int) -> None:
        Stream.launch(stream, lambda: self._run(grid, block, *numbers))

    def _run(self, grid: Any, block: Any, *numbers: int) -> None:
        kernel, function = self.kernel, self.kernel.function
        cuda = Cuda(grid, block, kernel.shared_bytes)
        with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore"):
            for module in KERNEL_MODULES:
                patch.setattr(module, "cuda", cuda)
            emulate_intrinsics(patch, cuda)
            call = functools.partial(function, *self.arrays, *numbers)
            cuda.run(call, _waits(function), kernel.cooperative, kernel.cluster)
