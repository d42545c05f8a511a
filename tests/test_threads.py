"""Threads, forks and pools: right results and the same bits, whatever the host program does.

Each check of results runs in a process of its own: what is tested is the state of a process's
thread pool.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fastgru.kernels.cpu import team
from fastgru.kernels.cpu import threads as choice

# Large enough for the parallel kernels, see `fastgru.kernels.cpu.threads`: the first batch is split
# by rows, the second one by units, as it has few rows, and so is the third, for its many weights.
# The fourth has rows of all lengths, so that threads have two blocks of them, or one at the end.
PROBLEM = """
import numpy as np
import fastgru
from fastgru.kernels.cpu import layer, threads

ways = []
split = layer.split

def remember(*sizes):
    ways.append(split(*sizes))
    return ways[-1]

layer.split = remember
# Neither a busy machine nor a trial must keep these calls from their threads.
threads._SHORTEST_PAUSE = threads._LONGEST_PAUSE = threads._TRIAL_CALL = 0
rng = np.random.default_rng(0)

def draw(N, T, I, H):
    params = fastgru.init_params(I, H, rng=0)
    x, dy = (rng.standard_normal((N, T, size)).astype("float32") for size in (I, H))
    return params, x, dy

problems = [draw(24, 30, 32, 64), draw(2, 40, 24, 100), draw(30, 6, 40, 512), draw(25, 48, 32, 64)]
lengths = [None, None, None, 2 * np.arange(25)]
params, x, dy = problems[0]

def everything():
    arrays = []
    for (params, x, dy), steps in zip(problems, lengths):
        y, h_n, saved = fastgru.forward_train(x, params, lengths=steps)
        gradients = fastgru.backward(saved, dy)
        arrays += [y, h_n, gradients.x, gradients.h0, *gradients.params.to_dict().values()]
    return b"".join(a.tobytes() for a in arrays)
"""


def run(code: str, **environment: Any) -> str:
    """Output of a program that starts with the problem above."""
    program = textwrap.dedent(PROBLEM) + textwrap.dedent(code)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,  # compiling every cell, where the cache is empty
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def needs_omp() -> None:
    """Skip where Numba has no OpenMP layer."""
    out = run("import numba; numba.get_num_threads(); print(numba.threading_layer())")
    if out.strip() != "omp":
        pytest.skip(f"Numba's layer here is {out.strip()}")


def test_same_bits_for_any_number_of_threads() -> None:
    out = run(
        """
        import numba
        results = {}
        for count in (1, 2, 3):
            if count <= numba.config.NUMBA_NUM_THREADS:
                numba.set_num_threads(count)
                results[count] = everything()
                assert numba.get_num_threads() == count
        assert len(results) == 3 and len(set(results.values())) == 1
        for way in ways[-len(problems):]:
            print(*way)
        """,
        NUMBA_NUM_THREADS="3",
    )
    # Threads with rows of their own; sharing units; with two blocks of rows, and one with one.
    assert out.splitlines() == ["8 3 False", "2 3 True", "30 3 True", "5 3 False"]


def test_threads_share_units_of_every_cell() -> None:
    """Few rows, however small: every cell, dtype and number of rows, ragged, against one thread.

    The most rows take several blocks, which the threads share one after another, and backward takes
    several blocks of steps.
    """
    out = run(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import numba
        import toys
        from problems import assert_same_bits, draw, solve
        from fastgru.kernels.cpu import recurrence
        layer._GRADIENT_BLOCK_BYTES, layer._GRADIENT_BLOCK_ROWS = 1, 20
        compared = 0

        def forget(params):
            fastgru.pack(params).architecture.calls.clear()
            layer.layer_for.cache_clear()

        for cell in fastgru.cells():
            for dtype in ("float32", "float64"):
                for N, lengths in ((1, None), (3, (4, 0, 7)), (9, None)):
                    problem = draw(cell, (N, 7, 5, 67), L=2, D=2, lengths=lengths, dtype=dtype)
                    threads._SMALLEST_PARALLEL_WORK = 10**9
                    alone = solve(problem)
                    forget(problem.params)  # what was prepared for one
                    threads._SMALLEST_PARALLEL_WORK, threads._SMALLEST_SHARE = 0, 1e-9
                    threads._OWN_ROWS, threads._MORE_ROWS_AT_ONCE = ((10**9, 5),), 4
                    for count in (2, 3):
                        numba.set_num_threads(count)
                        assert_same_bits(solve(problem), alone)
                        compared += 1
        print(compared, *threads.split(3, 9, 9, 5, 1, 1), len(fastgru.cells()))
        """,
        NUMBA_NUM_THREADS="3",
    )
    compared, *split, cells = out.split()
    assert int(compared) == 12 * int(cells) > 12
    assert split == ["3", "3", "True"]


@pytest.mark.parametrize(
    ("threads", "rows", "running", "units", "row_bytes", "recurrent_bytes", "way"),
    [
        (1, 64, 64, 64, 24e6, 12e6, (64, 1, False)),
        (2, 2, 2, 6, 200e3, 100e3, (1, 2, False)),  # so small a step is not worth waiting
        (2, 2, 2, 8, 200e3, 101e3, (2, 2, True)),
        (2, 4, 4, 8, 300e3, 250e3, (2, 2, False)),
        (2, 4, 4, 8, 300e3, 251e3, (4, 2, True)),
        (2, 5, 5, 16, 1.6e6, 1.2e6, (5, 2, True)),
        (2, 6, 6, 16, 1.6e6, 1.2e6, (3, 2, False)),  # rows enough to read each weight for
        (2, 6, 6, 16, 1.6e6, 1.3e6, (6, 2, True)),
        (2, 15, 15, 24, 4e6, 2e6, (15, 2, True)),  # weights from a cache further away
        (2, 16, 16, 24, 4e6, 3e6, (8, 2, False)),
        (2, 31, 31, 64, 24e6, 3.1e6, (31, 2, True)),  # still further
        (2, 31, 31, 64, 24e6, 2e6, (16, 2, False)),  # those of x need not come at every step
        (2, 32, 32, 64, 24e6, 12e6, (16, 2, False)),
        (4, 63, 63, 64, 24e6, 12e6, (63, 4, True)),
        (8, 65, 65, 64, 24e6, 12e6, (9, 8, False)),  # more than one block
        (8, 64, 64, 31, 24e6, 12e6, (8, 8, False)),  # too few units
        (2, 32, 32, 64, 1e6, 0.8e6, (16, 2, False)),
        (2, 128, 128, 64, 1e6, 0.8e6, (16, 2, False)),  # blocks that stay in a first-level cache
        (2, 128, 128, 64, 2e6, 0.8e6, (64, 2, False)),  # weights that are in no second-level one
        (2, 1, 1, 1, 1.6e6, 0.8e6, (1, 1, False)),  # nothing to share
        (2, 1, 1, 4, 55e3, 49e3, (1, 1, False)),  # nor worth it
        (2, 1, 1, 4, 70e3, 51e3, (1, 2, True)),
        (2, 1, 1, 4, 190e3, 12e3, (1, 1, False)),
        (2, 1, 1, 4, 210e3, 12e3, (1, 2, True)),  # x takes long enough
        (8, 1, 1, 8, 200e3, 130e3, (1, 5, True)),  # for some of the threads
        (8, 7, 7, 4, 60e3, 48e3, (1, 7, False)),  # more threads than could share the units
        (2, 6, 3.03, 13, 520e3, 480e3, (6, 2, True)),  # most rows end early
        (2, 20, 18, 8, 262e3, 196e3, (10, 2, False)),
        (2, 20, 17.9, 8, 262e3, 196e3, (5, 2, False)),  # a block of longer, one of shorter rows
        (2, 15, 8, 8, 262e3, 196e3, (8, 2, False)),  # halves of blocks would be too small
        (2, 16, 8, 8, 262e3, 196e3, (4, 2, False)),
        (2, 60, 48, 64, 24e6, 12e6, (30, 2, False)),  # halves would read far weights too often
        (8, 8, 7.9, 8, 60e3, 48e3, (1, 8, False)),  # as good as equal
        (7, 8, 8, 8, 60e3, 48e3, (2, 4, False)),  # no worker without a block
        (2, 0, 0, 8, 262e3, 196e3, (1, 1, False)),
    ],
)
def test_how_threads_share_a_loop(
    threads: int,
    rows: int,
    running: float,
    units: int,
    row_bytes: float,
    recurrent_bytes: float,
    way: tuple[int, int, bool],
) -> None:
    assert choice.split(threads, rows, running, units, row_bytes, recurrent_bytes) == way


def test_blocks_of_rows_go_round_there_and_back() -> None:
    """The longest rows come first: with a second block each, workers have about the same."""
    shares = [team.Share(worker, 3, worker, 0, 1) for worker in range(3)]
    blocks = [[team.block_of(s, turn) for turn in range(team.turns(s, 6))] for s in shares]
    assert blocks == [[0, 5], [1, 4], [2, 3]]


def test_padding_does_not_change_how_threads_share() -> None:
    """Steps after the longest row's last one."""
    out = run(
        """
        for T in (50, 500):
            params, x, _ = draw(4, T, 32, 64)
            fastgru.forward(x, params, lengths=[50, 49, 50, 50])
        for way in ways:
            print(*way)
        """,
        NUMBA_NUM_THREADS="2",
    )
    assert out.splitlines() == ["2 2 False"] * 2


def test_nobody_waits_for_threads_that_never_come() -> None:
    """A pool may run the workers one after another: the first one does everything."""
    run(
        """
        import numba
        from fastgru.kernels.cpu import recurrence
        expected = everything()
        numba.set_num_threads(1)
        recurrence.allowed_threads = lambda work: 3
        assert everything() == expected
        """,
        NUMBA_NUM_THREADS="3",
    )


def test_workqueue_stays_serial() -> None:
    """That layer aborts the process when two Python threads enter it."""
    run(
        """
        import threading
        expected = everything()
        found = []
        workers = [threading.Thread(target=lambda: found.append(everything())) for _ in range(4)]
        [w.start() for w in workers], [w.join() for w in workers]
        assert threads.allowed_threads(10**9) == 1
        assert found == [expected] * 4
        """,
        NUMBA_THREADING_LAYER="workqueue",
    )


def test_many_python_threads_at_once(needs_omp: None) -> None:
    run(
        """
        import threading
        expected = everything()
        found = []
        def work():
            for _ in range(5):
                found.append(everything())
        workers = [threading.Thread(target=work) for _ in range(4)]
        [w.start() for w in workers], [w.join() for w in workers]
        assert found == [expected] * 20
        """,
        NUMBA_NUM_THREADS="2",
        NUMBA_THREADING_LAYER="omp",
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes(needs_omp: None, method: str) -> None:
    """After parallel work in the parent: Numba kills a forked child that goes parallel."""
    run(
        """
        import concurrent.futures, multiprocessing, os
        expected = everything()
        assert threads.allowed_threads(10**9) > 1
        if METHOD == "fork":
            context = multiprocessing.get_context("fork")
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
                assert [f.result() for f in [pool.submit(everything) for _ in range(4)]] == (
                    [expected] * 4
                )
            child = os.fork()
            if child == 0:
                os._exit(0 if everything() == expected else 3)
            assert os.waitpid(child, 0)[1] == 0
        else:
            import subprocess, sys
            # A spawned process is a new interpreter; this one has no importable main module.
            again = subprocess.run(
                [sys.executable, "-c", SOURCE], check=True, capture_output=True
            ).stdout
            assert again == expected
        """.replace("METHOD", repr(method)).replace(
            "SOURCE",
            repr(PROBLEM + "\nimport sys; sys.stdout.buffer.write(everything())"),
        ),
        NUMBA_NUM_THREADS="2",
        NUMBA_THREADING_LAYER="omp",
    )


def test_child_of_a_parent_that_used_numba_itself(needs_omp: None) -> None:
    """The pool was started by the host before the fork; the library is first used after it."""
    run(
        """
        import multiprocessing, numba
        numba.get_num_threads()
        @numba.njit(parallel=True)
        def host(a):
            for i in numba.prange(len(a)):
                a[i] += 1
        host(np.zeros(1000))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(everything) == everything()
        """,
        NUMBA_NUM_THREADS="2",
        NUMBA_THREADING_LAYER="omp",
    )


def test_a_set_number_of_threads_is_respected() -> None:
    out = run(
        """
        import numba
        numba.set_num_threads(1)
        everything()
        print(threads.allowed_threads(10**9), numba.get_num_threads())
        """,
        NUMBA_NUM_THREADS="2",
    )
    assert out.split() == ["1", "1"]


def test_one_thread_where_several_are_slower() -> None:
    """After two calls that took longer than one thread would have, for a while.

    For twice as long after each that follows, and half as long after one that was faster, but not
    beyond a limit, unless two calls take longer.
    """
    out = run(
        """
        threads._SHORTEST_PAUSE, threads._LONGEST_PAUSE, threads._TRIAL_CALL = 2, 8, 2
        threads._LONGEST_PAUSE_TIME = 50.0
        now = [100.0]
        threads.time.perf_counter = lambda: now[0]
        pace = threads.Pace()
        print(*(pace.choose(2, 1) for _ in range(4)))
        for call in "2 3.0", "2 3.0", "1 2.0", "2 2.1", "2 2.5", "2 1.0", "2 2.3":
            count, seconds = call.split()
            pace.record(int(count), float(seconds), 1)
            print(threads.allowed_threads(10**9))
        def pauses(seconds, start):
            pace.record(2, seconds, 1)
            for at in (start, start + 0.1):
                now[0] = at
                print(threads.allowed_threads(10**9))
        pauses(2.5, 104.9)
        pauses(2.5, 114.9)
        pauses(1.0, 115.0)
        pauses(2.5, 115.0)
        now[0] = 115.0
        pauses(2.5, 124.9)
        now[0] = 125.0
        pauses(2.5, 144.9)
        now[0] = 145.0
        pauses(2.5, 164.9)
        threads._LONGEST_PAUSE_TIME, now[0] = 6.0, 165.0
        pauses(2.5, 170.9)
        threads._LONGEST_PAUSE_TIME, now[0] = 1.0, 171.0
        pauses(2.5, 175.9)
        """,
        NUMBA_NUM_THREADS="2",
    )
    trial, *counts = out.splitlines()
    assert trial == "2 1 2 2"
    assert counts == ["2"] * 7 + ["1", "2"] * 2 + ["2", "2"] * 2 + ["1", "2"] * 5


def test_one_thread_where_others_sleep() -> None:
    """A short call that comes alone is not worth waking them; a long one is."""
    out = run(
        """
        now = [100.0]
        threads.time.perf_counter = lambda: now[0]
        for alone in (0.0019, 0.0021):
            pace = threads.Pace()
            pace.record(1, alone, 1)
            for idle in (0.0009, 0.0011):
                now[0] += idle
                print(pace.choose(2, 1))
                pace.record(2, alone, 1)
        """,
        NUMBA_NUM_THREADS="2",
    )
    assert out.split() == ["2", "1", "2", "2"]


def test_durations_of_calls_are_recorded() -> None:
    out = run(
        """
        import time
        found = []
        def record(pace, count, seconds, work):
            found.append((count, seconds))
        threads.Pace.record = record
        start = time.perf_counter()
        y, h_n, saved = fastgru.forward_train(x, params)
        fastgru.backward(saved, dy)
        elapsed = time.perf_counter() - start
        print(*(count for count, _ in found))
        print(all(seconds > 0 for _, seconds in found), sum(s for _, s in found) < elapsed)
        """,
        NUMBA_NUM_THREADS="2",
    )
    assert out.splitlines() == ["2 2", "True True"]


def test_a_disabled_compiler_is_an_error_that_says_so() -> None:
    out = run(
        """
        try:
            fastgru.forward(x, params)
        except RuntimeError as error:
            print(error)
        """,
        NUMBA_DISABLE_JIT="1",
    )
    assert out.startswith("NUMBA_DISABLE_JIT is set")
