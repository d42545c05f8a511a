"""Which loop takes a layer, what is shown of it, and what is imported."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from gpu_tools import EPS, Tune, UseLoops, chosen
from problems import Library, assert_close, draw, flatten, solve

import fastgru
from fastgru.kernels.cells import CELLS


def test_no_loop_that_has_never_run_on_a_gpu_is_chosen(simulated: Library) -> None:
    for cell in CELLS:
        for H in (1, 32, 512):
            alone = not CELLS[cell].recurrent_gates
            loop = chosen(draw(cell, (1, 1, 1, H), dtype="float32"), simulated)
            assert loop == ("units" if alone else "steps")


def test_loops_that_the_environment_names(simulated: Library, use_loops: UseLoops) -> None:
    """In the order in which it names them; `steps` comes last."""
    from fastgru.kernels.cuda import loops

    problem = draw("gru", (2, 8, 1, 6), dtype="float32")
    for names, found in (
        ("", "steps"),
        ("graph", "graph"),
        ("resident,graph", "resident"),
        (" graph , resident,", "graph"),
        ("cluster", "steps"),
        ("steps,resident", "steps"),
    ):
        use_loops(names)
        assert chosen(problem, simulated) == found
        assert loops.enabled()[-1] is loops.STEPS
    use_loops("graph,exchange")
    assert [loop.name for loop in loops.enabled()] == ["graph", "exchange", "units", "steps"]


def test_results_by_named_loops(simulated: Library, use_loops: UseLoops) -> None:
    problem = draw("lstm", (3, 8, 3, 5), dtype="float32")
    want = solve(problem, simulated)
    use_loops("resident")
    for a, b in zip(flatten(*solve(problem, simulated)), flatten(*want), strict=True):
        assert_close(a, b, 64 * EPS)


def test_unknown_loops_are_refused(
    simulated: Library, use_loops: UseLoops, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the names that there are; in a call, not at import."""
    problem = simulated.take(draw("gru"))
    message = (
        "FASTGRU_CUDA_LOOPS: expected names of 'resident', 'exchange', 'cluster', 'graph', "
        "'units', 'steps', got 'residant'"
    )
    use_loops("graph,residant")
    with pytest.raises(ValueError, match=f"^{message}$"):
        fastgru.forward(problem.x, problem.params)
    fastgru.show_config()
    assert f"cupy arrays       not supported here: {message}" in capsys.readouterr().out


def test_the_default_imports_no_other_loop(cuda_tools: None) -> None:
    code = """
import sys
import fastgru.kernels.cuda
names = [name for name in sys.modules if name.startswith("fastgru.kernels.cuda.loops.")]
print(*names)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"FASTGRU_CUDA_LOOPS": "none of them"},
    )
    assert done.stdout.split() == ["fastgru.kernels.cuda.loops.steps"]


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
    tune: Tune,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:

    from fastgru.benchmarks import compare_peers, gpu_peers
    from fastgru.kernels.cuda import loops
    from fastgru.kernels.cuda.loops import exchange, graph

    torch: Any = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(Event=Event, get_device_name=lambda: "simulated")
    torch.__version__ = "2"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(gpu_peers, "QUICK", ((2, 8),))
    monkeypatch.setattr(gpu_peers, "T", 3)
    monkeypatch.setattr(graph, "of_thread", graph.Captures())
    monkeypatch.setenv(loops.VARIABLE, "")  # which the benchmark changes

    def failing(context: Any, arrays: Any) -> Any:
        raise RuntimeError("no exchange today")

    monkeypatch.setattr(exchange, "forward", failing)
    tune(GRAPH_FEWEST_STEPS=3, EXCHANGE_THREADS=16)
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
    assert loops.enabled() == loops.DEFAULTS
    assert [p for p in graph.of_thread.passes.values() if hasattr(p.arrays, "dy")]
    with pytest.raises(SystemExit):
        compare_peers.main(["--loops"])


def test_show_config_names_the_gpu_and_the_loops(
    simulated: Library,
    use_loops: UseLoops,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import cupy

    note = "(the first that suits a layer; FASTGRU_CUDA_LOOPS may name others)"
    fastgru.show_config()
    shown = capsys.readouterr().out
    assert "GPU               simulated, compute capability 90" in shown
    assert f"loops on it       units, steps {note}\n" in shown
    use_loops("resident,graph")
    fastgru.show_config()
    shown = capsys.readouterr().out
    assert f"loops on it       resident, graph, units, steps {note}\n" in shown

    def no_device() -> None:
        raise RuntimeError("cudaErrorNoDevice")

    monkeypatch.setattr(cupy.cuda, "Device", no_device)
    fastgru.show_config()
    assert "cupy arrays       not supported here: cudaErrorNoDevice" in capsys.readouterr().out


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
