"""From a kernel's Python to its launch: types, machine code for a device, arguments.

Kernels are compiled for one signature that their parameters' names imply, and launched by the
driver's own call from arguments laid out once a pass: Numba's launcher looks at every array in each
step anew, which takes longer than a small kernel runs.
"""

import ctypes
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numba_cuda
import numpy as np
from cuda.bindings import driver, nvjitlink
from numba import cuda
from numba.cuda import types

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
    """

    def __init__(
        self,
        function: Callable[..., None],
        dtype: np.dtype[Any],
        key: str | None,
        threads: int | None = None,
        together: bool = False,
    ) -> None:
        self._function, self._dtype, self._key, self._threads = function, dtype, key, threads
        self._together = together
        parameters = signature_of(function, dtype).args
        self._arrays = [kind.ndim for kind in parameters if isinstance(kind, types.Array)]
        self._numbers = len(parameters) - len(self._arrays)
        self._on_device: dict[int, Any] = {}

    def assembled(self, capability: tuple[int, int]) -> Assembled:
        """The machine code for a compute capability, from the disk if it is there."""
        parts = (
            numba_cuda.__version__, nvjitlink.version(), store.sources_digest("cuda"),
            self._function.__qualname__, self._key, str(self._dtype), capability, self._threads,
        )  # fmt: skip
        kept = store.read(parts) if self._key is not None else None
        if kept is not None:
            name, _, code = kept.partition(b"\0")
            return Assembled(name.decode(), code, "")
        made = assemble(self._function, self._dtype, capability, self._threads)
        if self._key is not None:
            store.write(parts, made.name.encode() + b"\0" + made.code)
        return made

    def bind(self, device: Any, *arrays: Any) -> "Launch":
        """The kernel with its arrays, which must have the dtypes that it is compiled for."""
        found = [array.ndim for array in arrays]
        if found != self._arrays:
            raise TypeError(f"expected arrays of {self._arrays} dimensions, got {found}")
        handle = self._on_device.get(device.id)
        if handle is None:
            major, minor = divmod(int(device.compute_capability), 10)
            kernel = self.assembled((major, minor))
            module = _checked(driver.cuModuleLoadData(kernel.code))
            handle = _checked(driver.cuModuleGetFunction(module, kernel.name.encode()))
            self._on_device[device.id] = handle
        return Launch(handle, arrays, self._numbers, self._together)


class Launch:
    """A kernel with its arrays; called with a grid, a block, a stream and the kernel's numbers.

    Arrays are laid out as Numba's kernels take them: two words that are for the host, number of
    elements, their size, address, shape and strides in bytes.
    """

    def __init__(self, handle: Any, arrays: tuple[Any, ...], numbers: int, together: bool) -> None:
        words: list[int] = []
        for array in arrays:
            words += (0, 0, array.size, array.itemsize, array.data.ptr)
            words += array.shape
            words += array.strides
        count = len(words) + numbers
        self._handle, self._arrays, self._numbers = handle, arrays, numbers
        self._together = together
        self._words = (ctypes.c_int64 * count)(*words)
        start = ctypes.addressof(self._words)
        self._pointers = (ctypes.c_void_p * count)(*range(start, start + 8 * count, 8))
        self._first = len(words)

    def __call__(
        self, grid: tuple[int, int], block: tuple[int, int], stream: int, *numbers: int
    ) -> None:
        if len(numbers) != self._numbers:
            raise TypeError(f"expected {self._numbers} numbers, got {numbers}")
        self._words[self._first :] = list(numbers)
        where = ctypes.addressof(self._pointers)
        how = (self._handle, *grid, 1, *block, 1, 0, stream or _LEGACY_STREAM, where)
        if self._together:
            _checked(driver.cuLaunchCooperativeKernel(*how))
        else:
            _checked(driver.cuLaunchKernel(*how, 0))
