"""Contenders that take turns: how every comparison in one process is measured.

In every round each contender has a turn, in an order that rotates. A turn is some calls, after a
pause and a warm-up, and counts by their median. Results are compared before anything is timed.
"""

import contextlib
import gc
import io
import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import fastgru

from . import peers
from .problems import Problem

TURN = 0.05  # seconds of calls in a turn
TRIAL = 0.02  # seconds of calls to find the fastest way and the number of calls in a turn
# Seconds of calls before a turn is timed, one call or more: threads awake, weights in cache, memory
# that the process has just got from the system cleared.
WARM_UP = 0.005
# Before a turn the threads of the library before must have gone to sleep: the process is watched
# for so many seconds at a time until it was idle twice in a row, or the wait is over (a pool can be
# told never to sleep). OpenBLAS's, the most patient by default, wait for 2**26 cycles; on a virtual
# machine that has taken up to 120 ms, and the turn after theirs up to 1.5 times as long.
WATCH, LONGEST_WAIT = 0.01, 1.0
IDLE = 0.1  # of a core
SLOW = 20  # a library that many times slower than fastgru gets one call a turn

# Results may differ by this times eps * sqrt(I + H) * max(1, largest magnitude of the array). At
# SHAPES, outputs differ by less than 0.5 of these units and gradients, sums over all steps and
# samples, by less than 8; an output computed in bfloat16 by more than 1000.
TOLERANCE = 24


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def same_fastgru() -> dict[str, str]:
    """Environment in which a Python program imports the very fastgru of this process."""
    found = str(Path(fastgru.__file__).parents[1])
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    # The safe path keeps the current folder from coming first.
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([found, *inherited]),
        "PYTHONSAFEPATH": "1",
    }


def worker_environment(threads: int) -> dict[str, str]:
    """Environment in which every library has that many threads."""
    pools = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    limits = {f"{pool}_NUM_THREADS": str(threads) for pool in pools}
    # JAX has no option for it, but its CPU client sizes its pools by NPROC.
    return same_fastgru() | limits | {"NPROC": str(threads), "JAX_PLATFORMS": "cpu"}


def machine_facts(threads: int) -> dict[str, str]:
    """What this process measures with, by label; to be asked before any peer is loaded.

    It starts Numba's threads, which thereby get the layer that they have without peers: once
    OpenVINO has loaded its TBB, Numba would take that.
    """
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    facts = {"processor": f"{cpu}, {usable_cores()} cores", "system": platform.platform()}
    if hasattr(os, "getloadavg"):
        facts["load average"] = f"{os.getloadavg()[0]:.2f} (of the last minute, before this run)"
    facts["threads"] = str(threads)
    with contextlib.redirect_stdout(io.StringIO()) as text:
        fastgru.show_config()
    facts |= {line[:17].strip(): line[17:].strip() for line in text.getvalue().splitlines()}
    # Where kernels are kept is of no interest to those who read results.
    no_facts = "cupy", "compiled kernels"
    facts = {
        label: text for label, text in facts.items() if not any(no in label for no in no_facts)
    }
    facts["fastgru"] = fastgru.__version__
    for peer in peers.PEERS[1:]:
        facts[peer.name] = peers.version_of(peer)
    return facts


@dataclass
class Contender:
    """One that takes turns: a call, and what its turns measured."""

    name: str
    run: Callable[[], Any]
    way: str = ""
    estimate: float = math.inf
    calls: int = 1  # in a turn
    rounds: list[float] = field(default_factory=list)  # seconds a call
    cores: list[float] = field(default_factory=list)  # kept busy

    @classmethod
    def fastest(cls, name: str, ways: peers.Ways) -> "Contender":
        """The fastest of several ways, by a short trial after a first call."""
        trials = []
        for label, way in ways.items():
            way.run()
            wait_until_idle()
            laps: list[float] = []
            start = time.perf_counter()
            while len(laps) < 2 or time.perf_counter() - start < TRIAL:
                laps.append(seconds_of(way.run))
            trials.append(cls(name, way.run, label, min(laps), max(1, round(TURN / min(laps)))))
        return min(trials, key=lambda trial: trial.estimate)

    def take_turn(self) -> None:
        """Time a turn's calls."""
        wait_until_idle()
        start = time.perf_counter()
        self.run()
        while time.perf_counter() - start < WARM_UP:
            self.run()
        gc.disable()
        cpu, start = time.process_time(), time.perf_counter()
        laps = [seconds_of(self.run) for _ in range(self.calls)]
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        gc.enable()
        # A slow call is noise more often than not, so a turn counts by its median.
        self.rounds.append(median(laps))
        self.cores.append(cpu / wall)

    def record(self) -> dict[str, Any]:
        """All that was measured, for JSON."""
        kept = {"way": self.way, "calls": self.calls, "seconds": self.rounds, "cores": self.cores}
        return kept | {"median": median(self.rounds), "minimum": min(self.rounds)}


def wait_until_idle() -> None:
    """Sleep until no thread of this process keeps a core busy."""
    end, quiet = time.perf_counter() + LONGEST_WAIT, 0
    while quiet < 2 and time.perf_counter() < end:
        cpu, start = time.process_time(), time.perf_counter()
        time.sleep(WATCH)
        busy = (time.process_time() - cpu) / (time.perf_counter() - start)
        quiet = quiet + 1 if busy < IDLE else 0


def seconds_of(call: Callable[[], Any]) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def play(contenders: Sequence[Contender], rounds: int) -> None:
    """Play rounds, each of a turn of every contender."""
    for _ in range(rounds):
        first = len(contenders[0].rounds) % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            contender.take_turn()


def check_results(results: Mapping[str, Mapping[str, Any]], tolerance: float) -> None:
    """Raise ValueError unless all libraries computed the same, each in each of its ways."""
    wrong = []
    for (one, a), (other, b) in itertools.combinations(results.items(), 2):
        assert a.keys() == b.keys(), (one, other)
        errors = {}
        for name in a:
            assert a[name].shape == b[name].shape, (one, other, name)
            scale = max(1.0, float(np.abs(b[name]).max()))
            errors[name] = float(np.abs(a[name] - b[name]).max()) / scale
        bad = [f"{name} by {e:.1e}" for name, e in errors.items() if not e <= tolerance]  # or NaN
        if bad:
            wrong.append(f"{one} and {other} differ in {', '.join(bad)}")
    if wrong:
        more = f"; and {len(wrong) - 4} more pairs" if len(wrong) > 4 else ""
        raise ValueError(f"{'; '.join(wrong[:4])}{more} (tolerance {tolerance:.1e})")


def contenders_for(mode: str, problem: Problem, libraries: Sequence[Any]) -> dict[str, Contender]:
    """The libraries ready to take turns at a problem, after their results were compared."""
    ways = {library.name: getattr(library, mode)(problem) for library in libraries}
    results = {}
    for name, of_library in ways.items():
        for label, way in of_library.items():
            # Copied, as a way may write every result to the same memory.
            values = {key: np.array(value) for key, value in way.read(way.run()).items()}
            results[f"{name} ({label})"] = values
    I, H, eps = problem.x.shape[2], problem.dy.shape[2], np.finfo(problem.x.dtype).eps
    check_results(results, TOLERANCE * float(eps) * math.sqrt(I + H))
    contenders = {name: Contender.fastest(name, of_library) for name, of_library in ways.items()}
    for contender in contenders.values():
        if contender.estimate > SLOW * contenders["fastgru"].estimate:
            contender.calls = 1
    return contenders


def microseconds(seconds: float) -> str:
    """A duration with three digits."""
    µs = 1e6 * seconds
    return f"{µs:.0f}" if µs >= 100 else f"{µs:.3g}"
