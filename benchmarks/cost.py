"""What a call costs by its sizes: steps, rows and units, GRU and LSTM taking turns.

    NUMBA_NUM_THREADS=1 python -m benchmarks.cost --json results/MACHINE-cost.json

Also the cells that have no recurrent product, beside the GRU: at long and at many sequences. The
pictures on the site's page about performance are drawn from these files.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numba
from tqdm import tqdm

from . import peers, turns
from .problems import Problem, Shape

CELLS = ("gru", "lstm")
# Of all shapes, but for the one size that changes: T, B, I, H.
BASE: Shape = (100, 32, 32, 64)
SIZES = {
    "T": (1, 3, 10, 30, 100, 300, 1000, 3000),
    "B": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "H": (8, 16, 32, 64, 128, 256, 512, 1024),
}
MODES = ("forward", "train")
# Cells without a recurrent product, and the shapes that they are timed at.
NO_PRODUCT = ("mingru", "minlstm", "paragru", "indrnn")
LONG: tuple[Shape, ...] = ((4096, 1, 64, 256), (512, 32, 64, 256))


def points() -> Iterator[tuple[str, Shape, tuple[str, ...]]]:
    """What is measured: which size changes, the shape, and the cells."""
    for axis, sizes in SIZES.items():
        for size in sizes:
            yield axis, _with(axis, size), CELLS
    for shape in LONG:
        yield "shape", shape, ("gru", *NO_PRODUCT)


def _with(axis: str, size: int) -> Shape:
    """The base with one size changed."""
    T, B, I, H = (size if name == axis else of for name, of in zip("TBIH", BASE, strict=True))
    return T, B, I, H


def timed(mode: str, shape: Shape, cells: tuple[str, ...], rounds: int) -> dict[str, float]:
    """Seconds of a call of each cell, medians over the rounds."""
    contenders = []
    for cell in cells:
        ways = getattr(peers.FastGRU(0), mode)(Problem.draw(cell, *shape, "float32"))
        contenders.append(turns.Contender.fastest(cell, ways))
    turns.play(contenders, rounds)
    return {one.name: median(one.rounds) for one in contenders}


def measure(rounds: int) -> list[dict[str, Any]]:
    """All of it."""
    return [
        {"mode": mode, "axis": axis, "shape": shape, "seconds": timed(mode, shape, cells, rounds)}
        for mode, (axis, shape, cells) in tqdm(list(product(MODES, points())), unit="shape")
    ]


def report(found: list[dict[str, Any]]) -> str:
    """All times, µs a call."""
    lines = []
    for one in found:
        times = "  ".join(
            f"{cell} {turns.microseconds(seconds)}" for cell, seconds in one["seconds"].items()
        )
        shape = ",".join(map(str, one["shape"]))
        lines.append(f"{one['mode']:<8} {one['axis']:<6} {shape:<16} µs: {times}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns that each cell gets")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    facts = turns.machine_facts(numba.get_num_threads())
    found = measure(options.rounds)
    print(report(found))
    if options.json is not None:
        run = {"machine": facts, "dtype": "float32", "base": BASE, "results": found}
        options.json.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
