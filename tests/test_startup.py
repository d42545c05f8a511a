"""What makes a start quick: little is imported, kernels on disk are not compiled nor loaded early.

Each check runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from typing import NamedTuple

import pytest

import fastgru

# Modules that NumPy loads or that take no time; those that they load do not count either.
IMPORT = """
import sys
import numpy, copy, dataclasses, functools, importlib, threading, typing, warnings

before = set(sys.modules)
import fastgru
print(*sorted(set(sys.modules) - before))
"""

# Prints, after each stage, which kernel files it opened and how many passes Numba's compiler ran.
CALLS = """
import json, os, sys
import numba, numpy as np
from numba.core import event

opened = []

def watch(name, arguments):
    if name == "open" and str(arguments[0]).endswith(".kernel"):
        opened.append(os.path.basename(arguments[0]))

sys.addaudithook(watch)
import fastgru

cell, *names = sys.argv[1:]
for stage in names:
    opened.clear()
    with event.install_recorder("numba:run_pass") as recorder:
        if stage == "import":
            params = fastgru.init_params(2, 3, cell=cell)
            x = np.ones((2, 4, 2), "float32")
        elif stage == "forward":
            fastgru.forward(x, params)
        elif stage == "forward_train":
            y, _, saved = fastgru.forward_train(x, params)
        elif stage == "backward":
            fastgru.backward(saved, y)
    print(json.dumps([sorted(opened), len(recorder.buffer)]))
"""


class Stage(NamedTuple):
    """What a stage of a process did."""

    opened: list[str]  # names of kernel files
    passes: int  # of Numba's compiler


def python(script: str, *arguments: str, **environment: str) -> list[str]:
    """Lines that a script printed in a fresh interpreter with this very fastgru."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        env=inherited | {"PYTHONPATH": str(Path(fastgru.__file__).parents[1])} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def stages(cache: Path, *names: str, cell: str = "gru") -> list[Stage]:
    """What these stages of one process did."""
    lines = python(CALLS, cell, "import", *names, NUMBA_CACHE_DIR=str(cache))
    nothing, *done = [Stage(*json.loads(line)) for line in lines]
    assert nothing == Stage([], 0)
    return done


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "fastgru").iterdir())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def of_forward(cache: Path) -> list[str]:
    """The kernels of forward, after a first process has compiled them."""
    (forward,) = stages(cache, "forward")
    assert forward.passes > 0
    return files(cache)


@pytest.fixture(scope="module")
def of_training(cache: Path, of_forward: list[str]) -> list[str]:
    """The kernels of forward and backward, after a second process has compiled the latter."""
    forward, backward = stages(cache, "forward_train", "backward")
    assert forward == Stage(of_forward, 0)
    assert backward.passes > 0
    return files(cache)


def test_the_import_loads_this_package_alone() -> None:
    """Not even NumPy's random numbers, which NumPy loads when they are asked for."""
    (line,) = python(IMPORT)
    loaded = line.split()
    assert [name for name in loaded if name.partition(".")[0] != "fastgru"] == []
    assert "fastgru.ops" in loaded
    assert not {"fastgru.kernels.cpu", "fastgru.demo", "fastgru.__main__"} & set(loaded)


def test_forward_loads_five_kernels_and_compiles_none(
    cache: Path, of_forward: list[str], of_training: list[str]
) -> None:
    """What packs, the loop, the products of a tile and of a row, the cell's equations.

    Those of backward stay on disk.
    """
    assert len(of_forward) == 5
    assert len(of_training) > 5
    first, second = stages(cache, "forward", "forward")
    assert first == Stage(of_forward, 0)
    assert second == Stage([], 0)


def test_training_loads_a_kernel_when_it_is_called_and_compiles_none(
    cache: Path, of_forward: list[str], of_training: list[str]
) -> None:
    """Beyond those of forward: the pass, the loop, the gradients of x and of weights, products of
    one gate and of four, the cell's equations, and what passes the gradient of h on.
    """
    assert len(of_training) == len(of_forward) + 8
    forward, backward, again = stages(cache, "forward_train", "backward", "backward")
    assert forward == Stage(of_forward, 0)
    assert backward == Stage(sorted(set(of_training) - set(of_forward)), 0)
    assert again == Stage([], 0)
    assert files(cache) == of_training


def test_another_cell_compiles_its_equations_and_a_product_of_a_row(
    cache: Path, of_training: list[str], tmp_path: Path
) -> None:
    """Loops and products are the same for all cells: an LSTM loads what a GRU compiled."""
    copytree(cache, tmp_path, dirs_exist_ok=True)
    forward, backward = stages(tmp_path, "forward_train", "backward", cell="lstm")
    assert forward.passes > 0
    assert backward.passes > 0
    new = set(files(tmp_path)) - set(of_training)
    assert len(new) == 3  # forward, backward, and a row's product with another number of gates
    again = stages(tmp_path, "forward_train", "backward", cell="lstm")
    assert [stage.passes for stage in again] == [0, 0]
    opened = {name for stage in again for name in stage.opened}
    assert new < opened
    # Of a GRU's it takes all but the equations and the products of three gates.
    assert len(opened - new) == len(of_training) - 4
