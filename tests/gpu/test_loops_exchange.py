"""The loop of blocks that exchange h through memory."""

from typing import Any

import numpy as np
import pytest
from gpu_tools import EPS, Tune, UseLoops, chosen
from problems import Library, assert_close, assert_same_bits, draw, flatten, solve

from fastgru.kernels.cells import CELLS


@pytest.fixture
def exchange(use_loops: UseLoops, tune: Tune, cupy: Library) -> Library:
    """CuPy, with the loop of `exchange` where it suits; small blocks in the simulator."""
    use_loops("exchange")
    if cupy.name != "cupy":
        tune(EXCHANGE_THREADS=16, LONGEST_PART=4, STATIC_SHARED_BYTES=600)
    return cupy


# In the simulator: one block, three with one unit in the last, four. On a GPU: eight, and more.
EXCHANGED = {"simulated cupy": (5, 9, 16), "cupy": (256, 300, 512)}


@pytest.mark.parametrize("groups", ["one", "many"])
@pytest.mark.parametrize("lengths", [None, [2, 8, 0, 1, 4, 8]])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_exchange(
    cell: str,
    number: int,
    lengths: Any,
    groups: str,
    exchange: Library,
    tune: Tune,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Groups of blocks with one tile of rows each, and one group that takes all, in turns.

    In one launch, and in several, each with exchanges.
    """
    from fastgru.kernels.cuda import tuning
    from fastgru.kernels.cuda.loops import exchange as loop

    H, many = EXCHANGED[exchange.name][number], 4 if exchange.name == "cupy" else 1
    tiles = loop.tiles_for(CELLS[cell], H, np.dtype("float32"))
    assert tiles is not None
    assert (tiles.forward.rows < tiles.forward.parts) == (number > 0)
    if groups == "one":
        monkeypatch.setattr(loop, "multiprocessors", lambda device: tiles.forward.slices)
    problem = draw(
        cell, (6 * many, 8, 3, H), D=2, lengths=lengths and lengths * many, dtype="float32"
    )
    assert chosen(problem, exchange) == "exchange"
    want = solve(problem.astype("float64"))
    for size in (tuning.WORKSPACE_BYTES, 300 * H * many):
        tune(WORKSPACE_BYTES=size)
        for a, b in zip(flatten(*solve(problem, exchange)), flatten(*want), strict=True):
            assert_close(a, b, 64 * EPS)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_exchange_gives_the_same_bits_each_time(cell: str, exchange: Library) -> None:
    """Whatever the order in which blocks and threads get on."""
    shape = (9, 5, 3, EXCHANGED[exchange.name][1])
    problem = draw(cell, shape, lengths=[5, 4, 3, 0, 5, 1, 2, 5, 4], dtype="float32")
    want = solve(problem, exchange)
    for _ in range(200 if exchange.name == "cupy" else 3):
        assert_same_bits(solve(problem, exchange), want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_value_is_taken_for_a_word_that_is_not_there(value: float, exchange: Library) -> None:
    H = EXCHANGED[exchange.name][1]
    clean = draw("gru", (5, 4, 3, H), dtype="float32")
    spoilt = clean._replace(x=clean.x.copy())
    spoilt.x[2] = value
    want, found = solve(clean, exchange)[0], solve(spoilt, exchange)[0]
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(found[others], want[others])
    assert np.isnan(found[2]).any() or abs(value) == np.inf


def test_what_the_exchange_does_not_suit(
    exchange: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = draw("gru", (1, 1, 1, 16), dtype="float32")
    if exchange.name != "cupy":
        kind = type(exchange.asarray(np.zeros(1)).device)
        for count, able in ((3, 1), (4, 0), (4, 1)):
            attributes = {"MultiProcessorCount": count, "CooperativeLaunch": able}
            monkeypatch.setattr(kind, "attributes", attributes)
            assert chosen(problem, exchange) == ("exchange" if count * able == 4 else "steps")
        monkeypatch.setattr(kind, "compute_capability", "61")
        assert chosen(problem, exchange) == "steps"
        monkeypatch.setattr(kind, "compute_capability", "90")
    assert chosen(problem.astype("float64"), exchange) == "steps"
    assert chosen(problem, exchange, "bf16") == "steps"
    assert chosen(draw("gru_reset_before", (1, 1, 1, 16), dtype="float32"), exchange) == "steps"
    assert chosen(draw("gru", (1, 1, 1, 5000), dtype="float32"), exchange) == "steps"
