"""How long a fresh process takes to its first result, with and without kernels on disk.

python -m benchmarks.startup
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import fastgru

from .turns import same_fastgru

PROGRAM = """
import sys, time
start = time.perf_counter()
import numpy as np
import fastgru
cell, direction = sys.argv[1:]
params = fastgru.init_params(8, 32, cell=cell, rng=0)
x = np.zeros((4, 10, 8), "float32")
if direction == "forward":
    fastgru.forward(x, params)
else:
    y, _, saved = fastgru.forward_train(x, params)
    fastgru.backward(saved, y)
print(time.perf_counter() - start)
"""


class Start(NamedTuple):
    """Seconds from the first line of a program to its result, and what was kept on disk."""

    cold: float
    warm: list[float]
    cache_bytes: int


def seconds(cell: str, direction: str, cache: str) -> float:
    """Duration in one process that keeps its kernels in the folder `cache`."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, cell, direction],
        env=same_fastgru() | {"NUMBA_CACHE_DIR": cache},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout)


def measure(cell: str, direction: str, warm: int) -> Start:
    """Start once without kernels on disk and then so many times with them."""
    with tempfile.TemporaryDirectory() as cache:
        cold = seconds(cell, direction, cache)
        laps = [seconds(cell, direction, cache) for _ in range(warm)]
        size = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
    return Start(cold, laps, size)


def main() -> None:
    print(f"{'cell':<18}{'direction':<11}{'cold, s':>9}{'warm, s':>9}{'kernels, KiB':>14}")
    for cell in fastgru.cells():
        for direction in ("forward", "train"):
            found = measure(cell, direction, warm=5)
            print(
                f"{cell:<18}{direction:<11}{found.cold:>9.2f}{median(found.warm):>9.2f}"
                f"{found.cache_bytes / 2**10:>14.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
