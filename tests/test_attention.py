"""Numbers of each sample and step, for cells that take them: `attention`."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from problems import ALL_CELLS, Problem, as_members, assert_same_bits, draw, solve

import fastgru
from fastgru.kernels.cells import CELLS

CELL = "toy_step_input"
N, T, I, H = 3, 4, 3, 5  # the sizes that `draw` gives


def calls(problem: Problem) -> dict[str, tuple[Callable[..., Any], tuple[int, ...]]]:
    """Calls that take attention, by name, with the shape that they want."""
    x, params = problem.x, problem.params
    major = x.transpose(1, 0, 2)
    return {
        "forward": (partial(fastgru.forward, x, params), (N, T)),
        "forward_train": (partial(fastgru.forward_train, x, params), (N, T)),
        "packed": (partial(fastgru.forward, x, fastgru.pack(params)), (N, T)),
        "lengths": (partial(fastgru.forward, x, params, lengths=[2, 0, 4]), (N, T)),
        "time_major": (partial(fastgru.forward, major, params, time_major=True), (T, N)),
        "without samples": (partial(fastgru.forward, x[0], params), (T,)),
        "step": (partial(fastgru.step, x[:, 0], params), (N,)),
        "step without samples": (partial(fastgru.step, x[0, 0], params), (1,)),
    }


CALLS = tuple(calls(draw(CELL)))
each_call = pytest.mark.parametrize("call", CALLS)


def test_which_cells_take_attention() -> None:
    assert [cell for cell in ALL_CELLS if CELLS[cell].step_inputs] == [CELL]


@each_call
def test_what_fits_is_taken(call: str) -> None:
    """Else the tests below could pass because of something else that is wrong."""
    function, shape = calls(draw(CELL))[call]
    function(attention=np.ones(shape))


@each_call
def test_missing_attention_is_refused(call: str) -> None:
    function, shape = calls(draw(CELL))[call]
    message = (
        rf"^attention: expected an array of shape \({shape[0]}.*\) for cell '{CELL}', got None$"
    )
    with pytest.raises(ValueError, match=message):
        function()


@each_call
def test_attention_that_is_not_taken_is_refused(call: str) -> None:
    function, shape = calls(draw("gru"))[call]
    message = "^attention: expected None for cell 'gru', which takes none$"
    with pytest.raises(ValueError, match=message):
        function(attention=np.ones(shape))


@each_call
def test_attention_of_another_shape_is_refused(call: str) -> None:
    function, shape = calls(draw(CELL))[call]
    for other in ((), (*shape, 1), (1, *shape), (shape[0] + 1, *shape[1:]), (*shape[:-1], 0)):
        with pytest.raises(ValueError, match=r"^attention: expected shape \(.*got \("):
            function(attention=np.ones(other))


@each_call
@pytest.mark.parametrize("dtype", ["float32", "int64", "complex128", ">f8", "object"])
def test_attention_of_another_dtype_is_refused(call: str, dtype: str) -> None:
    function, shape = calls(draw(CELL))[call]
    with pytest.raises(TypeError, match=r"^attention: expected dtype float.*64.*, got"):
        function(attention=np.ones(shape).astype(dtype))


@each_call
@pytest.mark.parametrize("make", [list, tuple, np.ma.array, lambda a: 1.0, lambda a: "abc"])
def test_what_is_no_array_is_refused(call: str, make: Callable[[Any], Any]) -> None:
    function, shape = calls(draw(CELL))[call]
    with pytest.raises(TypeError, match=r"^attention: expected a numpy or cupy ndarray"):
        function(attention=make(np.ones(shape)))


def test_attention_of_nothing_keeps_the_state() -> None:
    """The cell weighs its update by it, in every layer and direction."""
    problem = draw(CELL, L=2, D=2)
    still = problem._replace(attention=np.zeros((N, T)))
    _, h_n = still.forward()
    assert_same_bits(as_members(h_n), problem.h0)
    assert (problem.forward()[1] != problem.h0[0]).any()  # type: ignore[index]
    problem.attention[1] = 0
    h_n = as_members(problem.forward()[1])[0]
    changed = (h_n != problem.h0[0]).any(axis=(0, 2))  # type: ignore[index]
    assert changed.tolist() == [True, False, True]


def test_attention_is_read_until_backward_and_stays_as_it_is() -> None:
    problem = draw(CELL, L=2, lengths=[2, 0, 4])
    before = problem.attention.copy()
    _, _, want = solve(problem)
    _, _, saved = problem.forward_train()
    assert_same_bits(problem.backward(saved), want)
    assert_same_bits(problem.attention, before)


@pytest.mark.parametrize("cell", ["gru", CELL])
def test_gradients_of_attention_are_beside_the_tuple(cell: str) -> None:
    """Which has three members, as before there was attention."""
    _, _, gradients = solve(draw(cell))
    x, h0, params = gradients
    assert (x is gradients.x, h0 is gradients.h0, params is gradients.params) == (True,) * 3
    if cell == "gru":
        assert gradients.attention is None
        return
    assert gradients.attention.shape == (N, T)
    for made in (copy.deepcopy(gradients), pickle.loads(pickle.dumps(gradients))):
        assert_same_bits(made, gradients)
        assert_same_bits(made.attention, gradients.attention)
