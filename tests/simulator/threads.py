"""The threads of a GPU, emulated: blocks, warps, clusters, barriers and shared memory."""

import itertools
import random
import types
from collections.abc import Callable
from typing import Any

import greenlet
import numpy as np

from .cupy_module import Device


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

    def cluster_arrive(self) -> None:
        """See `tensor_intrinsics`."""
        thread, cluster = self.threadIdx, self.blockIdx.cluster
        assert thread.awaited is None, "a thread arrives twice"
        thread.awaited = cluster.phase
        cluster.arrived += 1
        if cluster.arrived == len(cluster.blocks) * self.blockDim.x:
            cluster.arrived, cluster.phase = 0, cluster.phase + 1

    def cluster_wait(self) -> None:
        """See `tensor_intrinsics`."""
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
