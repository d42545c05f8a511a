"""CuPy arrays: devices, strides, precisions, sizes; simulated, and with -m gpu on a real GPU.

The matrix over cells, layers, directions and lengths is in `test_recurrence`, for every library.
"""

import collections
import ctypes
import gc
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import (
    NUMPY,
    Library,
    Problem,
    as_members,
    as_state,
    assert_close,
    assert_same_bits,
    draw,
    each_cell,
    flatten,
    solve,
)

import fastgru
from fastgru.kernels.cells import CELLS

LENGTHS = [2, 0, 4]
EPS = float(np.finfo("float32").eps)


@pytest.fixture(params=["simulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request: pytest.FixtureRequest) -> Library:
    """CuPy, simulated and real."""
    found: Library = request.getfixturevalue(request.param)
    return found


@each_cell
def test_results_are_cupy_arrays(cell: str, cupy: Library) -> None:
    problem = cupy.take(draw(cell, L=2, D=2, lengths=LENGTHS))
    for array in flatten(*solve_in(problem)):
        assert type(array) is type(problem.x)


def solve_in(problem: Problem) -> tuple[Any, ...]:
    """As `solve`, for a problem that is in CuPy arrays and stays there."""
    x, params, h0, lengths, dy, dh_n = problem
    y, h_n, saved = fastgru.forward_train(x, params, as_state(h0), lengths=lengths)
    return y, h_n, fastgru.backward(saved, dy, as_state(dh_n))


@each_cell
def test_any_strides(cell: str, cupy: Library) -> None:
    """Reversed, spread and transposed arrays give what their copies give."""
    problem = draw(cell, D=2, lengths=LENGTHS, dtype="float32")
    plain = cupy.take(problem)
    spread = cupy.asarray(np.repeat(problem.x, 2, axis=2)[:, ::-1])[:, ::-1, ::2]
    turned = cupy.asarray(problem.dy.transpose(2, 0, 1).copy()).transpose(1, 2, 0)
    states = tuple(cupy.asarray(h.transpose(1, 0, 2).copy()).transpose(1, 0, 2) for h in plain.h0)
    odd = plain._replace(x=spread, dy=turned, h0=states)
    assert_same_bits(cupy.give(solve_in(odd)), cupy.give(solve_in(plain)))


@each_cell
def test_time_major_and_single_sequences(cell: str, cupy: Library) -> None:
    problem = cupy.take(draw(cell, L=2, D=2, dtype="float32"))
    x, params, h0, _, _, _ = problem
    y, h_n = fastgru.forward(x, params, as_state(h0))
    turned, same = fastgru.forward(x.transpose(1, 0, 2), params, as_state(h0), time_major=True)
    assert_same_bits(cupy.give((turned.transpose(1, 0, 2), same)), cupy.give((y, h_n)))
    first = as_state(tuple(h[:, 0] for h in h0))
    alone, _ = fastgru.forward(x[0], params, first)
    assert_close(cupy.give(alone), cupy.give(y)[0], 8 * EPS)


@each_cell
def test_padding_is_neither_read_nor_written(cell: str, cupy: Library) -> None:
    problem = draw(cell, L=2, D=2, lengths=LENGTHS, dtype="float32")
    spoilt = problem._replace(x=problem.x.copy(), dy=problem.dy.copy())
    for row, length in enumerate(LENGTHS):
        spoilt.x[row, length:] = spoilt.dy[row, length:] = np.nan
    got, want = solve(spoilt, cupy), solve(problem, cupy)
    assert_same_bits(got, want)
    for row, length in enumerate(LENGTHS):
        assert not got[0][row, length:].any()
        assert not got[2].x[row, length:].any()


@each_cell
def test_blocks_of_steps_do_not_matter(
    cell: str, cupy: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workspace for one step, for two, for all: the same results but for rounding."""
    from fastgru.kernels.cuda import recurrence

    problem = draw(cell, (3, 5, 3, 4), D=2, lengths=[2, 1, 5], dtype="float32")
    want = solve(problem, cupy)
    for size in (1, 500):
        monkeypatch.setattr(recurrence, "_BLOCK_BYTES", size)
        for a, b in zip(flatten(*solve(problem, cupy)), flatten(*want), strict=True):
            assert_close(a, b, 16 * EPS)


def test_sequences_of_growing_length(cupy: Library) -> None:
    """What a thread keeps from shorter ones is not used for longer ones."""
    for T in (2, 1, 5, 4):
        problem = draw("gru", (2, T, 3, 5), dtype="float32")
        for a, b in zip(flatten(*solve(problem, cupy)), flatten(*solve(problem)), strict=True):
            assert_close(a, b, 16 * EPS)


@pytest.mark.parametrize("missing", ["dy", "dh_n", "a member of dh_n"])
@each_cell
def test_gradients_that_are_missing_are_zeros(cell: str, missing: str, cupy: Library) -> None:
    problem = draw(cell, L=2, D=2, lengths=LENGTHS, dtype="float32")
    if missing == "dy":
        zeros: Any = problem._replace(dy=np.zeros_like(problem.dy))
    else:
        gone = len(problem.dh_n) if missing == "dh_n" else 1
        rest = problem.dh_n[gone:]
        zeros = problem._replace(dh_n=(*map(np.zeros_like, problem.dh_n[:gone]), *rest))
    x, params, h0, lengths, dy, dh_n = cupy.take(zeros)
    _, _, saved = fastgru.forward_train(x, params, as_state(h0), lengths=lengths)
    given: dict[str, Any] = {"dy": dy, "dh_n": as_state(dh_n)}
    if missing in given:
        given[missing] = None
    else:
        given["dh_n"] = as_state((None, *dh_n[1:]))
    got = cupy.give(fastgru.backward(saved, **given))
    for a, b in zip(flatten(got), flatten(solve(zeros)[2]), strict=True):
        assert_close(a, b, 16 * EPS)


@pytest.mark.parametrize("sizes", [(0, 4, 3, 5), (3, 0, 3, 5)])
@each_cell
def test_nothing_to_do(cell: str, sizes: tuple[int, int, int, int], cupy: Library) -> None:
    problem = draw(cell, sizes, L=2, D=2)
    for a, b in zip(flatten(*solve(problem, cupy)), flatten(*solve(problem)), strict=True):
        assert_same_bits((a,), (b,))


@each_cell
def test_steps_are_forward_one_at_a_time(cell: str, cupy: Library) -> None:
    problem = cupy.take(draw(cell, L=2, dtype="float32"))
    weights = fastgru.pack(problem.params)
    y, h_n = fastgru.forward(problem.x, weights, as_state(problem.h0))
    state: Any = as_state(problem.h0)
    for t in range(problem.x.shape[1]):
        y_t, state = fastgru.step(problem.x[:, t], weights, state)
        assert_close(cupy.give(y_t), cupy.give(y)[:, t], 16 * EPS)
    for a, b in zip(as_members(state), as_members(h_n), strict=True):
        assert_close(cupy.give(a), cupy.give(b), 16 * EPS)


def test_init_params_draws_the_same_numbers(cupy: Library) -> None:
    like = cupy.asarray(np.zeros(1, "float32"))
    ours = fastgru.init_params(3, 5, like=like, rng=0)
    assert ours.library == "cupy"
    assert_same_bits(cupy.give(ours), fastgru.init_params(3, 5, rng=0))


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 11), ("bf16", 8)])
@each_cell
def test_reduced_precision_rounds_operands_only(
    cell: str, precision: str, bits: int, cupy: Library
) -> None:
    """Errors are of the size of the operands' rounding, and there are some."""
    exact = draw(cell, (3, 6, 16, 32))
    problem = cupy.take(exact.astype("float32"))
    x, params, h0, _, dy, dh_n = problem
    y, _, saved = fastgru.forward_train(x, params, as_state(h0), precision=precision)
    gradients = fastgru.backward(saved, dy, as_state(dh_n))
    want_y, _, want = solve(exact)
    error = np.abs(cupy.give(y) - want_y).max()
    assert error < 2.0 ** -(bits - 3)
    if cupy.name != "cupy":  # cuBLAS may compute small products in float32
        assert error > 2.0 ** -(bits + 6)
    for got, right in zip(flatten(cupy.give(gradients)), flatten(want), strict=True):
        scale = np.abs(right).max()
        assert np.abs(got - right).max() < 2.0 ** -(bits - 4) * max(1, scale)
    again, _ = fastgru.forward(x, params, as_state(h0), precision=precision)
    assert_same_bits(cupy.give((again,)), cupy.give((y,)))


def test_bias_gradients_are_sums_in_float32(simulated: Library) -> None:
    """With weights of 0 no product rounds: the bias gradients are those of full precision."""
    problem = draw("lstm", (3, 6, 4, 5), dtype="float32")
    params = problem.params.map(lambda w: w if w.ndim == 1 else np.zeros_like(w))
    x, params, h0, _, dy, _ = simulated.take(problem._replace(params=params))
    found = []
    for precision in (None, "bf16"):
        _, _, saved = fastgru.forward_train(x, params, h0, precision=precision)
        found.append(simulated.give(fastgru.backward(saved, dy)).params.to_dict())
    for name in ("bias_ih_l0", "bias_hh_l0"):
        assert np.isfinite(found[0][name]).all()
        assert_same_bits((found[0][name],), (found[1][name],))


def test_calls_of_a_precision_are_kept(simulated: Library) -> None:
    x, params, h0, _, _, _ = simulated.take(draw("gru", dtype="float32"))
    weights = fastgru.pack(params)
    for precision in (None, "tf32", None, "tf32"):
        fastgru.forward(x, weights, h0[0], precision=precision)
        fastgru.step(x[:, 0], weights, h0[0], precision=precision)
    assert len(fastgru.packed.operands_of(weights).architecture.calls) == 4


def test_precision_of_a_step(cupy: Library) -> None:
    problem = cupy.take(draw("gru", (3, 1, 16, 32), dtype="float32"))
    x, params, h0, _, _, _ = problem
    want, _ = fastgru.forward(x, params, h0[0], precision="bf16")
    got, _ = fastgru.step(x[:, 0], params, h0[0], precision="bf16")
    assert_close(cupy.give(got), cupy.give(want)[:, 0], 8 * EPS)


@pytest.mark.parametrize("precision", ["fp16", "", 32, True])
def test_unknown_precision(precision: Any, cupy: Library) -> None:
    problem = cupy.take(draw("gru", dtype="float32"))
    with pytest.raises(ValueError, match=r"^precision: expected None or 'tf32' or 'bf16' for cupy"):
        fastgru.forward(problem.x, problem.params, precision=precision)


def test_precision_of_float64(cupy: Library) -> None:
    problem = cupy.take(draw("gru"))
    with pytest.raises(ValueError, match=r"^precision: expected None for cupy arrays of float64"):
        fastgru.forward(problem.x, problem.params, precision="tf32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_of_numpy_arrays(dtype: str) -> None:
    x, params = NUMPY.take(draw("gru", dtype=dtype))[:2]
    message = rf"^precision: expected None for numpy arrays of {dtype}, got 'bf16'"
    for call in (fastgru.forward, fastgru.forward_train):
        with pytest.raises(ValueError, match=message):
            call(x, params, precision="bf16")
    with pytest.raises(ValueError, match=message):
        fastgru.step(x[:, 0], params, precision="bf16")


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["RESIDENT", "EXCHANGE", "CLUSTER", "STEPS"])
def test_out_of_memory(loop: str, simulated: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it ends, CuPy's error comes out, nothing is kept, and the next call is right."""
    import cupy

    from fastgru.kernels.cuda import choice

    class OutOfMemoryError(MemoryError):
        """As that of CuPy."""

    room = [0, 0]  # arrays that may still be made, and that were made

    def limited(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any) -> Any:
            room[0], room[1] = room[0] - 1, room[1] + 1
            if room[0] < 0:
                raise OutOfMemoryError
            return make(*arguments)

        return made

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is cupy.ndarray for thing in gc.get_objects())

    precision = "bf16" if loop == "CLUSTER" else None
    problem = simulated.take(draw("lstm", (1, 2, 2, 3), dtype="float32"))
    monkeypatch.setattr(choice, "CHOICES", (getattr(choice, loop), choice.STEPS))
    for name in ("empty", "zeros", "ones", "ascontiguousarray"):
        monkeypatch.setattr(cupy, name, limited(getattr(cupy, name)))

    def call(most: int) -> Any:
        room[:] = [most, 0]
        x, params, h0, _, dy, dh_n = problem
        y, h_n, saved = fastgru.forward_train(x, params, h0, precision=precision)
        return simulated.give((y, h_n, fastgru.backward(saved, dy, dh_n)))

    want = call(1000)
    call(1000)
    needed, before = room[1], alive()
    assert needed > 10
    for most in range(needed):
        with pytest.raises(OutOfMemoryError):
            call(most)
    assert alive() == before
    assert_same_bits(call(needed), want)


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dh_n", ["both", "one", "none"])
def test_results_stay_on_the_device_of_the_arrays(dh_n: str, simulated: Library) -> None:
    from cupy.cuda import Device

    with Device(1):
        problem = simulated.take(draw("lstm", L=2, D=2, lengths=LENGTHS))
    x, params, h0, lengths, dy, dstate = problem
    given: Any = {"both": dstate, "one": (None, dstate[1]), "none": None}[dh_n]
    weights = fastgru.pack(params)
    y, h_n, saved = fastgru.forward_train(x, weights, h0, lengths=lengths)
    gradients = fastgru.backward(saved, dy, given)
    inference = fastgru.forward(x, params, lengths=lengths)
    drawn = fastgru.init_params(2, 3, like=x)
    copies = weights.params
    devices = [a.device for a in flatten(y, h_n, gradients, *inference, drawn, copies)]
    assert devices == [Device(1)] * len(devices) != []
    assert Device() == Device(0)


@pytest.mark.parametrize("argument", ["x", "h0", "x_t", "h", "dy", "dh_n", "params"])
def test_arrays_of_several_devices(argument: str, simulated: Library) -> None:
    from cupy.cuda import Device

    problem = draw("gru")
    x, params, h0, _, dy, _ = simulated.take(problem)
    with Device(1):
        other_x, other_params, other_h0, _, other_dy, other_dh_n = simulated.take(problem)
    mixed = params.to_dict() | {"bias_hh_l0": other_params.to_dict()["bias_hh_l0"]}
    _, _, saved = fastgru.forward_train(x, params, h0[0])
    calls = {
        "x": lambda: fastgru.forward(other_x, params, h0[0]),
        "h0": lambda: fastgru.forward_train(x, params, other_h0[0]),
        "x_t": lambda: fastgru.step(other_x[:, 0], params),
        "h": lambda: fastgru.step(x[:, 0], params, other_h0[0]),
        "dy": lambda: fastgru.backward(saved, other_dy),
        "dh_n": lambda: fastgru.backward(saved, dy, other_dh_n[0]),
        "params": lambda: fastgru.forward(x, fastgru.Params.from_dict(mixed, cell="gru")),
    }
    message = rf"^{argument}: expected (an array on .*0.*, as params, got one on|all arrays).* .*1"
    with pytest.raises(ValueError, match=message):
        calls[argument]()


def test_streams_have_their_own_copies_of_the_order(
    simulated: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one stream copies may not be there yet for another."""
    import cupy

    x, params, h0, _, _, _ = simulated.take(draw("gru"))
    weights = fastgru.pack(params)
    want = fastgru.forward(x, weights, h0[0])
    (call,) = fastgru.packed.operands_of(weights).architecture.calls.values()
    cupy.cuda.get_current_stream().synchronize()
    for pointer in range(1, 100):
        stream = type("Stream", (), {"ptr": pointer})
        monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda stream=stream: stream)
        assert_same_bits(fastgru.forward(x, weights, h0[0]), want)
        kept = call.stack.recurrences[0]._indices_on
        assert any(key[:2] == (0, pointer) for key in kept)  # 2 has one for each thread
        assert len(kept) <= 16
    for pointer in range(200, 216):  # as many as are kept
        stream = type("Stream", (), {"ptr": pointer})
        monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda stream=stream: stream)
        fastgru.forward(x, weights, h0[0])
        copies = call.stack.recurrences[0]._indices_on[0, pointer, 0]
        fastgru.forward(x, weights, h0[0])
        assert call.stack.recurrences[0]._indices_on[0, pointer, 0] is copies


# --- the loop that keeps the weights on chip ------------------------------------------------------


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch, cupy: Library) -> Library:
    """CuPy, with the loop of `resident` where it suits."""
    from fastgru import packed
    from fastgru.kernels.cuda import choice

    monkeypatch.setattr(choice, "CHOICES", (choice.RESIDENT, *choice.CHOICES))
    packed._architecture.cache_clear()
    return cupy


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("lengths", [None, [2, 4, 0, 1, 4]])
@pytest.mark.parametrize("H", [1, 5, 24])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_resident_weights(
    cell: str, H: int, lengths: Any, D: int, resident: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block of steps, and in several; rows that fill a tile and rows that do not."""
    from fastgru.kernels.cuda import recurrence

    problem = draw(cell, (5, 4, 3, H), D=D, lengths=lengths, dtype="float32")
    assert chosen(problem, resident) == "resident"
    want = solve(problem.astype("float64"))
    for size in (recurrence._BLOCK_BYTES, 900):
        monkeypatch.setattr(recurrence, "_BLOCK_BYTES", size)
        for a, b in zip(flatten(*solve(problem, resident)), flatten(*want), strict=True):
            assert_close(a, b, 64 * EPS)
        x, params, h0, steps, _, _ = resident.take(problem)
        y, h_n = fastgru.forward(x, params, as_state(h0), lengths=steps)
        for a, b in zip(flatten(resident.give((y, h_n))), flatten(*want[:2]), strict=True):
            assert_close(a, b, 16 * EPS)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_resident_weights_give_the_same_bits_each_time(cell: str, resident: Library) -> None:
    problem = draw(cell, (9, 5, 3, 24), lengths=[5, 4, 3, 0, 5, 1, 2, 5, 4], dtype="float32")
    want = solve(problem, resident)
    for _ in range(200 if resident.name == "cupy" else 2):
        assert_same_bits(solve(problem, resident), want)


def chosen(problem: Problem, library: Library, precision: Any = None, blocks: int = 1) -> str:
    """Name of the loop that takes a problem."""
    import cupy

    from fastgru.kernels.cuda.choice import choose
    from fastgru.kernels.cuda.context import Layer

    params, (N, T, _) = problem.params, problem.x.shape
    sizes = CELLS[params.cell], params.hidden_size, params.dtype
    return choose(Layer(*sizes, precision, cupy.cuda.Device(), N, T, blocks)).name


@pytest.fixture
def exchange(monkeypatch: pytest.MonkeyPatch, cupy: Library) -> Iterator[Library]:
    """CuPy, with the loop of `exchange` where it suits; small blocks where they are acted out."""
    from fastgru import packed
    from fastgru.kernels.cuda import choice, exchange

    monkeypatch.setattr(choice, "CHOICES", (choice.EXCHANGE, *choice.CHOICES))
    if cupy.name != "cupy":
        monkeypatch.setattr(exchange, "_THREADS", 16)
        monkeypatch.setattr(exchange, "LONGEST_PART", 4)
        monkeypatch.setattr(exchange, "_SHARED_BYTES", 600)
    packed._architecture.cache_clear()
    exchange._kernels.cache_clear()
    yield cupy
    exchange._kernels.cache_clear()


# Acted out: one block, three with one unit in the last, four. On a GPU: eight, and more.
EXCHANGED = {"simulated cupy": (5, 9, 16), "cupy": (256, 300, 512)}


@pytest.mark.parametrize("groups", ["one", "many"])
@pytest.mark.parametrize("lengths", [None, [2, 8, 0, 1, 4, 8]])
@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_exchange(
    cell: str,
    size: int,
    lengths: Any,
    groups: str,
    exchange: Library,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Groups of blocks with one tile of rows each, and one group that takes all, in turns.

    In one launch, and in several, each with exchanges.
    """
    from fastgru.kernels.cuda import exchange as loop
    from fastgru.kernels.cuda import recurrence

    H, many = EXCHANGED[exchange.name][size], 4 if exchange.name == "cupy" else 1
    tiles = loop.tiles_for(CELLS[cell], H, np.dtype("float32"))
    assert tiles is not None
    assert (tiles.forward.rows < tiles.forward.parts) == (size > 0)
    if groups == "one":
        monkeypatch.setattr(loop, "_multiprocessors", lambda device: tiles.slices)
    problem = draw(
        cell, (6 * many, 8, 3, H), D=2, lengths=lengths and lengths * many, dtype="float32"
    )
    assert chosen(problem, exchange) == "exchange"
    want = solve(problem.astype("float64"))
    for block_bytes in (recurrence._BLOCK_BYTES, 300 * H * many):
        monkeypatch.setattr(recurrence, "_BLOCK_BYTES", block_bytes)
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


def test_words_of_all_bits(cuda_tools: None) -> None:
    from fastgru.kernels.cuda.intrinsics import get_word, put_word

    words = np.zeros((2, 1, 1), np.uint64)
    patterns = np.array([0, 1, 0x7FC00000, 0xFFFFFFFF, 0x7F800000, 0x80000000], np.uint32)
    for number in (1, 2**32 - 1, 2**32 + 5):
        for value in patterns.view(np.float32):
            put_word(words, 1, 0, 0, number, value)
            found, back = get_word(words, 1, 0, 0)
            assert found == number & 0xFFFFFFFF
            assert np.float32(back).view(np.uint32) == value.view(np.uint32)


def test_a_kernel_that_waits_for_ever_is_an_error(simulated: Library) -> None:
    """In the simulator, so that the tests above do not hang."""
    import simulated_cuda

    cuda = simulated_cuda.Cuda((2, 1), (2, 1))

    def deadlock() -> None:
        if cuda.blockIdx.x == 1:
            cuda.syncthreads()
            return
        while True:
            cuda.nanosleep(0)

    def missing() -> None:
        if cuda.threadIdx.x == 1:
            cuda.syncthreads()

    with pytest.raises(RuntimeError, match="2 threads wait for each other"):
        cuda.run(deadlock, waits=True, together=True)
    with pytest.raises(RuntimeError, match="1 threads ended, others wait"):
        cuda.run(missing, waits=True, together=False)


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


def test_what_the_resident_loop_does_not_suit(resident: Library) -> None:
    for cell in CELLS:
        one_phase = cell in ("gru", "lstm")
        small = draw(cell, (1, 1, 1, 32), dtype="float32")
        assert chosen(small, resident) == ("resident" if one_phase else "steps")
    problem = draw("gru", (1, 1, 1, 32))
    assert chosen(problem, resident) == "steps"
    assert chosen(problem.astype("float32"), resident, "tf32") == "steps"
    assert chosen(draw("gru", (1, 1, 1, 300), dtype="float32"), resident) == "steps"


def test_no_loop_that_has_never_run_on_a_gpu_is_chosen(simulated: Library) -> None:
    for cell in CELLS:
        for H in (1, 32, 512):
            assert chosen(draw(cell, (1, 1, 1, H), dtype="float32"), simulated) == "steps"


# --- the loop of clusters and tensor cores --------------------------------------------------------


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch, cupy: Library) -> Iterator[Library]:
    """CuPy, with the loop of `cluster` where it suits; few units where blocks are acted out."""
    from fastgru import packed
    from fastgru.kernels.cuda import choice, cluster

    monkeypatch.setattr(choice, "CHOICES", (choice.CLUSTER, *choice.CHOICES))
    if cupy.name != "cupy":
        monkeypatch.setattr(cluster, "_MOST_UNITS", 16)
    elif int(cupy.asarray(np.zeros(1)).device.compute_capability) < 90:
        pytest.skip("clusters need a GPU of compute capability 9.0")
    packed._architecture.cache_clear()
    cluster._kernels.cache_clear()
    yield cupy
    cluster._kernels.cache_clear()


# Acted out: a block alone, two, and three.
CLUSTERED = {"simulated cupy": (13, 24, 40), "cupy": (32, 200, 512)}


def solve_roughly(problem: Problem, library: Library, precision: str) -> tuple[Any, ...]:
    """All results and gradients in reduced precision."""
    x, params, h0, lengths, dy, dh_n = library.take(problem)
    y, h_n, saved = fastgru.forward_train(
        x, params, as_state(h0), lengths=lengths, precision=precision
    )
    gradients = fastgru.backward(saved, dy, as_state(dh_n))
    return tuple(flatten(*library.give((y, h_n, gradients))))


def assert_clusters_are_right(problem: Problem, library: Library, precision: str) -> None:
    """As the loop of `steps`, which rounds the same numbers before it multiplies them."""
    from fastgru import packed
    from fastgru.kernels.cuda import choice

    assert chosen(problem, library, precision) == "cluster"
    found = solve_roughly(problem, library, precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "CHOICES", (choice.STEPS,))
        packed._architecture.cache_clear()
        want = solve_roughly(problem, library, precision)
    packed._architecture.cache_clear()
    exact = flatten(*solve(problem.astype("float64")))
    rounding = 2.0 ** -{"bf16": 8, "tf32": 11}[precision]
    close = []
    for a, b, c in zip(found, want, exact, strict=True):
        assert_close(a, b, 4 * rounding)
        assert_close(a, c, 16 * rounding)
        close.append((np.abs(a - b) <= 64 * EPS * np.maximum(1, np.abs(b))).ravel())
    if library.name != "cupy":  # cuBLAS may round otherwise
        # Where a number lies between two, another order of the sums before can turn its rounding.
        assert np.mean(np.concatenate(close)) > 0.9


@pytest.mark.parametrize("lengths", [None, [2, 3, 0, 1, 3, 3, 2, 1, 3]])
@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters(cell: str, precision: str, size: int, lengths: Any, clusters: Library) -> None:
    """Two tiles of rows, the second of one row."""
    problem = draw(
        cell, (9, 3, 3, CLUSTERED[clusters.name][size]), lengths=lengths, dtype="float32"
    )
    assert_clusters_are_right(problem, clusters, precision)


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters_with_little_room(
    cell: str, precision: str, clusters: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights beside the registers, one place for the vectors; launches that go on with others."""
    from fastgru.kernels.cuda import cluster, recurrence, tensor_product

    # Products of one pair, and of two; how many have their weights in registers.
    H, units, pairs, held = {"bf16": (24, 16, 1, 2), "tf32": (104, 48, 2, 2)}[precision]
    if clusters.name == "cupy":
        H = 512
    else:
        monkeypatch.setattr(cluster, "_MOST_UNITS", units)
        monkeypatch.setattr(tensor_product, "_MOST_HELD", 8 * held)
        roomy = cluster.tiles_for(CELLS[cell], H, np.dtype("float32"), precision)
        assert roomy is not None
        enough = 4 * (roomy.backward.words + int(np.prod(roomy.backward.sums)))
        monkeypatch.setattr(cluster, "_SHARED_BYTES", enough - 1)
        tiles = cluster.tiles_for(CELLS[cell], H, np.dtype("float32"), precision)
        assert tiles is not None
        assert (tiles.forward.places, tiles.backward.places) == (2, 1)
        assert {(tile.pairs, tile.held) for tile in tiles} == {(pairs, held)}
    problem = draw(cell, (2, 4, 3, H), lengths=[4, 3], dtype="float32")
    for size in (recurrence._BLOCK_BYTES, 7000):
        monkeypatch.setattr(recurrence, "_BLOCK_BYTES", size)
        assert_clusters_are_right(problem, clusters, precision)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters_give_the_same_bits_each_time(cell: str, clusters: Library) -> None:
    """Whatever the order in which blocks and threads get on; in both directions."""
    shape = (9, 4, 3, CLUSTERED[clusters.name][1])
    problem = draw(cell, shape, D=2, lengths=[4, 4, 3, 0, 3, 1, 2, 4, 4], dtype="float32")
    want = solve_roughly(problem, clusters, "bf16")
    for _ in range(200 if clusters.name == "cupy" else 3):
        assert_same_bits(solve_roughly(problem, clusters, "bf16"), want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_clusters_keep_rows_apart(value: float, clusters: Library) -> None:
    clean = draw("gru", (5, 4, 3, CLUSTERED[clusters.name][1]), dtype="float32")
    spoilt = clean._replace(x=clean.x.copy())
    spoilt.x[2] = value
    found, want = (solve_roughly(p, clusters, "bf16")[0] for p in (spoilt, clean))
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(found[others], want[others])
    assert np.isnan(found[2]).any() or abs(value) == np.inf


def test_what_clusters_do_not_suit(clusters: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw("gru", (1, 1, 1, 24), dtype="float32")
    if clusters.name != "cupy":
        kind = type(clusters.asarray(np.zeros(1)).device)
        fits = 2, 232_448, "90"
        for has in (fits, (1, 232_448, "90"), (2, 16_000, "90"), (2, 232_448, "89"), fits):
            count, shared, capability = has
            room = {"MultiProcessorCount": count, "MaxSharedMemoryPerBlockOptin": shared}
            monkeypatch.setattr(kind, "attributes", room)
            monkeypatch.setattr(kind, "compute_capability", capability)
            assert chosen(problem, clusters, "bf16") == ("cluster" if has == fits else "steps")
    assert chosen(problem, clusters) == "steps"
    assert chosen(draw("gru_reset_before", (1, 1, 1, 24)).astype("float32"), clusters, "bf16") == (
        "steps"
    )
    assert chosen(draw("gru", (1, 1, 1, 600), dtype="float32"), clusters, "bf16") == "steps"


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters_are_for_all_sizes_up_to_512(cell: str, precision: str, cuda_tools: None) -> None:
    from fastgru.kernels.cuda.cluster import tiles_for

    gates = len(CELLS[cell].recurrent_gates)
    for H in (1, 16, 100, 300, 512):
        tiles = tiles_for(CELLS[cell], H, np.dtype("float32"), precision)
        assert tiles is not None
        for tile in tiles:
            assert tile.blocks * tile.units >= H
            assert tile.threads <= 256
            words = gates * tile.units * 4 * 16 * tile.pairs  # in four parts, padded
            assert tile.first_vector == words - 8 * tile.held * tile.threads
    assert tiles_for(CELLS[cell], 513, np.dtype("float32"), precision) is None


def test_numbers_are_rounded_to_the_nearest(cuda_tools: None) -> None:
    """For each precision the numbers on both sides, and the one that is taken."""
    from fastgru.kernels.cuda.intrinsics import one_tf32, two_bf16

    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(size=500), [0, 1e-40, -1e30, np.inf, -np.inf]])
    values = np.append(values, [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11]).astype("float32")
    for value in values:
        both = int(two_bf16(value, -value))
        tf32 = int(one_tf32(value))
        assert tf32 & 0x1FFF == 0
        for bits, step in ((both << 16 & 0xFFFFFFFF, 1 << 16), (tf32, 1 << 13)):
            near = np.array([bits, bits - step, bits + step], np.int64).astype(np.uint32)
            if np.isinf(value):
                assert near.view(np.float32)[0] == value
                continue
            distances = np.abs(near.view(np.float32).astype("float64") - value)
            assert distances[0] == np.nanmin(distances)  # beside 0 is a NaN
        high = np.array(both & 0xFFFF0000, np.uint32).view(np.float32)
        low = np.array(both << 16 & 0xFFFFFFFF, np.uint32).view(np.float32)
        assert high == -low
    assert [int(two_bf16(v, 0)) for v in values[-3:-1]] == [0x3F80, 0x3F82]  # halves: to even
    assert int(one_tf32(values[-1])) == 0x3F802000  # halves: away from 0
    for number in (two_bf16(np.float32(np.nan), 0) << 16, one_tf32(np.float32(np.nan))):
        assert np.isnan(np.array(number, np.uint32).view(np.float32))


def test_a_cluster_that_does_not_meet_is_an_error(simulated: Library) -> None:
    """In the simulator, so that the tests above do not hang or pass by chance."""
    import simulated_cuda

    cuda = simulated_cuda.Cuda((1, 2), (32, 1), 4)

    def run(kernel: Callable[[], object]) -> None:
        cuda.run(kernel, waits=True, together=False, cluster=2)

    def alone() -> None:
        if cuda.blockIdx.y == 1:
            cuda.arrive_at_cluster()
            cuda.wait_for_cluster()

    def too_early() -> None:
        words = cuda.shared.array(0, np.dtype("uint32"))
        cuda.shared_by(words, 1 - cuda.blockIdx.y)[0] = 1

    def twice() -> None:
        cuda.arrive_at_cluster()
        cuda.arrive_at_cluster()

    with pytest.raises(RuntimeError, match="wait for each other for ever"):
        run(alone)
    with pytest.raises(AssertionError, match="a block may not have started"):
        run(too_early)
    with pytest.raises(AssertionError, match="arrives twice"):
        run(twice)
    with pytest.raises(AssertionError, match="has not arrived"):
        run(cuda.wait_for_cluster)
    with pytest.raises(AssertionError, match="ends before its cluster's barrier"):
        run(cuda.arrive_at_cluster)


# --- the loop that repeats a CUDA graph -----------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, cupy: Library) -> Library:
    """CuPy, with the loop of `graph` where it suits, for few steps too."""
    from fastgru import packed
    from fastgru.kernels.cuda import choice, graph

    monkeypatch.setattr(choice, "CHOICES", (choice.GRAPH, *choice.CHOICES))
    monkeypatch.setattr(graph, "_FEWEST_STEPS", 0)
    monkeypatch.setattr(graph, "_of_thread", graph._OfThread())
    packed._architecture.cache_clear()
    return cupy


def kept_plans() -> list[Any]:
    """What repeats the passes of this thread."""
    from fastgru.kernels.cuda import graph

    return list(graph._of_thread.plans.values())


def assert_right(problem: Problem, library: Library) -> None:
    """All results and gradients of a float64 problem."""
    for a, b in zip(flatten(*solve(problem, library)), flatten(*solve(problem)), strict=True):
        assert_close(a, b, 64 * np.finfo("float64").eps)


@pytest.mark.parametrize("lengths", [None, [2, 4, 0, 1, 4]])
@each_cell
def test_graphs(cell: str, lengths: Any, graphs: Library) -> None:
    """Captured at the second pass, and repeated with other values and other weights."""
    for number in range(4):
        problem = draw(cell, (5, 4, 3, 6), D=2, lengths=lengths, seed=number)
        assert chosen(problem, graphs) == "graph"
        assert_right(problem, graphs)
        x, params, h0, steps, _, _ = graphs.take(problem)
        y, h_n = fastgru.forward(x, params, as_state(h0), lengths=steps)
        for a, b in zip(flatten(graphs.give((y, h_n))), flatten(*solve(problem)[:2]), strict=True):
            assert_close(a, b, 64 * np.finfo("float64").eps)
        # Each direction, forward (with values kept, and without) and backward.
        assert len(kept_plans()) == (0 if number == 0 else 6)


def test_graphs_give_the_same_bits_each_time(graphs: Library) -> None:
    """At the first pass too, which is launched step by step."""
    problem = draw("gru", (5, 9, 3, 24), dtype="float32")
    want = solve(problem, graphs)
    for _ in range(200 if graphs.name == "cupy" else 2):
        assert_same_bits(solve(problem, graphs), want)


def test_graphs_without_dy(graphs: Library) -> None:
    """What stands for dy is not read; layers of one size have a graph in common."""
    problem = draw("gru", (3, 4, 3, 6), L=3)
    for _ in range(2):
        found = []
        for library in (graphs, NUMPY):
            x, params, h0, _, _, dh_n = library.take(problem)
            _, _, saved = fastgru.forward_train(x, params, as_state(h0))
            gradients = fastgru.backward(saved, dh_n=as_state(dh_n))
            found.append(flatten(library.give(gradients)))
        for a, b in zip(*found, strict=True):
            assert_close(a, b, 64 * np.finfo("float64").eps)
    assert len(kept_plans()) == 3  # forward; backward with the gradient of y, and without


def test_graphs_of_other_orders_and_precisions(graphs: Library) -> None:
    """Passes whose arrays have equal shapes, in turns."""
    lengths: list[Any] = [[4, 2, 1, 3, 4], [4, 4, 3, 2, 1], [4, 4, 2, 2, 2]]
    for number in range(9):
        problem = draw("gru", (5, 4, 3, 6), lengths=lengths[number % 3], seed=number)
        assert_right(problem, graphs)
    x, params, h0, _, _, _ = graphs.take(draw("gru", (5, 4, 3, 6), dtype="float32"))
    found: dict[Any, list[Any]] = {None: [], "tf32": [], "bf16": []}
    for _ in range(4):
        for precision, ys in found.items():
            y, _ = fastgru.forward(x, params, as_state(h0), precision=precision)
            ys.append(graphs.give(y))
    for ys in found.values():
        for y in ys:
            assert_same_bits((y,), (ys[0],))
    if graphs.name != "cupy":  # cuBLAS may compute small products in float32
        assert np.abs(found["bf16"][3] - found[None][3]).max() > 1e-4


def test_graphs_of_a_thread_are_bounded(graphs: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five kinds of passes, and room for some: those that have a graph keep it."""
    from fastgru.kernels.cuda import graph

    monkeypatch.setattr(graph, "_MOST_BYTES_OF_THREAD", 30_000)
    kept: list[Any] = []
    for number in range(4):
        for N in range(1, 6):
            assert_right(draw("gru", (N, 4, 3, 6), seed=number), graphs)
        plans = kept_plans()
        assert graph._of_thread.size == sum(plan.size for plan in plans) <= 30_000
        if number > 1:
            assert {id(plan) for plan in plans} == {id(plan) for plan in kept}
        kept = plans
    assert 0 < len(kept) < 10
    monkeypatch.setattr(graph, "_RECENT", 2)
    for number in range(2):  # kinds that did not come of late make room
        assert_right(draw("gru", (7, 4, 3, 6), seed=number), graphs)
    assert any(len(plan.others[2].ragged.order) == 7 for plan in kept_plans())


def test_graphs_are_not_captured_for_many_kinds_in_turns(
    graphs: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgru.kernels.cuda import graph

    monkeypatch.setattr(graph, "_RECENT", 8)
    for _ in range(3):
        for N in range(1, 6):
            assert_right(draw("gru", (N, 4, 3, 6)), graphs)
            assert len(graph._of_thread.recent) <= 8
    assert kept_plans() == []


def test_graphs_of_several_threads(graphs: Library) -> None:
    import threading

    problem = draw("gru", (3, 4, 3, 6))
    for _ in range(2):
        assert_right(problem, graphs)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(kept_plans()))
    thread.start()
    thread.join()
    assert found == [[]]
    assert len(kept_plans()) == 2


def test_graphs_of_several_streams_and_devices(
    graphs: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    if graphs.name == "cupy":
        pytest.skip("acted out only")
    import cupy

    problem = draw("lstm", (3, 4, 3, 6))
    first, second = cupy.cuda.get_current_stream(), cupy.cuda.Stream()
    for count, stream in ((2, first), (2, second), (1, first), (1, second)):
        monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda stream=stream: stream)
        for _ in range(count):
            assert_right(problem, graphs)
        stream.synchronize()
    assert len(kept_plans()) == 4
    with cupy.cuda.Device(1):
        for _ in range(2):
            assert_right(problem, graphs)
    devices = [plan.arrays.weights.hh.device.id for plan in kept_plans()]
    assert sorted(devices) == [0, 0, 0, 0, 1, 1]


def test_graphs_that_cannot_be_captured(
    graphs: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pass is launched step by step, the log says why, and it is not tried again."""
    from fastgru.kernels.cuda import graph

    problem = draw("gru", (3, 4, 3, 6))
    runs, kind = [], graph._FORWARD_TO_KEEP

    def failing(context: Any, arrays: Any) -> Any:
        run = kind.prepare(context, arrays)

        def run_once(first: int, last: int) -> None:
            runs.append(context.stream)
            if len(runs) == 3:  # one step by step, one to try, one while capturing
                raise RuntimeError("capture is invalid")
            run(first, last)

        return run_once

    with monkeypatch.context() as patch:
        patch.setattr(graph, "_FORWARD_TO_KEEP", kind._replace(prepare=failing))
        for _ in range(4):
            assert_right(problem, graphs)
    # Step by step; once to try and once to be captured; then step by step.
    assert [runs.index(stream) for stream in runs] == [0, 1, 1, 0, 0, 0]
    assert [record.exc_text for record in caplog.records if record.exc_info]
    assert "capture is invalid" in caplog.text
    assert caplog.text.count("a pass was not captured") == 1
    assert_right(problem, graphs)


def test_graphs_without_cublas(
    graphs: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fastgru.kernels.cuda import blas

    def missing() -> None:
        raise RuntimeError("cuBLAS: another version")

    monkeypatch.setattr(blas, "Handle", missing)
    for _ in range(3):
        assert_right(draw("gru", (3, 4, 3, 6)), graphs)
    assert kept_plans() == []
    assert caplog.text.count("RuntimeError: cuBLAS: another version") == 1


def test_what_graphs_do_not_suit(graphs: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgru.kernels.cuda import graph

    problem = draw("gru", (2, 4, 1, 6))
    assert chosen(problem, graphs) == "graph"
    assert chosen(problem, graphs, blocks=2) == "steps"
    monkeypatch.setattr(graph, "_FEWEST_STEPS", 5)
    assert chosen(problem, graphs) == "steps"
    assert chosen(draw("gru", (1, 2049, 1, 2)), graphs) == "steps"
    assert chosen(draw("gru", (64, 256, 1, 100)), graphs) == "steps"
    assert chosen(draw("gru", (1, 9, 1, 1700)), graphs) == "steps"


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What comes at a library with the signatures of cuBLAS's documentation; it is version 7."""
    import ctypes
    import types

    pytest.importorskip("numba_cuda")
    from fastgru.kernels.cuda import blas

    i, p = ctypes.c_int, ctypes.c_void_p
    # Handle, operations, m, n, k, alpha, A, its type and leading dimension, B, beta, C, compute
    # type, algorithm.
    gemm = (p, i, i, i, i, i, p, p, i, i, p, i, i, p, p, i, i, i, i)
    kinds: dict[str, tuple[Any, ...]] = {
        "cublasCreate_v2": (p,),
        "cublasDestroy_v2": (p,),
        "cublasGetVersion_v2": (p, p),
        "cublasSetStream_v2": (p, p),
        "cublasSetWorkspace_v2": (p, p, ctypes.c_size_t),
        "cublasGemmEx": gemm,
    }
    assert {name: tuple(own) for name, own in blas._SIGNATURES.items()} == kinds
    came: list[Any] = []

    def stub(name: str) -> Any:
        def note(*arguments: Any) -> int:
            if name == "cublasCreate_v2":
                ctypes.cast(arguments[0], ctypes.POINTER(ctypes.c_size_t))[0] = 2**50
            elif name == "cublasGetVersion_v2":
                ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_int))[0] = 7
            else:
                came.append((name, *arguments))
            return 13 if arguments[1:2] == (99,) else 0

        return ctypes.CFUNCTYPE(i, *kinds[name])(note)

    library = types.SimpleNamespace(**{name: stub(name) for name in kinds})
    monkeypatch.setattr(blas, "_library", lambda: library)
    monkeypatch.setattr(blas, "_version_for_cupy", lambda: 7)
    return came


def test_cublas_is_called_with_what_it_expects(noted: list[Any]) -> None:
    import types

    from fastgru.kernels.cuda import blas

    at = types.SimpleNamespace
    handle = blas.Handle()
    multiply = handle.on(2**63 + 2**41, at(data=at(ptr=2**40), nbytes=2**33))
    assert noted == [
        ("cublasSetStream_v2", 2**50, 2**63 + 2**41),
        ("cublasSetWorkspace_v2", 2**50, 2**40, 2**33),
    ]
    matrix = at(dtype=np.dtype("float32"), data=at(ptr=2**42))
    a, b, c = (blas.Matrix(matrix, start, 10 + start) for start in (1, 2, 3))
    blas.gemm(4, 5, 6, a, b._replace(transposed=True), c, add=True, multiply=multiply)
    told = [*noted[2][2:]]
    one = told[5]
    assert ctypes.c_float.from_address(one).value == 1
    assert told == [1, 0, 5, 4, 6, one, 2**42 + 8, 0, 12, 2**42 + 4, 0, 11, one, 2**42 + 12, 0, 13,
                    68, -1]  # fmt: skip
    with pytest.raises(RuntimeError, match="cublasSetStream_v2 failed with status 13"):
        handle.on(99, None)
    del handle, multiply
    assert noted[-1] == ("cublasDestroy_v2", 2**50)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(
    ("dtype", "precision", "kind", "compute"),
    [
        ("float32", None, 0, 68),
        ("float32", "tf32", 0, 77),
        ("float32", "bf16", 0, 75),
        ("float64", None, 1, 70),
    ],
)
def test_products_are_prepared_once(
    cuda_tools: None, dtype: str, precision: Any, kind: int, compute: int, add: bool
) -> None:
    from fastgru.kernels.cuda import blas

    def matrix(address: int, start: int, stride: int) -> Any:
        memory = types.SimpleNamespace(ptr=address)
        return blas.Matrix(types.SimpleNamespace(dtype=np.dtype(dtype), data=memory), start, stride)

    told: list[Any] = []
    a, b, c = matrix(1000, 1, 20), matrix(2000, 2, 30), matrix(3000, 3, 40)
    options: Any = {"precision": precision, "multiply": lambda *numbers: told.append(numbers)}
    product = blas.product(5, 6, a, b, c, add=add, **options)
    for rows, offset in ((4, 0), (0, 0), (3, 7)):
        product(rows, offset)
    blas.product(0, 6, a, b, c, add=add, **options)(4, 0)
    size = np.dtype(dtype).itemsize
    number: Any = {4: ctypes.c_float, 8: ctypes.c_double}[size]
    for (rows, offset), found in zip(((4, 0), (3, 7)), told, strict=True):
        alpha, beta = found[5], found[12]
        assert number.from_address(alpha).value == 1
        assert number.from_address(beta).value == add
        assert found == (
            0, 0, 5, rows, 6, alpha, 2000 + 2 * size, kind, 30,
            1000 + (1 + offset) * size, kind, 20, beta, 3000 + 3 * size, kind, 40, compute, -1,
        )  # fmt: skip


def test_another_cublas_than_that_of_cupy_is_refused(
    noted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgru.kernels.cuda import blas

    monkeypatch.setattr(blas, "_version_for_cupy", lambda: 6)
    with pytest.raises(RuntimeError, match="expected version 6, which CuPy uses, got 7"):
        blas.Handle()
    assert noted == [("cublasDestroy_v2", 2**50)]


class Event:
    """PyTorch's, as far as they are used: a second passes between two."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        """Nothing runs later."""

    def synchronize(self) -> None:
        """Nothing runs later."""

    def elapsed_time(self, other: "Event") -> float:
        """In milliseconds."""
        return 1000.0


def test_loops_take_turns_in_benchmarks(
    simulated: Library,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import json
    import types

    from fastgru.benchmarks import compare_peers, gpu_peers
    from fastgru.kernels.cuda import choice, exchange, graph

    torch: Any = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(Event=Event, get_device_name=lambda: "acted out")
    torch.__version__ = "2"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(gpu_peers, "QUICK", ((2, 8),))
    monkeypatch.setattr(gpu_peers, "T", 3)
    monkeypatch.setattr(graph, "_FEWEST_STEPS", 3)
    monkeypatch.setattr(graph, "_of_thread", graph._OfThread())
    table = choice.CHOICES

    def failing(context: Any, arrays: Any) -> Any:
        raise RuntimeError("no exchange today")

    monkeypatch.setattr(
        choice, "LOOPS", [loop._replace(forward=failing) if loop is choice.EXCHANGE else loop
                          for loop in choice.LOOPS],
    )  # fmt: skip
    monkeypatch.setattr(exchange, "_THREADS", 16)
    options = ["--gpu", "--loops", "--quick", "--cell", "gru", "--json", str(tmp_path / "a.json")]
    assert compare_peers.main(options) == 1
    (*rows,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [(row["mode"], row["precision"]) for row in rows] == [
        (mode, precision)
        for mode in ("forward", "train")
        for precision in ("float32", "tf32", "bf16")
    ]
    for row in rows:
        on_chip = "resident" if row["precision"] == "float32" else "cluster"
        assert [name.split()[0] for name in row["seconds"]] == [on_chip, "graph", "steps"]
        assert set(row["wrong"].values()) <= {"RuntimeError: no exchange today"}
        assert bool(row["wrong"]) == (row["precision"] == "float32")
        assert list(row["host"]) == list(row["seconds"])
        assert all(min(laps) > 0 for laps in row["host"].values())
    assert "steps 1000000" in capsys.readouterr().out
    assert choice.CHOICES is table
    assert [plan for plan in kept_plans() if hasattr(plan.arrays, "dy")]
    with pytest.raises(SystemExit):
        compare_peers.main(["--loops"])


def test_show_config_names_the_gpu(
    simulated: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cupy

    fastgru.show_config()
    assert "GPU               simulated, compute capability 90" in capsys.readouterr().out

    def no_device() -> None:
        raise RuntimeError("cudaErrorNoDevice")

    monkeypatch.setattr(cupy.cuda, "Device", no_device)
    fastgru.show_config()
    assert "cupy arrays       not supported here: cudaErrorNoDevice" in capsys.readouterr().out


# --- installation ---------------------------------------------------------------------------------

WITHOUT_NUMBA_CUDA = """
import importlib.util
import fastgru.backends

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba_cuda" else real(name, *rest)
try:
    fastgru.backends.backend("cupy")
except ModuleNotFoundError as error:
    print(error)
fastgru.show_config()
"""


def test_what_to_install_is_said() -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_NUMBA_CUDA]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wanted = 'CuPy arrays need numba-cuda, which is not installed: pip install "fastgru[cuda12]"'
    assert done.stdout.startswith(wanted)
    assert f"not supported here: {wanted}" in done.stdout


@pytest.fixture
def asked(cuda_tools: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the driver, acted out, was asked for: the arguments of each call by its name."""
    from fastgru.kernels.cuda import launch

    calls: dict[str, list[Any]] = collections.defaultdict(list)

    def stand_in(name: str, *values: Any) -> None:
        def answer(*given: Any) -> tuple[Any, ...]:
            calls[name].append(given)
            return launch.driver.CUresult.CUDA_SUCCESS, *values

        monkeypatch.setattr(launch.driver, name, answer)

    stand_in("cuModuleLoadData", "module")
    stand_in("cuModuleGetFunction", "function")
    stand_in("cuOccupancyMaxActiveClusters", 7)
    for name in ("FuncSetAttribute", "LaunchKernel", "LaunchKernelEx", "LaunchCooperativeKernel"):
        stand_in(f"cu{name}")
    assembled = launch.Assembled("name", b"", "")
    monkeypatch.setattr(launch.Kernel, "assembled", lambda self, capability: assembled)
    return calls


def launched_kernel(grid: tuple[int, int], stream: int, **options: Any) -> Any:
    """A kernel without arrays, launched once in blocks of 96 threads."""
    from fastgru.kernels.cuda import launch

    def nothing(step: int) -> None:
        return

    kernel = launch.Kernel(nothing, np.dtype("float32"), None, 96, **options)
    device = types.SimpleNamespace(id=0, compute_capability="90")
    kernel.bind(device)(grid, (96, 1), stream, 5)
    return kernel, device


def test_launches(asked: dict[str, list[Any]]) -> None:
    """Of blocks on their own, and of blocks that wait for each other."""
    for name, last in (("LaunchKernel", (0,)), ("LaunchCooperativeKernel", ())):
        launched_kernel((5, 2), 3000, together=name == "LaunchCooperativeKernel")
        ((*how, where),) = [call[:10] for call in asked[f"cu{name}"]]
        assert tuple(how) == ("function", 5, 2, 1, 96, 1, 1, 0, 3000)
        assert where > 0
        assert asked[f"cu{name}"][0][10:] == last
    assert not asked["cuFuncSetAttribute"]
    assert not asked["cuLaunchKernelEx"]


@pytest.mark.parametrize(("blocks", "shared", "count"), [(2, 0, 0), (8, 5000, 1), (16, 5000, 2)])
def test_launches_of_clusters(
    blocks: int, shared: int, count: int, asked: dict[str, list[Any]]
) -> None:
    from fastgru.kernels.cuda import launch

    driver = launch.driver
    kernel, device = launched_kernel((5, blocks), 0, cluster=blocks, shared_bytes=shared)
    assert kernel.clusters_at_once(device) == 7
    allowed = {
        driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: shared,
        driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: 1,
    }
    assert len(asked["cuFuncSetAttribute"]) == count
    for function, attribute, value in asked["cuFuncSetAttribute"]:
        assert (function, value) == ("function", allowed[attribute])
    ((config, function, _, _),) = asked["cuLaunchKernelEx"]
    ((same_function, of_one),) = asked["cuOccupancyMaxActiveClusters"]
    assert function == same_function == "function"
    assert int(config.hStream) == launch._LEGACY_STREAM
    for asked_for, width in ((config, 5), (of_one, 1)):
        grid = asked_for.gridDimX, asked_for.gridDimY, asked_for.gridDimZ
        assert grid == (width, blocks, 1)
        assert (asked_for.blockDimX, asked_for.blockDimY, asked_for.blockDimZ) == (96, 1, 1)
        assert asked_for.sharedMemBytes == shared
        (cluster,) = asked_for.attrs
        assert asked_for.numAttrs == 1
        assert cluster.id == driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        shape = cluster.value.clusterDim
        assert (shape.x, shape.y, shape.z) == (1, blocks, 1)


def test_a_device_that_cannot_form_a_cluster(
    asked: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgru.kernels.cuda import launch

    kernel, device = launched_kernel((5, 16), 0, cluster=16)
    for error, message in (("INVALID_CLUSTER_SIZE", None), ("INVALID_HANDLE", "INVALID_HANDLE")):
        status = getattr(launch.driver.CUresult, f"CUDA_ERROR_{error}")
        monkeypatch.setattr(
            launch.driver, "cuOccupancyMaxActiveClusters", lambda *given, s=status: (s, 0)
        )
        named = (launch.driver.CUresult.CUDA_SUCCESS, error.encode())
        for name in ("cuGetErrorName", "cuGetErrorString"):
            monkeypatch.setattr(launch.driver, name, lambda s, named=named: named)
        if message is None:
            assert kernel.clusters_at_once(device) == 0
        else:
            with pytest.raises(RuntimeError, match=message):
                kernel.clusters_at_once(device)


def test_kernels_take_words_as_they_are_laid_out(
    cuda_tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each array two words, size, item size, address, shape and strides; then the numbers."""
    from numba import cuda
    from numba.cuda import dispatcher

    from fastgru.kernels.cuda import launch, pointwise, rows

    array = types.SimpleNamespace(
        ndim=3,
        size=24,
        itemsize=4,
        shape=(2, 3, 4),
        strides=(48, 16, 4),
        data=types.SimpleNamespace(ptr=7),
    )
    given: list[int] = []

    def of_one_array(values: Any, step: int, reverse: bool) -> None:
        return

    kernel = launch.Kernel(of_one_array, np.dtype("float32"), None)
    monkeypatch.setattr(kernel, "_handle", lambda device: None)
    monkeypatch.setattr(kernel, "launch", lambda *how: given.append(how[-1]))

    def launched(pointer: int) -> Any:
        array.data.ptr = pointer
        call = kernel.bind(None, array)
        call((1, 1), (1, 1), 0, 8, True)
        return call

    def words() -> list[int]:
        where = (ctypes.c_void_p * 13).from_address(given[-1])
        return [ctypes.c_int64.from_address(address or 0).value for address in where]

    first, second = launched(7), launched(9)
    assert words() == [0, 0, 24, 4, 9, 2, 3, 4, 48, 16, 4, 8, 1]
    del first  # its memory is used again, that of the second is not
    third = launched(11)
    assert words() == [0, 0, 24, 4, 11, 2, 3, 4, 48, 16, 4, 8, 1]
    assert given[2] == given[0] != given[1]
    fourth = launched(13)
    assert given[3] not in given[:3]
    del fourth
    second((1, 1), (1, 1), 0, 9, False)
    assert words() == [0, 0, 24, 4, 9, 2, 3, 4, 48, 16, 4, 9, 0]
    with pytest.raises(TypeError, match="expected 2 numbers"):
        third((1, 1), (1, 1), 0, 8)
    with pytest.raises(TypeError, match=r"expected arrays of \[3\] dimensions, got \[3, 3\]"):
        kernel.bind(None, launch.Placed.of(array), array)
    fill = launch.Kernel(lambda packed, values: None, np.dtype("float32"), None)
    flat = types.SimpleNamespace(ndim=2)
    with pytest.raises(TypeError, match=r"expected arrays of \[2, 3\] dimensions, got \[3, 2\]"):
        fill.bind(None, array, flat)

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        device = types.SimpleNamespace(compute_capability=(9, 0))
        context.setattr(dispatcher, "get_current_device", lambda: device)
        for function in (
            rows.FUNCTIONS["add_sequence"],
            pointwise.make_backward_phase(CELLS["lstm"], 0),
        ):
            signature = launch.signature_of(function, np.dtype("float32"))
            ptx, _ = cuda.compile(function, signature, device=False, abi="numba", cc=(9, 0))
            entry = ptx.partition(".entry")[2].partition(")")[0]
            arrays = [kind.ndim for kind in signature.args if hasattr(kind, "ndim")]
            count = sum(5 + 2 * ndim for ndim in arrays) + len(signature.args) - len(arrays)
            assert entry.count(".param .u64") + entry.count(".param .b64") == count
            assert entry.count(".param") == count
