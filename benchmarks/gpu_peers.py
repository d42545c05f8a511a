"""Compare fastgru on CuPy arrays with PyTorch's cuDNN layers: what `compare_peers.py --gpu` runs.

One process, one stream, times by CUDA events; the contenders take turns in every round. cuDNN has a
row for each precision: float32, float32 with TF32 products, and bfloat16. The last column is a
bound: the arithmetic at the device's peak, and 0.45 µs a step to exchange h through the second
level cache (0.12 where one multiprocessor holds all weights).
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np

import fastgru

T = 256
BATCH = (1, 16, 64, 256)
HIDDEN = (64, 128, 256, 512, 1024, 2048)
QUICK = ((1, 64), (16, 512))
PRECISIONS = ("float32", "tf32", "bf16")
# Of an H200, estimated: operations a second, seconds a step.
PEAK = {"float32": 60e12, "tf32": 300e12, "bf16": 600e12}
EXCHANGE, ONE_BLOCK = 0.45e-6, 0.12e-6
TOLERANCE = {"float32": 1e-5, "tf32": 5e-3, "bf16": 5e-2}
CALLS = 10  # in a turn

Run = Callable[[], Any]


def floor(cell: str, B: int, H: int, precision: str, mode: str) -> float:
    """Seconds that no implementation can beat, about."""
    gates = 3 if cell == "gru" else 4
    products = 2 * B * gates * H * H / PEAK[precision]
    once = T * ((ONE_BLOCK if H <= 128 else EXCHANGE) + products)
    return once if mode == "forward" else 3 * once


def ours(params: Any, x: Any, dy: Any, precision: str, mode: str) -> Run:
    """A call of fastgru."""
    option = None if precision == "float32" else precision
    if mode == "forward":
        packed = fastgru.pack(params)
        return lambda: fastgru.forward(x, packed, time_major=True, precision=option)

    def train() -> Any:
        y, _, saved = fastgru.forward_train(x, params, time_major=True, precision=option)
        return y, fastgru.backward(saved, dy)

    return train


def theirs(torch: Any, cell: str, weights: Any, x: Any, dy: Any, precision: str, mode: str) -> Run:
    """A call of PyTorch, on its own copies."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    layer = kind(x.shape[2], dy.shape[2]).cuda()
    layer.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    layer.to(dtype).flatten_parameters()
    own_x, own_dy = (torch.from_numpy(a).cuda().to(dtype) for a in (x, dy))
    own_x.requires_grad_(mode == "train")

    def allow() -> None:
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"

    def forward() -> Any:
        allow()
        with torch.inference_mode():
            return layer(own_x)

    def train() -> Any:
        allow()
        own_x.grad = None
        layer.zero_grad(set_to_none=True)
        y, _ = layer(own_x)
        y.backward(own_dy)
        return y.detach(), own_x.grad

    return forward if mode == "forward" else train


def play(torch: Any, runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds a call of each contender in each round."""
    laps: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    torch.cuda.synchronize()
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(CALLS):
                run()
            end.record()
            end.synchronize()
            laps[name].append(start.elapsed_time(end) / 1e3 / CALLS)
    return laps


def measure(cell: str, mode: str, B: int, H: int, rounds: int) -> list[dict[str, Any]]:
    """One shape: a row for each precision."""
    import cupy
    import torch

    rng = np.random.default_rng([B, H])
    host = fastgru.init_params(H, H, cell=cell, rng=rng)
    x, dy = (rng.standard_normal((T, B, H), "float32") for _ in range(2))
    params, on_x, on_dy = host.map(cupy.asarray), cupy.asarray(x), cupy.asarray(dy)
    runs: dict[str, Run] = {}
    for precision in PRECISIONS:
        runs[f"fastgru {precision}"] = ours(params, on_x, on_dy, precision, mode)
        runs[f"cuDNN {precision}"] = theirs(torch, cell, host.to_dict(), x, dy, precision, mode)
    exact, _ = fastgru.forward(x, host, time_major=True)
    for name, run in runs.items():
        y = run()[0]
        y = cupy.asnumpy(y) if isinstance(y, cupy.ndarray) else y.float().cpu().numpy()
        error = float(np.abs(y - exact).max())
        if not error <= TOLERANCE[name.split()[1]]:
            raise ValueError(f"{name} differs from the result on the CPU by {error:.1e}")
    laps = play(torch, runs, rounds)
    rows = []
    for precision in PRECISIONS:
        own, other = (median(laps[f"{name} {precision}"]) for name in ("fastgru", "cuDNN"))
        bound = floor(cell, B, H, precision, mode)
        row = {"cell": cell, "mode": mode, "B": B, "H": H, "precision": precision}
        row |= {"fastgru": own, "cuDNN": other, "ratio": other / own, "floor": bound}
        rows.append(row | {"seconds": {n: v for n, v in laps.items() if n.endswith(precision)}})
    return rows


def main(options: argparse.Namespace) -> int:
    """Print all tables; 1 if a shape failed."""
    import torch

    shapes = QUICK if options.quick else [(B, H) for H in HIDDEN for B in BATCH]
    device = torch.cuda.get_device_name()
    print(f"{device}, {platform.platform()}, PyTorch {torch.__version__}; T = {T}, I = H")
    fastgru.show_config()
    rows, failed = [], False
    for cell in options.cell:
        for mode in (mode for mode in options.mode if mode != "step"):
            print(f"\n{cell}, {mode}; µs a call, medians of {options.rounds} rounds")
            print(
                f"{'B':>5}{'H':>6}  {'precision':<10}{'fastgru':>10}{'cuDNN':>10}{'ratio':>8}",
                end="",
            )
            print(f"{'of floor':>10}")
            found: list[dict[str, Any]] = []
            for B, H in shapes:
                try:
                    found += measure(cell, mode, B, H, options.rounds)
                except Exception as error:  # the other shapes are still worth measuring
                    failed = True
                    print(f"{B:>5}{H:>6}  error: {type(error).__name__}: {error}", flush=True)
                    continue
                for row in found[-len(PRECISIONS) :]:
                    print(
                        f"{B:>5}{H:>6}  {row['precision']:<10}{1e6 * row['fastgru']:>10.0f}"
                        f"{1e6 * row['cuDNN']:>10.0f}{row['ratio']:>8.2f}"
                        f"{row['floor'] / row['fastgru']:>10.2f}",
                        flush=True,
                    )
            for precision in PRECISIONS:
                ratios = [row["ratio"] for row in found if row["precision"] == precision]
                if ratios:
                    print(
                        f"geometric mean of the ratios, {precision}: {geometric_mean(ratios):.2f}"
                    )
            rows += found
    if options.json:
        facts = {"device": device, "torch": torch.__version__, "T": T}
        options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))
        print(f"written: {Path(options.json)}")
    return int(failed)
