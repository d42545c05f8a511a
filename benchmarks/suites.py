"""asv's benchmarks. Each is a class whose parameters are tables; what is timed is in `peers.py`.

asv holds that lower is better, so speed is time: seconds per time step and row, which is the same
for twice the batch. Throughputs are tracked beside it and are no regressions (see asv.conf.json).

`version` says what a benchmark measures: raise it when results before and after can no longer be
compared, and asv drops the earlier ones. Without it any edit of a benchmark's text would.
"""

import functools
import importlib
import sys
import time
from statistics import median
from typing import Any, NamedTuple

from asv_runner.benchmarks.mark import SkipNotImplemented

import fastgru

from . import memory, peers, startup, turns
from .problems import FEW_SHAPES, Problem, shape_of

SHAPES = tuple(",".join(map(str, shape)) for shape in FEW_SHAPES)
DIRECTIONS = ("forward", "train", "step", "stream")
# asv knows parameters by their place, also in commits that lack some: add to the end only.
CELLS = fastgru.cells()
# What waits for the end of a library's work, given its module.
BACKENDS = {
    "numpy": lambda numpy: lambda: None,
    "cupy": lambda cupy: cupy.cuda.get_current_stream().synchronize,
}


class Measured(NamedTuple):
    """A call ready to be timed, and what it computes."""

    contender: turns.Contender
    row_steps: int
    flops: int


def check_backend(backend: str) -> Any:
    """The array library, or asv's word that the benchmark does not apply here."""
    try:
        library = importlib.import_module(backend)
        library.zeros(1)
    except Exception as error:  # absent, or any of CUDA's reasons why there is no device
        raise SkipNotImplemented(f"{backend}: {error}") from error
    return library


def check_cell(cell: str) -> None:
    """Let asv skip cells that a commit lacks."""
    if cell not in fastgru.cells():
        raise SkipNotImplemented(f"this fastgru has no cell {cell!r}")


# asv calls `setup` before every sample: the latest is kept, for both cells of a ratio.
@functools.lru_cache(maxsize=2)
def prepare(cell: str, backend: str, direction: str, shape: str, dtype: str) -> Measured:
    """Everything that comes before timing, compilation included."""
    check_cell(cell)
    library = check_backend(backend)
    problem = Problem.draw(cell, *shape_of(shape), dtype).on(backend)
    try:
        fastgru.pack(problem.params)
    except (TypeError, ModuleNotFoundError) as error:  # earlier than, or installed without, this
        raise SkipNotImplemented(f"this fastgru does not take {backend}: {error}") from error
    finish = BACKENDS[backend](library)
    (way,) = getattr(peers.FastGRU(0), direction)(problem).values()

    def run() -> Any:
        result = way.run()
        finish()
        return result

    contender = turns.Contender.fastest(cell, {"": peers.Way(run, way.read)})
    return Measured(contender, problem.row_steps(direction), problem.flops(direction))


class Layer:
    """Time of one layer, in seconds per time step and row: a row is a sample of the batch."""

    version = "1"
    timeout = 600
    # Samples are turns of 50 ms; those of three rounds, minutes apart, meet different noise.
    rounds = 3
    repeat = (2, 5, 3.0)
    number = 1
    warmup_time = 0
    param_names = ("cell", "backend", "direction", "T,B,I,H", "dtype")
    params = (CELLS, tuple(BACKENDS), DIRECTIONS, SHAPES, ("float32", "float64"))

    def setup(self, *parameters: str) -> None:
        measured = prepare(*parameters)
        self.contender = measured.contender
        scale = measured.row_steps * self.contender.calls
        # What asv reads as its clock, so that its samples are of a time step and row.
        self.timer = lambda: time.perf_counter() / scale

    def time_row_step(self, *parameters: str) -> None:
        for _ in range(self.contender.calls):
            self.contender.run()

    time_row_step.pretty_name = "Time per time step and row"  # type: ignore[attr-defined]


class Throughput:
    """Speed in the units of machines, float32: the median of five turns."""

    version = "1"
    timeout = 600
    param_names = ("cell", "backend", "direction", "T,B,I,H")
    params = (CELLS, tuple(BACKENDS), ("forward", "train"), SHAPES)

    def setup(self, *parameters: str) -> None:
        self.measured = prepare(*parameters, "float32")

    def _seconds(self) -> float:
        contender = self.measured.contender
        turns.play([contender], 5)
        return median(contender.rounds)

    def track_steps(self, *parameters: str) -> float:
        return self.measured.row_steps / self._seconds()

    def track_gflops(self, *parameters: str) -> float:
        return self.measured.flops / self._seconds() / 1e9

    track_steps.unit = "steps/s"  # type: ignore[attr-defined]
    track_steps.pretty_name = "Time steps a second, of all rows"  # type: ignore[attr-defined]
    track_gflops.unit = "GFLOP/s"  # type: ignore[attr-defined]
    track_gflops.pretty_name = "GFLOP/s of the products"  # type: ignore[attr-defined]


class Ratio:
    """GRU against LSTM, float32, taking turns in one process: below 1 the GRU is faster."""

    version = "1"
    timeout = 600
    param_names = ("backend", "direction", "T,B,I,H")
    params = (tuple(BACKENDS), DIRECTIONS, SHAPES)

    def setup(self, *parameters: str) -> None:
        self.both = [prepare(cell, *parameters, "float32").contender for cell in ("gru", "lstm")]

    def track_gru_over_lstm(self, *parameters: str) -> float:
        turns.play(self.both, 5)
        gru, lstm = (median(contender.rounds) for contender in self.both)
        return gru / lstm

    track_gru_over_lstm.unit = "GRU/LSTM"  # type: ignore[attr-defined]
    track_gru_over_lstm.pretty_name = "GRU's time over LSTM's"  # type: ignore[attr-defined]


class Memory:
    """What a process grows by at its peak in one call, beyond what it held before."""

    version = "1"
    timeout = 600
    shape = (1000, 32, 128, 128)
    param_names = ("cell", "direction")
    params = (CELLS, ("forward", "train"))

    def setup(self, cell: str, direction: str) -> None:
        check_cell(cell)
        if sys.platform != "linux":
            raise SkipNotImplemented(f"peaks are read as Linux counts them, not {sys.platform}")

    def track_growth(self, cell: str, direction: str) -> float:
        return memory.growth("fastgru", direction, cell, self.shape) / memory.MIB

    track_growth.unit = "MiB"  # type: ignore[attr-defined]
    track_growth.pretty_name = "Peak memory of a call at T,B,I,H = 1000,32,128,128"  # type: ignore[attr-defined]


class Start:
    """How long a fresh process takes to import."""

    version = "1"
    timeout = 600
    rounds = 3
    repeat = (2, 5, 5.0)
    number = 1
    warmup_time = 0

    def timeraw_import(self) -> str:
        return "import fastgru"

    timeraw_import.pretty_name = "import fastgru, NumPy included"  # type: ignore[attr-defined]


class FirstCall:
    """Seconds from a program's first line to its first result, and what is kept on disk."""

    version = "1"
    timeout = 600
    param_names = ("cell", "direction")
    params = (("gru", "lstm"), ("forward", "train"))

    def setup_cache(self) -> dict[tuple[str, str], startup.Start]:
        cells, directions = self.params
        there = [cell for cell in cells if cell in fastgru.cells()]
        return {(c, d): startup.measure(c, d, warm=3) for c in there for d in directions}

    setup_cache.timeout = 600  # type: ignore[attr-defined]

    def setup(self, found: dict[tuple[str, str], startup.Start], cell: str, direction: str) -> None:
        check_cell(cell)

    def track_cold(self, found: dict[tuple[str, str], startup.Start], *key: str) -> float:
        return found[key[0], key[1]].cold

    def track_warm(self, found: dict[tuple[str, str], startup.Start], *key: str) -> float:
        return min(found[key[0], key[1]].warm)  # what else runs only adds

    def track_cache_size(self, found: dict[tuple[str, str], startup.Start], *key: str) -> float:
        return found[key[0], key[1]].cache_bytes / 2**10

    track_cold.unit = track_warm.unit = "seconds"  # type: ignore[attr-defined]
    track_cold.pretty_name = "First result, kernels compiled"  # type: ignore[attr-defined]
    track_warm.pretty_name = "First result, kernels loaded from disk"  # type: ignore[attr-defined]
    track_cache_size.unit = "KiB"  # type: ignore[attr-defined]
    track_cache_size.pretty_name = "Size of the compiled kernels"  # type: ignore[attr-defined]
