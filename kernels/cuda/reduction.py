"""Sums over the threads of a block."""

from collections.abc import Callable

from numba import cuda
from numba.cuda.extending import register_jitable

from . import tuning


def make_block_sum(sums: int) -> Callable[..., None]:
    """Build ``block_sum(partial)``: so many sums, for blocks of `tuning.SUM_THREADS` threads.

    It sums what all threads have written, always in the same order, into the first one's place. All
    threads call it, and wait for each other in it: they may read the sums at once.
    """
    threads = tuning.SUM_THREADS  # a power of two

    def block_sum(partial):
        # partial: (sums, threads), shared; sums[:, 0] are written
        thread, half = cuda.threadIdx.x, threads // 2
        cuda.syncthreads()
        while half > 0:
            if thread < half:
                for k in range(sums):
                    partial[k, thread] += partial[k, thread + half]
            cuda.syncthreads()
            half //= 2

    return register_jitable(block_sum)
