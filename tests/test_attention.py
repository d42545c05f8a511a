"""Numbers for each sample and step, which augru takes: what is refused, layouts, gradients."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from problems import Problem, assert_close, assert_same_bits, draw, solve

import fastgru

CELL = "augru"
LENGTHS = [4, 0, 2]


def drawn(dtype: str = "float64", **options: Any) -> Problem:
    return draw(CELL, (3, 4, 2, 5), dtype=dtype, **options)


def calls(x: Any, params: fastgru.Params) -> dict[str, Callable[..., Any]]:
    """Every function that takes attention, the last one for the first step."""
    return {
        "forward": lambda **options: fastgru.forward(x, params, **options),
        "forward_train": lambda **options: fastgru.forward_train(x, params, **options),
        "step": lambda **options: fastgru.step(x[:, 0], params, **options),
    }


FUNCTIONS = ("forward", "forward_train", "step")
each_function = pytest.mark.parametrize("function", FUNCTIONS)


# --- what is refused ------------------------------------------------------------------------------


@each_function
def test_missing(function: str) -> None:
    problem = drawn()
    with pytest.raises(ValueError, match=r"^attention: expected an array .* 'augru', got None"):
        calls(problem.x, problem.params)[function]()


@pytest.mark.parametrize("cell", ["gru", "lstm", "gru_reset_before", "mingru", "ligru"])
@each_function
def test_not_taken(function: str, cell: str) -> None:
    problem = draw(cell, (3, 4, 2, 5))
    attention = np.zeros(3 if function == "step" else (3, 4))
    with pytest.raises(ValueError, match=f"^attention: expected None for cell '{cell}'"):
        calls(problem.x, problem.params)[function](attention=attention)


@pytest.mark.parametrize("shape", [(), (3,), (4,), (4, 3), (3, 4, 1), (3, 5), (1, 4), (3, 1)])
@each_function
def test_wrong_shape(function: str, shape: tuple[int, ...]) -> None:
    problem = drawn()
    call = calls(problem.x, problem.params)[function]
    if function == "step" and shape == (3,):
        call(attention=np.zeros(shape))
        return
    with pytest.raises(ValueError, match=r"^attention: expected shape \(3.*, got \("):
        call(attention=np.zeros(shape))


@each_function
def test_wrong_kind(function: str) -> None:
    problem = drawn()
    right: Any = np.zeros(3 if function == "step" else (3, 4))
    call = calls(problem.x, problem.params)[function]
    wrong: Any
    for wrong in (right.astype("float32"), right.astype("int64"), right.astype(">f8")):
        with pytest.raises(TypeError, match=r"^attention: expected dtype float"):
            call(attention=wrong)
    for wrong in (right.tolist(), 0.5, np.ma.masked_array(right)):
        with pytest.raises(TypeError, match=r"^attention: expected a numpy "):
            call(attention=wrong)
    call(attention=right)


def test_wrong_layout() -> None:
    """(T, N) where time_major, (T,) without samples."""
    problem = drawn()
    (h0,), attention = problem.h0, problem.attention
    with pytest.raises(ValueError, match=r"^attention: expected shape \(4, 3\)"):
        fastgru.forward(
            problem.x.transpose(1, 0, 2), problem.params, h0, attention=attention, time_major=True
        )
    with pytest.raises(ValueError, match=r"^attention: expected shape \(4,\)"):
        fastgru.forward(problem.x[0], problem.params, attention=attention)
    with pytest.raises(ValueError, match=r"^attention: expected shape \(1,\)"):
        fastgru.step(problem.x[0, 0], problem.params, attention=np.array(0.5))


def test_refused_after_a_call_of_the_kind() -> None:
    """Calls that were prepared once check attention all the same."""
    problem = drawn()
    for _ in range(2):
        fastgru.forward(problem.x, problem.params, *problem.h0, attention=problem.attention)
        with pytest.raises(ValueError, match=r"^attention: "):
            fastgru.forward(problem.x, problem.params, *problem.h0)
        with pytest.raises(ValueError, match=r"^attention: "):
            fastgru.forward(problem.x, problem.params, *problem.h0, attention=problem.attention.T)


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("D", [1, 2])
def test_time_major(D: int, lengths: Any, dtype: str) -> None:
    """Results and gradients have the same bits, in the other order of axes."""
    problem = drawn(dtype, L=2, D=D, lengths=lengths)
    y, h_n, saved = fastgru.forward_train(problem.x, problem.params, *problem.h0, **problem.options)
    gradients = fastgru.backward(saved, problem.dy, *problem.dh_n)
    other_y, other_h, other_saved = fastgru.forward_train(
        problem.x.transpose(1, 0, 2), problem.params, *problem.h0, lengths=lengths,
        attention=problem.attention.T, time_major=True,
    )  # fmt: skip
    other = fastgru.backward(other_saved, problem.dy.transpose(1, 0, 2), *problem.dh_n)
    assert_same_bits((other_y.transpose(1, 0, 2), other_h), (y, h_n))
    assert_same_bits(other.x.transpose(1, 0, 2), gradients.x)
    assert other.attention.shape == (4, 3)
    assert_same_bits(other.attention.T, gradients.attention)
    assert_same_bits((other.h0, other.params), (gradients.h0, gradients.params))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_sequence(dtype: str) -> None:
    problem = drawn(dtype, L=2, D=2)
    y, h_n, gradients = solve(problem)
    for row in range(3):
        own_y, own_h, saved = fastgru.forward_train(
            problem.x[row], problem.params, problem.h0[0][:, row],
            attention=problem.attention[row],
        )  # fmt: skip
        own = fastgru.backward(saved, problem.dy[row], problem.dh_n[0][:, row])
        assert own.attention.shape == (4,)
        assert_same_bits((own_y, own_h), (y[row], h_n[:, row].copy()))
        assert_same_bits(
            (own.x, own.h0, own.attention),
            (gradients.x[row], gradients.h0[:, row].copy(), gradients.attention[row]),
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("packed", [False, True], ids=["params", "packed"])
def test_steps_are_forward_to_the_bit(packed: bool, dtype: str) -> None:
    """Of all samples, and of one sequence, whose attention is an array of one number."""
    problem = drawn(dtype, L=2)
    params = fastgru.pack(problem.params) if packed else problem.params
    (h,), attention = problem.h0, problem.attention
    y, h_n = fastgru.forward(problem.x, params, h, attention=attention)
    own = h[:, 0]
    for t in range(4):
        y_t, h = fastgru.step(problem.x[:, t], params, h, attention=attention[:, t])
        assert_same_bits(y_t, y[:, t].copy())
        own_y, own = fastgru.step(problem.x[0, t], params, own, attention=attention[0, t : t + 1])
        assert_same_bits(own_y, y[0, t].copy())
    assert_same_bits((h, own), (h_n, h_n[:, 0].copy()))


def test_any_strides() -> None:
    problem = drawn(L=2, D=2, lengths=LENGTHS)
    wide = np.full((6, 8), np.nan)
    wide[::-2, ::2] = problem.attention
    assert_same_bits(solve(problem._replace(attention=wide[::-2, ::2])), solve(problem))


@pytest.mark.parametrize("garbage", [np.nan, 1e300])
def test_padding_is_not_read(garbage: float) -> None:
    """Nor is there a gradient of it."""
    problem = drawn(L=2, D=2, lengths=LENGTHS)
    valid = reference.valid_steps(problem.x, LENGTHS)
    padded = problem._replace(attention=np.where(valid, problem.attention, garbage))
    got = solve(padded)
    assert_same_bits(got, solve(problem))
    assert not got[2].attention[~valid].any()
    assert got[2].attention[valid].all()


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("L", [1, 2])
def test_gradients_of_attention(L: int, D: int, lengths: Any) -> None:
    """Against the complex step: one number is read by all layers and directions."""
    problem = drawn(L=L, D=D, lengths=lengths)
    _, _, gradients = solve(problem)
    _, _, _, want = reference.gradients(
        problem.x, problem.layers, CELL, problem.h0, lengths, problem.dy, problem.dh_n,
        problem.attention,
    )  # fmt: skip
    assert_close(gradients.attention, want, 1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2.0])
def test_gradients_at_and_past_the_ends(value: float) -> None:
    """At 0 and 1, and outside, where nothing is clipped."""
    problem = drawn()
    problem = problem._replace(attention=np.full((3, 4), value))
    y, _, gradients = solve(problem)
    want_y, _ = reference.forward(
        problem.x, problem.layers, CELL, problem.h0, None, problem.attention
    )
    assert_close(y, want_y, 1e-13)
    dx, dh0, _, dattention = reference.gradients(
        problem.x, problem.layers, CELL, problem.h0, None, problem.dy, problem.dh_n,
        problem.attention,
    )  # fmt: skip
    assert_close(gradients.attention, dattention, 1e-12)
    assert_close(gradients.x, dx, 1e-12)
    assert_close(gradients.h0, dh0[0], 1e-12)


def test_backward_again() -> None:
    """It gives the same, and changes nothing that was given."""
    problem = drawn()
    before = problem.attention.copy()
    _, _, saved = fastgru.forward_train(
        problem.x, problem.params, *problem.h0, attention=problem.attention
    )
    first = fastgru.backward(saved, problem.dy)
    assert_same_bits(fastgru.backward(saved, problem.dy), first)
    assert_same_bits(problem.attention, before)


def test_gradients_are_a_tuple_of_three() -> None:
    """Which also has `attention`, and keeps it when it is pickled."""
    problem = drawn(lengths=LENGTHS)
    _, _, gradients = solve(problem)
    dx, dh0, dparams = gradients
    assert len(gradients) == 3
    assert dx is gradients.x
    assert dh0 is gradients.h0
    assert dparams is gradients.params
    assert gradients.attention.shape == (3, 4)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(gradients, protocol))
        assert type(again) is fastgru.Gradients
        assert len(again) == 3
        assert_same_bits(again, gradients)
    _, _, others = solve(draw("gru"))
    assert others.attention is None
    assert pickle.loads(pickle.dumps(others)).attention is None
    assert len(others) == 3


def test_saved_travels_with_attention() -> None:
    problem = drawn(L=2, D=2, lengths=LENGTHS)
    _, _, saved = fastgru.forward_train(problem.x, problem.params, *problem.h0, **problem.options)
    again = pickle.loads(pickle.dumps(saved))
    got, want = (fastgru.backward(s, problem.dy, *problem.dh_n) for s in (again, saved))
    assert_same_bits(got, want)
