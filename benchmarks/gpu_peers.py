"""Compare fastgru on CuPy arrays with PyTorch's cuDNN layers: what `compare_peers.py --gpu` runs.

One process, one stream, times by CUDA events; the contenders take turns in every round. cuDNN has a
row for each precision: float32, float32 with TF32 products, and bfloat16. `of floor` is the
fraction of a bound: the arithmetic at the device's peak, and 0.45 µs a step to exchange h through
the second level cache (0.12 where one multiprocessor holds all weights). With `--loops`, fastgru's
own loops, chosen or not, take turns instead: what the table of loops should be made from. `host` is
the time until a call of fastgru returns, whatever still runs on the GPU.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from statistics import geometric_mean, median
from typing import Any, NamedTuple

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
TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "bf16": 2e-1}  # of the largest magnitude
TURN, MOST_CALLS = 0.03, 10  # seconds of calls, and calls, in a turn


class Contender(NamedTuple):
    """`prepare` comes before a turn and is not timed; `run` gives y and, in training, dx."""

    prepare: Callable[[], Any]
    run: Callable[[], Any]


def floor(cell: str, B: int, H: int, precision: str, mode: str) -> float:
    """Seconds that no implementation can beat, about."""
    gates = 3 if cell == "gru" else 4
    products = 2 * B * gates * H * H / PEAK[precision]
    once = T * ((ONE_BLOCK if H <= 128 else EXCHANGE) + products)
    return once if mode == "forward" else 3 * once


def ours(params: Any, x: Any, dy: Any, precision: str, mode: str, names: str) -> Contender:
    """fastgru with these loops; weights packed beforehand for inference, plain otherwise."""
    from fastgru import packed
    from fastgru.kernels.cuda import loops

    option: Any = {"time_major": True}
    option |= {} if precision == "float32" else {"precision": precision}
    weights = params

    def prepare() -> None:
        nonlocal weights
        os.environ[loops.VARIABLE] = names
        packed._architecture.cache_clear()  # it keeps what was chosen
        if mode == "forward":
            weights = fastgru.pack(params)

    def forward() -> Any:
        return fastgru.forward(x, weights, **option)[:1]

    def train() -> Any:
        y, _, saved = fastgru.forward_train(x, params, **option)
        return y, fastgru.backward(saved, dy).x

    return Contender(prepare, forward if mode == "forward" else train)


def loops_for(cell: str, B: int, H: int, precision: str) -> list[str]:
    """Names of all loops that suit a shape."""
    import cupy

    from fastgru.kernels.cells import CELLS
    from fastgru.kernels.cuda import loops
    from fastgru.kernels.cuda.context import Layer

    own = None if precision == "float32" else precision
    kind, device = np.dtype("float32"), cupy.cuda.Device()
    layer = Layer(CELLS[cell], H, kind, own, device, B, T, 1)
    return [loop.name for loop in loops.LOOPS.values() if loop.suits(layer)]


def theirs(
    torch: Any, cell: str, weights: Any, x: Any, dy: Any, precision: str, mode: str
) -> Contender:
    """PyTorch's layer, which is cuDNN's."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    layer = kind(x.shape[2], dy.shape[2]).cuda()
    layer.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    layer.to(dtype).train(mode == "train").flatten_parameters()
    own_x, own_dy = (torch.from_numpy(a).cuda().to(dtype) for a in (x, dy))
    own_x.requires_grad_(mode == "train")

    def prepare() -> None:
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"

    @torch.inference_mode()
    def forward() -> Any:
        return layer(own_x)[:1]

    def train() -> Any:
        own_x.grad = None
        layer.zero_grad(set_to_none=True)
        y, _ = layer(own_x)
        y.backward(own_dy)
        return y.detach(), own_x.grad

    return Contender(prepare, forward if mode == "forward" else train)


def read(result: Any) -> list[Any]:
    """Results as float32 NumPy arrays."""
    return [a.float().cpu().numpy() if hasattr(a, "cpu") else a.get() for a in result]


def check(results: dict[str, list[Any]], reference: str) -> dict[str, str]:
    """What is wrong with each contender's results, beside those of one in float32."""
    wrong = {}
    for name, found in results.items():
        for label, got, want in zip(("y", "dx"), found, results[reference], strict=False):
            error = float(np.abs(got - want).max() / max(1, np.abs(want).max()))
            if not error <= TOLERANCE[name.split()[1]]:
                wrong[name] = f"{label} differs by {error:.1e}"
    return wrong


def run_a_few(contender: Contender) -> Any:
    """Result of the third run: in the second, what is repeated as a graph is captured."""
    contender.prepare()
    for _ in range(2):
        contender.run()
    return contender.run()


Laps = dict[str, list[float]]


def play(torch: Any, contenders: dict[str, Contender], rounds: int) -> tuple[Laps, Laps]:
    """Seconds a call of each contender in each round, and seconds until a call returns."""
    laps: Laps = {name: [] for name in contenders}
    host: Laps = {name: [] for name in contenders}
    calls = dict.fromkeys(contenders, 1)
    for number in range(rounds + 1):  # the first decides the number of calls
        for name, contender in contenders.items():
            run_a_few(contender)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls[name]):
                contender.run()
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1e3 / calls[name]
            if number:
                laps[name].append(seconds)
                host[name].append(until_it_returns(contender))  # with nothing else to run
                end.record()
                end.synchronize()
            else:
                calls[name] = max(1, min(MOST_CALLS, int(TURN / seconds)))
    return laps, host


def until_it_returns(contender: Contender) -> float:
    """Seconds that the host takes for a call: what it launches may run on."""
    start = time.perf_counter()
    contender.run()
    return time.perf_counter() - start


class Arrays(NamedTuple):
    """A problem on the host and on the device."""

    weights: Any
    x: Any
    dy: Any
    own_params: Any
    own_x: Any
    own_dy: Any


def draw(cell: str, B: int, H: int) -> Arrays:
    """Draw a problem."""
    import cupy

    rng = np.random.default_rng([B, H])
    host = fastgru.init_params(H, H, cell=cell, rng=rng)
    x, dy = (rng.standard_normal((T, B, H), "float32") for _ in range(2))
    own = host.map(cupy.asarray), cupy.asarray(x), cupy.asarray(dy)
    return Arrays(host.to_dict(), x, dy, *own)


Row = dict[str, Any]


def measure(cell: str, mode: str, B: int, H: int, rounds: int) -> list[Row]:
    """fastgru and cuDNN on one shape: a row for each precision."""
    import torch

    from fastgru.kernels.cuda import loops

    arrays, contenders = draw(cell, B, H), {}
    enabled = os.environ.get(loops.VARIABLE, "")
    for precision in PRECISIONS:
        contenders[f"fastgru {precision}"] = ours(*arrays[3:], precision, mode, enabled)
        contenders[f"cuDNN {precision}"] = theirs(torch, cell, *arrays[:3], precision, mode)
    results = {name: read(run_a_few(contender)) for name, contender in contenders.items()}
    wrong = check(results, "cuDNN float32")
    laps, host = play(torch, contenders, rounds)
    rows = []
    for precision in PRECISIONS:
        names = [f"{name} {precision}" for name in ("fastgru", "cuDNN")]
        own, other = (median(laps[name]) for name in names)
        row: Row = {"cell": cell, "mode": mode, "B": B, "H": H, "precision": precision}
        row |= {"fastgru": own, "cuDNN": other, "ratio": other / own}
        row |= {"floor": floor(cell, B, H, precision, mode)}
        row |= {"seconds": {name: laps[name] for name in names}}
        row |= {"host": {name: host[name] for name in names}}
        rows.append(row | {"wrong": {name: wrong[name] for name in names if name in wrong}})
    return rows


def measure_loops(cell: str, mode: str, B: int, H: int, rounds: int) -> list[Row]:
    """fastgru's loops on one shape: a row for each precision."""
    import torch

    arrays, contenders, wrong = draw(cell, B, H), {}, {}
    for precision in PRECISIONS:
        for loop in loops_for(cell, B, H, precision):
            contender = ours(*arrays[3:], precision, mode, loop)
            contenders[f"{loop} {precision}"] = contender
    results = {}
    for name, contender in [*contenders.items()]:
        try:
            results[name] = read(run_a_few(contender))
        except Exception as error:  # the other loops are still worth measuring
            wrong[name] = f"{type(error).__name__}: {error}"
            del contenders[name]
    wrong |= check(results, "steps float32")
    laps, host = play(torch, contenders, rounds)
    rows = []
    for precision in PRECISIONS:
        row: Row = {"cell": cell, "mode": mode, "B": B, "H": H, "precision": precision}
        for label, found in (("seconds", laps), ("host", host), ("wrong", wrong)):
            row[label] = {n: value for n, value in found.items() if n.split()[1] == precision}
        rows.append(row)
    return rows


def show(row: Row) -> None:
    """Print a row."""
    text = f"{row['B']:>5}{row['H']:>6}  {row['precision']:<10}"
    if "ratio" in row:
        text += f"{1e6 * row['fastgru']:>10.0f}{1e6 * row['cuDNN']:>10.0f}{row['ratio']:>8.2f}"
        text += f"{row['floor'] / row['fastgru']:>10.2f}"
        host = row["host"][f"fastgru {row['precision']}"]
        text += f"{1e6 * median(host):>8.0f}  "
    else:
        for name, laps in row["seconds"].items():
            text += f"{name.split()[0]:>10}{1e6 * median(laps):>8.0f}"
    print(text, "; ".join(f"{name}: {error}" for name, error in row["wrong"].items()), flush=True)


def main(options: argparse.Namespace) -> int:
    """Print all tables; 1 if a shape failed or results were wrong."""
    import torch

    from fastgru.kernels.cuda import loops

    names = os.environ.get(loops.VARIABLE, "")
    try:
        return run(options, torch)
    finally:
        os.environ[loops.VARIABLE] = names


def run(options: argparse.Namespace, torch: Any) -> int:
    """As `main`; the loops that the environment names are changed."""
    shapes = QUICK if options.quick else [(B, H) for H in HIDDEN for B in BATCH]
    facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "T": T}
    print(f"{facts['device']}, {platform.platform()}, PyTorch {facts['torch']}; T = {T}, I = H")
    fastgru.show_config()
    measure_shape = measure_loops if options.loops else measure
    rows: list[Row] = []
    failed = False
    for cell in options.cell:
        for mode in options.mode:
            print(f"\n{cell}, {mode}; µs a call, medians of {options.rounds} rounds")
            widths = {"fastgru": 10, "cuDNN": 10, "ratio": 8, "of floor": 10, "host": 8}
            names = "".join(f"{name:>{width}}" for name, width in widths.items())
            print(f"{'B':>5}{'H':>6}  {'precision':<10}{'' if options.loops else names}")
            found: list[Row] = []
            for B, H in shapes:
                try:
                    found += measure_shape(cell, mode, B, H, options.rounds)
                except Exception as error:  # the other shapes are still worth measuring
                    failed = True
                    print(f"{B:>5}{H:>6}  error: {type(error).__name__}: {error}", flush=True)
                    continue
                for row in found[-len(PRECISIONS) :]:
                    show(row)
                if options.json:  # now, as there may be a limit on the time
                    written = {"machine": facts, "rows": rows + found}
                    options.json.write_text(json.dumps(written, indent=1))
            for precision in PRECISIONS:
                of_precision = [row for row in found if row["precision"] == precision]
                ratios = [row["ratio"] for row in of_precision if "ratio" in row]
                if ratios:
                    mean = geometric_mean(ratios)
                    print(f"geometric mean of the ratios, {precision}: {mean:.2f}")
            rows += found
    return int(failed or any(row["wrong"] for row in rows))
