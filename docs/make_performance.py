"""The page about performance: its pictures and tables, drawn from ``benchmarks/results``.

    python docs/make_performance.py

writes performance.md, its pictures in _static/performance/, and _static/speed.png, the README's,
which is kept in the repository. Building the site does the same, but for that last one. Results of
a machine are files that the benchmarks wrote: ``NAME.txt`` by ``compare_peers``, ``NAME-cost.json``
by ``cost``, ``NAME-latency.json`` by ``latency``, ``NAME-training.json`` by ``training``,
``NAME-family.json`` by ``fastgru compare``. A file that is added appears on the page.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
PICTURES = HERE / "_static" / "performance"
# Colours that differ in lightness too, and on light and dark pages.
COLOURS = {"gru": "#1f77b4", "lstm": "#e07b00"}
MARKERS = {1: "o", 2: "s"}
TICKS = 0.75, 1, 1.5, 2, 3, 4, 6, 8  # of ratios
MODES = {"forward": "forward", "train": "forward + backward", "step": "one step"}
# How tables of `compare_peers` begin, and which mode that is.
TITLE = re.compile(r"(\w+), (forward \+ backward|forward|one time step).*, float32, threads: (\d+)")
MODE_OF = {"forward": "forward", "forward + backward": "train", "one time step": "step"}
ROW = re.compile(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+) .*?(\d+\.\d+)\*?\s+(\w+)\s+[\d.]+\s+[\d.]+$")


class Point(NamedTuple):
    """The best other library at a shape: its time over fastgru's."""

    machine: str
    cell: str
    mode: str
    threads: int
    shape: tuple[int, ...]
    ratio: float
    best: str


def points(path: Path) -> Iterator[Point]:
    """All rows of a file of `compare_peers`."""
    heading = None
    for line in path.read_text("utf-8").splitlines():
        title, row = TITLE.match(line), ROW.match(line)
        if title:
            heading = title[1], MODE_OF[title[2]], int(title[3])
        elif row and heading:
            cell, mode, threads = heading
            shape = tuple(map(int, row.groups()[:4]))
            yield Point(path.stem, cell, mode, threads, shape, float(row[5]), row[6])


def name_of(machine: str) -> str:
    """``amd-epyc-zen4-2-cores`` in words."""
    words = {"amd": "AMD", "epyc": "EPYC", "zen4": "Zen 4", "zen5": "Zen 5"}
    return " ".join(words.get(word, word.capitalize() if len(word) > 3 else word)
                    for word in machine.replace("-2-cores", "").split("-"))  # fmt: skip


def runs(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Machines and what was measured on them, of the files of a kind."""
    return [
        (path.stem.removesuffix(f"-{kind}"), json.loads(path.read_text("utf-8")))
        for path in sorted(RESULTS.glob(f"*-{kind}.json"))
    ]


def all_points() -> list[Point]:
    """Of all machines, at the shapes of the comparison."""
    files = sorted(p for p in RESULTS.glob("*.txt") if not p.stem.endswith("odd-sizes"))
    return [point for path in files for point in points(path)]


# --- pictures -------------------------------------------------------------------------------------


def figure(width: float, height: float, panels: tuple[int, int]) -> tuple[Any, Any]:
    """A figure and its panels, without global state."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return made, made.subplots(*panels, squeeze=False)


def draw_ratios(found: Sequence[Point], mode: str) -> Any:
    """Time of the best other library over fastgru's, by shape, a panel for each machine."""
    machines = list(dict.fromkeys(p.machine for p in found))
    shapes = list(dict.fromkeys(p.shape for p in found if p.mode == mode))
    made, panels = figure(8.5, 0.6 + (0.27 * len(shapes) + 0.6) * len(machines), (len(machines), 1))
    for panel, machine in zip(panels[:, 0], machines, strict=True):
        for cell, colour in COLOURS.items():
            for threads, marker in MARKERS.items():
                here = [p for p in found if (p.machine, p.mode, p.cell, p.threads)
                        == (machine, mode, cell, threads)]  # fmt: skip
                shift = -0.16 if cell == "gru" else 0.16
                panel.plot(
                    [p.ratio for p in here], [shapes.index(p.shape) + shift for p in here], marker,
                    color=colour, ms=5, mfc=colour if threads == 1 else "none", ls="none",
                    label=f"{cell.upper()}, {threads} thread{'s' if threads > 1 else ''}",
                )  # fmt: skip
        panel.axvline(1, color="0.3", lw=1)
        panel.set_yticks(range(len(shapes)), [", ".join(map(str, shape)) for shape in shapes])
        panel.invert_yaxis()
        panel.set_xscale("log", base=2)
        panel.set_xlim(0.7, max(8.0, 1.1 * max(p.ratio for p in found if p.mode == mode)))
        panel.set_xticks(
            [0.75, 1, 1.5, 2, 3, 4, 6, 8], ["0.75", "1", "1.5", "2", "3", "4", "6", "8"]
        )
        panel.minorticks_off()
        panel.grid(axis="both", alpha=0.3)
        panel.set(title=name_of(machine), ylabel="T, B, I, H")
    panels[0, 0].legend(fontsize="small", loc="upper right")
    panels[-1, 0].set_xlabel("time of the best other library / time of fastgru")
    return made


def draw_summary(found: Sequence[Point]) -> Any:
    """Geometric means over the shapes, one thread and all."""
    columns = sorted({(p.machine, p.threads) for p in found})
    made, panels = figure(9, 2.9, (1, len(MODES)))
    for panel, (mode, words) in zip(panels[0], MODES.items(), strict=True):
        for number, (cell, colour) in enumerate(COLOURS.items()):
            means = [
                geometric_mean(p.ratio for p in found if (p.machine, p.threads, p.cell, p.mode)
                               == (*column, cell, mode))
                for column in columns
            ]  # fmt: skip
            places = [place + 0.4 * number - 0.2 for place in range(len(columns))]
            bars = panel.barh(places, means, 0.38, color=colour, label=cell.upper())
            panel.bar_label(bars, fmt="%.1f", padding=2, fontsize="small")
        panel.axvline(1, color="0.3", lw=1)
        panel.set(title=words, xlim=(0, 4))
        names = [f"{name_of(m)}, {n} thread{'s' if n > 1 else ''}" for m, n in columns]
        panel.set_yticks(range(len(columns)), names if panel is panels[0, 0] else [])
        panel.invert_yaxis()
    panels[0, 0].legend(fontsize="small", loc="lower right")
    made.supxlabel("time of the fastest other library / time of fastgru, mean over 14 shapes",
                   fontsize="medium")  # fmt: skip
    return made


def draw_cost(run: dict[str, Any]) -> Any:
    """Time of a call against steps, rows and units."""
    made, panels = figure(9, 3.4, (1, 3))
    for panel, axis in zip(panels[0], "TBH", strict=True):
        for mode, style in (("forward", "-"), ("train", "--")):
            here = [one for one in run["results"] if (one["axis"], one["mode"]) == (axis, mode)]
            sizes = [one["shape"]["TBIH".index(axis)] for one in here]
            for cell, colour in COLOURS.items():
                panel.plot(sizes, [1e3 * one["seconds"][cell] for one in here], style, color=colour,
                           marker=".", label=f"{cell.upper()}, {MODES[mode]}")  # fmt: skip
        panel.set(xscale="log", yscale="log", xlabel=NAMES_OF_SIZES[axis])
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("ms a call")
    panels[0, 0].legend(fontsize="x-small")
    return made


NAMES_OF_SIZES = {"T": "time steps, T", "B": "rows of the batch, B", "H": "hidden units, H"}


def draw_family(run: Sequence[dict[str, Any]]) -> Any:
    """Times of all cells relative to the LSTM's."""
    made, panels = figure(8.5, 6.2, (1, 3))
    ordered = sorted(run, key=lambda one: one["train relative"])
    for panel, mode in zip(panels[0], MODES, strict=True):
        values = [one[f"{mode} relative"] for one in ordered]
        colours = [COLOURS.get(one["cell"], "0.6") for one in ordered]
        panel.barh(range(len(ordered)), values, color=colours)
        panel.axvline(1, color="0.3", lw=1)
        panel.set_yticks(range(len(ordered)), [one["cell"] for one in ordered])
        if panel is not panels[0, 0]:
            panel.set_yticklabels([])
        panel.set(title=MODES[mode], xlabel="time / LSTM's")
        panel.grid(axis="x", alpha=0.3)
    return made


# --- the page -------------------------------------------------------------------------------------


def summary(found: Sequence[Point]) -> str:
    """Geometric means and least ratios, a table."""
    columns = sorted({(p.machine, p.threads) for p in found})
    head = ["", *(f"{name_of(m)}, {n} thread{'s' if n > 1 else ''}" for m, n in columns)]
    rows = []
    for cell in COLOURS:
        for mode, words in MODES.items():
            row = [f"{cell.upper()}, {words}"]
            for machine, threads in columns:
                ratios = [p.ratio for p in found if (p.machine, p.threads, p.cell, p.mode)
                          == (machine, threads, cell, mode)]  # fmt: skip
                row.append(f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})")
            rows.append(row)
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def sizes(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def slower(found: Sequence[Point]) -> str:
    """The shapes where another library was faster."""
    rows = [
        [name_of(p.machine), f"{p.cell.upper()}, {MODES[p.mode]}", sizes(p.shape), str(p.threads),
         p.best, f"{p.ratio:.2f}"]
        for p in sorted(found, key=lambda p: p.ratio)
        if p.ratio < 1
    ]  # fmt: skip
    if not rows:
        return "At none of these shapes was another library faster."
    head = ["machine", "", "T, B, I, H", "threads", "by", "ratio"]
    return f"Where another library was faster:\n\n{table(head, rows)}"


def machine_line(machine: str, run: dict[str, Any]) -> str:
    """What was measured with."""
    facts = run["machine"]
    threads = "one thread" if facts["threads"] == "1" else f"{facts['threads']} threads"
    return (
        f"*{name_of(machine)}: {facts['processor']}, {facts['CPU vectors']}; {threads}; NumPy "
        f"{facts['numpy']}, Numba {facts['numba']}; float32.*"
    )


def no_product(run: dict[str, Any]) -> str:
    """Cells without a recurrent product beside the GRU."""
    here = [one for one in run["results"] if one["axis"] == "shape"]
    cells = [cell for cell in here[0]["seconds"] if cell != "gru"]
    rows = []
    for one in here:
        gru = one["seconds"]["gru"]
        times = [f"{gru / one['seconds'][cell]:.1f} ×" for cell in cells]
        rows.append([sizes(one["shape"]), MODES[one["mode"]], f"{1e3 * gru:.1f}", *times])
    return table(["T, B, I, H", "", "gru, ms", *cells], rows)


def picture(name: str, made: Any, alt: str) -> str:
    """Write a picture, and give the lines that show it."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    made.savefig(PICTURES / f"{name}.png", format="png", metadata={"Software": None})
    return f"```{{image}} _static/performance/{name}.png\n:alt: {alt}\n:width: 100%\n```"


def page() -> str:
    """The page; its pictures are written on the way."""
    found = all_points()
    parts = [INTRODUCTION, summary(found), READING]
    for mode, words in MODES.items():
        alt = f"Time of the best other library over fastgru's, by shape: {words}"
        parts += [
            f"### {words.capitalize()}",
            picture(f"ratio-{mode}", draw_ratios(found, mode), alt),
        ]
    parts.append(slower(found))
    for machine, run in runs("cost"):
        base = dict(zip("TBIH", run["base"], strict=True))
        alt = "Time of a call against steps, rows and units"
        parts += [COST.format(**base), picture(f"cost-{machine}", draw_cost(run), alt)]
        parts += [machine_line(machine, run), NO_PRODUCT, no_product(run)]
    for machine, run in runs("latency"):
        labels = list(next(iter(run["quantiles"].values())))
        rows = [
            [name, *(f"{times[label]:.2f}" for label in labels)]
            for name, times in run["quantiles"].items()
        ]
        words = LATENCY.format(steps=run["steps"], cell=run["cell"], H=run["shape"][3])
        parts += [words, table(["µs a step", *labels], rows), machine_line(machine, run)]
    for machine, run in runs("training"):
        rows = []
        for one in run["results"]:
            fit, others = one["seconds"]["fit"], ("by hand", "PyTorch")
            ratios = [f"{one['seconds'][name] / fit:.2f}" for name in others]
            rows.append([one["cell"], sizes(one["shape"]), f"{1e3 * fit:.1f}", *ratios])
        head = ["", "N, T, I, H", "fit, ms an epoch", "by hand / fit", "PyTorch / fit"]
        parts += [TRAINING, table(head, rows), machine_line(machine, run)]
    for machine, run in runs("family"):
        alt = "Times of all cells beside the LSTM's"
        parts += [FAMILY, picture(f"family-{machine}", draw_family(run["cells"]), alt)]
        parts.append(machine_line(machine, run))
    return "\n\n".join([*parts, DASHBOARD, OWN]) + "\n"


INTRODUCTION = """# Performance

How fast fastgru is beside PyTorch, onnxruntime, OpenVINO and JAX, what a call costs by its sizes,
and how to find out for a machine of your own. The pictures are drawn from the files in
`benchmarks/results` when this site is built.

## Beside other libraries

One layer, float32, at 14 shapes from one small stream to a batch of 1024 rows. All libraries run
in one process and take turns; each is called in the fastest way that is simple to write. The
number is the time of the fastest of the four, divided by fastgru's: above 1, fastgru is faster.
Geometric mean over the shapes, and in brackets the least."""

READING = """A point of a picture is a shape: T time steps, B rows of the batch, I inputs, H units.
To the right of 1 fastgru is faster."""

COST = """## What a call costs

One size changes; the others stay at T = {T}, B = {B}, I = {I}, H = {H}. Time grows in proportion
to the steps, and, from some rows on, to the rows: up to a full vector of rows more of them are
nearly free. It grows faster than the units: the recurrent product has H times H weights."""

NO_PRODUCT = """Cells without a recurrent product need no other unit's state. How many times faster
than the GRU they are, at a long sequence and at a batch:"""

LATENCY = """## A stream, step by step

How long a step of one sequence takes, {steps:,} of each, for a layer of {H} units (`{cell}`).
`nothing` is what measuring takes, and is part of every other line. The largest times are the
machine's: other programs that had the core."""

TRAINING = """## Training

An epoch of [`training.fit`](guide/training.md): eight batches of N rows, Adam, clipped gradients.
Beside it the same loop written out, and PyTorch's; above 1, `fit` is faster."""

FAMILY = """## All cells

100 steps of 32 rows, 32 inputs, 128 units; times beside the LSTM's with as many units. What the
cells are is on the [page of cells](cells.md), and [choosing a cell](guide/choosing.md) says which
to take."""

DASHBOARD = """## Across commits

[asv](https://asv.readthedocs.io) measures GRU and LSTM at commits of this repository. The
<a href="asv/index.html">dashboard</a> draws them as lines of one graph; cell, direction, shape and
dtype are chosen beside it. It is drawn from the results that are kept in the repository."""

OWN = """## On your machine

In a minute, beside the libraries that are installed:

```
python -m fastgru bench --plot
```

The comparison above, half an hour, from a checkout:

```
python -m pip install ".[peers]"
python -m benchmarks.compare_peers --json results.json
```

What the lines mean, how noise is kept out, and what is left to gain is on the page about
[benchmarks](benchmarks.md). If fastgru is slower than that in your program, see
[when it is slow](guide/slow.md)."""


if __name__ == "__main__":
    (HERE / "performance.md").write_text(page(), "utf-8")
    draw_summary(all_points()).savefig(HERE / "_static" / "speed.png", metadata={"Software": None})
