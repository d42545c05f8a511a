"""The cache of compiled kernels: never another kernel's code, never an error."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

import fastgru
from fastgru.kernels.store import functions_digest

# For each cell named, computes with kernels of float64; shows what, and how many the cache gave.
PROGRAM = """
import sys, numpy as np, fastgru
for cell in sys.argv[1].split(","):
    params = fastgru.init_params(3, 5, cell=cell, rng=0, dtype="float64")
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    y, _ = fastgru.forward(x, params)
    print(cell, y.sum().hex())
from fastgru.kernels.cells import CELLS
from fastgru.kernels.cpu import build
cells, kind = [CELLS[name] for name in sys.argv[1].split(",")], np.dtype("float64")
kernels = [build.forward_equations(cell, 0, kind) for cell in cells]
print("hits", sum(sum(kernel.dispatcher.stats.cache_hits.values()) for kernel in kernels))
"""

# The same with one kernel, which is compiled in half a second: that which lays out weights.
PACKING = """
import numpy as np, fastgru
from fastgru.kernels.cells import CELLS
from fastgru.kernels.cpu import build
from fastgru.kernels.cpu.packed import Packing
from fastgru.kernels.layout import packed_weights
weights, kind = fastgru.init_params(3, 5, rng=0, dtype="float64").layers[0][0], np.dtype("float64")
packing = Packing(CELLS["gru"], 3, 5, kind)
size = packed_weights(CELLS["gru"], 3, 5, build.lanes(kind), by_columns=False).size
packed = packing.pack(dict(weights.items()))[:size]
print("packed", (packed * np.arange(size)).sum().hex())
kernel = build.packing_kernel(build.vectors_passed(2), kind)
print("hits", sum(kernel.dispatcher.stats.cache_hits.values()))
"""


def start(
    cells: str, home: Path, before: str = "", cwd: Path | None = None, **environment: str
) -> "subprocess.Popen[str]":
    """Start a process that computes with these cells, or just packs, with a cache in `home`."""
    program = before + (PACKING if cells == "packing" else PROGRAM)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, cells],
        cwd=cwd,
        env=inherited | {"HOME": str(home)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> list[str]:
    """Lines that the process printed."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out.splitlines()


def run(cells: str, home: Path, **options: Any) -> list[str]:
    """Lines printed by a process, started and finished."""
    return finish(start(cells, home, **options))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A cache filled by two processes, a cell each, and what they computed."""
    home = tmp_path_factory.mktemp("home")
    lines = [run(cell, home)[0] for cell in ("gru", "gru_reset_before")]
    return home, lines


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A cache with the kernel that packs, and what it computed."""
    home = tmp_path_factory.mktemp("packing")
    line, hits = run("packing", home)
    assert hits == "hits 0"
    return home, line


def files(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "fastgru").iterdir())


def test_kernels_from_several_processes_keep_apart(filled: tuple[Path, list[str]]) -> None:
    """Kernels of one factory, compiled as the first of their processes, loaded side by side."""
    home, lines = filled
    assert run("gru,gru_reset_before", home) == [*lines, "hits 2"]
    assert run("gru_reset_before,gru", home) == [*reversed(lines), "hits 2"]


@pytest.mark.parametrize("harm", ["cut", "altered", "empty"])
def test_torn_and_altered_files_are_compiled_again(harm: str, packed: tuple[Path, str]) -> None:
    home, line = packed
    (path,) = files(home)
    content = bytearray(path.read_bytes())
    if harm == "cut":
        content = content[: len(content) // 2]
    elif harm == "altered":
        content[np.random.default_rng(0).integers(len(content))] ^= 1
    else:
        content = bytearray()
    path.write_bytes(content)
    assert run("packing", home) == [line, "hits 0"]
    assert run("packing", home) == [line, "hits 1"]


def test_no_home_and_numba_cache_dir(packed: tuple[Path, str], tmp_path: Path) -> None:
    """Numba's own setting goes first; a home that cannot be written means compiling."""
    _, line = packed
    nowhere = Path("/proc/nowhere")
    assert run("packing", nowhere, NUMBA_CACHE_DIR=str(tmp_path)) == [line, "hits 0"]
    assert run("packing", nowhere, NUMBA_CACHE_DIR=str(tmp_path)) == [line, "hits 1"]
    assert run("packing", nowhere) == [line, "hits 0"]


def test_a_folder_open_to_others_is_not_used(tmp_path: Path) -> None:
    """The files are pickles: whoever writes them runs code here."""
    folder = tmp_path / ".cache" / "fastgru"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert run("packing", tmp_path)[-1] == "hits 0"
    assert list(folder.iterdir()) == []


def test_a_folder_of_root_serves_all_users(packed: tuple[Path, str]) -> None:
    """Of an image, say: root can do anything to them anyway."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can make one")
    home, line = packed
    run("packing", home)
    another_user = "import os; os.geteuid = lambda: 12345\n"
    assert run("packing", home, before=another_user) == [line, "hits 1"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files(home))
    assert files(home)[0].parent.stat().st_mode & 0o777 == 0o755


def test_eight_processes_fill_an_empty_cache_at_once(
    packed: tuple[Path, str], tmp_path: Path
) -> None:
    _, line = packed
    processes = [start("packing", tmp_path) for _ in range(8)]
    assert {finish(process)[0] for process in processes} == {line}
    assert not [path for path in files(tmp_path) if path.suffix != ".kernel"]
    assert run("packing", tmp_path) == [line, "hits 1"]


def test_edited_sources_are_compiled_again(filled: tuple[Path, list[str]], tmp_path: Path) -> None:
    """An equation changed in a file that the compiled loop only imports."""
    home, lines = filled
    package = tmp_path / "fastgru"
    copytree(Path(fastgru.__file__).parent, package)
    assert run("gru", home, cwd=tmp_path)[0] == lines[0]
    path = package / "kernels" / "cells" / "gru.py"
    source = path.read_text("utf-8")
    assert source.count("n + z * (h - n)") == 3
    path.write_text(source.replace("n + z * (h - n)", "h + z * (n - h)"), "utf-8")
    (changed, hits) = run("gru", home, cwd=tmp_path)
    assert changed != lines[0]
    assert hits == "hits 0"


# A cell of a user, in two files: its equations, and its structure.
EQUATIONS = """
from fastgru.kernels.primitives import one_like, sigmoid, tanh

def forward(a, state, values):
    a_z, a_n = a
    (h,) = state
    z = sigmoid(a_z)
    n = tanh(a_n)
    return (n + z * (h - n),), (z, n)

def backward(h, values, dstate, dvalues):
    z, n = values
    (dh,) = dstate
    one = one_like(z)
    return (dh * (h - n) * z * (one - z), dh * (one - z) * (one - n * n)), (dh * z,), ()
"""
STRUCTURE = """
import equations
from fastgru.kernels.cells import CELLS, INPUT, RECURRENT, Cell, Phase, PreActivation, Weight

gates = "z", "n"
weights = Weight("weight_ih", INPUT, gates), Weight("weight_hh", RECURRENT, gates)
pre = tuple(map(PreActivation, gates))
phase = Phase(pre, ("z", "n"), equations.forward, equations.backward)
CELLS["own"] = Cell("own", gates, ("h",), weights, (phase,), "")
"""


@pytest.mark.parametrize(
    ("file", "before", "after", "changes"),
    [
        ("equations", "n + z * (h - n)", "h + z * (n - h)", True),
        ("structure", "INPUT, gates", 'INPUT, ("n", "z")', True),
        ("structure", 'gates = "z", "n"', 'gates = "n", "z"', False),
        ("structure", '("z", "n"), equations', '("n", "z"), equations', False),
        ("structure", '("z", "n"), equations', '("y", "n"), equations', False),
    ],
)
def test_an_edited_cell_of_a_user_gets_new_kernels(
    filled: tuple[Path, list[str]],
    tmp_path: Path,
    file: str,
    before: str,
    after: str,
    changes: bool,
) -> None:
    """The file that is edited, be it that of its structure, and the same again afterwards."""
    home, _ = filled
    (tmp_path / "equations.py").write_text(EQUATIONS)
    (tmp_path / "structure.py").write_text(STRUCTURE)

    def run_own() -> tuple[str, str, int]:
        known = len(files(home))
        line, hits = run(
            "own",
            home,
            before="import structure\n",
            PYTHONPATH=paths,
            # An edit of the same length within a second would not be seen.
            PYTHONDONTWRITEBYTECODE="1",
        )
        return line, hits, len(files(home)) - known

    paths = os.pathsep.join([str(tmp_path), str(Path(fastgru.__file__).parents[1])])
    line, *_ = run_own()
    assert run_own() == (line, "hits 1", 0)
    path = tmp_path / f"{file}.py"
    assert path.read_text().count(before) == 1
    path.write_text(path.read_text().replace(before, after))
    edited, hits, new = run_own()
    assert (edited != line) == changes
    # But for the product of two gates, all else was there; `own` may be here from other rows.
    assert (hits, new) == ("hits 0", 1)
    path.write_text(path.read_text().replace(after, before))
    assert run_own() == (line, "hits 1", 0)


def test_a_full_disk_means_compiling(packed: tuple[Path, str], tmp_path: Path) -> None:
    """Every write past the first bytes of a file fails, as it does on a full disk."""
    pytest.importorskip("resource")
    _, line = packed
    before = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""
    assert run("packing", tmp_path, before=before) == [line, "hits 0"]
    assert files(tmp_path) == []
    assert run("packing", tmp_path) == [line, "hits 0"]


# Mounts a file system at $0 that goes with this process; runs the program given three times.
NO_SPACE = """
mount -t tmpfs -o size=4k tmpfs "$0"
"$@"
ls -A "$0/fastgru"
mount -o remount,size=64m "$0"
"$@"
"$@"
ls -A "$0/fastgru"
"""


def test_a_full_file_system_means_compiling_until_there_is_space(
    packed: tuple[Path, str], tmp_path: Path
) -> None:
    """4 KiB, less than a kernel: a file begins and cannot be finished; nothing is left of it."""
    _, line = packed
    private = ["unshare", "--map-root-user", "--mount", "sh", "-euc"]
    try:
        probe = 'mount -t tmpfs -o size=4k tmpfs "$0"'
        subprocess.run([*private, probe, str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting is not permitted: {error}")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    process = subprocess.Popen(
        [*private, NO_SPACE, str(tmp_path), sys.executable, "-W", "error", "-c", PACKING],
        env=inherited | {"NUMBA_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out = finish(process)
    assert out[:4] == [line, "hits 0", line, "hits 0"]  # nothing listed between them
    assert out[4:6] == [line, "hits 1"]
    assert len(out) > 6
    assert all(name.endswith(".kernel") for name in out[6:])


def test_a_folder_that_cannot_be_written_is_read(packed: tuple[Path, str]) -> None:
    home, line = packed
    run("packing", home)
    folder = home / ".cache" / "fastgru"
    folder.chmod(0o500)
    try:
        assert run("packing", home) == [line, "hits 1"]
    finally:
        folder.chmod(0o700)


def test_functions_of_one_file_are_told_apart() -> None:
    """Equations may be lambdas, which have one name; what a closure holds cannot be seen."""
    outer = np.ones(1)
    twice, square, closure = (lambda a: a + a), (lambda a: a * a), (lambda a: a + outer)
    assert functions_digest([twice]) is not None
    assert functions_digest([twice]) != functions_digest([square])
    assert functions_digest([closure]) is None


# --- what the key holds ---------------------------------------------------------------------------

DIGEST = """
from fastgru.kernels.cpu import simd
from fastgru.kernels.cpu.cache import KernelCache
print(KernelCache("key").digest, sorted(simd.target().features), simd.target().cpu)
"""


def digest(**environment: str) -> str:
    """What decides the code of a kernel, in a process with these settings."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    command = [sys.executable, "-W", "error", "-c", DIGEST]
    return subprocess.check_output(command, env=inherited | environment, text=True)


@pytest.fixture(scope="module")
def usual_digest() -> str:
    return digest()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("OPT", "0"),
        ("OPT", "max"),
        ("LOOP_VECTORIZE", "0"),
        ("SLP_VECTORIZE", "1"),
        ("BOUNDSCHECK", "1"),
        ("DEBUGINFO", "1"),
        ("ENABLE_PROFILING", "1"),
        ("LLVM_REFPRUNE_PASS", "0"),
        ("EXTEND_VARIABLE_LIFETIMES", "1"),
        ("CPU_NAME", "generic"),
        ("CPU_FEATURES", "+sse2"),
        pytest.param("ENABLE_AVX", "0", marks=pytest.mark.skipif(
            platform.machine().lower() not in ("x86_64", "amd64"), reason="only x86 has AVX"
        )),
    ],
)  # fmt: skip
def test_settings_that_change_the_code_are_in_the_key(
    usual_digest: str, setting: str, value: str
) -> None:
    """NUMBA_DEBUGINFO and the like: a cache filled with them would slow down others for ever."""
    assert digest(**{f"NUMBA_{setting}": value}) != usual_digest


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("NUM_THREADS", "1"),
        ("THREADING_LAYER", "workqueue"),
        ("DUMP_BYTECODE", "0"),
        ("DEBUG_CACHE", "0"),
        ("FULL_TRACEBACKS", "1"),
        ("CUDA_LOG_LEVEL", "DEBUG"),
        ("DISABLE_CUDA", "1"),
        ("COLOR_SCHEME", "dark_bg"),
    ],
)
def test_settings_without_effect_are_not(usual_digest: str, setting: str, value: str) -> None:
    assert digest(**{f"NUMBA_{setting}": value}) == usual_digest


def test_code_compiled_without_optimisation_stays_apart(
    packed: tuple[Path, str], tmp_path: Path
) -> None:
    _, line = packed
    assert run("packing", tmp_path, NUMBA_OPT="0")[-1] == "hits 0"
    assert run("packing", tmp_path) == [line, "hits 0"]
    assert run("packing", tmp_path) == [line, "hits 1"]


@pytest.mark.parametrize(
    "setting",
    [{"NUMBA_ENABLE_AVX": "0"}, {"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_NAME": "nocona"}],
    ids=lambda setting: " ".join(map("=".join, setting.items())),
)
def test_vectors_are_those_that_the_compiler_is_told_of(
    filled: tuple[Path, list[str]], tmp_path: Path, setting: dict[str, str]
) -> None:
    """Numba switches AVX off by itself where the CPU calls itself nocona."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("these are settings for x86")
    _, lines = filled
    (line, _) = run("gru", tmp_path, NUMBA_CACHE_DIR=str(tmp_path), **setting)
    # Other vectors round otherwise.
    got, want = (float.fromhex(text.split()[1]) for text in (line, lines[0]))
    assert abs(got - want) <= 100 * np.finfo("float64").eps
    shown = subprocess.check_output(
        [sys.executable, "-m", "fastgru", "info"],
        env=os.environ | {"PYTHONPATH": str(Path(fastgru.__file__).parents[1])} | setting,
        text=True,
    )
    assert "16 registers of 128 bits" in shown
    assert ("without fused multiply-add" in shown) == ("generic" in setting.values())


def without_sources(package: Path) -> None:
    """Leave of a package what `compileall -b` makes of it, as frozen applications do."""
    subprocess.run([sys.executable, "-m", "compileall", "-qb", str(package)], check=True)
    for path in package.rglob("*.py"):
        path.unlink()


def test_without_sources_the_code_decides(packed: tuple[Path, str], tmp_path: Path) -> None:
    """A change in a kernel that no cell's equations go into: how biases are packed."""
    _, line = packed
    now, changed = tmp_path / "now" / "fastgru", tmp_path / "changed" / "fastgru"
    for package in (now, changed):
        copytree(Path(fastgru.__file__).parent, package)
    path = changed / "kernels" / "cpu" / "packing.py"
    source = path.read_text("utf-8")
    assert source.count("* unit + j] += vector[") == 1
    path.write_text(source.replace("+= vector[", "-= vector["), "utf-8")
    for package in (now, changed):
        without_sources(package)
    assert run("packing", tmp_path, cwd=now.parent) == [line, "hits 0"]
    assert run("packing", tmp_path, cwd=now.parent) == [line, "hits 1"]
    other, hits = run("packing", tmp_path, cwd=changed.parent)
    assert other != line
    assert hits == "hits 0"


def test_sources_that_cannot_be_listed_are_not_cached(
    packed: tuple[Path, str], tmp_path: Path
) -> None:
    _, line = packed
    before = "import pkgutil; pkgutil.iter_modules = lambda *args: []\n"
    for _ in range(2):
        assert run("packing", tmp_path, before=before) == [line, "hits 0"]


def test_relative_folders_are_ignored(packed: tuple[Path, str], tmp_path: Path) -> None:
    """The specification of XDG_CACHE_HOME asks for that; a HOME like that is none."""
    home, line = packed
    assert run("packing", home, cwd=tmp_path, XDG_CACHE_HOME="cache")[0] == line
    assert run("packing", Path("home"), cwd=tmp_path, XDG_CACHE_HOME="cache")[0] == line
    assert list(tmp_path.iterdir()) == []
