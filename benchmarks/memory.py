"""Peak memory of one call: what the process grows by beyond what it held before. On Linux.

    python -m benchmarks.memory

Each library and call has a process of its own, which first makes the same call on a short sequence,
so that code and thread pools do not count; kernels are compiled by another one before.
"""

import json
import subprocess
import sys

from .turns import same_fastgru

Shape = tuple[int, int, int, int]  # T, B, I, H
SHAPE: Shape = (10_000, 32, 128, 128)
SHORT = 20  # time steps
MIB = 2**20
MODES = ("forward", "forward_train", "train")  # the last with backward

PROGRAM = """
import json, resource, sys
import numpy as np
library, mode, cell, (T, B, I, H), T_short = json.loads(sys.argv[1])
rng = np.random.default_rng(0)

if library == "fastgru":
    import fastgru
    params = fastgru.init_params(I, H, cell=cell, rng=0)
    packed = fastgru.pack(params)
    def call(x, dy):
        if mode == "forward":
            return fastgru.forward(x, packed)
        result = fastgru.forward_train(x, params)
        return result if mode == "forward_train" else (result, fastgru.backward(result[2], dy))
    convert = lambda x: x
else:
    import torch
    layer = getattr(torch.nn, cell.upper())(I, H, batch_first=True)
    def call(x, dy):
        with torch.set_grad_enabled(mode != "forward"):
            x.requires_grad_(mode != "forward")
            result = layer(x)
            if mode == "train":
                result[0].backward(dy)
            return result
    convert = torch.from_numpy

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def arguments(T):
    return [convert(rng.standard_normal((B, T, size), "float32")) for size in (I, H)]

short = call(*arguments(T_short))
x, dy = arguments(T)
before = peak()
result = call(x, dy)
print(peak() - before)
"""


def growth(library: str, mode: str, cell: str = "gru", shape: Shape = SHAPE) -> int:
    """Bytes that a process grows by, with the very fastgru of this one."""
    found = ""
    for T in (SHORT, shape[0]):
        argument = json.dumps([library, mode, cell, (T, *shape[1:]), SHORT])
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM, argument],
            env=same_fastgru(),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    return int(found)


def main() -> None:
    if sys.platform == "win32":
        sys.exit("Windows does not tell the memory of a process by Python's `resource`")
    T, B, _, H = SHAPE
    outputs = 4 * T * B * H
    print(f"T, B, I, H = {SHAPE}, float32; y takes {outputs / MIB:.0f} MiB; growth in MiB")
    for mode in MODES:
        for library in ("fastgru", "torch"):
            try:
                found = f"{growth(library, mode) / MIB:.0f}"
            except subprocess.CalledProcessError:
                found = "failed"
            print(f"{mode:<14} {library:<8} {found}", flush=True)


if __name__ == "__main__":
    main()
