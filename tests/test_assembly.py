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
PRODUCTS = [f"product, {gates} gates {dtype}" for gates in (1, 2, 3, 4) for dtype in ("f4", "f8")]
CELLS = ("gru", "gru_reset_before", "lstm")
PASSES = ("forward", "backward")
EQUATIONS = [
    f"{cell} {phase} {of} f4"
    for cell in CELLS
    for phase in ((0, 1) if cell == "gru_reset_before" else (0,))
    for of in PASSES
]
GENERIC = [
    *("packing f4", "forward f4", "backward f4", "gradient of x f4", "gradient of weights f4"),
    *("backward pass f4", "statistics f4", "input norm, backward f4"),
]
KERNELS = [*EQUATIONS, *GENERIC]

# Prints, by name, the assembly of kernels, which are those that calls run, and the tiles (rows,
# weights) of products.
PROGRAM = """
import json
import numpy as np
from fastgru.kernels.cells import CELLS
from fastgru.kernels.cpu import build
from fastgru.kernels.cpu.product import tile_shapes

code, tiles = {}, {}

def add(name, kernel):
    (signature,) = kernel.dispatcher.signatures
    code[name] = kernel.dispatcher.inspect_asm(signature)

for gates in (1, 2, 3, 4):
    shapes = tile_shapes(gates)
    for kind in ("f4", "f8"):
        name = f"product, {gates} gates {kind}"
        tiles[name] = [(rows, panels * gates) for rows, counts in shapes for panels in counts]
        add(name, build.product_kernel(gates, np.dtype(kind)))
single = np.dtype("f4")
for cell in ("gru", "gru_reset_before", "lstm"):
    for phase in range(len(CELLS[cell].phases)):
        add(f"{cell} {phase} forward f4", build.forward_equations(CELLS[cell], phase, single))
        add(f"{cell} {phase} backward f4", build.backward_equations(CELLS[cell], phase, single))
generic = build.kernel_makers(CELLS["gru"], single)
for name in (
    "packing", "forward", "backward", "gradient of x", "gradient of weights", "backward pass",
):
    add(f"{name} f4", generic[name]())
add("statistics f4", build.statistics_kernel(single))
add("input norm, backward f4", build.input_norm_kernel(single))
print(json.dumps([code, tiles]))
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
    code, tiles = json.loads(done.stdout)
    assert list(code) == PRODUCTS + KERNELS
    return {
        name: Code(target, set(map(tuple, tiles.get(name, ()))), product_loops(text), text)
        for name, text in code.items()
    }


@pytest.mark.parametrize("name", PRODUCTS + KERNELS)
def test_every_tile_is_a_loop(compiled: dict[str, Code], name: str) -> None:
    """Of the multiply-adds that it needs: none was unrolled, split or left out.

    Kernels that are no products have none, as they call products by their addresses.
    """
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


@pytest.mark.parametrize("name", PRODUCTS)
def test_sums_stay_in_registers(compiled: dict[str, Code], name: str) -> None:
    """A sum that has no register of its own is stored in each round."""
    spilled = [
        loop.text()
        for loop in compiled[name].loops
        if any(is_store(line) or ("%rsp" in line and "mm" in line) for line in loop.lines)
    ]
    assert not spilled, "\n\n".join(spilled)


@pytest.mark.parametrize("name", PRODUCTS + KERNELS)
def test_no_references_are_counted(compiled: dict[str, Code], name: str) -> None:
    """Numba's counters are atomic, and were counted up and down for each row and each array."""
    assert "NRT" not in compiled[name].assembly


@pytest.mark.parametrize("name", PRODUCTS)
def test_addresses_stay_in_registers(compiled: dict[str, Code], name: str) -> None:
    """All but one, which some compilers read from the stack once for 24 multiply-adds."""
    reloading = [
        loop.text()
        for loop in compiled[name].loops
        if sum("%rsp" in line and "mm" not in line for line in loop.lines) > 1
    ]
    assert not reloading, "\n\n".join(reloading)


@pytest.mark.parametrize("name", EQUATIONS)
def test_equations_are_one_loop_of_the_widest_vectors(compiled: dict[str, Code], name: str) -> None:
    """All functions are inlined in it, and nothing is computed for one unit alone."""
    code = compiled[name]
    (lines,) = innermost_loops(code.assembly)
    assert not [line for line in lines if line.startswith("call")]
    arithmetic = [line for line in lines if re.match(r"v(mul|div|add|sub|fn?m(add|sub))", line)]
    assert len(arithmetic) >= 8
    for line in arithmetic:
        assert re.match(r"v\w+ps\s", line), line
        assert set(re.findall(r"%([xyz])mm", line)) == {code.target.register}, line


@pytest.mark.parametrize("name", EQUATIONS)
def test_values_of_equations_stay_in_registers(compiled: dict[str, Code], name: str) -> None:
    """Forward, with constants, there can be a few more than registers; then a few are stored."""
    (lines,) = innermost_loops(compiled[name].assembly)
    # With an index it is an array: both registers may be used for anything else.
    stored = [line for line in lines if is_store(line) and re.search(r"\(%r[sb]p\)", line)]
    assert len(stored) <= (len(lines) // 25 if "forward" in name else 0), "\n".join(lines)
