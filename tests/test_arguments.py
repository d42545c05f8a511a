"""Arguments stay as they are; results are new memory, and no more of it than they need."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from problems import ROW_CELLS, assert_own_memory, assert_same_bits, draw, each_cell, flatten

import fastgru
from fastgru.kernels.cpu import recurrence

N, T, I, H = 3, 4, 3, 5  # the sizes that `draw` gives
LENGTHS = [2, 0, 4]


@each_cell
def test_arguments_are_never_modified(cell: str) -> None:
    problem = draw(cell, L=2, lengths=np.array(LENGTHS), dtype="float32")
    before = [a.copy() for a in flatten(*problem)]
    for weights in (problem.params, fastgru.pack(problem.params)):
        problem.forward(weights)
        _, _, saved = problem.forward_train(weights)
        problem.backward(saved)
        problem.step(0, weights)
    assert_same_bits(tuple(problem), tuple(before))


@pytest.mark.parametrize(
    ("rows", "steps", "L", "D"),
    [(N, 0, 2, 2), (N, 1, 2, 2), (N, T, 2, 2), (1, 0, 1, 1), (1, 1, 1, 1)],
)
@each_cell
def test_results_share_no_memory(cell: str, rows: int, steps: int, L: int, D: int) -> None:
    """T = 0 and T = 1 are where the state could pass through, or be a view of y."""
    problem = draw(cell, (rows, steps, I, H), L=L, D=D)
    arguments = (*problem, fastgru.pack(problem.params).params)
    assert_own_memory(problem.forward(), *arguments)
    if rows * steps == 1 and cell not in ROW_CELLS:  # there are no statistics of one step
        return
    y, h_n, saved = problem.forward_train()
    assert_own_memory((y, h_n), *arguments)
    gradients = [problem.backward(saved) for _ in range(2)]
    assert_own_memory(tuple(gradients), y, h_n, *arguments)


def peak_bytes(function: Callable[..., Any], *args: Any, **options: Any) -> int:
    """The most memory that NumPy held at once during a call, beyond what there was."""
    function(*args, **options)  # imports and kernels
    tracemalloc.start()
    try:
        function(*args, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call, so that all of them take the same workspace."""
    monkeypatch.setattr(recurrence, "allowed_threads", lambda work: 1)


@pytest.mark.parametrize("time_major", [False, True])
def test_x_is_not_copied_whatever_its_layout(time_major: bool, one_thread: None) -> None:
    params = fastgru.init_params(256, 1, rng=0)
    for x in (np.zeros((4, 500, 256), np.float32), np.zeros((256, 500, 4), np.float32).T):
        x = x.swapaxes(0, 1) if time_major else x
        args = (x, params)
        assert peak_bytes(fastgru.forward, *args, time_major=time_major) < 0.25 * x.nbytes
        assert peak_bytes(fastgru.forward_train, *args, time_major=time_major) < 0.5 * x.nbytes


@pytest.mark.parametrize("time_major", [False, True])
def test_y_is_made_once_in_either_layout(time_major: bool, one_thread: None) -> None:
    params = fastgru.init_params(1, 64, cell="toy_no_product", rng=0)
    x = np.zeros((1000, 15, 1), np.float32)
    y, _ = fastgru.forward(x, params, time_major=time_major)
    peak = peak_bytes(fastgru.forward, x, params, time_major=time_major)
    assert y.nbytes <= peak < 1.25 * y.nbytes
