"""Programs that test the state of a process: its thread pool, its floating-point mode."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

# Large enough for the parallel kernels, see `fastgru.kernels.cpu.threads`: the first batch is split
# by rows, the second one by units, as it has few rows, and so is the third, for its many weights.
# The fourth has rows of all lengths, so that threads have two blocks of them, or one at the end.
PROBLEM = """
import numpy as np
import fastgru
from fastgru.kernels.cpu import layer, threads
from tuned import tune

ways = []
split = layer.split

def remember(*sizes):
    ways.append(split(*sizes))
    return ways[-1]

layer.split = remember
# Neither a busy machine nor a trial must keep these calls from their threads.
tune(threads, SHORTEST_PAUSE=0, LONGEST_PAUSE=0, TRIAL_CALL=0)
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


def python(program: str, **environment: Any) -> str:
    """Output of a program, which must not fail nor warn; it may import modules of the tests."""
    others = environment.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
    paths = [str(Path(__file__).parent), *([others] if others else [])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,  # compiling every cell, where the cache is empty
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run(code: str, **environment: Any) -> str:
    """Output of a program that starts with the problem above."""
    return python(textwrap.dedent(PROBLEM) + textwrap.dedent(code), **environment)
