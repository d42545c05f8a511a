"""CuPy, simulated and real, and what is set for a test of the kernels for GPUs."""

from collections.abc import Iterator
from typing import Any

import pytest
from gpu_tools import Tune, UseLoops, forget_choices
from problems import Library


@pytest.fixture(autouse=True)
def default_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says, tests say themselves which loops are tried."""
    monkeypatch.delenv("FASTGRU_CUDA_LOOPS", raising=False)


@pytest.fixture(params=["simulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest) -> Library:
    """CuPy, simulated and real."""
    found: Library = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def tune(cuda_tools: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tune]:
    """Changes numbers of `tuning`."""
    from fastgru.kernels.cuda import tuning

    def change(**numbers: Any) -> None:
        for name, number in numbers.items():
            monkeypatch.setattr(tuning, name, number)
        forget_choices()

    yield change
    forget_choices()


@pytest.fixture
def use_loops(cuda_tools: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[UseLoops]:
    """Names the loops that are tried before the default."""
    from fastgru.kernels.cuda import loops

    def change(names: str) -> None:
        monkeypatch.setenv(loops.VARIABLE, names)
        forget_choices()

    yield change
    forget_choices()
