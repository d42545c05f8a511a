"""From a kernel's machine code to its launch: where code is kept, arguments, the driver's calls.

Kernels are launched by the driver's own call from arguments laid out once a pass: Numba's launcher
looks at every array in each step anew, which takes longer than a small kernel runs.
"""

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numba_cuda
import numpy as np
from cuda.bindings import driver, nvjitlink
from numba.cuda import types
from numba.cuda.core import config

from .. import store
from . import tuning
from .build import Assembled, assemble, signature_of


def unit_grid(rows: int, units: int) -> tuple[int, int]:
    """Grid with a thread for each row and unit; see `pointwise.unit_of_thread`."""
    width, height = tuning.UNIT_THREADS
    return -(-rows // height), -(-units // width)


def row_grid(steps: int, rows: int) -> tuple[int, int]:
    """Grid with a row of blocks for each step; see `rows`."""
    return steps, min(rows, tuning.MOST_BLOCKS_ALONG_Y)


LEGACY_STREAM = 1  # of the driver; what its 0 means depends on the environment


def _checked(result: tuple[Any, ...]) -> Any:
    """The value of a driver call; its error as an exception."""
    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(status)
        _, text = driver.cuGetErrorString(status)
        raise RuntimeError(f"CUDA driver: {name.decode()}: {text.decode()}")
    return values[0] if values else None


class Kernel:
    """A kernel for one dtype, compiled when it is first launched on a kind of device.

    Parameters
    ----------
    function : callable
        Its parameters are arrays, then numbers.
    dtype : numpy.dtype
    key : str or None
        What, beyond the sources, the function and the dtype, decides the code: names it on disk.
        Without one it is not kept there.
    threads : int, optional
        Of a block, at most, where that decides how many registers a thread may have.
    cooperative : bool
        Whether blocks wait for each other: then they are launched all at once, or not at all.
    cluster : int
        Number of blocks, along y, that the kernel forms a cluster of.
    shared_bytes : int
        Of the shared memory whose size the kernel leaves open.

    Attributes
    ----------
    array_words, numbers : int
        Words of its arrays' arguments, and how many numbers come after them.
    launch : callable
        See below: plain, cooperative or in clusters.
    free_arguments : list
        Memory for the arguments of launches, of those that are over.
    """

    def __init__(
        self,
        function: Callable[..., None],
        dtype: np.dtype[Any],
        key: str | None,
        threads: int | None = None,
        cooperative: bool = False,
        cluster: int = 1,
        shared_bytes: int = 0,
    ) -> None:
        self.function, self.dtype, self._key, self._threads = function, dtype, key, threads
        self.cooperative, self.cluster, self.shared_bytes = cooperative, cluster, shared_bytes
        self.launch = (
            _launch_clusters if cluster > 1 else _launch_cooperative if cooperative else _launch
        )
        parameters = signature_of(function, dtype).args
        self._dimensions = [kind.ndim for kind in parameters if isinstance(kind, types.Array)]
        self.array_words = sum(5 + 2 * ndim for ndim in self._dimensions)
        self.numbers = len(parameters) - len(self._dimensions)
        self._layout = struct.Struct(f"{self.array_words}q")
        self.free_arguments: list[_Arguments] = []
        self._on_device: dict[int, Any] = {}

    def assembled(self, capability: tuple[int, int]) -> Assembled:
        """The machine code for a compute capability, from the disk if it is there."""
        sources = store.sources_digest("cuda")
        parts = (
            numba_cuda.__version__, nvjitlink.version(), sources, store.compiler_settings(config),
            self.function.__qualname__, self._key, str(self.dtype), capability, self._threads,
        )  # fmt: skip
        is_exact = None not in (sources, self._key)  # whether these parts decide the code
        kept = store.read(parts) if is_exact else None
        if kept is not None:
            name, _, code = kept.partition(b"\0")
            return Assembled(name.decode(), code, "")
        made = assemble(self.function, self.dtype, capability, self._threads)
        if is_exact:
            store.write(parts, made.name.encode() + b"\0" + made.code)
        return made

    def bind(self, device: Any, *arrays: Any) -> "Launch":
        """The kernel with its arrays, which must have the dtypes that it is compiled for.

        An array may be a `PreparedArray`.
        """
        found = [array.ndim for array in arrays]
        if found != self._dimensions:
            raise TypeError(f"expected arrays of {self._dimensions} dimensions, got {found}")
        words: list[int] = []
        for array in arrays:
            words += array.words if array.__class__ is PreparedArray else array_words(array)
        handle = self.handle_on(device)
        try:
            arguments = self.free_arguments.pop()
        except IndexError:  # all are in use
            arguments = _Arguments.of(self.array_words + self.numbers)
        self._layout.pack_into(arguments.memory, 0, *words)
        return Launch(self, handle, arguments, arrays)

    def handle_on(self, device: Any) -> Any:
        """The kernel on a device, the current one, ready to be launched."""
        handle = self._on_device.get(device.id)
        if handle is None:
            major, minor = divmod(int(device.compute_capability), 10)
            kernel = self.assembled((major, minor))
            module = _checked(driver.cuModuleLoadData(kernel.code))
            handle = _checked(driver.cuModuleGetFunction(module, kernel.name.encode()))
            attributes = driver.CUfunction_attribute
            if self.shared_bytes:  # without, 48 KiB with those of a size that the kernel knows
                most = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _checked(driver.cuFuncSetAttribute(handle, most, self.shared_bytes))
            if self.cluster > tuning.PORTABLE_CLUSTER_BLOCKS:
                allowed = attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
                _checked(driver.cuFuncSetAttribute(handle, allowed, 1))
            self._on_device[device.id] = handle
        return handle

    def clusters_at_once(self, device: Any) -> int:
        """How many clusters of blocks, of as many threads as these may have, run at once."""
        block = self._threads or 1, 1
        config = _cluster_config((1, self.cluster), block, self.shared_bytes, LEGACY_STREAM)
        result = driver.cuOccupancyMaxActiveClusters(self.handle_on(device), config)
        if result[0] == driver.CUresult.CUDA_ERROR_INVALID_CLUSTER_SIZE:
            return 0
        return int(_checked(result))


@functools.lru_cache(maxsize=64)
def _cluster_config(
    grid: tuple[int, int], block: tuple[int, int], shared_bytes: int, stream: int
) -> Any:
    """How a grid is launched of which the blocks with the same x form a cluster."""
    config, cluster = driver.CUlaunchConfig(), driver.CUlaunchAttribute()
    config.gridDimX, config.gridDimY, config.gridDimZ = *grid, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = *block, 1
    config.sharedMemBytes, config.hStream = shared_bytes, driver.CUstream(stream)
    cluster.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    shape = cluster.value.clusterDim
    shape.x, shape.y, shape.z = 1, grid[1], 1
    config.attrs, config.numAttrs = [cluster], 1
    return config


def array_words(array: Any) -> tuple[int, ...]:
    """An array as Numba's kernels take it, in words of 64 bits.

    Two that are for the host, number of elements, their size, address, shape and strides in bytes.
    """
    return (0, 0, array.size, array.itemsize, array.data.ptr, *array.shape, *array.strides)


class PreparedArray(NamedTuple):
    """An array that is an argument of many launches, with its words."""

    array: Any
    ndim: int
    words: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> "PreparedArray":
        """Lay out an array."""
        return cls(array, array.ndim, array_words(array))


class _Arguments(NamedTuple):
    """Memory for the arguments of a launch: words, and after them their addresses."""

    memory: Any
    addresses: int  # where they start

    @classmethod
    def of(cls, count: int) -> "_Arguments":
        """For so many words."""
        memory = (ctypes.c_int64 * (2 * count))()
        start = ctypes.addressof(memory)
        memory[count:] = list(range(start, start + 8 * count, 8))
        return cls(memory, start + 8 * count)


class Launch:
    """A kernel with its arrays; called with a grid, a block, a stream and the kernel's numbers."""

    def __init__(
        self, kernel: Kernel, handle: Any, arguments: _Arguments, arrays: tuple[Any, ...]
    ) -> None:
        self._kernel, self._handle, self._arguments = kernel, handle, arguments
        self._arrays = arrays  # alive for as long as their addresses are used

    def __call__(
        self, grid: tuple[int, int], block: tuple[int, int], stream: int, *numbers: int
    ) -> None:
        kernel, (memory, addresses) = self._kernel, self._arguments
        if len(numbers) != kernel.numbers:
            raise TypeError(f"expected {kernel.numbers} numbers, got {numbers}")
        memory[kernel.array_words : kernel.array_words + kernel.numbers] = numbers
        stream = stream or LEGACY_STREAM
        kernel.launch(self._handle, grid, block, kernel.shared_bytes, stream, addresses)

    def __del__(self) -> None:
        # A launch copies its arguments, so the memory is free: laying out 50 addresses anew would
        # take 2 us, half of a launch.
        self._kernel.free_arguments.append(self._arguments)


# Launches of a kernel: grid, block, bytes of shared memory, stream, address of the arguments'.


def _launch(handle: Any, grid: Any, block: Any, shared: int, stream: int, where: int) -> None:
    """Blocks run when there is room for them."""
    _checked(driver.cuLaunchKernel(handle, *grid, 1, *block, 1, shared, stream, where, 0))


def _launch_cooperative(
    handle: Any, grid: Any, block: Any, shared: int, stream: int, where: int
) -> None:
    """All blocks run at the same time, or it is an error."""
    how = (*grid, 1, *block, 1, shared, stream, where)
    _checked(driver.cuLaunchCooperativeKernel(handle, *how))


def _launch_clusters(
    handle: Any, grid: Any, block: Any, shared: int, stream: int, where: int
) -> None:
    """Blocks with the same x run at the same time, when there is room for them."""
    config = _cluster_config(grid, block, shared, stream)
    _checked(driver.cuLaunchKernelEx(config, handle, where, 0))
