"""The cache of compiled kernels: never another kernel's code, never an error."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = """
import sys, numpy as np, fastgru
for cell in sys.argv[1].split(","):
    params = fastgru.init_params(3, 5, cell=cell, rng=0, dtype="float64")
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    y, _ = fastgru.forward(x, params)
    print(cell, y.sum().hex())
from fastgru.kernels.cells import CELLS
from fastgru.kernels.cpu import build
print("hits", sum(
    sum(build.forward_kernel(CELLS[c], "float64").dispatcher.stats.cache_hits.values())
    for c in sys.argv[1].split(",")
))
"""


def run(cells: str, home: Path, **environment: str) -> list[str]:
    """Lines printed by a process that computes with these cells and keeps its cache in `home`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, cells],
        env=inherited | {"HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A cache filled by two processes, a cell each, and what they computed."""
    home = tmp_path_factory.mktemp("home")
    lines = [run(cell, home)[0] for cell in ("gru", "gru_reset_before")]
    return home, lines


def files(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "fastgru").iterdir())


def test_kernels_from_several_processes_keep_apart(filled: tuple[Path, list[str]]) -> None:
    """Kernels of one factory, compiled as the first of their processes, loaded side by side."""
    home, lines = filled
    assert run("gru,gru_reset_before", home) == [*lines, "hits 2"]
    assert run("gru_reset_before,gru", home) == [*reversed(lines), "hits 2"]


def test_torn_and_altered_files_are_compiled_again(filled: tuple[Path, list[str]]) -> None:
    home, lines = filled
    rng = np.random.default_rng(0)
    for number, path in enumerate(files(home)):
        content = bytearray(path.read_bytes())
        if number % 3 == 0:
            content = content[: len(content) // 2]
        elif number % 3 == 1:
            content[rng.integers(len(content))] ^= 1
        else:
            content = bytearray()
        path.write_bytes(content)
    assert run("gru", home) == [lines[0], "hits 0"]
    assert run("gru", home) == [lines[0], "hits 1"]


def test_no_home_and_numba_cache_dir(filled: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Numba's own setting goes first; a home that cannot be written means compiling."""
    _, lines = filled
    nowhere = Path("/proc/nowhere")
    assert run("gru", nowhere, NUMBA_CACHE_DIR=str(tmp_path)) == [lines[0], "hits 0"]
    assert run("gru", nowhere, NUMBA_CACHE_DIR=str(tmp_path)) == [lines[0], "hits 1"]
    assert run("gru", nowhere) == [lines[0], "hits 0"]


def test_a_folder_open_to_others_is_not_used(tmp_path: Path) -> None:
    """The files are pickles: whoever writes them runs code here."""
    folder = tmp_path / ".cache" / "fastgru"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert run("gru", tmp_path)[-1] == "hits 0"
    assert list(folder.iterdir()) == []
