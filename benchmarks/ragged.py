"""What `lengths` cost, and a number of steps that was not seen before.

    python -m benchmarks.ragged --threads 1 2

Microseconds of `fastgru.forward` with packed weights, medians. All lengths are those of the longest
row or one step less, so that both calls compute about the same. With ``--busy`` other processes
keep cores busy.
"""

import argparse
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from statistics import median

import numba
import numpy as np

import fastgru

# cell, directions, N, T, I, H
SHAPES = (
    ("gru", 1, 1, 16, 64, 64),
    ("lstm", 2, 1, 16, 64, 32),
    ("gru", 1, 8, 16, 32, 32),
    ("gru", 1, 64, 16, 16, 16),
    ("gru", 2, 8, 50, 64, 64),
    ("gru", 1, 64, 100, 64, 128),
)


def microseconds(call: Callable[[int], object], rounds: int) -> float:
    """Median time of a call, which is told how many came before."""
    laps = []
    for number in range(-rounds // 4, rounds):
        start = time.perf_counter()
        call(number)
        laps.append(time.perf_counter() - start)
    return 1e6 * median(laps[-rounds:])


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """So many other processes that compute all the time."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    yield
    for other in others:
        other.terminate()
        other.join()


def times_of(cell: str, D: int, N: int, T: int, I: int, H: int, rounds: int) -> list[float]:
    """Of a call without lengths, with lengths, and with a new number of steps."""
    params = fastgru.init_params(I, H, cell=cell, bidirectional=D == 2, rng=0)
    weights = fastgru.pack(params)
    x = np.random.default_rng(0).standard_normal((N, T + 32, I)).astype("float32")
    short, ragged = np.ascontiguousarray(x[:, :T]), T - (np.arange(N) % 2)
    return [
        microseconds(lambda _: fastgru.forward(short, weights), rounds),
        microseconds(lambda _: fastgru.forward(short, weights, lengths=ragged), rounds),
        microseconds(lambda n: fastgru.forward(x[:, : T + 5 + n], weights), 16),
    ]


def show(threads: int, rounds: int) -> None:
    """Print a table for one number of threads."""
    numba.set_num_threads(threads)
    print(
        f"\nthreads: {threads}\n{'cell D N T I H':<28}{'without':>10}{'lengths':>10}{'new T':>10}"
    )
    for shape in SHAPES:
        label = " ".join(map(str, shape))
        print(f"{label:<28}" + "".join(f"{t:>10.1f}" for t in times_of(*shape, rounds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, numba.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=400, help="calls of each kind")
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute")
    options = parser.parse_args()
    with busy_cores(options.busy):
        for threads in options.threads:
            show(threads, options.rounds)


if __name__ == "__main__":
    main()
