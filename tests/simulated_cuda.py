"""CuPy and a GPU, acted out in Python: kernels run unchanged, thread by thread, on NumPy arrays.

`install` puts a stand-in for the parts of CuPy that fastgru uses in the place of `cupy`, and runs
kernels as the Python that they are. What is new memory to CuPy is full of NaN here, so that what is
read before it is written shows.
"""

import functools
import itertools
import random
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import greenlet
import numpy as np
import pytest

from fastgru import packed
from fastgru.kernels.cuda import (
    blas,
    cluster_kernels,
    exchange_kernels,
    intrinsics,
    launch,
    pointwise,
    recurrence,
    resident_kernels,
    rows,
)


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


def _made(function: Any, *arguments: Any) -> Any:
    assert Stream.captured is None, "memory is asked for while a stream is captured"
    return function(*arguments).view(ndarray)


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


def _cupy() -> Any:
    """The module that stands in for CuPy."""
    module: Any = types.ModuleType("cupy")
    module.ndarray, module.asnumpy, module.empty = ndarray, asnumpy, _poisoned
    for name in ("zeros", "ones", "ascontiguousarray", "asarray"):
        setattr(module, name, functools.partial(_made, getattr(np, name)))
    module.cuda = types.ModuleType("cupy.cuda")
    module.cuda.Device, module.cuda.Stream = Device, Stream
    module.cuda.get_current_stream = lambda: Stream.null
    module.cuda.runtime = types.SimpleNamespace(
        getDeviceProperties=lambda number: {"name": b"simulated"},
        free=lambda pointer: None,
    )
    return module


class Cluster:
    """Blocks that write into each other's shared memory, and where they are with their barrier."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.arrived, self.phase = 0, 0


class Block:
    """A block's place in the grid and in its cluster, and the memory that its threads share."""

    def __init__(self, x: int, y: int, cluster: Cluster) -> None:
        self.x, self.y, self.cluster = x, y, cluster
        self.shared: list[Any] = []
        self.ended = 0  # threads
        cluster.blocks.append(self)


class Warp:
    """Threads that compute together, and what each of them has given so far."""

    def __init__(self) -> None:
        self.given: dict[int, Any] = {}
        self.found: list[Any] = []


class Thread:
    """A thread's place in its block and warp, and how many shared arrays it has asked for."""

    def __init__(self, block: Block, x: int, y: int, warp: list[Warp], lane: int) -> None:
        self.block, self.x, self.y, self.shared = block, x, y, 0
        self.warp, self.lane = warp, lane  # the warp's next meeting is the list's only member
        self.awaited: int | None = None  # the phase of the cluster's barrier that it has arrived at


class Cuda:
    """`numba.cuda` as a kernel's threads see it: each sees itself.

    Where threads wait for each other, each is a greenlet that runs until it waits. Blocks run one
    after the other, unless they wait for each other too.
    """

    # Rounds in which nobody gets further than to wait for a word once more.
    PATIENCE = 1000

    def __init__(
        self, grid: tuple[int, int], block: tuple[int, int], shared_bytes: int = 0
    ) -> None:
        point = types.SimpleNamespace
        self.shared_bytes = shared_bytes
        self.gridDim, self.blockDim = point(x=grid[0], y=grid[1]), point(x=block[0], y=block[1])
        self.shared = point(array=self._shared_array)
        self.local = point(array=_poisoned_local)
        self.blockIdx = Block(0, 0, Cluster())
        self.threadIdx = Thread(self.blockIdx, 0, 0, [Warp()], 0)
        self._main = greenlet.getcurrent()

    def _rest(self, why: str) -> None:
        """Let other threads run."""
        assert greenlet.getcurrent() is not self._main, "a thread waits that runs by itself"
        self._main.switch(why)

    def syncthreads(self) -> None:
        """Wait for all threads of the block."""
        self._rest("barrier")

    def nanosleep(self, nanoseconds: int) -> None:
        """Let others run: what is waited for is not there yet."""
        self._rest("asleep")

    def of_warp(self, function: Callable[[list[Any]], Any], mine: Any) -> tuple[Any, ...]:
        """What this thread gets of what the warp's threads give."""
        thread = self.threadIdx
        (meeting,) = thread.warp
        meeting.given[thread.lane] = function, mine
        if len(meeting.given) == 32:
            functions, given = zip(*(meeting.given[n] for n in range(32)), strict=True)
            assert set(functions) == {function}, "threads of a warp do different things"
            meeting.found = function(given)
            thread.warp[0] = Warp()
        while not len(meeting.found):
            self._rest("asleep")
        return tuple(meeting.found[thread.lane])

    def arrive_at_cluster(self) -> None:
        """See `intrinsics`."""
        thread, cluster = self.threadIdx, self.blockIdx.cluster
        assert thread.awaited is None, "a thread arrives twice"
        thread.awaited = cluster.phase
        cluster.arrived += 1
        if cluster.arrived == len(cluster.blocks) * self.blockDim.x:
            cluster.arrived, cluster.phase = 0, cluster.phase + 1

    def wait_for_cluster(self) -> None:
        """See `intrinsics`."""
        thread, cluster = self.threadIdx, self.blockIdx.cluster
        assert thread.awaited is not None, "a thread waits and has not arrived"
        while cluster.phase == thread.awaited:
            self._rest("asleep")
        thread.awaited = None

    def shared_by(self, array: Any, rank: int) -> Any:
        """The array of another block of the cluster that a shared array is there."""
        block = self.blockIdx.cluster.blocks[rank]
        assert not block.ended, "a block may have ended"
        (number,) = [n for n, other in enumerate(self.blockIdx.shared) if other is array]
        assert number < len(block.shared), "a block may not have started"
        return block.shared[number]

    def _shared_array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        """The same array for all threads of a block: the n-th that each asks for."""
        thread, arrays = self.threadIdx, self.blockIdx.shared
        if shape == 0:  # as much as the launch says
            shape = (self.shared_bytes // np.dtype(str(dtype)).itemsize,)
        if thread.shared == len(arrays):
            arrays.append(_poisoned_local(shape, dtype))
        thread.shared += 1
        array = arrays[thread.shared - 1]
        assert array.shape == shape
        return array

    turn = 0

    def run(self, kernel: Any, waits: bool, together: bool, cluster: int = 1) -> None:
        """Run all blocks; `waits` tells whether threads do, `together` whether blocks do.

        So many blocks with the same x are a cluster. Every launch has an order of its own: none is
        promised.
        """
        assert 0 < self.blockDim.x * self.blockDim.y <= 1024
        assert 0 < self.gridDim.x < 2**31
        assert 0 < self.gridDim.y < 2**16
        Cuda.turn += 1
        inside = [*itertools.product(range(self.blockDim.y), range(self.blockDim.x))]
        if cluster > 1:
            assert cluster == self.gridDim.y
            for x in range(self.gridDim.x):
                all_of_it = Cluster()
                blocks = [Block(x, y, all_of_it) for y in range(cluster)]
                self._run_together(kernel, [self._threads(block, inside) for block in blocks])
            return
        places = itertools.product(range(self.gridDim.y), range(self.gridDim.x))
        grid = [self._threads(Block(x, y, Cluster()), inside) for y, x in places]
        if together:
            assert len(grid) <= Device.attributes["MultiProcessorCount"]
            self._run_together(kernel, grid)
            return
        for threads in grid:
            if waits:
                self._run_together(kernel, [threads])
            else:
                for thread in threads[:: 1 if Cuda.turn % 2 else -1]:
                    self._enter(thread)
                    kernel()

    def _threads(self, block: Block, inside: list[tuple[int, int]]) -> list[Thread]:
        warps = [[Warp()] for _ in range(-(-len(inside) // 32))]
        return [
            Thread(block, x, y, warps[number // 32], number % 32)
            for number, (y, x) in enumerate(inside)
        ]

    def _enter(self, thread: Thread) -> None:
        self.threadIdx, self.blockIdx = thread, thread.block

    def _run_together(self, kernel: Any, blocks: list[list[Thread]]) -> None:
        strands = {thread: greenlet.greenlet(kernel) for block in blocks for thread in block}
        chance = random.Random(Cuda.turn)
        order = [thread for block in blocks for thread in block]
        chance.shuffle(order)
        held: set[Thread] = set()
        idle = 0
        while strands:
            before = len(strands), len(held)
            for thread in order:
                # Half of them rest, so that some fall behind the others by several waits.
                if thread in strands and thread not in held and chance.random() < 0.5:
                    self._enter(thread)
                    if strands[thread].switch() == "barrier":
                        held.add(thread)
                    elif strands[thread].dead:
                        assert thread.awaited is None, "a thread ends before its cluster's barrier"
                        thread.block.ended += 1
                        del strands[thread]
            idle = idle + 1 if before == (len(strands), len(held)) else 0
            for block in blocks:
                waiting = held.intersection(block)
                ended = sum(thread not in strands for thread in block)
                if waiting and ended:
                    raise RuntimeError(f"{ended} threads ended, others wait at a barrier")
                if len(waiting) == len(block):
                    held -= waiting
            if idle > self.PATIENCE:
                raise RuntimeError(f"{len(strands)} threads wait for each other for ever")


def _poisoned_local(shape: Any, dtype: Any, alignment: int | None = None) -> Any:
    made = np.empty(shape, str(dtype))
    made.view(np.uint8).fill(0xFF)  # NaN, also in the numbers of tensor cores
    return made


class Launch:
    """Stands for a kernel with its arrays."""

    def __init__(self, kernel: Any, device: Device, arrays: Any) -> None:
        arrays = [a.array if isinstance(a, launch.Placed) else a for a in arrays]
        devices = [Device(), *(array.device for array in arrays)]
        assert all(d == device for d in devices), f"expected all on {device}, got {devices}"
        kinds = launch.signature_of(kernel._function, kernel._dtype).args
        expected = [kind.ndim for kind in kinds if hasattr(kind, "ndim")]
        assert [array.ndim for array in arrays] == expected
        self.kernel, self.arrays = kernel, [np.asarray(array) for array in arrays]

    def __call__(self, grid: Any, block: Any, stream: int, *numbers: int) -> None:
        Stream.launch(stream, lambda: self._run(grid, block, *numbers))

    def _run(self, grid: Any, block: Any, *numbers: int) -> None:
        kernel, function = self.kernel, self.kernel._function
        cuda = Cuda(grid, block, kernel.shared_bytes)
        with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore"):
            for module in (cluster_kernels, exchange_kernels, pointwise, resident_kernels, rows):
                patch.setattr(module, "cuda", cuda)
            patch.setattr(intrinsics, "acted_out", cuda)
            waits = not {"syncthreads", "arrive_at_cluster"}.isdisjoint(function.__code__.co_names)
            together = kernel.launch is launch._together
            call = functools.partial(function, *self.arrays, *numbers)
            cuda.run(call, waits, together, kernel._cluster)


def _view(matrix: Any, rows: int, columns: int) -> Any:
    """A matrix inside an array as a NumPy array."""
    if matrix.transposed:
        return _view(matrix._replace(transposed=False), columns, rows).T
    flat = np.asarray(matrix.array).reshape(-1)[matrix.start :]
    assert (rows - 1) * matrix.stride + columns <= flat.size
    assert columns <= matrix.stride or rows <= 1
    size = flat.itemsize
    return np.lib.stride_tricks.as_strided(
        flat, (rows, columns), (matrix.stride * size, size), writeable=True
    )


def _rounded(values: Any, bits: int) -> Any:
    """Rounded to so many significant bits, if those are fewer than float32 has."""
    if bits == 24:
        return values
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


class Handle:
    """`blas.Handle`: what multiplies is the number of the stream that is to be used."""

    def on(self, stream: int, workspace: Any) -> int:
        """See `blas.Handle`."""
        return stream


def product(
    n: int,
    k: int,
    a: Any,
    b: Any,
    c: Any,
    *,
    add: bool,
    precision: Any = None,
    multiply: int | None = None,
) -> Callable[[int, int], None]:
    """`blas.product` on NumPy arrays; CuPy's own handle, on the null stream, cannot be captured."""

    def run(m: int, offset: int) -> None:
        if m == 0 or n == 0:
            return
        null = sys.modules["cupy"].cuda.get_current_stream().ptr
        from_there = a._replace(start=a.start + offset)
        Stream.launch(
            null if multiply is None else multiply,
            lambda: _multiply(m, n, k, from_there, b, c, add, precision),
        )

    return run


def _multiply(m: int, n: int, k: int, a: Any, b: Any, c: Any, add: bool, precision: Any) -> None:
    assert a.array.dtype == b.array.dtype == c.array.dtype
    out = _view(c, m, n)
    bits = {None: 24, "tf32": 11, "bf16": 8}[precision]
    with np.errstate(invalid="ignore"):  # a GPU does not warn
        product = _rounded(_view(a, m, k), bits) @ _rounded(_view(b, k, n), bits)
    out[...] = out + product if add else product


def install(patch: Any) -> Any:
    """Replace CuPy and the launches of kernels for as long as a pytest `MonkeyPatch` lasts."""
    cupy = _cupy()
    patch.setitem(sys.modules, "cupy", cupy)
    patch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
    patch.setattr(blas, "product", product)
    patch.setattr(blas, "Handle", Handle)
    patch.setattr(Stream, "busy", set())
    patch.setattr(launch.Kernel, "bind", lambda self, device, *arrays: Launch(self, device, arrays))
    patch.setattr(
        launch.Kernel,
        "clusters_at_once",
        lambda self, device: device.attributes["MultiProcessorCount"] // self._cluster,
    )
    packed._architecture.cache_clear()  # it keeps what runs kernels
    vars(recurrence._of_thread).clear()
    return cupy
