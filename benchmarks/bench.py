"""``fastgru bench``: GRU against LSTM on this machine, and against the libraries installed on it.

The problems, the libraries and the turns are those of the other benchmarks. Everything is measured
in a process of its own, which has the environment of so many threads from its start.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from json import dumps, loads
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import peers, turns
from .problems import FEW_SHAPES, MODES, Problem, Shape, shapes_for

CELLS = ("gru", "lstm")
DTYPE = "float32"
SHAPES = FEW_SHAPES[:3]  # the largest of the four would take longer than the other three
UNIT = "seconds per time step and row"


def measure(
    mode: str, shape: Shape, rounds: int, libraries: Sequence[Any]
) -> Iterable[dict[str, Any]]:
    """Let both cells of all libraries take turns at one shape; a result for each of them."""
    able = [library for library in libraries if hasattr(library, mode)]
    problems = {cell: Problem.draw(cell, *shape, DTYPE) for cell in CELLS}
    found = {
        (cell, name): contender
        for cell, problem in problems.items()
        for name, contender in turns.contenders_for(mode, problem, able).items()
    }
    turns.play(list(found.values()), rounds)
    for (cell, name), contender in found.items():
        one = dict(zip("TBIH", shape, strict=True)) | {"mode": mode, "cell": cell, "library": name}
        per = problems[cell].row_steps(mode)
        record = contender.record()
        record["seconds"] = [lap / per for lap in record["seconds"]]
        record |= {key: record[key] / per for key in ("median", "minimum")}
        yield one | record


def work(rounds: int, shapes: tuple[Shape, ...], threads: int) -> dict[str, Any]:
    """Measure everything with the number of threads that the environment has set."""
    facts = turns.machine_facts(threads)
    libraries, errors = peers.load(threads)
    todo = [(mode, shape) for mode in MODES for shape in shapes_for(mode, shapes)]
    results: list[dict[str, Any]] = []
    with tqdm(todo, unit="shape") as bar:
        for mode, shape in bar:
            text = ",".join(map(str, shape))
            bar.set_description(f"{mode} {text}")
            try:
                results += measure(mode, shape, rounds, libraries)
            except Exception as error:  # of any library, or that two differ
                errors.append(f"{mode} {text}: {type(error).__name__}: {error}")
                results += measure(mode, shape, rounds, libraries[:1])  # fastgru alone
    return {"machine": facts, "unit": UNIT, "dtype": DTYPE, "results": results, "errors": errors}


def grouped(
    results: Iterable[Mapping[str, Any]],
) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """Median nanoseconds by cell and library, for each mode and shape, in the order measured."""
    table: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for one in results:
        row = one["mode"], ",".join(str(one[size]) for size in "TBIH")
        table.setdefault(row, {})[one["cell"], one["library"]] = 1e9 * one["median"]
    return table


def digits(nanoseconds: float) -> str:
    """A duration with three digits at least."""
    return f"{nanoseconds:.0f}" if nanoseconds >= 100 else f"{nanoseconds:.3g}"


def report(run: Mapping[str, Any]) -> str:
    """What was measured, as a table."""
    facts, table = run["machine"], grouped(run["results"])
    others = list(
        dict.fromkeys(one["library"] for one in run["results"] if one["library"] != "fastgru")
    )
    lines = [
        f"fastgru {facts['fastgru']}, {run['dtype']}, threads: {facts['threads']}",
        facts["processor"],
        f"load average {facts.get('load average', 'unknown')}; other programs disturb timing",
        "",
        "Nanoseconds per time step and row, medians. GRU/LSTM: below 1 the GRU is faster.",
    ]
    if others:
        lines.append("Other libraries: their time over fastgru's, for the GRU and for the LSTM.")
    head = f"{'mode':<9}{'T,B,I,H':<15}{'GRU':>10}{'LSTM':>10}{'GRU/LSTM':>10}"
    lines += ["", head + "".join(f"{name:>16}" for name in others)]
    for (mode, shape), times in table.items():
        gru, lstm = (times[cell, "fastgru"] for cell in CELLS)
        text = f"{mode:<9}{shape:<15}{digits(gru):>10}{digits(lstm):>10}{gru / lstm:>10.2f}"
        for name in others:
            pairs = [(times.get((cell, name)), times[cell, "fastgru"]) for cell in CELLS]
            ratios = " / ".join("-" if t is None else f"{t / own:.1f}" for t, own in pairs)
            text += f"{ratios if any(t for t, _ in pairs) else '-':>16}"
        lines.append(text)
    return "\n".join(lines + [f"error: {error}" for error in run["errors"]])


def draw(path: Path, run: Mapping[str, Any]) -> None:
    """Draw the times as bars, a panel for each mode."""
    from matplotlib.figure import Figure  # no global state: neither a backend nor styles

    table = grouped(run["results"])
    modes = list(dict.fromkeys(mode for mode, _ in table))
    names = list(dict.fromkeys((one["cell"], one["library"]) for one in run["results"]))
    names.sort(key=lambda name: (name[1] != "fastgru", name[1], name[0]))
    figure = Figure(figsize=(4 * len(modes) + 1, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(modes), squeeze=False)[0]
    width = 0.8 / len(names)
    for panel, mode in zip(axes, modes, strict=True):
        rows = {shape: times for (of, shape), times in table.items() if of == mode}
        for k, (cell, library) in enumerate(names):
            places = [x + width * (k + 0.5) - 0.4 for x in range(len(rows))]
            heights = [times.get((cell, library), float("nan")) for times in rows.values()]
            # Colours tell libraries apart, hatching the cells.
            style: dict[str, Any] = {"color": f"C{k // 2}"}
            style |= {"hatch": "//", "edgecolor": "white"} if cell == "lstm" else {}
            panel.bar(places, heights, width, label=f"{library} {cell.upper()}", **style)
        panel.set(title=mode, yscale="log", xlabel="T,B,I,H")
        panel.set_xticks(range(len(rows)), rows)
    axes[0].set_ylabel("ns per time step and row")
    axes[-1].legend(fontsize="small")
    facts = run["machine"]
    figure.suptitle(f"fastgru {facts['fastgru']}: {facts['processor']}, threads {facts['threads']}")
    figure.savefig(path, format="png")


def main(
    *,
    rounds: int,
    json: Path | None = None,
    plot: Path | None = None,
    threads: int | None = None,
    shape: Sequence[Shape] = SHAPES,
) -> int:
    """Measure, print a table, and write the files that are named; gives the exit status."""
    threads = threads or turns.usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        options = dumps([rounds, shape, threads])
        command = [sys.executable, "-m", f"{__package__}.bench", options, str(path)]
        done = subprocess.run(command, env=turns.worker_environment(threads), check=False)
        if done.returncode:
            print(f"error: the process that measures ended with status {done.returncode}")
            return 1
        run = loads(path.read_text())
    print(report(run))
    if json is not None:
        json.write_text(dumps(run, indent=1) + "\n")
        print(f"\nAll turns written to {json}.")
    if plot is not None and run["results"]:
        try:
            draw(plot, run)
            print(f"Drawn to {plot}.")
        except ModuleNotFoundError:
            print('No plot: matplotlib is missing; get it by pip install "fastgru[plot]".')
    return int(bool(run["errors"]))


def worker(arguments: Sequence[str]) -> None:
    """What runs in the process that measures: options as JSON, and where to write."""
    rounds, shapes, threads = loads(arguments[0])
    found = work(rounds, tuple(map(tuple, shapes)), threads)
    Path(arguments[1]).write_text(dumps(found))


if __name__ == "__main__":
    worker(sys.argv[1:])
