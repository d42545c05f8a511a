"""The machine code: sums of a tile stay in registers, and nothing counts references.

Compiled in processes of their own for CPUs with AVX2 and with AVX-512 and never run, so that both
are checked on every x86 machine.
"""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fastgru

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86-64 assembly"
)


class Target(NamedTuple):
    """A CPU to compile for."""

    name: str
    features: str
    register: str  # first letter of the names of its widest registers
    registers: int  # how many it has


TARGETS = {
    "AVX2": Target("haswell", "+sse2,+avx,+avx2,+fma", "y", 16),
    "AVX-512": Target(
        "skylake-avx512",
        "+sse2,+avx,+avx2,+fma,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl",
        "z",
        32,
    ),
}
PRODUCTS = [f"product {gates} {dtype}" for gates in (1, 2, 3, 4) for dtype in ("f4", "f8")]
KERNELS = [
    *(f"{loop} {cell}" for cell in ("gru", "lstm") for loop in ("forward", "backward")),
    "gradient of x",
    *(f"weights of {operand}, vectors {vectors}" for operand in "xh" for vectors in (3, 4)),
    *("backward pass, states 1", "backward pass, states 2", "packing"),
]

# Prints, by name, the tiles (rows, weights) that the code consists of, and the code. The products
# stand alone with all distances unknown; the kernels are those that calls run.
PROGRAM = """
import json
import numba, numpy as np
from numba import types
from fastgru.kernels.cells import CELLS, HIDDEN
from fastgru.kernels.cpu import build
from fastgru.kernels.cpu.gradients import group_vectors
from fastgru.kernels.layout import phase_plans
from fastgru.kernels.cpu.product import product, tile_shapes

found = {}

def add(name, dispatcher, tiles):
    (signature,) = dispatcher.signatures
    found[name] = tiles, dispatcher.inspect_asm(signature)

def tiles(gates):
    return [(rows, panels * gates) for rows, counts in tile_shapes(gates) for panels in counts]

def compile_product(gates, dtype):
    def alone(
        C, c, c_row, c_gate, S, s, s_row, s_gate, A, a, a_row, a_block, a_k, B, b, b_panel,
        b_k, b_after, N, n, n_tile, n_round, blocks, K, rows, panels,
    ):
        product(
            C, c, c_row, c_gate, S, s, s_row, s_gate, A, a, a_row, a_block, a_k, B, b, b_panel,
            b_k, b_after, (N, n, n_tile, n_round), blocks, K, rows, panels, gates,
        )
    flat, index = types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C"), types.intp
    kinds = (flat, *[index] * 3, flat, *[index] * 3, flat, *[index] * 4, flat, *[index] * 4)
    kinds += (flat, *[index] * 7)
    dispatcher = numba.njit(nogil=True)(alone)
    dispatcher.compile(types.void(*kinds))
    add(f"product {gates} {dtype}", dispatcher, tiles(gates))

for gates in (1, 2, 3, 4):
    for dtype in ("f4", "f8"):
        compile_product(gates, dtype)
single = np.dtype("float32")
for name in ("gru", "lstm"):
    cell = CELLS[name]
    parts = [gates for p in phase_plans(cell) for gates in (p.inputs, p.recurrents) if gates]
    kernel = build.forward_kernel(cell, single)
    add(f"forward {name}", kernel.dispatcher, [tile for gates in parts for tile in tiles(gates)])
    add(f"backward {name}", build.backward_kernel(cell, single).dispatcher, tiles(1))
add("gradient of x", build.input_gradient_kernel(single).dispatcher, tiles(1))
for name, operand in (("x", None), ("h", HIDDEN)):
    for vectors in sorted(set(map(group_vectors, range(1, 5)))):
        kernel = build.weight_gradient_kernel(operand, 0, vectors, single)
        one_panel = [(rows, vectors) for rows, _ in tile_shapes(vectors)]
        add(f"weights of {name}, vectors {vectors}", kernel.dispatcher, one_panel)
for states in (1, 2):
    kernel = build.backpropagation_kernel(states, single, False)
    add(f"backward pass, states {states}", kernel.dispatcher, [])
add("packing", build.packing_kernel(single).dispatcher, [])
print(json.dumps(found))
"""


class Loop(NamedTuple):
    """An innermost loop that multiplies and adds vectors and does no other arithmetic on them."""

    rows: int  # broadcast elements
    weights: int  # multiply-adds of each of them
    lines: list[str]

    def text(self) -> str:
        return "\n".join([f"{self.rows} rows by {self.weights} weights:", *self.lines])


class Code(NamedTuple):
    """A compiled function."""

    target: Target
    tiles: set[tuple[int, int]]  # rows and weights of each
    loops: list[Loop]
    assembly: str


def innermost_loops(assembly: str) -> list[list[str]]:
    """Instructions between a label and a jump back to it, where no other such label stands."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in assembly.splitlines():
        text = line.partition("#")[0].strip()
        if label := re.fullmatch(r"(\S+):", text):
            labels[label[1]] = len(lines)
        elif text and not text.startswith("."):
            lines.append(text)
    ends: dict[int, int] = {}
    for number, text in enumerate(lines):
        jump = re.fullmatch(r"j\w+\s+(\S+)", text)
        if jump and labels.get(jump[1], len(lines)) <= number:
            ends[labels[jump[1]]] = number
    return [
        lines[start : end + 1]
        for start, end in ends.items()
        if not any(start < other <= end for other in ends)
    ]


def product_loops(assembly: str) -> list[Loop]:
    """The innermost loops of tiles."""
    found = []
    for lines in innermost_loops(assembly):
        vectors = [line for line in lines if line.startswith("v")]
        sums = sum(line.startswith("vfmadd") for line in vectors)
        if sums and all(line.startswith(("vfmadd", "vbroadcast", "vmov")) for line in vectors):
            rows = sum(line.startswith("vbroadcast") or "{1to" in line for line in vectors)
            found.append(Loop(rows, sums // max(1, rows), lines))
    return found


def is_store(line: str) -> bool:
    """Whether an instruction's last operand, where its result goes, lies in memory."""
    return line.endswith(")") and not line.startswith(("cmp", "test", "prefetch"))


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Code]:
    """All functions, compiled for one target."""
    target = TARGETS[request.param]
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env=inherited
        | {
            "PYTHONPATH": str(Path(fastgru.__file__).parents[1]),
            "NUMBA_CPU_NAME": target.name,
            "NUMBA_CPU_FEATURES": target.features,
            # Code that comes from a cache has no assembly.
            "NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == PRODUCTS + KERNELS
    return {
        name: Code(target, {tuple(tile) for tile in tiles}, product_loops(assembly), assembly)
        for name, (tiles, assembly) in found.items()
    }


@pytest.mark.parametrize("name", PRODUCTS + KERNELS)
def test_every_tile_is_a_loop(compiled: dict[str, Code], name: str) -> None:
    """Of the multiply-adds that it needs: none was unrolled, split or left out."""
    code = compiled[name]
    assert {(loop.rows, loop.weights) for loop in code.loops} == code.tiles
    for loop in code.loops:
        sums = [line for line in loop.lines if line.startswith("vfmadd")]
        assert len(sums) == loop.rows * loop.weights
        assert set(re.findall(r"%([xyz])mm", " ".join(sums))) == {code.target.register}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_largest_tile_fills_three_quarters_of_the_registers(
    compiled: dict[str, Code], name: str
) -> None:
    code = compiled[name]
    assert max(rows * weights for rows, weights in code.tiles) == code.target.registers * 3 // 4


@pytest.mark.parametrize("name", PRODUCTS + KERNELS)
def test_sums_stay_in_registers(compiled: dict[str, Code], name: str) -> None:
    """A sum that has no register of its own is stored in each round."""
    spilled = [
        loop.text()
        for loop in compiled[name].loops
        if any(is_store(line) or ("%rsp" in line and "mm" in line) for line in loop.lines)
    ]
    assert not spilled, "\n\n".join(spilled)


@pytest.mark.parametrize("name", KERNELS)
def test_no_references_are_counted(compiled: dict[str, Code], name: str) -> None:
    """Numba's counters are atomic, and were counted up and down for each row and each array."""
    assert "NRT" not in compiled[name].assembly


@pytest.mark.parametrize("name", KERNELS)
def test_addresses_stay_in_registers(compiled: dict[str, Code], name: str) -> None:
    """All but one, which some compilers read from the stack once for 24 multiply-adds."""
    reloading = [
        loop.text()
        for loop in compiled[name].loops
        if sum("%rsp" in line and "mm" not in line for line in loop.lines) > 1
    ]
    assert not reloading, "\n\n".join(reloading)
