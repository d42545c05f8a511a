"""`Stream`: the bits of `forward` wherever a sequence is cut, states, threads, refusals."""

import copy
import pickle
import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, as_members, as_state, assert_same_bits, draw, each_cell, everywhere

import fastgru

T, I, H = 7, 3, 17
few_examples = settings(max_examples=8, deadline=None)  # deadline: kernels load at the first
# Pieces of T steps: None is a step, a number is the length of a chunk, 0 too.
pieces = st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=9)


def drawn(cell: str, rows: int | None, dtype: str = "float64", L: int = 1) -> Problem:
    """A problem of so many samples; without samples if that is None."""
    problem = draw(cell, (rows or 1, T, I, H), L=L, dtype=dtype)
    if rows is not None:
        return problem
    x, params, h0, lengths, dy, dh_n, attention = problem
    alone = None if attention is None else attention[0]
    return Problem(x[0], params, tuple(h[:, 0] for h in h0), lengths, dy, dh_n, alone)


def pushed(stream: fastgru.Stream, problem: Problem, cuts: list[int | None], give_out: bool) -> Any:
    """Outputs of the stream over the sequence in these pieces, then in steps."""
    x, attention = problem.x, problem.attention
    batched = x.ndim == 3
    outputs, t = [], 0
    for cut in [*cuts, *[None] * T]:
        if t == T:
            break
        length = 1 if cut is None else min(cut, T - t)
        times: Any = slice(t, t + length)
        part = x[:, times] if batched else x[times]
        of_part = attention if attention is None else attention[..., times]
        if cut is None:
            part = part[..., 0, :]
            # A step without samples takes one number, (1,).
            of_part = of_part if of_part is None or not batched else of_part[:, 0]
        out = np.full((*part.shape[:-1], H), np.nan, part.dtype) if give_out else None
        y = stream.push(part, attention=of_part, out=out)
        assert out is None or y is out
        outputs.append(y[..., None, :] if cut is None else y)
        t += length
    return np.concatenate(outputs, axis=-2)


@everywhere
@pytest.mark.parametrize("rows", [None, 1, 5])
@few_examples
@given(cuts=pieces, layers=st.integers(1, 3), give_out=st.booleans())
def test_bits_are_those_of_forward_wherever_a_sequence_is_cut(
    cell: str, dtype: str, rows: int | None, cuts: list[int | None], layers: int, give_out: bool
) -> None:
    problem = drawn(cell, rows, dtype, layers)
    want = fastgru.forward(
        problem.x, problem.params, as_state(problem.h0), attention=problem.attention
    )
    stream = fastgru.Stream(problem.params, rows)
    stream.state = as_state(problem.h0)
    assert_same_bits((pushed(stream, problem, cuts, give_out), stream.state), want)


@each_cell
@pytest.mark.parametrize("rows", [None, 1, 70])
def test_steps_that_are_not_short_give_the_bits_of_forward(cell: str, rows: int | None) -> None:
    problem = draw(cell, (rows or 1, 3, 8, 256), L=2, dtype="float32")
    x, attention = problem.x, problem.attention
    want = fastgru.forward(x, problem.params, attention=attention)
    stream = fastgru.Stream(problem.params, rows)
    outputs = []
    for t in range(3):
        x_t, of_step = x[:, t], None if attention is None else attention[:, t]
        y = stream.push(x_t if rows else x_t[0], attention=of_step)
        outputs.append(y if rows else y[None])
    state = as_members(stream.state)
    if rows is None:
        state = tuple(member[:, None] for member in state)
    assert_same_bits((np.stack(outputs, 1), as_state(state)), want)


def test_a_sequence_in_any_memory() -> None:
    """Strided, reversed, read-only, unaligned, mapped from a file."""
    x, params, *_ = drawn("gru", 5)
    wide = np.zeros((5, T, 2 * I))[:, :, ::-2]
    wide[...] = x
    wide.flags.writeable = False
    shifted = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    shifted[...] = x
    want, _ = fastgru.forward(x, params)
    for given_x in (wide, shifted, x.transpose(1, 0, 2).copy().transpose(1, 0, 2)):
        stream = fastgru.Stream(params, 5)
        steps = [stream.push(given_x[:, t]) for t in range(3)]
        assert_same_bits(np.concatenate((np.stack(steps, 1), stream.push(given_x[:, 3:])), 1), want)


def test_a_sequence_mapped_from_a_file_and_outputs_into_one(tmp_path: Path) -> None:
    x, params, *_ = drawn("gru", 2)
    mapped = np.memmap(tmp_path / "x", x.dtype, "w+", shape=x.shape)
    mapped[...] = x
    out = np.memmap(tmp_path / "y", x.dtype, "w+", shape=(2, H))
    stream = fastgru.Stream(params, 2)
    want, _ = fastgru.forward(x, params)
    assert stream.push(mapped[:, 0], out=out) is out
    assert_same_bits(np.array(out), want[:, 0])
    assert_same_bits(stream.push(mapped[:, 1:]), want[:, 1:])


def test_a_packed_is_used_as_it_is() -> None:
    packed = fastgru.pack(fastgru.init_params(I, H, rng=0))
    stream = fastgru.Stream(packed, 2)
    assert stream.packed is packed
    assert stream.copy().packed is packed
    assert stream.batch_size == 2
    assert fastgru.Stream(packed).batch_size is None


# --- the state ------------------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("rows", [None, 3])
def test_state_is_a_copy_in_the_form_of_h_n(cell: str, rows: int | None) -> None:
    problem = drawn(cell, rows, L=2)
    stream = fastgru.Stream(problem.params, rows)
    given_state = tuple(h.copy() for h in problem.h0)
    stream.state = as_state(given_state)
    for member in given_state:
        member[...] = np.nan
    assert_same_bits(stream.state, as_state(problem.h0))
    for member in as_members(stream.state):
        member[...] = np.nan
    assert_same_bits(stream.state, as_state(problem.h0))
    stream.state = list(problem.h0) if len(problem.h0) > 1 else problem.h0[0]
    assert_same_bits(stream.state, as_state(problem.h0))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_reset(cell: str) -> None:
    x, params, *_ = drawn(cell, 5, L=2)
    stream = fastgru.Stream(params, 5)
    mask = np.array([False, True, False, True, False])
    two: tuple[Any, ...] = ([1, 3], (1, 3), np.array([1, 3]), mask)
    for rows, chosen in ((1, [1]), ([], []), *((rows, [1, 3]) for rows in two)):
        stream.push(x)
        before = as_members(stream.state)
        stream.reset(rows)
        others = [row for row in range(5) if row not in chosen]
        for old, new in zip(before, as_members(stream.state), strict=True):
            assert_same_bits(new[:, others], old[:, others])
            assert not new[:, chosen].any()
    stream.reset()
    assert not any(member.any() for member in as_members(stream.state))
    assert_same_bits(stream.push(x), fastgru.forward(x, params)[0])


@pytest.mark.parametrize("rows", [None, 2])
def test_copies_and_pickles_go_on_by_themselves(rows: int | None) -> None:
    x, params, *_ = drawn("lstm", rows, L=2)
    halves = (x[:4], x[4:]) if rows is None else (x[:, :4], x[:, 4:])
    stream = fastgru.Stream(params, rows)
    stream.push(halves[0])
    others = (stream.copy(), pickle.loads(pickle.dumps(stream)), copy.copy(stream))
    want = stream.push(halves[1])
    for other in (*others, copy.deepcopy(others[0])):
        assert_same_bits((other.push(halves[1]), other.state), (want, stream.state))


def test_streams_over_the_same_weights_in_threads() -> None:
    packed = fastgru.pack(fastgru.init_params(I, H, num_layers=2, rng=0))
    x = np.random.default_rng(0).normal(size=(8, 200, I)).astype("float32")

    def run(number: int) -> Any:
        stream = fastgru.Stream(packed)
        return np.stack([stream.push(x_t) for x_t in x[number]])

    with ThreadPoolExecutor(4) as pool:
        got = np.stack(list(pool.map(run, range(8))))
    assert_same_bits(got, fastgru.forward(x, packed)[0])


def test_outputs_are_arrays_of_their_own() -> None:
    x, params, *_ = drawn("gru", 2)
    stream = fastgru.Stream(params, 2)
    outputs = [stream.push(x[:, t]) for t in range(T)]
    want, _ = fastgru.forward(x, params)
    assert_same_bits(np.stack(outputs, 1), want)
    outputs[-1][...] = np.nan
    assert np.isfinite(stream.push(x[:, 0])).all()


def test_an_array_may_take_both_x_and_outputs_of_one_row() -> None:
    params = fastgru.init_params(H, H, num_layers=2, rng=0)
    x = np.random.default_rng(0).normal(size=H).astype("float32")
    want, _ = fastgru.step(x, params)
    assert_same_bits(fastgru.Stream(params).push(x, out=x), want)


def test_steps_into_given_arrays_allocate_views_alone() -> None:
    params = fastgru.init_params(I, 64, cell="lstm", num_layers=2, dtype="float64", rng=0)
    x, out = np.ones((16, I)), np.empty((16, 64))
    stream = fastgru.Stream(params, 16)
    stream.push(x, out=out)
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        for _ in range(T):
            stream.push(x, out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - start < out.nbytes / 2


def test_states_that_leave_the_range_of_the_dtype_warn_where_push_is_called() -> None:
    params = fastgru.init_params(I, H, cell="ligru", rng=0).map(lambda w: 1 + np.abs(w))
    for x in (np.full(I, 3e38, np.float32), np.full((2, I), 3e38, np.float32)):
        with pytest.warns(RuntimeWarning, match="'ligru' is not finite") as caught:
            fastgru.Stream(params).push(x)
        assert [warning.filename for warning in caught] == [__file__]


def test_repr() -> None:
    params = fastgru.init_params(I, H, rng=0)
    assert repr(fastgru.Stream(params, 2)) == f"Stream({params!r}, batch_size=2)"
    assert "batch_size=None" in repr(fastgru.Stream(params))


# --- refusals -------------------------------------------------------------------------------------

PARAMS = fastgru.init_params(I, H, rng=0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastgru.Stream(3), TypeError, "params: expected Params or Packed, got int"),
        (
            lambda: fastgru.Stream(fastgru.init_params(I, H, bidirectional=True)),
            ValueError,
            "params: expected one direction",
        ),
        (lambda: fastgru.Stream(PARAMS, 0), ValueError, "batch_size: expected at least 1, got 0"),
        (lambda: fastgru.Stream(PARAMS, 2.0), TypeError, "batch_size: expected a whole number"),
        (lambda: fastgru.Stream(PARAMS, True), TypeError, "batch_size: expected a whole number"),
    ],
)
def test_streams_refuse(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def f32(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def read_only(*shape: int) -> Any:
    array = f32(*shape)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("rows", "x", "options", "error", "message"),
    [
        (None, [0.0] * I, {}, TypeError, "x: expected a numpy or cupy ndarray"),
        (None, None, {}, TypeError, "x: expected a numpy or cupy ndarray"),
        (None, np.zeros(I), {}, TypeError, "x: expected dtype float32, as params, got float64"),
        (None, f32(I + 1), {}, ValueError, r"x: expected shape \(3,\) for a step or \(T, 3\)"),
        (None, f32(2, 2, I), {}, ValueError, r"as batch_size is None, got \(2, 2, 3\); Stream"),
        (2, f32(I), {}, ValueError, r"x: expected shape \(2, 3\) for a step or \(2, T, 3\) for a"),
        (2, f32(3, I), {}, ValueError, "as batch_size is 2"),
        (2, f32(3, 2, I), {}, ValueError, "as batch_size is 2"),
        (2, f32(2, 2, 2), {}, ValueError, "as batch_size is 2"),
        (2, f32(), {}, ValueError, "as batch_size is 2"),
        (2, f32(2, I), {"out": f32(2, I)}, ValueError, r"out: expected shape \(2, 17\)"),
        (2, f32(2, I), {"out": np.zeros((2, H))}, TypeError, "out: expected dtype float32"),
        (2, f32(2, I), {"out": [0.0]}, TypeError, "out: expected a numpy or cupy ndarray"),
        (2, f32(2, I), {"out": f32(H, 2).T}, ValueError, "out: expected a C-contiguous array"),
        (2, f32(2, I), {"out": read_only(2, H)}, ValueError, "out: expected a C-contiguous array"),
        (None, f32(I), {"out": read_only(H)}, ValueError, "out: expected a C-contiguous array"),
        (None, f32(I), {"out": f32(2 * H)[::2]}, ValueError, "out: expected a C-contiguous array"),
        (None, f32(4, I), {"out": read_only(4, H)}, ValueError, "that is aligned and writeable"),
        (None, f32(4, I), {"out": f32(3, H)}, ValueError, r"out: expected shape \(4, 17\)"),
        (None, f32(I), {"attention": f32(1)}, ValueError, "attention: expected None for cell"),
        (None, f32(4, I), {"attention": f32(4)}, ValueError, "attention: expected None for cell"),
    ],
)
def test_push_refuses(
    rows: int | None, x: Any, options: Any, error: type[Exception], message: str
) -> None:
    stream = fastgru.Stream(PARAMS, rows)
    stream.push(f32(I) if rows is None else f32(rows, I))
    before = stream.state
    with pytest.raises(error, match=message):
        stream.push(x, **options)
    assert_same_bits(stream.state, before)


def test_push_refuses_to_write_outputs_over_what_it_reads() -> None:
    params = fastgru.init_params(H, H, rng=0)
    memory = f32(8, H)
    for stream, x, out in (
        (fastgru.Stream(params, 2), memory[:2], memory[1:3]),
        (fastgru.Stream(params), memory[:2], memory[1:3]),
        (fastgru.Stream(params, 2), memory[:2, None], memory[1:3, None]),
    ):
        with pytest.raises(ValueError, match="out: expected memory apart from that of x"):
            stream.push(x, out=out)
    assert fastgru.Stream(params, 2).push(memory[:2], out=memory[2:4]) is not None


def test_push_needs_attention_where_the_cell_does() -> None:
    stream = fastgru.Stream(fastgru.init_params(I, H, cell="augru", rng=0), 2)
    with pytest.raises(ValueError, match=r"attention: expected an array of shape \(2,\)"):
        stream.push(f32(2, I))
    with pytest.raises(ValueError, match=r"attention: expected an array of shape \(2, 5\)"):
        stream.push(f32(2, 5, I))
    attention = f32(2, H)[:, 0]
    with pytest.raises(ValueError, match="apart from that of attention"):
        stream.push(f32(2, I), attention=attention, out=attention.base)


@pytest.mark.parametrize(
    ("cell", "rows", "state", "error", "message"),
    [
        ("gru", 2, None, TypeError, r"state: expected arrays, got None; Stream.reset\(\)"),
        ("gru", 2, f32(1, H), ValueError, r"state: expected shape \(1, 2, 17\)"),
        ("gru", None, f32(1, 1, H), ValueError, r"state: expected shape \(1, 17\)"),
        ("gru", None, np.zeros((1, H)), TypeError, "state: expected dtype float32"),
        ("gru", None, [[0.0] * H], TypeError, "state: expected a numpy or cupy ndarray"),
        ("lstm", None, f32(1, H), TypeError, r"state: expected 2 arrays \(h, c\)"),
        ("lstm", None, (f32(1, H), f32(2, H)), ValueError, r"state \(c\): expected shape"),
        ("lstm", None, (f32(1, H), None), TypeError, "state: expected 2 arrays, got None among"),
    ],
)
def test_state_refuses(
    cell: str, rows: int | None, state: Any, error: type[Exception], message: str
) -> None:
    stream = fastgru.Stream(fastgru.init_params(I, H, cell=cell, rng=0), rows)
    with pytest.raises(error, match=message):
        stream.state = state


@pytest.mark.parametrize(
    ("batch_size", "rows", "error", "message"),
    [
        (None, 0, ValueError, "rows: expected None for a stream of one sequence"),
        (2, 2, ValueError, "rows: expected numbers from 0 to 1, got 2"),
        (2, [0, -1], ValueError, "rows: expected numbers from 0 to 1, got -1"),
        (2, 0.5, TypeError, "rows: expected whole numbers, or a mask, got 0.5"),
        (2, "0", TypeError, "rows: expected whole numbers, or a mask, got '0'"),
        (2, [True, False], TypeError, "rows: expected whole numbers, or a mask, got True"),
        (2, np.array([True]), ValueError, r"rows: expected shape \(2,\) \(a mask"),
    ],
)
def test_reset_refuses(
    batch_size: int | None, rows: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fastgru.Stream(PARAMS, batch_size).reset(rows)


def test_the_examples_of_the_guide_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs/guide/streams.md"
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        exec(block, names)
