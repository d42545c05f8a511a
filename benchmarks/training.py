"""Epochs of `training.fit`, beside the same loop written out, and beside PyTorch's, in turns.

    NUMBA_NUM_THREADS=1 python -m benchmarks.training

One layer, a linear read-out of the last state, mean squared error, Adam, gradients clipped to a
norm of 1; eight batches an epoch. PyTorch is left out where it is not installed.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numba
import numpy as np

import fastgru

from . import turns

Shape = tuple[int, int, int, int]  # rows of a batch, T, I, H
SHAPES: tuple[Shape, ...] = (
    (32, 20, 4, 16),
    (64, 100, 16, 64),
    (32, 50, 8, 32),
    (128, 50, 32, 128),
    (64, 30, 64, 256),
)
BATCHES = 8


def draw(shape: Shape) -> tuple[Any, Any]:
    """Sequences and targets of an epoch."""
    N, T, I, _ = shape
    x = np.random.default_rng(0).normal(size=(BATCHES * N, T, I)).astype("float32")
    return x, x.mean(axis=1)[:, :1]


def by_fit(cell: str, shape: Shape) -> Callable[[], Any]:
    """An epoch of `fit`."""
    from fastgru import training  # not above: asv imports this file at earlier commits

    x, y = draw(shape)
    N, _, I, H = shape
    model, adam = training.init_model(I, H, 1, cell=cell, rng=0), training.Adam(1e-3)
    return lambda: training.fit(model, x, y, optimizer=adam, epochs=1, batch_size=N, rng=0)


def by_hand(cell: str, shape: Shape) -> Callable[[], Any]:
    """The same, with nothing around it."""
    from fastgru import training  # likewise

    x, y = draw(shape)
    _, _, I, H = shape
    model = training.init_model(I, H, 1, cell=cell, rng=0)
    adam = training.Adam(1e-3)
    first = {"params": model.params, "W": model.weight, "b": model.bias}

    def run() -> Any:
        tree = first
        order = np.random.default_rng(0).permutation(len(x))
        for rows in np.split(order, BATCHES):
            _, state, saved = fastgru.forward_train(x[rows], tree["params"])
            h = (state[0] if isinstance(state, tuple) else state)[0]
            error = h @ tree["W"].T + tree["b"] - y[rows]
            d = 2 * error / error.size
            dh = (d @ tree["W"])[None]
            dh_n = (dh, None) if isinstance(state, tuple) else dh
            found = fastgru.backward(saved, dh_n=dh_n).params
            gradients = {"params": found, "W": d.T @ h, "b": d.sum(axis=0)}
            tree = adam.step(tree, training.clip_by_norm(gradients, 1.0)[0])
        return tree

    return run


def by_torch(cell: str, shape: Shape) -> Callable[[], Any]:
    """The same in PyTorch."""
    import torch

    x, y = (torch.from_numpy(array) for array in draw(shape))
    N, _, I, H = shape
    layer = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](I, H, batch_first=True)
    readout = torch.nn.Linear(H, 1)
    weights = [*layer.parameters(), *readout.parameters()]
    adam = torch.optim.Adam(weights, 1e-3)

    def run() -> Any:
        for rows in torch.randperm(len(x)).split(N):
            adam.zero_grad()
            outputs, _ = layer(x[rows])
            loss = torch.nn.functional.mse_loss(readout(outputs[:, -1]), y[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
        return loss

    return run


def measure(cell: str, shapes: Sequence[Shape], rounds: int) -> list[dict[str, Any]]:
    """Seconds of an epoch, medians over the rounds."""
    makers = {"fit": by_fit, "by hand": by_hand}
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(numba.get_num_threads())
        makers["PyTorch"] = by_torch
    found = []
    for shape in shapes:
        contenders = []
        for name, make in makers.items():
            contender = turns.Contender(name, make(cell, shape))
            contender.run()
            contenders.append(contender)
        turns.play(contenders, rounds)
        seconds = {one.name: median(one.rounds) for one in contenders}
        found.append({"cell": cell, "shape": shape, "seconds": seconds})
    return found


def report(found: Sequence[dict[str, Any]]) -> str:
    """A table."""
    lines = [f"{'':6}{'N, T, I, H':>18}{'fit, ms':>10}{'by hand / fit':>15}{'PyTorch / fit':>15}"]
    for one in found:
        own = one["seconds"]["fit"]
        ratios = [
            f"{one['seconds'][name] / own:.2f}" if name in one["seconds"] else "-"
            for name in ("by hand", "PyTorch")
        ]
        shape = ", ".join(map(str, one["shape"]))
        lines.append(f"{one['cell']:6}{shape:>18}{1e3 * own:>10.2f}{ratios[0]:>15}{ratios[1]:>15}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns that each contender gets")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    facts = turns.machine_facts(numba.get_num_threads())
    found = [one for cell in ("gru", "lstm") for one in measure(cell, SHAPES, options.rounds)]
    print(report(found))
    if options.json is not None:
        run = {"machine": facts, "dtype": "float32", "results": found}
        options.json.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
