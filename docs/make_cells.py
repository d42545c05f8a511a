"""The page of cells, made from the table of cells and from `equations`."""

import math
import re
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1])]

import equations
import make_performance

import fastgru
from fastgru.kernels.cells import CELLS, INPUT, RECURRENT, Cell, Weight
from fastgru.kernels.layout import multiply_adds

I, H = 32, 128  # what numbers are given for
LIBRARIES = ("PyTorch", "Keras", "ONNX", "cuDNN")

HEAD = f"""# Cells

`fastgru.init_params(..., cell=NAME)` takes these names. This page is made from the table that the
kernels are compiled from. I is the number of inputs, H the number of units; numbers are for
I = {I} and H = {H}, one layer and one direction. Multiplications are those of the products in one
step of one sample, forward.

In equations, $\\sigma$ is the logistic function and $\\odot$ the product unit by unit. $W$ are the
gates' rows of `weight_ih`, $U$ those of `weight_hh`, or units of `diag_hh`, written $u$. A single
$b$ is a gate's part of `bias`; $b_i$ and $b_h$ are those of `bias_ih` and `bias_hh`. In upper
layers, and in the second direction, `l0` in the keys is `l1` and so on, and `l0_reverse`.

`python -m fastgru compare` measures all of them on your machine.
[Choosing a cell](guide/choosing.md) says which to take.
"""

MEANINGS = {
    INPUT: "multiplies x",
    RECURRENT: "multiplies the state",
    "bias": "is added",
    "unit": "a number a unit",
    "norm scale": "scale of the batch norm",
    "norm shift": "shift of the batch norm",
    "norm mean": "running mean, not trained",
    "norm variance": "running variance, not trained",
}


def page() -> str:
    """All of it."""
    parts = [HEAD, overview()]
    parts += [section(CELLS[name]) for name in fastgru.cells()]
    return "\n".join(parts)


def overview() -> str:
    """All cells in one table."""
    head = ("cell", "gates", "parameters", "multiplications", *LIBRARIES)
    rows = [head, ("---",) * len(head)]
    for name in fastgru.cells():
        cell, names = CELLS[name], equations.ABOUT[name].names
        known = [first_name(names.get(library, "")) for library in LIBRARIES]
        numbers = (f"{parameters(cell):,}", f"{multiply_adds(cell, I, H):,}")
        rows.append((f"[{name}](#{anchor(name)})", ", ".join(cell.gates), *numbers, *known))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def anchor(name: str) -> str:
    """Where the section of a cell begins."""
    return name


def first_name(text: str) -> str:
    """What stands in backticks first: the rest is in the section."""
    return text[: text.index("`", 1) + 1] if text else ""


def section(cell: Cell) -> str:
    """What there is to say of one cell."""
    about = equations.ABOUT[cell.name]
    rows = [f"| `{w.name}_l0` | {shape(w)} | {', '.join(w.gates)} | {MEANINGS[w.kind]} |"
            for w in cell.weights]  # fmt: skip
    names = [f"{library}: {name}" for library, name in about.names.items()]
    facts = [
        f"States: {', '.join(f'`{state}`' for state in cell.states)}.",
        f"Parameters: {formula(cell, True)} = {parameters(cell):,}.",
        f"Multiplications a step: {formula(cell, False)} = {multiply_adds(cell, I, H):,}.",
        f"Source: {source(cell.source)}.",
        *times(cell.name),
        *([f"Elsewhere: {'; '.join(names)}."] if names else []),
    ]
    return "\n".join(
        [
            f"({anchor(cell.name)})=",
            f"## `{cell.name}`",
            "",
            about.words + (f" {about.notes}" if about.notes else ""),
            "",
            "$$",
            about.tex,
            "$$",
            "",
            "| key | shape | gates, in this order | |",
            "|---|---|---|---|",
            *rows,
            "",
            *(f"- {fact}" for fact in facts),
            "",
        ]
    )


def times(name: str) -> list[str]:
    """What was measured of a cell, a line for each machine."""
    lines = []
    for machine, run in make_performance.runs("family"):
        for one in run["cells"]:
            if one["cell"] == name:
                found = ", ".join(
                    f"{words} {one[f'{mode} relative']:.2f}"
                    for mode, words in make_performance.MODES.items()
                )
                where = f"[{make_performance.name_of(machine)}](performance.md#all-cells)"
                lines.append(f"Time beside the LSTM's with as many units, {where}: {found}.")
    return lines


def shape(weight: Weight) -> str:
    """A shape in letters: ``(3H, I)``."""
    gates = len(weight.gates)
    height = "H" if gates == 1 else f"{gates}H"
    return f"({height}, {'I' if weight.kind == INPUT else 'H'})" if weight.is_matrix else (
        f"({height},)")  # fmt: skip


def formula(cell: Cell, vectors: bool) -> str:
    """How many numbers, in I and H: of all that is trained, or of matrices alone."""
    parts = [(len(cell.input_gates), "H I"), (len(cell.recurrent_gates), "H²")]
    if vectors:
        others = [w for w in cell.weights if w.is_trainable and not w.is_matrix]
        parts.append((sum(len(w.gates) for w in others), "H"))
    return " + ".join(f"{'' if n == 1 else n} {what}".strip() for n, what in parts if n)


def parameters(cell: Cell) -> int:
    """Numbers that are trained."""
    return sum(math.prod(w.shape(I, H)) for w in cell.weights if w.is_trainable)


def source(text: str) -> str:
    """A source with links."""
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    print(page())
