"""Time per multiply-add of `fastgru.forward` over sizes, to look for cliffs.

    python -m benchmarks.sweep --threads 1 2

Every row is a hidden size, every column a batch; a figure is the median time of a call divided by
T * B * H * H, in picoseconds. Along a row and down a column it should fall and then stay: a `!`
marks one that is 1.25 times that of both the next smaller batch and the next smaller hidden size.
"""

import argparse
import time
from statistics import median

import numba
import numpy as np

import fastgru

HIDDEN = (16, 24, 32, 48, 64, 72, 100, 128, 192, 200, 256, 300, 384, 512, 640, 768, 1024)
BATCH = (1, 2, 3, 4, 5, 8, 12, 16, 17, 24, 32, 48, 64, 100, 128, 256, 512)
INPUT_SIZE = 16
WORK = 2e8  # multiply-adds of a call, about; they decide the number of steps
JUMP = 1.25


def picoseconds(cell: str, B: int, H: int, rounds: int) -> float:
    """Median time of a call, per T * B * H * H."""
    T = int(min(1000, max(4, WORK / (3 * B * H * (H + INPUT_SIZE)))))
    weights = fastgru.pack(fastgru.init_params(INPUT_SIZE, H, cell=cell, rng=0))
    x = np.random.default_rng(0).normal(size=(B, T, INPUT_SIZE)).astype("float32")
    fastgru.forward(x, weights)
    laps = []
    for _ in range(rounds):
        start = time.perf_counter()
        fastgru.forward(x, weights)
        laps.append(time.perf_counter() - start)
    return 1e12 * median(laps) / (T * B * H * H)


def show(cell: str, threads: int, rounds: int) -> None:
    """Print the table for one number of threads."""
    numba.set_num_threads(threads)
    print(f"\n{cell}, forward, I = {INPUT_SIZE}, float32, threads: {threads}; ps per T*B*H*H")
    print(f"{'H':>5}" + "".join(f"{f'B={B}':>8}" for B in BATCH))
    above: list[float] = []
    for H in HIDDEN:
        row: list[float] = []
        for B in BATCH:
            row.append(picoseconds(cell, B, H, rounds))
        marks = [
            "!" if number and above and found > JUMP * max(row[number - 1], above[number]) else " "
            for number, found in enumerate(row)
        ]
        print(f"{H:>5}" + "".join(f"{f:>7.1f}{m}" for f, m in zip(row, marks, strict=True)))
        above = row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cell", nargs="+", choices=fastgru.cells(), default=["gru"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, numba.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=5, help="calls of each size")
    options = parser.parse_args()
    for cell in options.cell:
        for threads in options.threads:
            show(cell, threads, options.rounds)


if __name__ == "__main__":
    main()
