"""Equal bits, steps, gradients and side effects: what any cell and dtype promises."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    ROW_CELLS,
    as_members,
    as_state,
    assert_close,
    assert_same_bits,
    by_row,
    draw,
    each_cell,
    everywhere,
    flatten,
    join,
    solve,
    take,
)

import fastgru
from fastgru.kernels.cells import CELLS

N, T, I, H = 3, 4, 3, 5  # the sizes that `draw` gives
LENGTHS = [2, 0, 4]
few_examples = settings(max_examples=12, deadline=None)  # deadline: kernels load at the first


# --- equal bits -----------------------------------------------------------------------------------

ROWS = 19  # whole and partial tiles of rows


@everywhere
@few_examples
@given(
    cuts=st.lists(st.integers(0, ROWS), max_size=4),
    lengths=st.none() | st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS),
)
def test_results_do_not_depend_on_how_a_batch_is_split(
    cell: str, dtype: str, cuts: list[int], lengths: list[int] | None
) -> None:
    problem = draw(cell, (ROWS, 3, 3, 17), D=2, lengths=lengths, dtype=dtype)
    parts = np.split(np.arange(ROWS), sorted(cuts))
    assert_same_bits(join([by_row(problem.rows(rows)) for rows in parts]), by_row(problem))


@everywhere
@few_examples
@given(
    order=st.permutations(range(9)),
    lengths=st.none() | st.lists(st.integers(0, 3), min_size=9, max_size=9),
)
def test_permuting_the_batch_permutes_the_results(
    cell: str, dtype: str, order: list[int], lengths: list[int] | None
) -> None:
    problem = draw(cell, (9, 3, 3, 17), D=2, lengths=lengths, dtype=dtype)
    assert_same_bits(by_row(problem.rows(order)), take(by_row(problem), order))


@everywhere
@few_examples
@given(cut=st.integers(0, 7))
def test_a_sequence_may_be_cut_anywhere_with_the_state_carried(
    cell: str, dtype: str, cut: int
) -> None:
    problem = draw(cell, (5, 7, 3, 17), L=2, dtype=dtype)
    first, h = problem.steps(slice(cut)).forward()
    second, h = problem.steps(slice(cut, 7))._replace(h0=as_members(h)).forward()
    assert_same_bits((np.concatenate((first, second), axis=1), h), problem.forward())


@pytest.mark.parametrize("lengths", [None, (7, 0, 3, 7, 5)])
@pytest.mark.parametrize("D", [1, 2])
@everywhere
def test_forward_and_forward_train_and_packed_agree(
    cell: str, dtype: str, D: int, lengths: tuple[int, ...] | None
) -> None:
    """But for cells that train with the statistics of a batch, in which training differs."""
    problem = draw(cell, (5, 7, 3, 17), L=2, D=D, lengths=lengths, dtype=dtype)
    packed = fastgru.pack(problem.params)
    want = problem.forward()
    assert_same_bits(problem.forward(packed), want)
    trained = problem.forward_train()[:2]
    assert_same_bits(problem.forward_train(packed)[:2], trained)
    if cell in ROW_CELLS:
        assert_same_bits(trained, want)
    else:
        assert (trained[0] != want[0]).any()


@each_cell
def test_forward_without_state_starts_from_zeros(cell: str) -> None:
    problem = draw(cell, L=2, D=2)
    zeros = tuple(np.zeros_like(h) for h in problem.h0)
    assert_same_bits(problem._replace(h0=None).forward(), problem._replace(h0=zeros).forward())


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@everywhere
def test_gradients_mirror_the_arguments(cell: str, dtype: str, bias: bool, initial: bool) -> None:
    problem = draw(cell, L=2, D=2, bias=bias, dtype=dtype)
    x, params, h0, _, dy, _, attention = problem
    _, _, saved = (problem if initial else problem._replace(h0=None)).forward_train()
    gradients = fastgru.backward(saved, dy)
    assert gradients._fields == ("x", "h0", "params")
    assert isinstance(gradients.h0, tuple) == (len(h0) > 1)  # a pair for the LSTM
    assert gradients.params.cell == cell
    trainable = {w.name for w in CELLS[cell].weights if w.is_trainable}
    weights = {k: w for k, w in params.to_dict().items() if k.partition("_l")[0] in trainable}
    assert list(gradients.params.to_dict()) == list(weights)
    ours, theirs = flatten(gradients), flatten(x, h0, tuple(weights.values()), attention)
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in theirs]


@each_cell
def test_either_gradient_may_be_missing_and_stands_for_zeros(cell: str) -> None:
    problem = draw(cell, L=2, D=2)
    _, _, _, _, dy, dh_n, _ = problem
    _, _, saved = problem.forward_train()
    zeros = tuple(np.zeros_like(d) for d in dh_n)
    pairs = [
        (fastgru.backward(saved, dy), fastgru.backward(saved, dy, as_state(zeros))),
        (
            fastgru.backward(saved, dh_n=as_state(dh_n)),
            fastgru.backward(saved, np.zeros_like(dy), as_state(dh_n)),
        ),
    ]
    if len(dh_n) == 2:
        one, other = dh_n
        for which in (dy, None):
            for missing, meant in (
                ((one, None), (one, zeros[1])),
                ((None, other), (zeros[0], other)),
            ):
                results = [fastgru.backward(saved, which, pair) for pair in (missing, meant)]
                pairs.append((results[0], results[1]))
        pairs.append((fastgru.backward(saved, dy, (None, None)), fastgru.backward(saved, dy)))
    for got, want in pairs:
        for a, b in zip(flatten(got), flatten(want), strict=True):
            assert a.any() or a.size == 0
            np.testing.assert_array_equal(a, b)  # but for the sign of zeros


@each_cell
def test_one_gradient_is_required(cell: str) -> None:
    problem = draw(cell)
    _, _, saved = problem.forward_train()
    members = len(problem.dh_n)
    for dh_n in [None] if members == 1 else [None, (None,) * members]:
        with pytest.raises(ValueError, match="dy, dh_n"):
            fastgru.backward(saved, None, dh_n)


@each_cell
def test_backward_is_linear(cell: str) -> None:
    problem, other = draw(cell, L=2, D=2, lengths=LENGTHS), draw(cell, L=2, D=2, seed=1)
    _, _, saved = problem.forward_train()

    def backward(dy: Any, dh_n: tuple[Any, ...]) -> list[Any]:
        return flatten(fastgru.backward(saved, dy, as_state(dh_n)))

    dy, dh_n = problem.dy, problem.dh_n
    ours, theirs = backward(dy, dh_n), backward(other.dy, other.dh_n)
    mixed_dh = tuple(2 * a - 3 * b for a, b in zip(dh_n, other.dh_n, strict=True))
    mixed = backward(2 * dy - 3 * other.dy, mixed_dh)
    for a, b, c in zip(ours, theirs, mixed, strict=True):
        scale = np.abs(a).max() + np.abs(b).max()
        assert_close(c / scale, (2 * a - 3 * b) / scale, 64 * float(np.finfo("float64").eps))


@everywhere
def test_saved_is_not_used_up_nor_bound_to_a_thread(cell: str, dtype: str) -> None:
    problem = draw(cell, L=2, D=2, lengths=LENGTHS, dtype=dtype)
    _, _, saved = problem.forward_train()
    want = problem.backward(saved)
    fastgru.backward(saved, -problem.dy)
    assert_same_bits(problem.backward(saved), want)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(threading.get_ident)
        assert other.result() != threading.get_ident()
        got = pool.submit(problem.backward, saved).result()
    assert_same_bits(got, want)


@each_cell
def test_several_threads_may_call_at_once(cell: str) -> None:
    problems = [draw(cell, (9, 20, I, H), L=2, D=2, seed=seed) for seed in range(4)] * 4
    want = [solve(problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(solve, problems), want, strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("changed", ["h0", "lengths", "h_n"])
@each_cell
def test_only_x_y_attention_and_params_must_stay_until_backward(cell: str, changed: str) -> None:
    problem = draw(cell, L=2, D=2, lengths=np.array(LENGTHS))
    _, _, want = solve(problem)
    _, h_n, saved = problem.forward_train()
    if cell in ROW_CELLS:
        assert saved.params is problem.params
    changes = {"h0": problem.h0, "lengths": (problem.lengths,), "h_n": as_members(h_n)}
    for array in changes[changed]:
        array[...] = 1
    assert_same_bits(problem.backward(saved), want)


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # of newer NumPy
@each_cell
def test_shapes_changed_in_place_do_not_reach_backward(cell: str) -> None:
    problem = draw(cell)
    y, _, saved = problem.forward_train()
    before = fastgru.backward(saved, problem.dy)
    y.shape = (N * T, H)
    problem.x.shape = (T, N, I)
    assert_same_bits(fastgru.backward(saved, problem.dy), before)
    with pytest.raises(ValueError, match=r"^dy: expected shape"):
        fastgru.backward(saved, problem.dy.reshape(N * T, H))


# --- side effects ---------------------------------------------------------------------------------

IMPORT = """
import os, sys, threading, warnings
import numpy as np

def surroundings():
    tasks = "/proc/self/task"
    return (
        dict(os.environ), os.getcwd(), list(sys.path), list(warnings.filters), np.geterr(),
        threading.active_count(), len(os.listdir(tasks)) if os.path.isdir(tasks) else 0,
    )

before = surroundings()
import fastgru
assert surroundings() == before, (before, surroundings())
fastgru.cells()
fastgru.init_params(2, 3)
loaded = {"numba", "llvmlite", "cupy", "matplotlib"} & set(sys.modules)
assert not loaded, loaded
"""

CALL = """
import copy, os, sys, warnings
import numba, numpy as np

def surroundings():
    return (
        {name: value for name, value in vars(numba.config).items() if name.isupper()},
        dict(os.environ), list(sys.path), list(warnings.filters), np.geterr(),
    )

before = copy.deepcopy(surroundings())
import fastgru
x = np.ones((2, 3, 2), np.float32)
y, h_n, saved = fastgru.forward_train(x, fastgru.init_params(2, 3))
fastgru.backward(saved, y)
assert "fastgru.kernels.cpu" in sys.modules
assert surroundings() == before, (before, surroundings())
"""


def python(script: str, **environment: str) -> None:
    """Run a script in a fresh interpreter with this very fastgru; fails with it."""
    root = str(Path(fastgru.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": root} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    python(IMPORT, NUMBA_CACHE_DIR=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert not list(tmp_path.iterdir())  # nothing compiled


def test_the_first_call_changes_no_setting() -> None:
    python(CALL)
