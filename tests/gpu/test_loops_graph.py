"""The loop that repeats a CUDA graph."""

import threading
from typing import Any

import numpy as np
import pytest
from gpu_tools import Tune, UseLoops, chosen
from problems import (
    NUMPY,
    Library,
    Problem,
    as_state,
    assert_close,
    assert_same_bits,
    draw,
    each_cell,
    flatten,
    solve,
)

import fastgru


@pytest.fixture
def graphs(
    use_loops: UseLoops, tune: Tune, cupy: Library, monkeypatch: pytest.MonkeyPatch
) -> Library:
    """CuPy, with the loop of `graph` where it suits, for few steps too."""
    from fastgru.kernels.cuda.loops import graph

    use_loops("graph")
    tune(GRAPH_FEWEST_STEPS=0)
    monkeypatch.setattr(graph, "of_thread", graph.Captures())
    return cupy


def captured_passes() -> list[Any]:
    """What repeats the passes of this thread."""
    from fastgru.kernels.cuda.loops import graph

    return list(graph.of_thread.passes.values())


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
        given = graphs.take(problem)
        x, params, h0, *_ = given
        got = graphs.give(fastgru.forward(x, params, as_state(h0), **given.options))
        want = fastgru.forward(problem.x, problem.params, as_state(problem.h0), **problem.options)
        for a, b in zip(flatten(got), flatten(want), strict=True):
            assert_close(a, b, 64 * np.finfo("float64").eps)
        # Each direction, forward (with values kept, and without) and backward.
        assert len(captured_passes()) == (0 if number == 0 else 6)


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
            x, params, h0, _, _, dh_n, _ = library.take(problem)
            _, _, saved = fastgru.forward_train(x, params, as_state(h0))
            gradients = fastgru.backward(saved, dh_n=as_state(dh_n))
            found.append(flatten(library.give(gradients)))
        for a, b in zip(*found, strict=True):
            assert_close(a, b, 64 * np.finfo("float64").eps)
    assert len(captured_passes()) == 3  # forward; backward with the gradient of y, and without


def test_graphs_of_other_orders_and_precisions(graphs: Library) -> None:
    """Passes whose arrays have equal shapes, in turns."""
    lengths: list[Any] = [[4, 2, 1, 3, 4], [4, 4, 3, 2, 1], [4, 4, 2, 2, 2]]
    for number in range(9):
        problem = draw("gru", (5, 4, 3, 6), lengths=lengths[number % 3], seed=number)
        assert_right(problem, graphs)
    x, params, h0, *_ = graphs.take(draw("gru", (5, 4, 3, 6), dtype="float32"))
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


def test_graphs_of_a_thread_are_bounded(graphs: Library, tune: Tune) -> None:
    """Five kinds of passes, and room for some: those that have a graph keep it."""
    from fastgru.kernels.cuda.loops import graph

    tune(GRAPH_BYTES_OF_THREAD=30_000)
    kept: list[Any] = []
    for number in range(4):
        for N in range(1, 6):
            assert_right(draw("gru", (N, 4, 3, 6), seed=number), graphs)
        passes = captured_passes()
        assert graph.of_thread.size == sum(captured.size for captured in passes) <= 30_000
        if number > 1:
            assert {id(captured) for captured in passes} == {id(captured) for captured in kept}
        kept = passes
    assert 0 < len(kept) < 10
    tune(GRAPH_RECENT=2)
    for number in range(2):  # kinds that did not come of late make room
        assert_right(draw("gru", (7, 4, 3, 6), seed=number), graphs)
    assert any(len(captured.others[2].ragged.order) == 7 for captured in captured_passes())


def test_graphs_are_not_captured_for_many_kinds_in_turns(graphs: Library, tune: Tune) -> None:
    from fastgru.kernels.cuda.loops import graph

    tune(GRAPH_RECENT=8)
    for _ in range(3):
        for N in range(1, 6):
            assert_right(draw("gru", (N, 4, 3, 6)), graphs)
            assert len(graph.of_thread.recent) <= 8
    assert captured_passes() == []


def test_graphs_of_several_threads(graphs: Library) -> None:

    problem = draw("gru", (3, 4, 3, 6))
    for _ in range(2):
        assert_right(problem, graphs)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(captured_passes()))
    thread.start()
    thread.join()
    assert found == [[]]
    assert len(captured_passes()) == 2


def test_graphs_of_several_streams_and_devices(
    graphs: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    if graphs.name == "cupy":
        pytest.skip("simulated only")
    import cupy

    problem = draw("lstm", (3, 4, 3, 6))
    first, second = cupy.cuda.get_current_stream(), cupy.cuda.Stream()
    for count, stream in ((2, first), (2, second), (1, first), (1, second)):
        monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda stream=stream: stream)
        for _ in range(count):
            assert_right(problem, graphs)
        stream.synchronize()
    assert len(captured_passes()) == 4
    with cupy.cuda.Device(1):
        for _ in range(2):
            assert_right(problem, graphs)
    devices = [captured.arrays.hh.device.id for captured in captured_passes()]
    assert sorted(devices) == [0, 0, 0, 0, 1, 1]


def test_graphs_that_cannot_be_captured(
    graphs: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pass is launched step by step, the log says why, and it is not tried again."""
    from fastgru.kernels.cuda.loops import graph

    problem = draw("gru", (3, 4, 3, 6))
    runs, kind = [], graph.FORWARD_TO_KEEP

    def failing(context: Any, arrays: Any) -> Any:
        run = kind.prepare(context, arrays)

        def run_once(first: int, last: int) -> None:
            runs.append(context.stream)
            if len(runs) == 3:  # one step by step, one to try, one while capturing
                raise RuntimeError("capture is invalid")
            run(first, last)

        return run_once

    with monkeypatch.context() as patch:
        patch.setattr(graph, "FORWARD_TO_KEEP", kind._replace(prepare=failing))
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
    assert captured_passes() == []
    assert caplog.text.count("RuntimeError: cuBLAS: another version") == 1


def test_what_graphs_do_not_suit(graphs: Library, tune: Tune) -> None:

    problem = draw("gru", (2, 4, 1, 6))
    assert chosen(problem, graphs) == "graph"
    assert chosen(problem, graphs, time_blocks=2) == "steps"
    tune(GRAPH_FEWEST_STEPS=5)
    assert chosen(problem, graphs) == "steps"
    assert chosen(draw("gru", (1, 2049, 1, 2)), graphs) == "steps"
    assert chosen(draw("gru", (64, 256, 1, 100)), graphs) == "steps"
    assert chosen(draw("gru", (1, 9, 1, 1700)), graphs) == "steps"
