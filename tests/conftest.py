"""The array libraries that tests run on; registers the toy cells before tests are generated."""

import importlib.util
import os
from pathlib import Path

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


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
