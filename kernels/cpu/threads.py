"""How many threads a call may use, and how they share its rows and units."""

import math
import time
from typing import NamedTuple

import numba

from . import thread_pool
from .tuning import (
    ABOUT_EQUAL,
    FEWEST_ROWS_OF_HALF_A_SHARE,
    FEWEST_SHARED_VECTORS,
    LONGEST_PAUSE,
    LONGEST_PAUSE_TIME,
    MORE_RUN_TOGETHER,
    MOST_OWN_ROWS,
    NEAR_CACHE,
    OWN_ROWS,
    RUN_TOGETHER,
    SHORT_CALL,
    SHORTEST_PAUSE,
    SLOW,
    SMALLEST_PARALLEL_WORK,
    SMALLEST_SHARE,
    SMALLEST_SHARE_OF_RECURRENT,
    SOON_AFTER,
    TRIAL_CALL,
)

_paused_until = 0.0
_last_call = 0.0  # when a call that may use several threads ended


def is_small(work: int) -> bool:
    """Whether a call of so many multiply-adds is always left to the calling thread."""
    return work < SMALLEST_PARALLEL_WORK


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
        self._pause = SHORTEST_PAUSE

    def choose(self, threads: int, work: int) -> int:
        """Threads for the next call, of so many multiply-adds, of the threads that it may use."""
        self._calls += 1
        is_trial = self._calls == TRIAL_CALL
        wakes_pool = time.perf_counter() - _last_call > SOON_AFTER
        return 1 if is_trial or (wakes_pool and self._alone * work < SHORT_CALL) else threads

    def record(self, threads: int, seconds: float, work: int) -> None:
        """Note the duration of a call that has just ended."""
        global _paused_until, _last_call
        _last_call = time.perf_counter()
        pace = seconds / max(1, work)
        if threads == 1:
            self._alone = min(pace, self._alone)
            return
        is_slow = pace > SLOW * self._alone
        if is_slow and self._was_slow:
            longest = max(LONGEST_PAUSE_TIME, SHORTEST_PAUSE * seconds)
            pause = min(self._pause * seconds, longest)
            _paused_until = max(_paused_until, _last_call + pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        elif not is_slow:
            self._pause = max(self._pause // 2, SHORTEST_PAUSE)
        self._was_slow = is_slow


class Split(NamedTuple):
    """How threads share the loop over a sequence. No result depends on it."""

    rows: int  # of a row block
    workers: int
    shared: bool  # whether workers are a team, which shares units, or have row blocks of their own


def split(
    threads: int, rows: int, running: float, units: int, row_bytes: float, recurrent_bytes: float
) -> Split:
    """Choose for so many threads, rows and vectors of units, by the size of a step's weights.

    `running` is how many rows take a step in the mean, `row_bytes` the size of all weights,
    `recurrent_bytes` that of those that use h.

    Threads with row blocks of their own need not wait, so these come first; each thread needs some
    rows. With fewer rows threads share the units, where a step is worth the waiting.
    """
    most = RUN_TOGETHER if row_bytes <= NEAR_CACHE else MORE_RUN_TOGETHER
    block = _rows_a_block(rows, MORE_RUN_TOGETHER)
    is_ragged = running < ABOUT_EQUAL * rows
    running = running if is_ragged else rows
    work = running * block / max(1, rows)
    shares = max(
        work * recurrent_bytes / SMALLEST_SHARE_OF_RECURRENT, work * row_bytes / SMALLEST_SHARE
    )
    sharers = int(min(threads, units, shares))
    own = _own_rows(threads, rows, units, recurrent_bytes)
    owners = int(min(threads, running // own))
    if owners > 1 and owners >= sharers:
        half = rows / (2 * owners)
        is_cut = is_ragged and half >= max(own, FEWEST_ROWS_OF_HALF_A_SHARE)
        own_block = _rows_a_block(math.ceil(half if is_cut else rows / owners), most)
        return Split(own_block, min(owners, -(-rows // own_block)), False)
    if sharers > 1:
        return Split(block, sharers, True)
    return Split(_rows_a_block(rows, most), 1, False)


def _own_rows(threads: int, rows: int, units: int, recurrent_bytes: float) -> int:
    """Rows that each thread must have, to have rows of its own."""
    least = next(least for most_bytes, least in OWN_ROWS if recurrent_bytes <= most_bytes)
    if rows > MORE_RUN_TOGETHER or units < threads * FEWEST_SHARED_VECTORS:
        return min(least, MOST_OWN_ROWS)
    return least


def _rows_a_block(rows: int, most: int) -> int:
    """Rows of row blocks of about equal size, at most so many, and at least 1."""
    rows = max(1, rows)
    return -(-rows // -(-rows // most))


def use_one_thread() -> None:
    """Let kernels that the calling thread of Python calls from now on use one thread of Numba's."""
    numba.set_num_threads(1)


def describe_threads() -> str:
    """Numba's threading layer and number of threads."""
    if not thread_pool.is_usable():
        return "1, as this process was forked from one that had loaded OpenMP or TBB"
    thread_pool.start()
    layer, threads = numba.threading_layer(), numba.get_num_threads()
    if layer == "workqueue":
        return f"1, layer {layer}, which is not safe from several Python threads"
    return f"{threads}, layer {layer}"
