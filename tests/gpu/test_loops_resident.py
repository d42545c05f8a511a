"""The loop that keeps the weights in the registers of a block."""

from typing import Any

import pytest
from gpu_tools import EPS, Tune, UseLoops, chosen
from problems import Library, as_state, assert_close, assert_same_bits, draw, flatten, solve

import fastgru
from fastgru.kernels.cells import CELLS

# One product with h a step, and nothing that the loop does not know.
SUITED = ("gru", "lstm", "rnn_tanh", "rnn_relu", "cifg", "ugrnn")


@pytest.fixture
def resident(use_loops: UseLoops, cupy: Library) -> Library:
    """CuPy, with the loop of `resident` where it suits."""
    use_loops("resident")
    return cupy


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("lengths", [None, [2, 4, 0, 1, 4]])
@pytest.mark.parametrize("H", [1, 5, 24])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_resident_weights(
    cell: str, H: int, lengths: Any, D: int, resident: Library, tune: Tune
) -> None:
    """In one time block, and in several; rows that fill a tile and rows that do not."""
    from fastgru.kernels.cuda import tuning

    problem = draw(cell, (5, 4, 3, H), D=D, lengths=lengths, dtype="float32")
    assert chosen(problem, resident) == "resident"
    want = solve(problem.astype("float64"))
    for size in (tuning.WORKSPACE_BYTES, 900):
        tune(WORKSPACE_BYTES=size)
        for a, b in zip(flatten(*solve(problem, resident)), flatten(*want), strict=True):
            assert_close(a, b, 64 * EPS)
        given = resident.take(problem)
        x, params, h0, *_ = given
        y, h_n = fastgru.forward(x, params, as_state(h0), **given.options)
        for a, b in zip(flatten(resident.give((y, h_n))), flatten(*want[:2]), strict=True):
            assert_close(a, b, 16 * EPS)


@pytest.mark.parametrize("cell", SUITED)
def test_cells_whose_step_is_one_product(cell: str, resident: Library) -> None:
    problem = draw(cell, (5, 4, 3, 6), D=2, lengths=[2, 4, 0, 1, 4], dtype="float32")
    assert chosen(problem, resident) == "resident"
    want = solve(problem.astype("float64"))
    for a, b in zip(flatten(*solve(problem, resident)), flatten(*want), strict=True):
        assert_close(a, b, 64 * EPS)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_resident_weights_give_the_same_bits_each_time(cell: str, resident: Library) -> None:
    problem = draw(cell, (9, 5, 3, 24), lengths=[5, 4, 3, 0, 5, 1, 2, 5, 4], dtype="float32")
    want = solve(problem, resident)
    for _ in range(200 if resident.name == "cupy" else 2):
        assert_same_bits(solve(problem, resident), want)


def test_what_the_resident_loop_does_not_suit(resident: Library) -> None:
    for cell in CELLS:
        small = draw(cell, (1, 1, 1, 32), dtype="float32")
        default = "steps" if CELLS[cell].recurrent_gates else "units"
        assert chosen(small, resident) == ("resident" if cell in SUITED else default)
    problem = draw("gru", (1, 1, 1, 32))
    assert chosen(problem, resident) == "steps"
    assert chosen(problem.astype("float32"), resident, "tf32") == "steps"
    assert chosen(draw("gru", (1, 1, 1, 300), dtype="float32"), resident) == "steps"
