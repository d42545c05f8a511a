"""Latencies of single steps of a stream, a million of each, as quantiles.

    NUMBA_NUM_THREADS=1 python -m benchmarks.latency --json results/MACHINE-latency.json

`Stream.push`, `fastgru.step` and onnxruntime, where it is installed, take turns of ten thousand
steps. Every step is timed on its own; what that costs is measured too, and left in.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import fastgru

from . import peers, turns
from .problems import Problem, Shape

SHAPE: Shape = (1, 1, 16, 32)  # T, B, I, H
TURN = 10_000  # steps
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "maximum": 1.0}


def contenders(cell: str, shape: Shape) -> dict[str, Callable[[], Any]]:
    """What takes one step of one sequence, the state kept from call to call."""
    problem = Problem.draw(cell, *shape, "float32")
    stream, x_t = fastgru.Stream(problem.params), problem.x[0, 0]
    out = np.empty(shape[3], np.float32)
    found: dict[str, Callable[[], Any]] = {
        "nothing": lambda: None,
        "Stream.push": lambda: stream.push(x_t),
        "Stream.push, out=": lambda: stream.push(x_t, out=out),
    }
    for library in peers.load(1)[0]:
        if library.name in ("fastgru", "onnxruntime"):
            way = turns.Contender.fastest(library.name, library.step(problem))
            name = "fastgru.step" if library.name == "fastgru" else f"onnxruntime, {way.way}"
            found[name] = way.run
    return found


def laps(call: Callable[[], Any], count: int) -> NDArray[np.int64]:
    """Nanoseconds of so many calls, each on its own."""
    clock, found = time.perf_counter_ns, np.empty(count, np.int64)
    for _ in range(100):
        call()
    for number in range(count):
        start = clock()
        call()
        found[number] = clock() - start
    return found


def measure(cell: str, shape: Shape, steps: int) -> dict[str, dict[str, float]]:
    """Quantiles of every contender, µs."""
    calls = contenders(cell, shape)
    turns_of: dict[str, list[NDArray[np.int64]]] = {name: [] for name in calls}
    gc.disable()
    for _ in tqdm(range(max(1, steps // TURN)), unit="turn"):
        for name, call in calls.items():
            turns_of[name].append(laps(call, min(steps, TURN)))
    gc.enable()
    return {
        name: {
            label: float(np.quantile(np.concatenate(found), share)) / 1e3
            for label, share in QUANTILES.items()
        }
        for name, found in turns_of.items()
    }


def report(found: dict[str, dict[str, float]]) -> str:
    """A table, µs."""
    lines = [f"{'µs a step':<28}" + "".join(f"{label:>10}" for label in QUANTILES)]
    for name, times in found.items():
        lines.append(f"{name:<28}" + "".join(f"{times[label]:>10.2f}" for label in QUANTILES))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cell", choices=("gru", "lstm"), default="gru")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of each contender")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    facts = turns.machine_facts(numba.get_num_threads())
    found = measure(options.cell, SHAPE, options.steps)
    print(f"{options.cell}, T, B, I, H = {SHAPE}, {options.steps} steps of each")
    print(report(found))
    if options.json is not None:
        run = {"machine": facts, "cell": options.cell, "shape": SHAPE, "steps": options.steps}
        options.json.write_text(json.dumps(run | {"quantiles": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
