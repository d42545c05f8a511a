"""The benchmarks: ``fastgru bench``, asv's suites, and that loading them loads no other library."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import fastgru_command
from problems import SHIPPED_CELLS

import fastgru
from fastgru import __main__ as cli
from fastgru.benchmarks import bench, cost, latency, peers, problems, startup, training, turns

SHAPE = "3,2,4,5"
SHORT = ("bench", "--rounds", "1", "--shape", SHAPE, "--threads", "1")
MODULES = sorted(path.stem for path in Path(bench.__file__).parent.glob("[a-z]*.py"))
LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"fastgru.benchmarks.{name}")
print(*sys.modules)
"""


@pytest.mark.parametrize("module", MODULES)
def test_peers_are_loaded_when_they_are_asked(module: str) -> None:
    """asv imports every module of the folder, wherever it looks for benchmarks."""
    if module == "suites":
        pytest.importorskip("asv_runner", reason='the extra "bench" is not installed')
    done = subprocess.run(
        [sys.executable, "-c", LOADED, module],
        cwd=Path(fastgru.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert f"fastgru.benchmarks.{module}" in loaded
    assert not {"torch", "jax", "onnxruntime", "openvino", "onnx", "cupy", "matplotlib"} & loaded


def of_fastgru(mode: str, problem: problems.Problem) -> peers.Way:
    (way,) = getattr(peers.FastGRU(1), mode)(problem).values()
    return way


def test_benchmarks_can_be_imported_at_earlier_commits() -> None:
    """asv imports all files of the folder, with whatever fastgru it measures."""
    for path in Path(problems.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastgru."):
                assert node.module == "fastgru.kernels.cells", path.name
            elif isinstance(node, ast.ImportFrom) and node.module == "fastgru":
                assert {name.name for name in node.names} <= {"demo"}, path.name


def test_what_a_problem_counts() -> None:
    T, B, I, H = 3, 2, 4, 5
    for cell, gates in (("gru", 3), ("lstm", 4)):
        problem = problems.Problem.draw(cell, T, B, I, H, "float32")
        once = 2 * T * B * gates * H * (I + H)
        assert [problem.flops(mode) for mode in problems.MODES] == [once, 3 * once, once // T]
        assert [problem.row_steps(mode) for mode in problems.MODES] == [T * B, T * B, B]
        assert problem.row_steps("stream") == T * B


@pytest.mark.parametrize("cell", SHIPPED_CELLS)
def test_a_stream_is_a_sequence_step_by_step(cell: str) -> None:
    problem = problems.Problem.draw(cell, 3, 2, 4, 5, "float64").on("numpy")
    ways = {mode: of_fastgru(mode, problem) for mode in ("forward", "stream", "step")}
    forward, stream, step = (way.read(way.run()) for way in ways.values())
    np.testing.assert_array_equal(stream["h"], forward["h"])
    assert not np.array_equal(step["h"], forward["h"])


def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    done = fastgru_command(*SHORT, "--json", "--plot", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "bench.json").read_text())
    assert run["errors"] == []
    assert run["machine"]["threads"] == "1"
    present = [peer for peer in peers.PEERS if peers.installed(peer)]
    want = {
        (mode, cell, peer.name)
        for mode, cell, peer in product(problems.MODES, bench.CELLS, present)
        if hasattr(peer, mode)
    }
    assert {(one["mode"], one["cell"], one["library"]) for one in run["results"]} == want
    for one in run["results"]:
        assert (one["I"], one["H"]) == (4, 5)
        assert len(one["seconds"]) == 1
        assert 0 < one["minimum"] <= one["median"] < 1
        assert bench.digits(1e9 * one["median"]) in done.stdout or one["library"] != "fastgru"
    assert "GRU/LSTM" in done.stdout
    assert "forward 3,2,4,5" in done.stderr, "no progress is shown"
    drawn = tmp_path / "bench.png"
    if importlib.util.find_spec("matplotlib") is None:
        assert 'pip install "fastgru[plot]"' in done.stdout
    else:
        assert drawn.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_command_without_matplotlib(tmp_path: Path, no_matplotlib: Path) -> None:
    done = fastgru_command(*SHORT, "--plot", cwd=tmp_path, path=no_matplotlib)
    assert done.returncode == 0, done.stderr
    assert 'pip install "fastgru[plot]"' in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_library_that_does_not_load_is_an_error_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(peers.FastGRU):
        name = "broken"

        def __init__(self, threads: int) -> None:
            raise OSError("no such shared object")

    class Absent(Broken):
        needs = ("no_such_package",)

    monkeypatch.setattr(peers, "PEERS", (peers.FastGRU, Broken, Absent))
    libraries, errors = peers.load(1)
    assert [library.name for library in libraries] == ["fastgru"]
    assert errors == ["broken does not load: OSError: no such shared object"]
    assert peers.version_of(Absent) == "absent"


def test_a_folder_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "openvino_of_mine").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    class Folder(peers.FastGRU):
        needs = ("openvino_of_mine",)

    assert importlib.util.find_spec("openvino_of_mine") is not None
    assert not peers.installed(Folder)


def test_a_library_that_fails_is_an_error_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wrong(peers.FastGRU):
        name = "wrong"

        def step(self, p: problems.Problem) -> peers.Ways:
            way = of_fastgru("step", p)
            return {"": peers.Way(way.run, lambda h: {"h": 2 * peers.read_states(h)["h"]})}

    monkeypatch.setattr(peers, "PEERS", (peers.FastGRU, Wrong))
    # What it loads would be this process's from then on.
    monkeypatch.setattr(turns, "machine_facts", lambda threads: {"fastgru": "", "processor": ""})
    run = bench.work(1, ((3, 2, 4, 5),), 1)
    (error,) = run["errors"]
    assert error.startswith("step 1,1,4,5: ValueError: ")
    found = {(one["mode"], one["library"]) for one in run["results"]}
    both = set(product(("forward", "train"), ("fastgru", "wrong")))
    assert found == both | {("step", "fastgru")}
    run["machine"] |= {"threads": "1"}
    assert f"error: {error}" in bench.report(run)


@pytest.mark.parametrize(
    "args",
    [
        ["--rounds", "0"],
        ["--threads", "x"],
        ["--shape", "1,2,3"],
        ["--shape", "1,2,3,0"],
        ["--json", "no/such/folder/bench.json"],
    ],
)
def test_bad_options_are_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *args])
    assert caught.value.code == 2
    assert args[0] in capsys.readouterr().err


def test_latencies_are_quantiles_of_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "TURN", 50)
    found = latency.measure("gru", (1, 1, 2, 3), steps=150)
    assert {"nothing", "Stream.push", "Stream.push, out=", "fastgru.step"} <= found.keys()
    for times in found.values():
        assert list(times) == ["p50", "p99", "p99.9", "maximum"]
        assert sorted(times.values()) == list(times.values())
    assert latency.report(found).count("\n") == len(found)


def test_training_is_measured_beside_a_loop_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN", 1e-4)
    (found,) = training.measure("lstm", [(2, 3, 2, 4)], rounds=1)
    assert {"fit", "by hand"} <= found["seconds"].keys()
    assert training.report([found]).count("\n") == 1
    whole, loop = training.by_fit("lstm", (2, 3, 2, 4))(), training.by_hand("lstm", (2, 3, 2, 4))()
    np.testing.assert_allclose(whole.model.weight, loop["W"], rtol=1e-5)


def test_costs_are_measured_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN", 1e-4)
    found = cost.timed("train", (2, 1, 2, 3), ("gru", "mingru"), rounds=2)
    assert list(found) == ["gru", "mingru"]
    assert min(found.values()) > 0
    changed = [[s for s, b in zip(shape, cost.BASE, strict=True) if s != b]
               for axis, shape, _ in cost.points() if axis != "shape"]  # fmt: skip
    assert max(map(len, changed)) == 1


def test_a_start_is_measured_with_and_without_kernels() -> None:
    found = startup.measure("gru", "forward", warm=1)
    assert found.warm[0] > 0
    assert found.cold > 0
    assert found.cache_bytes > 1000


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> Any:
    """asv's suites; the clock may be replaced."""
    pytest.importorskip("asv_runner", reason='the extra "bench" is not installed')
    from fastgru.benchmarks import suites

    suites.prepare.cache_clear()
    return suites


def test_a_suite_times_a_time_step_and_row(suites: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = suites.Layer()
    layer.setup("gru", "numpy", "forward", SHAPE, "float32")
    calls = []
    layer.contender.run = lambda: calls.append(1)
    layer.time_row_step()
    monkeypatch.setattr(suites.time, "perf_counter", lambda: 60.0 * len(calls))
    assert layer.timer() == pytest.approx(60 / (3 * 2))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("direction", ["forward", "train", "step", "stream"])
def test_every_direction_is_prepared(suites: Any, cell: str, direction: str) -> None:
    measured = suites.prepare(cell, "numpy", direction, SHAPE, "float64")
    assert measured.row_steps == (2 if direction == "step" else 6)
    assert len(measured.contender.rounds) == 0
    turns.play([measured.contender], 2)
    assert len(measured.contender.rounds) == 2


def test_every_cell_has_its_lines(suites: Any) -> None:
    assert set(SHIPPED_CELLS) <= set(suites.CELLS)


def test_what_a_machine_or_commit_lacks_is_skipped(
    suites: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastgru, "cells", lambda: ("gru",))
    layer, memory, first = suites.Layer(), suites.Memory(), suites.FirstCall()
    layer.setup("gru", "numpy", "forward", SHAPE, "float32")
    for setup, arguments in (
        (layer.setup, ("lstm", "numpy", "forward", SHAPE, "float32")),
        (memory.setup, ("lstm", "forward")),
        (first.setup, ({}, "lstm", "forward")),
    ):
        with pytest.raises(suites.SkipNotImplemented, match="no cell 'lstm'"):
            setup(*arguments)
    monkeypatch.setattr(suites.startup, "measure", lambda *key, warm: key)
    assert set(first.setup_cache()) == {("gru", "forward"), ("gru", "train")}

    def refuse(params: Any) -> None:
        raise TypeError("cupy arrays are not supported")

    monkeypatch.setattr(fastgru, "pack", refuse)
    with pytest.raises(suites.SkipNotImplemented, match="does not take numpy: cupy arrays are"):
        layer.setup("gru", "numpy", "train", SHAPE, "float32")
    with pytest.raises(suites.SkipNotImplemented, match="no_such_library"):
        suites.check_backend("no_such_library")


def test_gains_are_not_regressions(suites: Any) -> None:
    """asv reads every rise as a loss, so it is told which benchmarks to leave out."""
    config = pytest.importorskip("asv.config", reason='the extra "bench" is not installed')
    folder = Path(fastgru.__file__).parents[1] / "benchmarks"
    read = config.Config.load(str(folder / "asv.conf.json"))
    left_out = [key for key, value in read.regressions_first_commits.items() if value is None]
    found = {
        f"suites.{suite.__name__}.{name}": getattr(suite, name)
        for suite in vars(suites).values()
        if isinstance(suite, type) and hasattr(suite, "version")
        for name in vars(suite)
        if name.startswith(("time_", "timeraw_", "track_"))
    }
    assert len(found) == 9
    skipped = {name for name in found if any(re.match(key, name) for key in left_out)}
    units = {getattr(found[name], "unit", "seconds") for name in found.keys() - skipped}
    assert units == {"seconds", "MiB", "KiB"}
    assert {found[name].unit for name in skipped} == {"steps/s", "GFLOP/s", "GRU/LSTM"}
