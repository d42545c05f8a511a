"""One row's recurrence against the speed at which this machine reads its weights.

    python -m benchmarks.bandwidth --threads 1 2

With a batch of one, every step reads all recurrent weights once, and nothing can be faster than
reading them. Both are timed in turns: steps of `fastgru.forward` (of long sequences of one feature,
so the recurrent product is all but all), and a loop that adds up as many bytes, again and again.
"""

import argparse
import time
from statistics import median
from typing import Any

import numba
import numpy as np

import fastgru

HIDDEN = (64, 128, 192, 256, 384, 512, 768, 1024)
STEPS = 200


@numba.njit(fastmath=True, nogil=True)
def total_of(data: Any) -> Any:  # (size,)
    """Sum in any order, so that it is compiled to vectors in several chains."""
    total = np.float32(0)
    for k in range(data.size):
        total += data[k]
    return total


def _read(data: Any, times: int, out: Any) -> None:
    """Add up `data`, (threads, size), so many times, a thread a row."""
    for worker in numba.prange(data.shape[0]):
        for _ in range(times):
            out[worker] += total_of(data[worker])


def seconds(function: Any, *arguments: Any) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def show(cell: str, threads: int, rounds: int) -> None:
    """Print the table for one number of threads."""
    numba.set_num_threads(threads)
    read = numba.njit(parallel=threads > 1)(_read)
    print(f"\n{cell}, batch 1, float32, threads: {threads}; GB/s of recurrent weights")
    print(f"{'H':>5}{'MiB':>8}{'us a step':>12}{'forward':>10}{'reading':>10}{'fraction':>10}")
    for H in HIDDEN:
        params = fastgru.init_params(1, H, cell=cell, rng=0)
        weights, x = fastgru.pack(params), np.zeros((1, STEPS, 1), "float32")
        size = params.layers[0][0].weight_hh.nbytes
        data = np.ones((threads, size // 4 // threads), "float32")
        out = np.zeros(threads, "float32")
        laps: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            fastgru.forward(x, weights)  # brings the weights into the caches
            forward = seconds(fastgru.forward, x, weights)
            read(data, 1, out)
            laps.append((forward, seconds(read, data, STEPS, out)))
        step, reading = (median(column) / STEPS for column in zip(*laps[1:], strict=True))
        print(
            f"{H:>5}{size / 2**20:>8.2f}{1e6 * step:>12.2f}{size / step / 1e9:>10.1f}"
            f"{size / reading / 1e9:>10.1f}{reading / step:>10.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cell", nargs="+", choices=fastgru.cells(), default=["gru", "lstm"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, numba.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for cell in options.cell:
        for threads in options.threads:
            show(cell, threads, options.rounds)


if __name__ == "__main__":
    main()
