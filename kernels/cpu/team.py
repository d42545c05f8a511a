"""Threads that share the units of every step: how they find each other, and how they wait.

Few rows with large weights are split by units, so each thread must see all of h before the next
product. A parallel region a step would cost 1 to 3 µs; here the threads of one region wait for each
other at a barrier inside the kernel, 0.03 to 0.1 µs.

Nobody may wait for a thread that might never come: a pool may give fewer threads than asked for, or
run several shares one after another on one thread. So a team forms at the entrance. Whoever comes
joins; the first one waits a little for the others and closes the team; later ones find it closed
and leave. All members are then running threads, and any number of them computes the same bits.
"""

import sys
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .simd import CACHE_LINE, element_pointer, inlined, prefetch, target

# Words of a meeting place, on cache lines of their own.
_JOINED, _MEMBERS, _ARRIVED = 0, 16, 32
MEETING_WORDS = 48
_CLOSED = 1 << 32

# How often the first one looks for the others: 50 to 200 µs, in which a sleeping thread wakes.
_PATIENCE = 5000
# How often a waiting member looks before it lets another thread have its core.
_YIELD_AFTER = 2000


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

    block: int  # its block of rows in the first turn; negative if it came too late
    stride: int  # blocks a turn, one for each worker, or one for all
    area: int  # whose part of the workspace holds what those who share a block share
    rank: int  # its number among those that share a block
    members: int  # how many share it


@register_jitable
def _look_again(looks):
    """Wait a moment, after so many looks."""
    _pause()
    if looks % _YIELD_AFTER == _YIELD_AFTER - 1:
        _yield_core()


@register_jitable
def join(meeting, worker, workers):
    """A worker's share: blocks of its own, or, where there is a meeting place, part of each."""
    # meeting (MEETING_WORDS,) zeros, or empty
    if len(meeting) == 0:
        return Share(worker, workers, worker, 0, 1)
    rank = _atomic_add(meeting, _JOINED, 1)
    if rank >= _CLOSED:
        return Share(-1, 1, 0, 0, 1)
    if rank == 0:
        looks = 0
        while _atomic_load(meeting, _JOINED) < workers and looks < _PATIENCE:
            _pause()
            looks += 1
        _atomic_add(meeting, _MEMBERS, _atomic_add(meeting, _JOINED, _CLOSED))
    looks = 0
    members = _atomic_load(meeting, _MEMBERS)
    while members == 0:
        _look_again(looks)
        looks += 1
        members = _atomic_load(meeting, _MEMBERS)
    # The same thread should have the same units in every call: its cache holds their weights.
    return Share(0, 1, 0, worker if members == workers else rank, members)


@register_jitable
def meet(meeting, members):
    """Wait until all members have come here."""
    # meeting (MEETING_WORDS,), or empty if there is one member
    if members == 1:
        return
    # Nobody comes a second time before all have come once, so this counts the rounds.
    everyone = (_atomic_add(meeting, _ARRIVED, 1) // members + 1) * members
    looks = 0
    while _atomic_load(meeting, _ARRIVED) < everyone:
        _look_again(looks)
        looks += 1


@register_jitable
def turns(share, blocks):
    """In how many turns a worker goes through its blocks."""
    return (blocks + share.stride - 1) // share.stride


@register_jitable
def block_of(share, turn):
    """A worker's block of rows in one turn; there may be none with that number.

    Blocks go round there and back: the first ones have the longest rows.
    """
    return turn * share.stride + (share.stride - 1 - share.block if turn % 2 else share.block)


@intrinsic
def _prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for a cache line of a flat array."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        prefetch(builder, _word(context, builder, sig, args))
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@inlined
def fetch(array, start, count):
    """Ask for all that others wrote at once: read one by one, each line would be waited for."""
    # array flat
    line = CACHE_LINE // array.itemsize
    for at in range(start, start + count, line):
        _prefetch(array, at)
