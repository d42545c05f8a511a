"""CuPy and a GPU, emulated in Python: kernels run unchanged, thread by thread, on NumPy arrays.

`install` puts a stand-in for the parts of CuPy that fastgru uses in the place of `cupy`, and runs
kernels as the Python that they are.
"""

import sys
from typing import Any

from fastgru import packed
from fastgru.kernels.cuda import blas, launch, recurrence

from .cublas import Handle, product
from .cupy_module import Stream, make_cupy
from .launches import Launch
from .threads import Cuda

__all__ = ["Cuda", "install"]


def install(patch: Any) -> Any:
    """Replace CuPy and the launches of kernels for as long as a pytest `MonkeyPatch` lasts."""
    cupy = make_cupy()
    patch.setitem(sys.modules, "cupy", cupy)
    patch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
    patch.setattr(blas, "product", product)
    patch.setattr(blas, "Handle", Handle)
    patch.setattr(Stream, "busy", set())
    patch.setattr(launch.Kernel, "bind", lambda self, device, *arrays: Launch(self, device, arrays))
    patch.setattr(
        launch.Kernel,
        "clusters_at_once",
        lambda self, device: device.attributes["MultiProcessorCount"] // self.cluster,
    )
    packed._architecture.cache_clear()  # it keeps what runs kernels
    vars(recurrence.of_thread).clear()
    return cupy
