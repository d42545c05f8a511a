"""``fastgru compare``: all cells side by side, on this machine.

For each cell its gates, parameters, multiplications a step and the memory that training keeps; the
time of forward, of forward and backward, and of a step, relative to the LSTM's with as many units;
and its error and training time on the series of the demo, over some seeds.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

import fastgru
from fastgru import demo
from fastgru.kernels.cells import CELLS

from . import peers, turns

# Sizes that times are measured at: T, B, I; H is an option.
STEPS, ROWS, INPUTS = 100, 32, 32
# What times are relative to.
BASE = "lstm"
MODES = ("forward", "train", "step")


def _calls(cell: str, hidden_size: int) -> tuple[fastgru.Params, dict[str, Callable[[], Any]], int]:
    """Params of a cell, what is timed for each mode, and the bytes that training keeps."""
    from fastgru.saved import bytes_kept  # not above: asv imports this file at earlier commits

    rng = np.random.default_rng(0)
    params = fastgru.init_params(INPUTS, hidden_size, cell=cell, rng=rng)
    packed = fastgru.pack(params)
    x = rng.standard_normal((ROWS, STEPS, INPUTS)).astype("float32")
    dy = np.ones((ROWS, STEPS, hidden_size), "float32")
    # Small states fit every cell, those of probabilities too.
    members = [np.full((1, ROWS, hidden_size), 0.1, "float32") for _ in CELLS[cell].states]
    state = members[0] if len(members) == 1 else tuple(members)
    of_all: dict[str, Any] = {}
    of_step: dict[str, Any] = {}
    if CELLS[cell].step_inputs:
        of_all["attention"] = rng.random((ROWS, STEPS)).astype("float32")
        of_step["attention"] = of_all["attention"][:, 0]

    def train() -> Any:
        _, _, saved = fastgru.forward_train(x, params, state, **of_all)
        return fastgru.backward(saved, dy)

    _, _, saved = fastgru.forward_train(x, params, state, **of_all)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: fastgru.forward(x, packed, state, **of_all),
        "train": train,
        "step": lambda: fastgru.step(x[:, 0], packed, state, **of_step),
    }
    return params, calls, bytes_kept(saved)


def _facts(cell: str, params: fastgru.Params, kept: int) -> dict[str, Any]:
    from fastgru.kernels.layout import multiply_adds  # likewise

    table, H = CELLS[cell], params.hidden_size
    return {
        "cell": cell,
        "gates": list(table.gates),
        "parameters": params.num_parameters,
        "multiplications": multiply_adds(table, INPUTS, H),
        "kept bytes": kept / (STEPS * ROWS),
        "source": table.source,
    }


def measure(
    cells: Sequence[str], hidden_size: int, rounds: int, seeds: int, epochs: int
) -> list[dict[str, Any]]:
    """What there is to say of each cell; seeds = 0 trains nothing."""
    found = []
    timed = list(dict.fromkeys([BASE, *cells]))
    contenders: dict[str, list[turns.Contender]] = {mode: [] for mode in MODES}
    with tqdm(total=len(timed) + len(MODES) + len(cells) * seeds, unit="part") as bar:
        for cell in timed:
            bar.set_description(f"preparing {cell}")
            params, calls, kept = _calls(cell, hidden_size)
            for mode, call in calls.items():
                way = {"": peers.Way(call, lambda result: {})}
                contenders[mode].append(turns.Contender.fastest(cell, way))
            found.append(_facts(cell, params, kept))
            bar.update()
        for mode in MODES:
            bar.set_description(f"timing {mode}")
            turns.play(contenders[mode], rounds)
            for one, contender in zip(found, contenders[mode], strict=True):
                one[f"{mode} seconds"] = median(contender.rounds)
            bar.update()
        base = {mode: found[0][f"{mode} seconds"] for mode in MODES}
        found = [one for one in found if one["cell"] in cells]
        problem = demo.prepare(*demo.load_co2()) if seeds else None
        for one in found:
            one |= {f"{mode} relative": one[f"{mode} seconds"] / base[mode] for mode in MODES}
            if CELLS[one["cell"]].step_inputs:  # the series has none to give
                bar.update(seeds)
                continue
            errors, seconds = [], []
            for seed in range(seeds):
                bar.set_description(f"training {one['cell']}, seed {seed}")
                result = demo.run(one["cell"], epochs=epochs, seed=seed, problem=problem)
                errors.append(float(result.error[-1]))
                seconds.append(result.seconds)
                bar.update()
            if seeds:
                one |= {"errors": errors, "training seconds": median(seconds)}
    return found


def markdown(found: Sequence[dict[str, Any]], hidden_size: int) -> str:
    """A table of all cells."""
    head = (
        "cell", "gates", "parameters", "multiplications a step", "kept, bytes a step", "forward",
        "forward + backward", "step", "error, ppm", "training, s",
    )  # fmt: skip
    lines = [
        f"I = {INPUTS}, H = {hidden_size}; {ROWS} rows of {STEPS} steps; times relative to the "
        f"{BASE}'s.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for one in found:
        error, training = "", ""
        if "errors" in one:
            errors = one["errors"]
            error = f"{median(errors):.3f} ({min(errors):.3f}-{max(errors):.3f})"
            training = f"{one['training seconds']:.1f}"
        row = (
            one["cell"], " ".join(one["gates"]), f"{one['parameters']}",
            f"{one['multiplications']}", f"{one['kept bytes']:.0f}",
            *(f"{one[f'{mode} relative']:.2f}" for mode in MODES), error, training,
        )  # fmt: skip
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """Draw times relative to the LSTM's, and errors, as a PNG; needs matplotlib."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    trained = any("errors" in one for one in found)
    figure = Figure(figsize=(11, 8 if trained else 4.5), dpi=120, layout="constrained")
    axes = figure.subplots(1 + trained, squeeze=False)[:, 0]
    places, names = np.arange(len(found)), [one["cell"] for one in found]
    for number, mode in enumerate(MODES):
        heights = [one[f"{mode} relative"] for one in found]
        label = "forward + backward" if mode == "train" else mode
        axes[0].bar(places + 0.27 * (number - 1), heights, 0.27, label=label)
    axes[0].axhline(1, color="0.5", lw=1)
    axes[0].set(ylabel=f"time / {BASE}'s", xticks=places)
    axes[0].legend()
    if trained:
        for place, one in enumerate(found):
            if "errors" in one:
                axes[1].plot([place] * len(one["errors"]), one["errors"], "o", color="C0")
        axes[1].set(ylabel="mean absolute error (ppm)", xticks=places)
    for axis in axes:
        axis.set_xticklabels(names, rotation=60, ha="right")
    figure.savefig(path, format="png")


def main(
    *,
    cell: Sequence[str],
    hidden_size: int,
    rounds: int,
    seeds: int,
    epochs: int,
    json_path: Path | None = None,
    markdown_path: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Measure, print the table, and write what is asked for."""
    facts = turns.machine_facts(turns.usable_cores())
    found = measure(cell, hidden_size, rounds, seeds, epochs)
    table = markdown(found, hidden_size)
    print(f"{facts['processor']}\n\n{table}")
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": facts, "cells": found}, indent=1))
        print(f"Written to {json_path}.")
    if markdown_path is not None:
        markdown_path.write_text(f"{facts['processor']}\n\n{table}")
        print(f"Written to {markdown_path}.")
    if plot is not None:
        try:
            draw(plot, found)
            print(f"Drawn to {plot}.")
        except ModuleNotFoundError:
            print('No plot: matplotlib is missing; get it by pip install "fastgru[plot]".')
            return 1
    return 0
