"""The parts of CuPy that fastgru uses, on NumPy arrays: devices, arrays, streams, graphs.

What is new memory to CuPy is full of NaN here, so that what is read before it is written shows.
"""

import functools
import itertools
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np


class Device:
    """One of several devices; arrays are made on the current one."""

    compute_capability = "90"
    attributes: ClassVar[dict[str, int]] = {
        "MultiProcessorCount": 132,
        "CooperativeLaunch": 1,
        "MaxSharedMemoryPerBlockOptin": 232_448,
    }
    current: ClassVar[list[int]] = [0]

    def __init__(self, id: int | None = None) -> None:
        self.id = self.current[-1] if id is None else id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None  # type: ignore[assignment] # as CuPy's

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> "Device":
        self.current.append(self.id)
        return self

    def __exit__(self, *error: Any) -> None:
        self.current.pop()


class ndarray(np.ndarray):  # noqa: N801 - CuPy's name
    """What passes for a CuPy array; a view is on the device of what it is a view of."""

    def __array_finalize__(self, of: Any) -> None:
        self._device = getattr(of, "_device", None) or Device()

    def copy(self, order: Any = "C") -> Any:
        """A copy on the current device, as CuPy makes it."""
        made = np.array(self, order=order, subok=False).view(ndarray)
        made._device = Device()
        return made

    def get(self) -> Any:
        """A copy as a NumPy array."""
        return asnumpy(self)

    @property
    def device(self) -> Device:
        """Where the array is."""
        return self._device

    @property
    def data(self) -> Any:
        """The memory of the array."""
        return types.SimpleNamespace(ptr=self.ctypes.data)


ndarray.__module__ = "cupy"


def _poisoned(shape: Any, dtype: Any = float) -> Any:
    assert Stream.captured is None, "memory is asked for while a stream is captured"
    kind = np.dtype(dtype)
    return np.full(shape, np.nan if kind.kind == "f" else 0x7F, kind).view(ndarray)


def _made(function: Any, *arguments: Any, **options: Any) -> Any:
    assert Stream.captured is None, "memory is asked for while a stream is captured"
    return np.asarray(function(*arguments, **options)).view(ndarray)


class Stream:
    """A stream; what is launched on it runs at once, or later where it is captured."""

    captured: ClassVar["Stream | None"] = None
    null: ClassVar["Stream"]
    pointers: ClassVar[Any] = itertools.count(step=1000)
    busy: ClassVar[set[int]] = set()  # streams that were not waited for

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr = next(self.pointers)
        self.calls: list[Callable[[], None]] = []

    def synchronize(self) -> None:
        """Wait for what was launched."""
        assert Stream.captured is None
        self.busy.discard(self.ptr)

    def begin_capture(self) -> None:
        """Keep what is launched, from now on."""
        assert Stream.captured is None
        assert self is not Stream.null
        Stream.captured = self

    def end_capture(self) -> "Graph":
        """What was kept."""
        assert Stream.captured is self
        Stream.captured, calls, self.calls = None, self.calls, []
        return Graph(calls)

    @classmethod
    def launch(cls, pointer: int, call: Callable[[], None]) -> None:
        """Run a call, or keep it; what runs must not overtake another stream."""
        if cls.captured is None:
            assert cls.busy <= {pointer}, f"streams {cls.busy} may still run beside {pointer}"
            if pointer % 1000 == 0:  # one of ours
                cls.busy.add(pointer)
            call()
            return
        assert pointer == cls.captured.ptr, "a launch on a stream that is not captured"
        cls.captured.calls.append(call)


Stream.null = Stream()


class Graph:
    """What was launched while a stream was captured."""

    def __init__(self, calls: list[Callable[[], None]]) -> None:
        self._calls = calls

    def launch(self) -> None:
        """Launch all of it on the current stream."""
        for call in self._calls:
            Stream.launch(sys.modules["cupy"].cuda.get_current_stream().ptr, call)


def asnumpy(array: Any) -> Any:
    """A copy as a NumPy array."""
    return np.array(array, subok=False)


# Functions of NumPy's that CuPy has too, and that fastgru uses.
FUNCTIONS = (
    *("zeros", "ones", "full", "ascontiguousarray", "asarray", "isfinite", "zeros_like"),
    *("empty_like", "arange", "concatenate", "broadcast_to", "take_along_axis", "where"),
    *("multiply", "subtract", "divide", "maximum", "clip", "abs", "sign", "sqrt", "exp", "log"),
    *("log1p", "einsum"),
)


def make_cupy() -> Any:
    """The module that stands in for CuPy."""
    module: Any = types.ModuleType("cupy")
    module.ndarray, module.asnumpy, module.empty = ndarray, asnumpy, _poisoned
    module.inf = np.inf
    for name in FUNCTIONS:
        setattr(module, name, functools.partial(_made, getattr(np, name)))
    module.cuda = types.ModuleType("cupy.cuda")
    module.cuda.Device, module.cuda.Stream = Device, Stream
    module.cuda.get_current_stream = lambda: Stream.null
    module.cuda.runtime = types.SimpleNamespace(
        getDeviceProperties=lambda number: {"name": b"simulated"},
        free=lambda pointer: None,
    )
    return module
