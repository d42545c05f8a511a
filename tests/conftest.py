"""The array libraries that tests run on; registers the toy cells before tests are generated."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import problems
import programs
import pytest
import toys  # noqa: F401

# Set where the tests of the kernels for GPUs must not be skipped.
REQUIRED = "FASTGRU_REQUIRE_CUDA_TESTS"
# Set where CuPy must allocate each array by itself, for tools that look for overruns.
PLAIN_MEMORY = "FASTGRU_TEST_PLAIN_MEMORY"

# Files whose tests share what takes long to make. Where pytest-xdist runs several processes, one of
# them runs all tests of such a file.
TOGETHER = ("test_assembly", "test_cache", "test_demo", "test_packaging", "test_startup")


# Cells of which every combination of parameters runs each time: two that are used most, and
# those made for the tests, which have every form that a cell can have. Of the others each test runs
# one combination for each array library, another for each cell; the rest is slow.
THOROUGH = ("gru", "lstm", *problems.TOY_CELLS)
# Parameters that are no combinations of one test, but things to test.
TESTED = ("cell", "library")


def exists(item: pytest.Item) -> bool:
    """Whether a test's cell may be without biases, if the test is about that."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("bias") is not False or params.get("cell") in (None, *problems.BARE_CELLS)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    combinations: dict[Any, list[pytest.Item]] = {}
    items[:] = [item for item in items if exists(item)]
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("cell") in problems.SHIPPED_CELLS and params["cell"] not in THOROUGH:
            test = item.path, getattr(item, "originalname", item.name)
            key = test, tuple(str(params.get(name)) for name in TESTED)
            combinations.setdefault(key, []).append(item)
    for (_, (cell, *_)), same in combinations.items():
        chosen = problems.SHIPPED_CELLS.index(cell) % len(same)
        for number, item in enumerate(same):
            if number != chosen:
                item.add_marker(pytest.mark.slow)


@pytest.fixture
def cuda_tools() -> None:
    """Skips a test where numba-cuda and its tools are not installed, or fails it; see REQUIRED."""
    if importlib.util.find_spec("numba_cuda") is None:
        reason = 'the extra "test-cuda" is not installed'
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, but {reason}")
        pytest.skip(reason)


@pytest.fixture
def simulated(cuda_tools: None, monkeypatch: pytest.MonkeyPatch) -> problems.Library:
    """CuPy and a GPU emulated in Python."""
    import simulator

    cupy = simulator.install(monkeypatch)
    return problems.Library("simulated cupy", cupy.asarray, cupy.asnumpy)


@pytest.fixture
def gpu() -> problems.Library:
    """CuPy on a GPU."""
    import cupy

    from fastgru import packed
    from fastgru.kernels.cuda import recurrence

    # They may keep what the simulator left.
    packed._architecture.cache_clear()
    vars(recurrence.of_thread).clear()
    if os.environ.get(PLAIN_MEMORY):
        cupy.cuda.set_allocator(None)
    return problems.Library("cupy", cupy.asarray, cupy.asnumpy)


@pytest.fixture(params=["numpy", "simulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def library(request: pytest.FixtureRequest) -> problems.Library:
    """Each array library."""
    if request.param == "numpy":
        return problems.NUMPY
    found: problems.Library = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def needs_omp() -> None:
    """Skip where Numba has no OpenMP layer."""
    out = programs.run("import numba; numba.get_num_threads(); print(numba.threading_layer())")
    if out.strip() != "omp":
        pytest.skip(f"Numba's layer here is {out.strip()}")


@pytest.fixture
def no_matplotlib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the module search path, makes matplotlib as good as missing."""
    folder = tmp_path_factory.mktemp("no_matplotlib")
    (folder / "matplotlib.py").write_text("raise ModuleNotFoundError('matplotlib')\n")
    return folder
