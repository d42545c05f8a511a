"""Forks, spawned processes and other libraries' OpenMP: right results, and nothing hangs.

Each check runs in processes of its own.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from programs import PROBLEM, run

import fastgru

TWO_THREADS = {"NUMBA_NUM_THREADS": "2", "NUMBA_THREADING_LAYER": "omp"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

# A library that uses OpenMP, loaded for all, as PyTorch loads its own; its threads exist then.
OPENMP = """
import ctypes

gomp = ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: None)
gomp.GOMP_parallel(body, None, 2, 0)
"""
# Forks; the child computes, and the parent checks that it did, and does so itself.
FORK = """
import os

def forked(compute):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.write(writing, compute().hex().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        found = bytes.fromhex(file.read())
    assert os.waitpid(child, 0)[1] == 0
    return found

def digest():
    import hashlib
    return hashlib.sha256(everything()).digest()
"""


@pytest.fixture(scope="module")
def needs_gomp(needs_omp: None) -> None:
    """Skip where GNU OpenMP cannot be loaded by its name."""
    if subprocess.run([sys.executable, "-c", OPENMP], capture_output=True).returncode:
        pytest.skip("there is no libgomp.so.1")


@pytest.mark.parametrize(
    "before",
    [
        "fastgru.show_config()",
        "import numba; numba.get_num_threads()",
        """
        import numba
        @numba.njit(parallel=True)
        def host(a):
            for i in numba.prange(len(a)):
                a[i] += 1
        host(np.zeros(1000))""",
        "everything()",
        "forked(digest)",
    ],
    ids=["show_config", "thread count", "host's prange", "parallel call", "another fork"],
)
def test_children_of_os_fork(needs_omp: None, before: str) -> None:
    """Application servers fork so, whatever the process did before."""
    run(f"{FORK}\n{textwrap.dedent(before)}\nassert forked(digest) == digest()", **TWO_THREADS)


def test_children_of_a_process_whose_openmp_another_library_used(needs_gomp: None) -> None:
    """GNU OpenMP then waits for threads that the child does not have."""
    run(
        f"""
        {textwrap.indent(FORK + OPENMP, " " * 8).strip()}
        found = forked(digest)
        assert found == digest() and threads.allowed_threads(10**9) == 2
        """,
        **TWO_THREADS,
    )


def test_children_of_children_and_daemons(needs_omp: None) -> None:
    run(
        f"""
        {textwrap.indent(FORK, " " * 8).strip()}
        expected = digest()
        assert forked(lambda: forked(lambda: forked(digest))) == expected

        def of_daemon():
            # The child ends at once, and its own child goes on alone.
            reading, writing = os.pipe()
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.write(writing, digest())
                os._exit(0)
            return os.read(reading, 100)

        assert of_daemon() == expected
        """,
        **TWO_THREADS,
    )


def test_forks_while_other_threads_compute(needs_omp: None) -> None:
    run(
        f"""
        {textwrap.indent(FORK, " " * 8).strip()}
        import threading
        expected, done = digest(), False

        def work():
            while not done:
                assert digest() == expected

        workers = [threading.Thread(target=work) for _ in range(3)]
        [w.start() for w in workers]
        found = [forked(digest) for _ in range(5)]
        done = True
        [w.join() for w in workers]
        assert found == [expected] * 5
        """,
        **TWO_THREADS,
    )


def test_a_fork_while_another_thread_compiles(tmp_path: Path) -> None:
    """The child must not wait for Numba's lock, which a thread of the parent had."""
    run(
        f"""
        {textwrap.indent(FORK, " " * 8).strip()}
        import threading
        from numba.core import event

        def small():
            small_params = fastgru.init_params(3, 5, rng=0)
            return fastgru.forward(np.ones((2, 4, 3), "float32"), small_params)[0].tobytes()

        started = threading.Event()
        class Listener(event.Listener):
            def on_start(self, event):
                started.set()
            def on_end(self, event):
                pass
        event.register("numba:run_pass", Listener())
        compiling = threading.Thread(target=small)
        compiling.start()
        assert started.wait(60)
        found = forked(small)
        compiling.join()
        assert found == small()
        """,
        NUMBA_CACHE_DIR=str(tmp_path),
    )


def test_a_forked_child_of_a_process_without_openmp_uses_threads(needs_omp: None) -> None:
    """Only where Linux tells what is loaded."""
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems do not tell")
    run(
        f"""
        {textwrap.indent(FORK, " " * 8).strip()}
        import sys
        assert "numba.np.ufunc.omppool" not in sys.modules
        assert forked(lambda: bytes([threads.allowed_threads(10**9)])) == b"\2"
        """,
        **TWO_THREADS,
    )


def test_a_spawned_worker_that_used_numba_itself_uses_threads(
    needs_omp: None, tmp_path: Path
) -> None:
    """It is no fork: its pool is its own."""
    (tmp_path / "worker.py").write_text(
        """
import numba, numpy as np

@numba.njit(parallel=True)
def host(a):
    for i in numba.prange(len(a)):
        a[i] += 1

def threads():
    host(np.zeros(1000))
    from fastgru.kernels.cpu import threads
    return threads.allowed_threads(10**9)
"""
    )
    out = run(
        """
        import multiprocessing, sys
        import worker
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(worker.threads))
        """,
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(Path(fastgru.__file__).parents[1])]),
        **TWO_THREADS,
    )
    assert out.split() == ["2"]


def test_openmp_settings_of_the_host_stay(needs_gomp: None) -> None:
    """Numba sets the number of threads for all that use the same OpenMP when its pool starts."""
    run(
        f"""
        {textwrap.indent(OPENMP, " " * 8).strip()}
        gomp.omp_set_num_threads(1)
        gomp.omp_set_max_active_levels(3)
        everything()
        assert threads.allowed_threads(10**9) == 2
        assert gomp.omp_get_max_threads() == 1
        assert gomp.omp_get_max_active_levels() == 3
        """,
        **TWO_THREADS,
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
