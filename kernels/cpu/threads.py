"""How many threads a call may use, and how they share its rows and units."""

import math
import time
from typing import NamedTuple

import numba

from . import thread_pool
from .simd import NEAR_CACHE

# A parallel region costs 1 to 3 µs on a warm pool; work of fewer multiply-adds than this (15 to 25
# µs) is left to the calling thread.
_SMALLEST_PARALLEL_WORK = 1_000_000
# A pool that has gone to sleep costs far more: on a Xeon with two cores 100 µs or, once in ten
# times, a time slice of 7 ms. A call that would take less than `_SHORT` on one thread, and does not
# come within `_SOON` after another one, is made on one: that of a stream, say. Both in seconds.
_SHORT, _SOON = 2e-3, 1e-3
# Sharing the units of a step costs a wait for the others and their lines of h, 0.1 to 0.3 µs for
# each product. It pays where each thread's part of a step is as much work as one row with so many
# bytes of weights, counting those that use h or all: with two threads, where the weights that use h
# just leave the first-level cache of one core, or those of x take long to read.
_SMALLEST_SHARE_OF_RECURRENT, _SMALLEST_SHARE = 25e3, 100e3

# Rows of its own that each thread must have, by the most bytes of weights that use h; with fewer,
# the threads share units instead. One or two rows take about as long as three, bound by reading the
# weights, and the longer a step is, the less the waiting matters: hence the first three lines.
# Weights beyond a second-level cache would be read by each thread for its own rows: the last two.
# Measured with two threads of a Xeon (2 MiB a core), GRU and LSTM, 2 to 32 rows of 16 to 1024
# units: near a limit the two ways differ by up to 5 %, far from one by up to 60 %. On an EPYC (Zen
# 4, 1 MiB), three rows would do whatever the size, which gains 3 to 6 % there.
_OWN_ROWS = ((100e3, 1), (250e3, 2), (1.2e6, 3), (3e6, 8), (math.inf, 16))
# Not more than this many where there are several blocks, one after another, which would read the
# weights as often as threads of their own do, or where threads' shares, which are whole vectors of
# units, would be fewer vectors than this.
_MOST_OWN_ROWS, _FEWEST_SHARED_VECTORS = 8, 4
# Rows come by length, longest first. Where they are not about equal, which so many running rows of
# all tell, each thread's share of them is cut in two, one half of longer and one of shorter rows,
# if about so many are in each.
_ABOUT_EQUAL, _FEWEST_ROWS_OF_HALF_A_SHARE = 0.9, 4
# Most rows that run through a sequence together: few enough that what a step makes of them stays
# in L1. With 64 rows, 64 or 128 units take 5 to 12 % more time on a Xeon; with 24, 64 units take 2
# to 6 % more on an EPYC, whose L1 has 32 KiB.
_ROWS_AT_ONCE = 16
# Where a step has more bytes of weights than a near cache, more rows share each reading of them;
# likewise where each thread makes only some of a step's units.
_MORE_ROWS_AT_ONCE = 64

# Where other threads keep the cores busy (another program, or a pool that spins while it has
# nothing to do, as OpenBLAS's does for 20 to 120 ms after each product), the threads of a region
# wait for their share of a core, 4 to 8 ms, and one thread would have been done long before. After
# two such calls in a row (the first after an idle time just wakes the pool), calls run on one
# thread for so many times the duration of the second: few at first, as a system may need some calls
# to give a woken thread a core of its own, twice as many after each further slow call, and half as
# many after one that was not. With at most 32 instead of 8, calls that take turns with products
# take 5 to 8 % less time in the mean.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 2, 32
# But for at most so many seconds, or `_SHORTEST_PAUSE` calls if that is longer, for all kinds of
# calls pause together.
_LONGEST_PAUSE_TIME = 1.0
# Which of the calls of one kind is made on one thread, to know how long that takes.
_TRIAL_CALL = 2

_paused_until = 0.0
_last_call = 0.0  # when a call that may use several threads ended


def is_small(work: int) -> bool:
    """Whether a call of so many multiply-adds is always left to the calling thread."""
    return work < _SMALLEST_PARALLEL_WORK


def allowed_threads(work: int) -> int:
    """Threads for a call of so many multiply-adds; 1 means the serial kernel, without a region.

    Numba's pool does not survive a fork (see `thread_pool`), and its `workqueue` layer aborts the
    process when two Python threads enter it: there the serial kernel is the only safe one.
    """
    if is_small(work) or time.perf_counter() < _paused_until or not thread_pool.is_usable():
        return 1
    thread_pool.start()
    return 1 if numba.threading_layer() == "workqueue" else numba.get_num_threads()


class Pace:
    """How fast one kind of call is on one thread; ends that on several where they are slower.

    Calls of one kind may differ in length: what counts is the time a multiply-add of their work.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._alone = math.inf  # seconds a multiply-add on one thread
        self._was_slow = False
        self._pause = _SHORTEST_PAUSE

    def choose(self, threads: int, work: int) -> int:
        """Threads for the next call, of so many multiply-adds, of the threads that it may use."""
        self._calls += 1
        is_trial = self._calls == _TRIAL_CALL
        wakes_pool = time.perf_counter() - _last_call > _SOON
        return 1 if is_trial or (wakes_pool and self._alone * work < _SHORT) else threads

    def record(self, threads: int, seconds: float, work: int) -> None:
        """Note the duration of a call that has just ended."""
        global _paused_until, _last_call
        _last_call = time.perf_counter()
        pace = seconds / max(1, work)
        if threads == 1:
            self._alone = min(pace, self._alone)
            return
        is_slow = pace > 1.1 * self._alone
        if is_slow and self._was_slow:
            longest = max(_LONGEST_PAUSE_TIME, _SHORTEST_PAUSE * seconds)
            pause = min(self._pause * seconds, longest)
            _paused_until = max(_paused_until, _last_call + pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        elif not is_slow:
            self._pause = max(self._pause // 2, _SHORTEST_PAUSE)
        self._was_slow = is_slow


class Split(NamedTuple):
    """How threads share the loop over a sequence. No result depends on it."""

    rows: int  # rows a block
    workers: int
    shared: bool  # whether the workers share the units of each block, or have blocks of their own


def split(
    threads: int, rows: int, running: float, units: int, row_bytes: float, recurrent_bytes: float
) -> Split:
    """Choose for so many threads, rows and vectors of units, by the size of a step's weights.

    `running` is how many rows take a step in the mean, `row_bytes` the size of all weights,
    `recurrent_bytes` that of those that use h.

    Blocks of rows need no waiting, so they come first; they need some rows for each thread. Fewer
    rows share the units, where a step is worth the waiting.
    """
    most = _ROWS_AT_ONCE if row_bytes <= NEAR_CACHE else _MORE_ROWS_AT_ONCE
    block = _rows_a_block(rows, _MORE_ROWS_AT_ONCE)
    is_ragged = running < _ABOUT_EQUAL * rows
    running = running if is_ragged else rows
    work = running * block / max(1, rows)
    shares = max(
        work * recurrent_bytes / _SMALLEST_SHARE_OF_RECURRENT, work * row_bytes / _SMALLEST_SHARE
    )
    sharers = int(min(threads, units, shares))
    own = _own_rows(threads, rows, units, recurrent_bytes)
    owners = int(min(threads, running // own))
    if owners > 1 and owners >= sharers:
        half = rows / (2 * owners)
        is_cut = is_ragged and half >= max(own, _FEWEST_ROWS_OF_HALF_A_SHARE)
        own_block = _rows_a_block(math.ceil(half if is_cut else rows / owners), most)
        return Split(own_block, min(owners, -(-rows // own_block)), False)
    if sharers > 1:
        return Split(block, sharers, True)
    return Split(_rows_a_block(rows, most), 1, False)


def _own_rows(threads: int, rows: int, units: int, recurrent_bytes: float) -> int:
    """Rows that each thread must have, to have rows of its own."""
    least = next(least for most_bytes, least in _OWN_ROWS if recurrent_bytes <= most_bytes)
    if rows > _MORE_ROWS_AT_ONCE or units < threads * _FEWEST_SHARED_VECTORS:
        return min(least, _MOST_OWN_ROWS)
    return least


def _rows_a_block(rows: int, most: int) -> int:
    """Rows of blocks that are as large as each other, at most so large, and at least 1."""
    rows = max(1, rows)
    return -(-rows // -(-rows // most))


def describe_threads() -> str:
    """Numba's threading layer and number of threads."""
    if not thread_pool.is_usable():
        return "1, as this process was forked from one that had loaded OpenMP or TBB"
    thread_pool.start()
    layer, threads = numba.threading_layer(), numba.get_num_threads()
    if layer == "workqueue":
        return f"1, layer {layer}, which is not safe from several Python threads"
    return f"{threads}, layer {layer}"
