"""Lengths, sizes that vanish, and values that are not finite."""

import collections
import warnings
from typing import Any

import numpy as np
import pytest
import reference
from problems import (
    ALL_CELLS,
    DTYPES,
    ROW_CELLS,
    SHIPPED_CELLS,
    as_members,
    assert_close,
    assert_same_bits,
    by_row,
    draw,
    each_cell,
    everywhere,
    flatten,
    solve,
    specified,
    take,
)

import fastgru
from fastgru import calls, packed, stack
from fastgru.kernels import cpu
from fastgru.kernels.cells import CELLS
from fastgru.kernels.cpu import layer, threads

N, T, I, H = 3, 4, 3, 5  # the sizes that `draw` gives
LENGTHS = [2, 0, 4]


# --- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths",
    [
        (1, 2, 3),
        range(1, 4),
        collections.deque([1, 2, 3]),
        [np.int8(1), np.int64(2), 3],
        [np.int64(1), np.uint64(2), 3],
    ]
    + [np.array([1, 2, 3], kind) for kind in np.typecodes["AllInteger"]]
    + [np.array([1, 0, 2, 0, 3, 0])[::2], np.array([1, 2, 3], ">i4")],
    ids=lambda v: v.dtype.str if isinstance(v, np.ndarray) else type(v).__name__,
)
def test_lengths_may_be_any_integer_sequence(lengths: Any) -> None:
    problem = draw("gru", dtype="float32")
    got, want = (solve(problem._replace(lengths=steps)) for steps in (lengths, [1, 2, 3]))
    assert_same_bits(got, want)


class Series:
    """What the library sees of a Series of pandas or polars."""

    def __init__(self, values: Any) -> None:
        self._values = np.array(values)

    def to_numpy(self) -> Any:
        return self._values


def test_lengths_may_be_a_series() -> None:
    problem = draw("gru", dtype="float32")
    got, want = (solve(problem._replace(lengths=steps)) for steps in (Series([1, 2, 3]), [1, 2, 3]))
    assert_same_bits(got, want)
    with pytest.raises(TypeError, match=r"^lengths: expected a sequence of 3 whole numbers"):
        fastgru.forward(problem.x, problem.params, lengths=Series([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("rows", [3, 40])
def test_calls_with_lengths_share_what_is_prepared(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the lengths: kernels, workspace, and the pace that decides about threads."""
    problem = draw("lstm", (rows, T, I, 64), L=2, D=2, dtype="float32")
    rng = np.random.default_rng(0)

    def solve_one() -> None:
        solve(problem._replace(lengths=rng.integers(0, T + 1, rows)))

    solve_one()
    made: list[str] = []
    for kind in (layer.Layer, layer.Backward, calls.Call, stack.Stack, threads.Pace):
        start = kind.__init__
        monkeypatch.setattr(
            kind, "__init__", lambda *args, start=start, name=kind.__name__: (
                made.append(name), start(*args)
            )[1],
        )  # fmt: skip
    for _ in range(20):
        solve_one()
    assert made == []


def test_the_work_of_steps_with_few_rows() -> None:
    """One long row beside short ones reads the weights as often as many long ones."""

    def work(lengths: list[int]) -> int:
        rows = cpu.ragged_rows(np.array(lengths), len(lengths), 50)
        return cpu.Recurrence(CELLS["gru"], 8, 16, np.dtype("float32"), rows).pace_work()

    step = work([1, 1, 1]) // 3
    assert work([50, 50, 50, 50]) == 200 * step
    assert work([50, 1, 1, 1]) == (4 + 49 * 3) * step
    assert work([0, 0]) == 0


def test_kept_calls_give_way_to_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older half of them."""
    monkeypatch.setattr(calls, "_KEPT_CALLS", 4)
    params = fastgru.pack(fastgru.init_params(I, 7, rng=0))
    kept = packed.operands_of(params).architecture.calls
    kept.clear()
    for steps in range(1, 6):
        fastgru.forward(np.zeros((1, steps, I), "float32"), params)
    assert [call.T for call in kept.values()] == [3, 4, 5]


def test_lengths_of_all_steps_are_no_lengths() -> None:
    for cell in ALL_CELLS:
        problem = draw(cell, L=2, D=2)
        assert_same_bits(solve(problem._replace(lengths=[T] * N)), solve(problem))


@everywhere
def test_padded_y_is_zero(cell: str, dtype: str) -> None:
    problem = draw(cell, L=2, D=2, lengths=LENGTHS, dtype=dtype)
    y, _, gradients = solve(problem)
    for row, length in enumerate(LENGTHS):
        assert length == 0 or (y[row, :length] != 0).any()
        assert y[row, length:].tobytes() == bytes(y[row, length:].nbytes)  # +0, not -0
        assert not gradients.x[row, length:].any()
        if gradients.attention is not None:
            assert not gradients.attention[row, length:].any()


@everywhere
def test_each_row_is_as_if_alone_and_cut_to_its_length(cell: str, dtype: str) -> None:
    problem = draw(cell, L=2, D=2, lengths=LENGTHS, dtype=dtype)
    together = by_row(problem)
    for n, length in enumerate(LENGTHS):
        y, h_n, dx, dh0, dattention = take(together, [n])
        y, dx, dattention = (None if a is None else a[:, :length] for a in (y, dx, dattention))
        cut = problem.rows([n]).steps(slice(length))
        assert_same_bits((y, h_n, dx, dh0, dattention), by_row(cut))


@everywhere
def test_final_state_is_that_after_the_last_valid_step(cell: str, dtype: str) -> None:
    problem = draw(cell, D=2, lengths=LENGTHS, dtype=dtype)
    y, h_n, _ = solve(problem)
    h = as_members(h_n)[0]
    for n, length in [(0, 2), (2, 4)]:
        assert_same_bits(h[0, n], y[n, length - 1, :H])
        assert_same_bits(h[1, n], y[n, 0, H:])


@everywhere
def test_reverse_direction_starts_at_the_last_valid_step(cell: str, dtype: str) -> None:
    """It is the forward direction, with its weights and state, over the valid steps flipped."""
    problem = draw(cell, D=2, lengths=LENGTHS, dtype=dtype)
    y, _ = problem.forward()
    backward = fastgru.Params(cell, [[problem.params.layers[0][1]]])
    for n, length in enumerate(LENGTHS):
        alone = problem.rows([n]).steps(slice(length)).steps(slice(None, None, -1))
        flipped = alone._replace(params=backward, h0=tuple(h[1:] for h in alone.h0))
        want, _ = flipped.forward()
        assert_same_bits(y[n : n + 1, :length, H:], want[:, ::-1])


@everywhere
def test_row_of_length_zero_returns_its_initial_state(cell: str, dtype: str) -> None:
    problem = draw(cell, L=2, D=2, lengths=LENGTHS, dtype=dtype)
    _, trained, gradients = solve(problem)
    _, inferred = problem.forward()
    row = LENGTHS.index(0)
    for got, want in (
        (trained, problem.h0),
        (inferred, problem.h0),
        (gradients.h0, problem.dh_n),
    ):
        of_row = (tuple(h[:, row] for h in as_members(state)) for state in (got, want))
        assert_same_bits(*of_row)


@everywhere
def test_padding_is_never_looked_at(cell: str, dtype: str) -> None:
    """Not even if NaN, which times 0 would be NaN in the weights' gradients."""
    results = []
    for padding in (0.0, np.nan, np.inf):
        problem = draw(cell, L=2, D=2, lengths=LENGTHS, dtype=dtype)
        for n, length in enumerate(LENGTHS):
            problem.x[n, length:] = padding
            problem.dy[n, length:] = padding
            if problem.attention is not None:
                problem.attention[n, length:] = padding
        results.append((*solve(problem), problem.forward()))
    zeros, nans, infs = results
    assert all(np.isfinite(a).all() for a in flatten(zeros))
    assert_same_bits(nans, zeros)
    assert_same_bits(infs, zeros)


# --- degenerate sizes -----------------------------------------------------------------------------


def assert_all_zero(gradients: fastgru.Params, params: fastgru.Params) -> None:
    """Gradients are there for all trainable weights, and +0."""
    assert gradients.num_parameters == params.num_parameters
    for name, gradient in gradients.to_dict().items():
        assert_same_bits(gradient, np.zeros_like(params.to_dict()[name]))


@pytest.mark.parametrize("lengths", [None, [0] * N])
@everywhere
def test_no_time_steps_pass_the_state_through(cell: str, dtype: str, lengths: Any) -> None:
    problem = draw(cell, (N, 0, I, H), L=2, D=2, lengths=lengths, dtype=dtype)
    y, h_n, gradients = solve(problem)
    assert y.shape == (N, 0, 2 * H)
    assert gradients.x.shape == (N, 0, I)
    assert_same_bits(h_n, problem.h0)
    assert_same_bits(gradients.h0, problem.dh_n)
    assert_same_bits(problem.forward()[1], problem.h0)
    assert_all_zero(gradients.params, problem.params)


@pytest.mark.parametrize("lengths", [None, [], ()])
@everywhere
def test_no_samples_give_empty_results(cell: str, dtype: str, lengths: Any) -> None:
    problem = draw(cell, (0, T, I, H), L=2, D=2, lengths=lengths, dtype=dtype)
    y, h_n, gradients = solve(problem)
    assert y.shape == (0, T, 2 * H)
    assert gradients.x.shape == (0, T, I)
    assert {a.shape for a in flatten(h_n, gradients.h0)} == {(2 * 2, 0, H)}
    assert_all_zero(gradients.params, problem.params)


@each_cell
def test_one_unit_and_one_input(cell: str) -> None:
    problem = draw(cell, (2, 3, 1, 1), L=2, D=2)
    x, _, h0, steps, dy, dh_n, attention = problem
    y, h_n, gradients = solve(problem)
    want_y, want_h = specified(problem)
    dx, dh0, dlayers, dattention = reference.gradients(
        x, problem.layers, cell, h0, steps, dy, dh_n, attention
    )
    trainable = [w.name for w in CELLS[cell].weights if w.is_trainable]
    weights = [w[name] for layer in dlayers for w in layer for name in trainable]
    wanted = flatten(want_y, want_h, dx, dh0, tuple(weights), dattention)
    for got, want in zip(flatten(y, h_n, gradients), wanted, strict=True):
        assert_close(got, want, 1e-13)


# --- values that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("where", ["x", "h0", "dy", "dh_n"])
@everywhere
def test_a_row_that_is_not_finite_never_reaches_another(cell: str, dtype: str, where: str) -> None:
    if where in ("dy", "dh_n") and cell not in ROW_CELLS:
        return  # its gradients depend on the whole batch
    others = [n for n in range(9) if n != 4]
    clean = draw(cell, (9, T, I, H), L=2, D=2, dtype=dtype)
    want = take(by_row(clean), others)
    for value in (np.nan, np.inf, -np.inf):
        problem = draw(cell, (9, T, I, H), L=2, D=2, dtype=dtype)
        if where in ("x", "dy"):
            getattr(problem, where)[4, 1] = value
        else:
            for member in getattr(problem, where):
                member[:, 4] = value
        got = by_row(problem)
        assert not all(np.isfinite(a).all() for a in flatten(take(got, [4])))
        assert_same_bits(take(got, others), want)


@everywhere
def test_nan_is_computed_and_not_hidden(cell: str, dtype: str) -> None:
    problem = draw(cell, dtype=dtype)
    want, _ = problem.forward()
    problem.x[1, 2, 0] = np.nan
    y, h_n = problem.forward()
    assert np.isnan(y[1, 2:]).all()
    assert all(np.isnan(h[:, 1]).all() for h in as_members(h_n))
    assert_same_bits(y[1, :2], want[1, :2])

    problem = draw(cell, dtype=dtype)
    problem.dy[1, 2] = np.nan
    _, _, gradients = solve(problem)
    dx = gradients.x
    assert np.isnan(dx[1, :3]).all()
    if cell in ROW_CELLS:  # else the steps of a batch depend on each other
        assert np.isfinite(dx[1, 3:]).all()


# Cells whose gates and candidates all saturate: the others' states may be infinite too.
SATURATING = [
    cell
    for cell in ALL_CELLS
    if cell not in ("ligru", "sligru", "mingru", "minlstm", "indrnn", "rnn_relu")
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", SATURATING)
def test_infinite_input_gives_what_is_specified(cell: str, dtype: str) -> None:
    problem = draw(cell, (4, T, I, H), dtype=dtype)
    problem.x[0, 1, 0], problem.x[1, 2, 1], problem.x[2, 0] = np.inf, -np.inf, np.inf
    y, h_n = problem.forward()
    with np.errstate(all="ignore"):
        want_y, want_h = specified(problem, training=False)
    assert np.isfinite(want_y[:2]).all()  # saturated gates
    tolerance = 64 * float(np.finfo(dtype).eps)
    for got, want in zip(flatten(y, h_n), [want_y, *want_h], strict=True):
        np.testing.assert_allclose(got, want, tolerance, tolerance)  # NaN where NaN


@everywhere
def test_huge_values_neither_warn_nor_raise(cell: str, dtype: str) -> None:
    """Warnings are errors in these tests; here whatever NumPy does not check by default as well."""
    params = draw(cell, dtype=dtype).params
    huge = np.array([1e30, -1e30], dtype)
    all_huge = draw(cell, dtype=dtype).map(lambda a: np.resize(huge, a.shape))
    with np.errstate(all="raise"), warnings.catch_warnings():
        if CELLS[cell].bounded:  # which says that it has overflown
            warnings.simplefilter("ignore", RuntimeWarning)
        for problem in (all_huge._replace(params=params), all_huge):
            y, _, _ = solve(problem)
            problem.forward()
            problem.step(0)
            can_overflow = (
                cell not in SATURATING or cell not in ROW_CELLS or CELLS[cell].step_inputs
            )
            if cell in SHIPPED_CELLS and not can_overflow and problem.params is params:
                assert np.isfinite(y).all()  # saturated gates
