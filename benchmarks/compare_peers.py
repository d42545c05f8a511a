"""Compare the speed of fastgru with that of other libraries, taking turns in one process.

    python -m benchmarks.compare_peers --mode forward --threads 1

In every round each library has a turn, in an order that rotates; a turn's result is the median over
its calls, and a table shows the median and the minimum over the rounds. Results are compared before
anything is timed: a library that differs from another is an error and has no row. See
benchmarks/README.md for how to run it and how to read it.

Nothing runs and no peer is loaded on import: asv imports every module of this folder.
"""

import argparse
import gc
import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numba
import numpy as np

from . import gpu_peers, peers
from .problems import MODES, SHAPES, Problem, Shape, shape_of, shapes_for
from .turns import (
    Contender,
    contenders_for,
    machine_facts,
    microseconds,
    play,
    seconds_of,
    usable_cores,
    wait_until_idle,
    worker_environment,
)

QUICK_SHAPES: tuple[Shape, ...] = ((1, 1, 16, 32), (100, 1, 16, 32), (50, 32, 32, 32))
PIPELINE_SHAPE: Shape = (100, 32, 64, 128)
GEMM_SIZES = (2048, 1024, 1024)  # of the product that stands for the machine's peak

CLOSE = 0.05  # a ratio that near to the goal is measured again


def products(dtype: str) -> list[Contender]:
    """The matrix product that shows the machine's peak, by NumPy and, if installed, by PyTorch."""
    M, K, N = GEMM_SIZES
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(M, K)).astype(dtype), rng.normal(size=(K, N)).astype(dtype)
    c = np.empty((M, N), dtype)
    found = [Contender("NumPy product", lambda: np.matmul(a, b, out=c))]
    if peers.installed(peers.PyTorch):
        import torch

        ta, tb, tc = map(torch.from_numpy, (a, b, c))
        found.append(Contender("PyTorch product", lambda: torch.mm(ta, tb, out=tc)))
    for contender in found:
        contender.run()
    return found


def measure(
    cell: str, mode: str, shape: Shape, options: argparse.Namespace, libraries: Sequence[Any]
) -> dict[str, Any]:
    """One row of a table."""
    T, B, I, H = shape
    problem = Problem.draw(cell, T, B, I, H, options.dtype)
    contenders = contenders_for(mode, problem, libraries)
    gemms = products(options.dtype)
    fast = contenders["fastgru"]
    rivals = [contender for name, contender in contenders.items() if name != "fastgru"]

    def ratios() -> dict[str, float]:
        return {rival.name: median(rival.rounds) / median(fast.rounds) for rival in rivals}

    play([*contenders.values(), *gemms], options.rounds)
    again = bool(rivals) and abs(min(ratios().values()) / options.goal - 1) <= CLOSE
    if again:
        play([*contenders.values(), *gemms], 2 * options.rounds)
    speed = problem.flops(mode) / median(fast.rounds)
    peak = max(2 * math.prod(GEMM_SIZES) / median(gemm.rounds) for gemm in gemms)
    best = min(rivals, key=lambda rival: median(rival.rounds), default=None)
    return {
        "shape": shape,
        "best": best.name if best else None,
        "ratio": ratios()[best.name] if best else None,
        "measured_again": again,
        "gflops": speed / 1e9,
        "gemm_gflops": peak / 1e9,
        "libraries": {name: contender.record() for name, contender in contenders.items()},
        "products": {gemm.name: gemm.record() for gemm in gemms},
    }


def show_row(row: Mapping[str, Any]) -> None:
    """Print a row of a table."""
    sizes = "".join(f"{size:>5}" for size in row["shape"])
    if "error" in row:
        print(f"{sizes}  error: {row['error']}", flush=True)
        return
    cells = []
    for peer in peers.PEERS:
        found = row["libraries"].get(peer.name)
        times = [microseconds(found[key]) for key in ("median", "minimum")] if found else ["-"]
        cells.append(f"{times[0]} ({times[1]})" if found else "-")
    ratio = f"{row['ratio']:.2f}{'*' if row['measured_again'] else ' '}" if row["best"] else "- "
    share = 100 * row["gflops"] / row["gemm_gflops"]
    columns = "".join(f"{cell:>18}" for cell in cells)
    best = row["best"] or "-"
    print(f"{sizes}{columns}{ratio:>9} {best:<12}{row['gflops']:>8.1f}{share:>7.1f}", flush=True)


def table(
    cell: str, mode: str, options: argparse.Namespace, libraries: Sequence[Any], threads: int
) -> dict[str, Any]:
    """Measure and print a table; a shape at which libraries fail or differ is an error in it."""
    print(f"\n{cell}, {MODES[mode]}, {options.dtype}, threads: {threads}; µs: median (minimum)")
    names = "".join(f"{peer.name:>18}" for peer in peers.PEERS)
    sizes = "".join(f"{size:>5}" for size in "TBIH")
    print(f"{sizes}{names}{'ratio':>8}  {'best':<12}{'GFLOP/s':>8}{'% gemm':>7}")
    able = [one for one in libraries if hasattr(one, mode) and options.dtype in one.dtypes]
    rows = []
    for shape in shapes_for(mode, tuple(options.shape)):
        try:
            rows.append(measure(cell, mode, shape, options, able))
        except Exception as error:  # of any library: the other shapes are still worth measuring
            rows.append({"shape": shape, "error": f"{type(error).__name__}: {error}"})
        show_row(rows[-1])
        gc.collect()  # threads of the last shape's sessions end with them
    ratios = {str(row["shape"]): row["ratio"] for row in rows if row.get("ratio")}
    if ratios:
        mean = geometric_mean(ratios.values())
        below = [shape for shape, ratio in ratios.items() if ratio < options.goal]
        print(f"geometric mean of the ratios: {mean:.2f}; below {options.goal:g}: ", end="")
        print(", ".join(below) or "none")
    for row in rows:
        for name, found in row.get("libraries", {}).items():
            if median(found["cores"]) > threads + 0.25:
                busy = f"{median(found['cores']):.1f} cores"
                print(f"caution: {name} kept {busy} busy at {row['shape']}, not {threads}")
    return {"cell": cell, "mode": mode, "dtype": options.dtype, "threads": threads, "rows": rows}


def pipeline(cell: str, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """How much `forward` and a NumPy product, each with its own threads, lose by alternating."""
    T, B, I, H = PIPELINE_SHAPE
    problem = Problem.draw(cell, T, B, I, H, options.dtype)
    ways = peers.FastGRU(threads).forward(problem)
    y = problem.dy.reshape(B * T, H)
    read_out = np.random.default_rng(0).normal(size=(H, H)).astype(options.dtype)
    multiply = peers.Way(lambda: y @ read_out, dict)

    (way,) = ways.values()

    def run_on_one_thread() -> None:
        numba.set_num_threads(1)
        try:
            way.run()
        finally:
            numba.set_num_threads(threads)

    alone = [
        Contender.fastest("forward", ways),
        Contender.fastest("product", {"numpy": multiply}),
    ]
    beside = [Contender(one.name, one.run) for one in alone]
    play(alone, options.rounds)
    for _ in range(options.rounds):
        wait_until_idle()
        laps = [[seconds_of(one.run) for one in beside] for _ in range(alone[0].calls)]
        for one, own in zip(beside, zip(*laps, strict=True), strict=True):
            one.rounds.append(median(own))
    # Afterwards, as it shows fastgru how fast one thread is.
    one_thread = Contender.fastest("", {"one thread": peers.Way(run_on_one_thread, dict)})
    play([one_thread], options.rounds)
    texts, losses = [], {}
    for one, other in zip(alone, beside, strict=True):
        before, after = median(one.rounds), median(other.rounds)
        losses[one.name] = 100 * (after / before - 1)
        times = f"{microseconds(before)} µs alone, {microseconds(after)} µs alternating"
        texts.append(f"{one.name} {times}, loss {losses[one.name]:.0f} %")
    print(
        f"pipeline: forward at T, B, I, H = {T}, {B}, {I}, {H} alternating with the NumPy product "
        f"({B * T}, {H}) @ ({H}, {H}):\n  {'; '.join(texts)}; "
        f"forward on one thread {microseconds(median(one_thread.rounds))} µs alone",
        flush=True,
    )
    rounds = {f"{one.name} alone": one.rounds for one in alone}
    rounds |= {f"{one.name} alternating": one.rounds for one in beside}
    rounds["forward on one thread"] = one_thread.rounds
    return {"cell": cell, "threads": threads, "loss_percent": losses, "seconds": rounds}


def work(options: argparse.Namespace) -> dict[str, Any]:
    """All tables with one number of threads, which the environment has set."""
    (threads,) = options.threads
    facts = machine_facts(threads)
    libraries, errors = peers.load(threads)
    print("\n" + "\n".join(f"{label:<17} {text}" for label, text in facts.items()), flush=True)
    print("".join(f"error: {error}\n" for error in errors), end="", flush=True)
    tables, pipelines = [], []
    for cell, mode in itertools.product(options.cell, options.mode):
        tables.append(table(cell, mode, options, libraries, threads))
        if mode == "forward":
            pipelines.append(pipeline(cell, options, threads))
    return {"machine": facts, "errors": errors, "tables": tables, "pipelines": pipelines}


def positive(text: str) -> int:
    """A whole number above 0."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--mode", nargs="+", choices=MODES, help="default: all")
    add("--cell", nargs="+", choices=("gru", "lstm"), default=["gru", "lstm"])
    add("--dtype", choices=("float32", "float64"), help="default: float32")
    add("--threads", nargs="+", type=positive, help="default: 1 and all cores, one after the other")
    add("--shape", action="append", type=shape_of, metavar="T,B,I,H", help="may be repeated")
    add("--rounds", type=positive, help="of turns; default 5")
    add("--goal", type=float, help="ratio to reach; default 1")
    add("--quick", action="store_true", help="three small shapes, two rounds")
    add("--list", action="store_true", help="print the shapes and end")
    add("--json", type=Path, metavar="PATH", help="write everything measured to this file")
    add("--gpu", action="store_true", help="CuPy arrays against cuDNN; see gpu_peers.py")
    add("--loops", action="store_true", help="with --gpu: fastgru's loops against each other")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.loops and not options.gpu:
        parser.error("--loops: expected --gpu as well")
    if options.gpu:
        names = ("dtype", "threads", "shape", "goal")
        given = [f"--{name}" for name in names if getattr(options, name) is not None]
        given += ["--mode step"] if "step" in (options.mode or ()) else []
        if given:
            parser.error(f"--gpu: not with {' and '.join(given)}")
    options.mode = options.mode or [mode for mode in MODES if mode != "step" or not options.gpu]
    options.dtype, options.goal = options.dtype or "float32", options.goal or 1.0
    options.shape = options.shape or (QUICK_SHAPES if options.quick else SHAPES)
    options.rounds = options.rounds or (2 if options.quick else 5)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run each number of threads in a process of its own, for thread pools of that size."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(arguments)
    if options.list:
        print("\n".join(",".join(map(str, shape)) for shape in options.shape))
        return 0
    if options.gpu:
        return gpu_peers.main(options)
    if options.worker:
        options.worker.write_text(json.dumps(work(options)))
        return 0
    runs, failed = [], False
    for threads in options.threads or sorted({1, usable_cores()}):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.json"
            command = [sys.executable, "-m", f"{__package__}.compare_peers", *arguments]
            command += ["--threads", str(threads), "--worker", str(path)]
            status = subprocess.run(command, env=worker_environment(threads), check=False)
            failed |= status.returncode != 0
            if path.exists():
                runs.append(json.loads(path.read_text()))
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1) + "\n")
    rows = [row for run in runs for one in run["tables"] for row in one["rows"]]
    failed |= any(run["errors"] for run in runs)
    return int(failed or any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
