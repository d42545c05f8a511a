"""From a kernel's Python to machine code: types, PTX, and the linker.

A kernel is compiled for one signature, which its parameters' names imply. That needs no GPU.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from cuda.bindings import nvjitlink
from numba import cuda
from numba.cuda import types

# Names of parameters that are numbers.
_NUMBERS = (
    "rows", "step", "first_step", "last_step", "reverse", "keep", "has_dy", "layer", "member",
    "exchange", "x_start", "packed_start", "value_start",
)  # fmt: skip


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
        **dict.fromkeys(("packed", "hh", "step_inputs", "operand_out", "doperand"), ours(2)),
        **dict.fromkeys(("x_sums", "h_sums", "constants", "state", "values", "h"), ours(3)),
        "state_before": ours(3),
        "exchange_words": types.Array(types.uint64, 3, "C"),
        **dict.fromkeys(("h_before", "dstate", "dvalues", "d_ih", "d_hh", "d_alone"), ours(3)),
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
    return Assembled(name, *link(ptx, capability))


def link(ptx: str, capability: tuple[int, int]) -> tuple[bytes, str]:
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
