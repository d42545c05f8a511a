"""How many threads a call uses, and how they share it: the same bits, whatever the host does.

Each check of results runs in a process of its own: what is tested is the state of a process's
thread pool.
"""

import pytest
from programs import run

from fastgru.kernels.cpu import threads as choice


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
        tune(threads, SHORTEST_PAUSE=2, LONGEST_PAUSE=8, TRIAL_CALL=2, LONGEST_PAUSE_TIME=50.0)
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
        tune(threads, LONGEST_PAUSE_TIME=6.0)
        now[0] = 165.0
        pauses(2.5, 170.9)
        tune(threads, LONGEST_PAUSE_TIME=1.0)
        now[0] = 171.0
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
