"""The barrier of a thread team: threads that share the units of every step.

Few rows with large weights are split by units, so each thread must see all of h before the next
product. A parallel region a step would cost 1 to 3 µs; here the threads of one region wait for each
other at a barrier inside the kernel, 0.03 to 0.1 µs.

Nobody may wait for a thread that might never come: a pool may give fewer threads than requested, or
run several shares one after another on one thread. So a team forms when its threads begin. Whoever
comes joins; the first one waits a little for the others and closes the team; later ones find it
closed and leave. All members are then running threads, and any number of them computes the same
bits.
"""

import sys
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import element_pointer, inlined, jitable, prefetch, target
from .tuning import CACHE_LINE, PATIENCE, YIELD_AFTER

# Words of a barrier, on cache lines of their own.
_JOINED, _MEMBERS, _ARRIVED = 0, 16, 32
BARRIER_WORDS = 48
_CLOSED = 1 << 32


def _word(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return element_pointer(context, builder, sig.args[0], args[0], args[1])


@intrinsic
def _atomic_add(typing: Any, words: Any, index: Any, amount: Any) -> Any:
    """Add to a word; gives what it held before."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _word(context, builder, sig, args), args[2], "seq_cst")

    return types.intp(words, types.intp, types.intp), emit


@intrinsic
def _atomic_load(typing: Any, words: Any, index: Any) -> Any:
    """Read a word, and all that was written before it was written."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_word(context, builder, sig, args), "seq_cst", 8)

    return types.intp(words, types.intp), emit


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell the core that this is a waiting loop, where there is an instruction for it."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = ir.IntType(32)
        if target().is_x86:
            name, arguments = "llvm.x86.sse2.pause", []
        elif target().is_arm64:
            # The hint meant for this takes no time on most cores; this one waits for the pipeline.
            name, arguments = "llvm.aarch64.isb", [number(15)]
        else:
            return context.get_dummy_value()
        kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def _yield_core(typing: Any) -> Any:
    """Let another thread have the core, where the system has a call for it."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if sys.platform != "win32":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), emit


class Share(NamedTuple):
    """A thread's part of the work."""

    row_block: int  # its row block in the first turn; negative if it came too late
    stride: int  # row blocks a turn, one for each worker, or one for all
    area: int  # whose part of the workspace holds what a team shares
    rank: int  # its number in its team
    members: int  # how many the team has


@jitable
def _look_again(looks):
    """Wait a moment, after so many looks."""
    _pause()
    if looks % YIELD_AFTER == YIELD_AFTER - 1:
        _yield_core()


@jitable
def join(barrier, worker, workers):
    """A worker's share: row blocks of its own, or, where there is a barrier, part of each."""
    # barrier (BARRIER_WORDS,) zeros, or empty
    if len(barrier) == 0:
        return Share(worker, workers, worker, 0, 1)
    rank = _atomic_add(barrier, _JOINED, 1)
    if rank >= _CLOSED:
        return Share(-1, 1, 0, 0, 1)
    if rank == 0:
        looks = 0
        while _atomic_load(barrier, _JOINED) < workers and looks < PATIENCE:
            _pause()
            looks += 1
        _atomic_add(barrier, _MEMBERS, _atomic_add(barrier, _JOINED, _CLOSED))
    looks = 0
    members = _atomic_load(barrier, _MEMBERS)
    while members == 0:
        _look_again(looks)
        looks += 1
        members = _atomic_load(barrier, _MEMBERS)
    # The same thread should have the same units in every call: its cache holds their weights.
    return Share(0, 1, 0, worker if members == workers else rank, members)


@jitable
def wait(barrier, members):
    """Wait until all members of the team have come here."""
    # barrier (BARRIER_WORDS,), or empty if there is one member
    if members == 1:
        return
    # Nobody comes a second time before all have come once, so this counts the rounds.
    everyone = (_atomic_add(barrier, _ARRIVED, 1) // members + 1) * members
    looks = 0
    while _atomic_load(barrier, _ARRIVED) < everyone:
        _look_again(looks)
        looks += 1


@jitable
def turns(share, blocks):
    """In how many turns a worker goes through its row blocks."""
    return (blocks + share.stride - 1) // share.stride


@jitable
def row_block_of(share, turn):
    """A worker's row block in one turn; there may be none with that number.

    Turns alternate in direction: the first row blocks have the longest rows.
    """
    return turn * share.stride + (
        share.stride - 1 - share.row_block if turn % 2 else share.row_block
    )


@intrinsic
def _prefetch(typing: Any, memory: Any, index: Any) -> Any:
    """Prefetch a cache line of flat memory."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        prefetch(builder, element_pointer(context, builder, sig.args[0], *args))
        return context.get_dummy_value()

    return types.void(memory, types.intp), emit


@inlined
def prefetch_run(memory, start, count, itemsize):
    """Prefetch what others wrote, all at once: read one by one, each line would be waited for."""
    # memory: pointer
    for at in range(start, start + count, CACHE_LINE // itemsize):
        _prefetch(memory, at)
