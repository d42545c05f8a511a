"""From a kernel's Python to its launch: types, machine code for a device, arguments.

Kernels are compiled for one signature that their parameters' names imply, and launched by the
driver's own call from arguments laid out once a pass: Numba's launcher looks at every array in each
step anew, which takes longer than a small kernel runs.
"""

import ctypes
import functools
import inspect
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numba_cuda
import numpy as np
from cuda.bindings import driver, nvjitlink
from numba import cuda
from numba.cuda import types
from numba.cuda.core import config

from .. import store

# Threads of a block, over units or features and over rows.
BLOCK = (32, 4)
MOVE_BLOCK = (64, 1)
# A grid's second dimension ends there.
_MOST = 65_535


def unit_grid(rows: int, units: int) -> tuple[int, int]:
    """Blocks for a thread a unit; see `pointwise.unit_of_thread`."""
    return -(-rows // BLOCK[1]), -(-units // BLOCK[0])


def move_grid(steps: int, rows: int) -> tuple[int, int]:
    """Blocks for a step each; see `rows`."""
    return steps, min(rows, _MOST)


_NUMBERS = (
    "rows", "step", "first_step", "last_step", "reverse", "keep", "has_dy", "layer", "member",
    "number", "x_start", "block_start", "value_start",
)  # fmt: skip
_PORTABLE_CLUSTER = 8  # blocks of a cluster on any GPU that has clusters
_LEGACY_STREAM = 1  # of the driver; what its 0 means depends on the environment


def _parameter_types(dtype: Any) -> dict[str, Any]:
    """Types of all parameters of all kernels, by name."""

    def ours(ndim: int) -> Any:
        return types.Array(dtype, ndim, "C")

    theirs = types.Array(dtype, 3, "A", readonly=True)
    theirs_out = types.Array(dtype, 3, "A")
    indices = types.Array(types.int64, 1, "C", readonly=True)
    return {
        **dict.fromkeys(_NUMBERS, types.int64),
        **dict.fromkeys(("y", "h0", "dy"), theirs),
        **dict.fromkeys(("y_out", "sequence", "states"), theirs_out),
        **dict.fromkeys(("order", "lengths", "offset"), indices),
        **dict.fromkeys(("packed", "weight_hh"), ours(2)),
        **dict.fromkeys(("bias_ih", "bias_hh"), ours(3)),
        **dict.fromkeys(("operand_out", "doperand"), ours(2)),
        **dict.fromkeys(("x_sums", "h_sums", "state", "values", "h"), ours(3)),
        "state_before": ours(3),
        "words": types.Array(types.uint64, 3, "C"),
        **dict.fromkeys(("h_before", "dstate", "dvalues", "d_ih", "d_hh"), ours(3)),
    }


def signature_of(function: Callable[..., None], dtype: np.dtype[Any]) -> Any:
    """The signature that a kernel is compiled for."""
    kinds = _parameter_types(types.float32 if dtype.itemsize == 4 else types.float64)
    names = inspect.signature(function).parameters
    return types.void(*[kinds[name] for name in names])


class Assembled(NamedTuple):
    """A kernel's machine code."""

    name: str
    code: bytes
    log: str  # the linker's: registers, spilled bytes


def assemble(
    function: Callable[..., None],
    dtype: np.dtype[Any],
    capability: tuple[int, int],
    threads: int | None = None,
) -> Assembled:
    """Compile and link a kernel for a compute capability, and blocks of so many threads at most."""
    signature = signature_of(function, dtype)
    ptx, _ = cuda.compile(
        function, signature, device=False, abi="numba", cc=capability, launch_bounds=threads
    )
    name = ptx.partition(".entry ")[2].partition("(")[0].strip()
    return Assembled(name, *_link(ptx, capability))


def _link(ptx: str, capability: tuple[int, int]) -> tuple[bytes, str]:
    """Link PTX, by the linker that comes with Numba: drivers may be older than Numba's compiler.

    Raises
    ------
    RuntimeError
        With the linker's log.
    """
    options = [f"-arch=sm_{capability[0]}{capability[1]}", "-O3", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        code = ptx.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
        try:
            nvjitlink.complete(handle)
        except nvjitlink.nvJitLinkError as error:
            log = bytearray(nvjitlink.get_error_log_size(handle))
            nvjitlink.get_error_log(handle, log)
            raise RuntimeError(f"cannot link a kernel: {_text(log)}") from error
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
        return bytes(cubin), _text(log)
    finally:
        nvjitlink.destroy(handle)


def _text(log: bytearray) -> str:
    return log.decode(errors="replace").rstrip("\0")


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
    together : bool
        Whether blocks wait for each other: then they are launched all at once, or not at all.
    cluster : int
        Number of blocks, along y, that the kernel forms a cluster of.
    shared_bytes : int
        Of the shared memory whose size the kernel leaves open.

    Attributes
    ----------
    words, numbers : int
        Of its arrays, and those after them.
    launch : callable
        See below: apart, together or in clusters.
    frames : list
        Memory for the arguments of launches, of those that are over.
    """

    def __init__(
        self,
        function: Callable[..., None],
        dtype: np.dtype[Any],
        key: str | None,
        threads: int | None = None,
        together: bool = False,
        cluster: int = 1,
        shared_bytes: int = 0,
    ) -> None:
        self._function, self._dtype, self._key, self._threads = function, dtype, key, threads
        self._cluster, self.shared_bytes = cluster, shared_bytes
        self.launch = _in_clusters if cluster > 1 else _together if together else _apart
        parameters = signature_of(function, dtype).args
        self._dimensions = [kind.ndim for kind in parameters if isinstance(kind, types.Array)]
        self.words = sum(5 + 2 * ndim for ndim in self._dimensions)
        self.numbers = len(parameters) - len(self._dimensions)
        self._layout = struct.Struct(f"{self.words}q")
        self.frames: list[_Frame] = []
        self._on_device: dict[int, Any] = {}

    def assembled(self, capability: tuple[int, int]) -> Assembled:
        """The machine code for a compute capability, from the disk if it is there."""
        sources = store.sources_digest("cuda")
        parts = (
            numba_cuda.__version__, nvjitlink.version(), sources, store.compiler_settings(config),
            self._function.__qualname__, self._key, str(self._dtype), capability, self._threads,
        )  # fmt: skip
        is_exact = None not in (sources, self._key)  # whether these parts decide the code
        kept = store.read(parts) if is_exact else None
        if kept is not None:
            name, _, code = kept.partition(b"\0")
            return Assembled(name.decode(), code, "")
        made = assemble(self._function, self._dtype, capability, self._threads)
        if is_exact:
            store.write(parts, made.name.encode() + b"\0" + made.code)
        return made

    def bind(self, device: Any, *arrays: Any) -> "Launch":
        """The kernel with its arrays, which must have the dtypes that it is compiled for.

        An array may be `Placed`.
        """
        found = [array.ndim for array in arrays]
        if found != self._dimensions:
            raise TypeError(f"expected arrays of {self._dimensions} dimensions, got {found}")
        words: list[int] = []
        for array in arrays:
            words += array.words if array.__class__ is Placed else words_of(array)
        handle = self._handle(device)
        try:
            frame = self.frames.pop()
        except IndexError:  # all are in use
            frame = _Frame.of(self.words + self.numbers)
        self._layout.pack_into(frame.memory, 0, *words)
        return Launch(self, handle, frame, arrays)

    def _handle(self, device: Any) -> Any:
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
            if self._cluster > _PORTABLE_CLUSTER:
                allowed = attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
                _checked(driver.cuFuncSetAttribute(handle, allowed, 1))
            self._on_device[device.id] = handle
        return handle

    def clusters_at_once(self, device: Any) -> int:
        """How many clusters of blocks, of as many threads as these may have, run at once."""
        block = self._threads or 1, 1
        config = _cluster_config((1, self._cluster), block, self.shared_bytes, _LEGACY_STREAM)
        result = driver.cuOccupancyMaxActiveClusters(self._handle(device), config)
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


def words_of(array: Any) -> tuple[int, ...]:
    """An array as Numba's kernels take it.

    Two words that are for the host, number of elements, their size, address, shape and strides in
    bytes.
    """
    return (0, 0, array.size, array.itemsize, array.data.ptr, *array.shape, *array.strides)


class Placed(NamedTuple):
    """An array that comes in many launches, with its words."""

    array: Any
    ndim: int
    words: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> "Placed":
        """Lay out an array."""
        return cls(array, array.ndim, words_of(array))


class _Frame(NamedTuple):
    """Memory for the arguments of a launch: words, and after them their addresses."""

    memory: Any
    addresses: int  # where they start

    @classmethod
    def of(cls, count: int) -> "_Frame":
        """For so many words."""
        memory = (ctypes.c_int64 * (2 * count))()
        start = ctypes.addressof(memory)
        memory[count:] = list(range(start, start + 8 * count, 8))
        return cls(memory, start + 8 * count)


class Launch:
    """A kernel with its arrays; called with a grid, a block, a stream and the kernel's numbers."""

    def __init__(self, kernel: Kernel, handle: Any, frame: _Frame, arrays: tuple[Any, ...]) -> None:
        self._kernel, self._handle, self._frame = kernel, handle, frame
        self._arrays = arrays  # alive for as long as their addresses are used

    def __call__(
        self, grid: tuple[int, int], block: tuple[int, int], stream: int, *numbers: int
    ) -> None:
        kernel, (memory, addresses) = self._kernel, self._frame
        if len(numbers) != kernel.numbers:
            raise TypeError(f"expected {kernel.numbers} numbers, got {numbers}")
        memory[kernel.words : kernel.words + kernel.numbers] = numbers
        stream = stream or _LEGACY_STREAM
        kernel.launch(self._handle, grid, block, kernel.shared_bytes, stream, addresses)

    def __del__(self) -> None:
        # A launch copies its arguments, so the memory is free: laying out 50 addresses anew would
        # take 2 us, half of a launch.
        self._kernel.frames.append(self._frame)


# Launches of a kernel: grid, block, bytes of shared memory, stream, address of the arguments'.


def _apart(handle: Any, grid: Any, block: Any, shared: int, stream: int, where: int) -> None:
    """Blocks run when there is room for them."""
    _checked(driver.cuLaunchKernel(handle, *grid, 1, *block, 1, shared, stream, where, 0))


def _together(handle: Any, grid: Any, block: Any, shared: int, stream: int, where: int) -> None:
    """All blocks run at the same time, or it is an error."""
    how = (*grid, 1, *block, 1, shared, stream, where)
    _checked(driver.cuLaunchCooperativeKernel(handle, *how))


def _in_clusters(handle: Any, grid: Any, block: Any, shared: int, stream: int, where: int) -> None:
    """Blocks with the same x run at the same time, when there is room for them."""
    config = _cluster_config(grid, block, shared, stream)
    _checked(driver.cuLaunchKernelEx(config, handle, where, 0))
