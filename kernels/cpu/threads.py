"""How many threads a call may use."""

import multiprocessing
import os

import numba
from numba.np.ufunc import parallel as numba_pool

# A parallel region costs 1 to 3 µs on a warm pool and far more on one that has gone to sleep;
# work of fewer multiply-adds than this (about 50 µs) is left to the calling thread.
_SMALLEST_PARALLEL_WORK = 2_000_000

_pool_process: int | None = None


def allowed_threads(work: int) -> int:
    """Threads for a call of so many multiply-adds; 1 means the serial kernel, without a region.

    Numba's pool does not survive a fork, and its `workqueue` layer aborts the process when two
    Python threads enter it: there the serial kernel is the only safe one.
    """
    global _pool_process
    if work < _SMALLEST_PARALLEL_WORK:
        return 1
    if _pool_process is None:
        inherited = numba_pool._is_initialized and multiprocessing.parent_process() is not None
        _pool_process = -1 if inherited else os.getpid()
    if _pool_process != os.getpid():
        return 1
    threads = numba.get_num_threads()  # starts the pool, so that its layer is known
    return 1 if numba.threading_layer() == "workqueue" else threads


def describe_threads() -> str:
    """Numba's threading layer and number of threads."""
    threads = numba.get_num_threads()  # starts the pool
    return f"{threads}, layer {numba.threading_layer()}"
