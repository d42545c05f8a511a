"""The machine code for CPUs that this machine need not have: 64-bit Arm, and x86 of all levels.

Kernels are compiled in processes of their own and never run. `test_assembly` looks closer at x86.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from problems import SHIPPED_CELLS

import fastgru
from fastgru.kernels.cells import CELLS
from fastgru.kernels.layout import phase_plans

llvm = pytest.importorskip("llvmlite.binding")


class Target(NamedTuple):
    """A CPU to compile for, and what its kernels must look like."""

    triple: str
    cpu: str
    features: str
    registers: int
    bits: int
    multiply: str  # what multiplies a vector, as a pattern of a line of assembly


LINUX_ARM, LINUX_X86 = "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"
V2 = "+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16"
V3 = f"{V2},+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+movbe"
V4 = f"{V3},+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
NEON = r"fmla\s+v\d+\.(4s|2d)"
TARGETS = {
    "Neoverse N1": Target(LINUX_ARM, "neoverse-n1", "+neon,+fp-armv8", 32, 128, NEON),
    "Cortex-A72": Target(LINUX_ARM, "cortex-a72", "+neon,+fp-armv8", 32, 128, NEON),
    "Apple M1": Target(LINUX_ARM, "apple-m1", "+neon,+fp-armv8", 32, 128, NEON),
    "x86-64-v2": Target(LINUX_X86, "x86-64-v2", V2, 16, 128, r"mulp[sd]\s"),
    "x86-64-v3": Target(LINUX_X86, "x86-64-v3", V3, 16, 256, r"vfmadd\w+p[sd].*%ymm"),
    "x86-64-v4": Target(LINUX_X86, "x86-64-v4", V4, 32, 512, r"vfmadd\w+p[sd].*%zmm"),
}
# In each run one kind of Arm and the oldest x86, in single precision; the others with `-m slow`.
COMPILED = [("Neoverse N1", "float32", SHIPPED_CELLS), ("x86-64-v2", "float32", ("gru",))]
EVERYTHING = [
    pytest.param((name, dtype, SHIPPED_CELLS), marks=pytest.mark.slow, id=f"{name} {dtype}")
    for name in TARGETS
    for dtype in ("float32", "float64")
]

# What kernels may call: Python and Numba, memory and the scheduler.
KNOWN = re.compile(
    r"""_?( Py\w+ | _Py\w+ | numba_\w+ | (de)?allocate_sched | do_scheduling_(un)?signed
    | [gs]et_(num_threads|parallel_chunksize|sched_size) | memset | memcpy | memmove | bzero
    | sched_yield | printf | \.?numba\.\S+ | \.const\.\S+ | _ZN08NumbaEnv\S+ )""",
    re.VERBOSE,
)
CALLED = re.compile(r"^\s+(?:bl|b|callq?|jmp)\s+([A-Za-z_.][\w.$]*)", re.MULTILINE)
ADDRESS = re.compile(r"^\s+movabsq\s+\$([A-Za-z_.][\w.$]*)", re.MULTILINE)
DEFINED = re.compile(r"^([^\s:#;]+):", re.MULTILINE)
# Products, quotients and roots of single numbers: all arithmetic is on vectors but for sums of
# rows that are not contiguous, and of biases, and but for the normalisers of rows that loops hold.
SCALAR = re.compile(
    r"^\s+(v?(mul|div|fmadd\d+|sqrt)s[sd]\s.*|f(mul|div|madd|nmadd|msub|sqrt)\s+[sdh]\d.*)$",
    re.MULTILINE,
)
NORMALISES = r"\w (forward|backward|statistics|input norm, backward)$"


def compile_for(target: Target, dtype: str, cells: tuple[str, ...], cache: Path) -> dict[str, Any]:
    """Assembly of all kernels by name."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", str(Path(__file__).with_name("foreign_target.py"))),
            *(target.triple, target.cpu, target.features, dtype, ",".join(cells)),
        ],
        env=inherited
        | {
            "PYTHONPATH": str(Path(fastgru.__file__).parents[1]),
            "NUMBA_CACHE_DIR": str(cache),  # code that comes from a cache has no assembly
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_macos_has_all_registers_of_arm(tmp_path: Path) -> None:
    """Though it reports no features. Its kernels cannot be linked elsewhere."""
    target = Target("arm64-apple-darwin20.0.0", "apple-m1", "", 32, 128, "")
    assert compile_for(target, "float32", (), tmp_path) == {"vectors": [32, 128]}


@pytest.mark.parametrize("case", [*COMPILED, *EVERYTHING], ids=lambda case: " ".join(case[:2]))
def test_kernels_of_every_target(case: tuple[str, str, tuple[str, ...]], tmp_path: Path) -> None:
    """They compile and link, call nothing unknown, and multiply vectors of the target's width."""
    name, dtype, cells = case
    target = TARGETS[name]
    found = compile_for(target, dtype, cells, tmp_path)
    assert found.pop("vectors") == [target.registers, target.bits]
    equations = {name for name in found if "equations" in name}
    phases = [(cell, phase.number) for cell in cells for phase in phase_plans(CELLS[cell])]
    for of in ("", ", backward"):
        assert {f"{cell} {dtype} equations, phase {n}{of}" for cell, n in phases} <= equations
    assert len([name for name in found if "product" in name]) >= 3
    assert len(found) >= 12 + len(equations)
    for kernel, assembly in found.items():
        defined = set(DEFINED.findall(assembly))
        called = {*CALLED.findall(assembly), *ADDRESS.findall(assembly)}
        unknown = [
            c for c in called - defined if not re.match(r"\.?L", c) and not KNOWN.fullmatch(c)
        ]
        assert not unknown, kernel
        assert re.search(NORMALISES, kernel) or not SCALAR.findall(assembly), kernel
        if "product" in kernel:
            assert re.search(target.multiply, assembly), kernel
