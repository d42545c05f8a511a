"""Peak memory of one call: what the process grows by beyond what it held before.

    python -m benchmarks.memory

Each library and call has a process of its own, which first makes the same call on a short sequence,
so that code and thread pools do not count.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import fastgru

SHAPE = (10_000, 32, 128, 128)  # T, B, I, H
MIB = 2**20

PROGRAM = """
import json, resource, sys
import numpy as np
library, mode, cell, (T, B, I, H) = json.loads(sys.argv[1])
rng = np.random.default_rng(0)

if library == "fastgru":
    import fastgru
    weights = fastgru.pack(fastgru.init_params(I, H, cell=cell, rng=0))
    def call(x):
        return (fastgru.forward if mode == "forward" else fastgru.forward_train)(x, weights)
    convert = lambda x: x
else:
    import torch
    layer = getattr(torch.nn, cell.upper())(I, H, batch_first=True)
    def call(x):
        with torch.set_grad_enabled(mode == "train"):
            return layer(x)
    convert = torch.from_numpy

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

short = call(convert(rng.standard_normal((B, 20, I), "float32")))
x = convert(rng.standard_normal((B, T, I), "float32"))
before = peak()
result = call(x)
print(peak() - before)
"""


def growth(
    library: str, mode: str, cell: str = "gru", shape: tuple[int, int, int, int] = SHAPE
) -> int:
    """Bytes that a process grows by, with the very fastgru of this one."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([library, mode, cell, shape])]
    env = os.environ | {"PYTHONPATH": str(Path(fastgru.__file__).parents[1])}
    return int(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    T, B, _, H = SHAPE
    outputs = 4 * T * B * H
    print(f"T, B, I, H = {SHAPE}, float32; y takes {outputs / MIB:.0f} MiB; growth in MiB")
    for mode in ("forward", "train"):
        for library in ("fastgru", "torch"):
            try:
                found = f"{growth(library, mode) / MIB:.0f}"
            except subprocess.CalledProcessError as error:
                found = f"failed: {error.stderr.splitlines()[-1]}"
            print(f"{mode:<8} {library:<8} {found}")


if __name__ == "__main__":
    main()
