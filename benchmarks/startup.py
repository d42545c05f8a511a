"""How long a fresh process takes to its first result, and what its kernels take to compile.

python -m benchmarks.startup [CELL ...]

First the whole program, without kernels on disk and with them; then each kernel, compiled one after
the other in one process, and what a further cell adds to it. Medians of three new processes, each
with an empty cache. One thread: a second one needs launchers, which are listed apart.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .turns import same_fastgru

PROGRAM = """
import sys, time
start = time.perf_counter()
import numpy as np
import fastgru
cell, direction = sys.argv[1:]
params = fastgru.init_params(8, 32, cell=cell, rng=0)
x = np.zeros((4, 10, 8), "float32")
attention = {"attention": np.zeros((4, 10), "float32")} if cell == "augru" else {}
if direction == "forward":
    fastgru.forward(x, params, **attention)
else:
    y, _, saved = fastgru.forward_train(x, params, **attention)
    fastgru.backward(saved, y)
print(time.perf_counter() - start)
"""

KERNELS = """
import json, sys, time
import numpy as np
from fastgru.kernels.cells import CELLS
from fastgru.kernels.cpu import kernel_makers
seconds = {}
for cell in sys.argv[1:]:
    seconds[cell] = {}
    for name, make in kernel_makers(CELLS[cell], np.dtype("float32")).items():
        start = time.perf_counter()
        make()
        seconds[cell][name] = time.perf_counter() - start
print(json.dumps(seconds))
"""
# Of each kind of measurement.
COLD, WARM = 3, 5
# The first cell pays for what all share.
CELLS = "gru", "lstm", "gru_reset_before", "ligru", "mingru"


class Start(NamedTuple):
    """Seconds from the first line of a program to its result, and what was kept on disk."""

    cold: float
    warm: list[float]
    cache_bytes: int


def _run(program: str, cache: str, *args: str) -> str:
    """Output of a program in a new process that keeps its kernels in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        env=same_fastgru() | {"NUMBA_CACHE_DIR": cache},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def measure(cell: str, direction: str, warm: int) -> Start:
    """Start once without kernels on disk and then so many times with them."""
    with tempfile.TemporaryDirectory() as cache:
        cold = float(_run(PROGRAM, cache, cell, direction))
        laps = [float(_run(PROGRAM, cache, cell, direction)) for _ in range(warm)]
        size = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
    return Start(cold, laps, size)


def compile_times(cells: list[str]) -> dict[str, dict[str, float]]:
    """Seconds that each kernel of each cell takes, what earlier cells have compiled left out."""
    laps: list[Any] = []
    for _ in range(COLD):
        with tempfile.TemporaryDirectory() as cache:
            laps.append(json.loads(_run(KERNELS, cache, *cells)))
    return {
        cell: {name: median(lap[cell][name] for lap in laps) for name in laps[0][cell]}
        for cell in cells
    }


def main() -> None:
    cells = [*(sys.argv[1:] or CELLS)]
    print(f"{'first cell':<18}{'direction':<11}{'cold, s':>9}{'warm, s':>9}{'kernels, KiB':>14}")
    for direction in ("forward", "train"):
        found = [measure(cells[0], direction, warm=WARM) for _ in range(COLD)]
        warm = median(lap for start in found for lap in start.warm)
        print(
            f"{cells[0]:<18}{direction:<11}{median(s.cold for s in found):>9.2f}{warm:>9.2f}"
            f"{found[0].cache_bytes / 2**10:>14.0f}",
            flush=True,
        )
    print(f"\n{'cell':<18}{'kernel':<34}{'s':>7}")
    for cell, kernels in compile_times(cells).items():
        for name, seconds in kernels.items():
            if seconds > 0.005:  # else an earlier cell has compiled it
                print(f"{cell:<18}{name:<34}{seconds:>7.2f}")
        print(f"{cell:<18}{'together':<34}{sum(kernels.values()):>7.2f}")


if __name__ == "__main__":
    main()
