"""Forecast the weekly CO2 record of Mauna Loa: a recipe to copy for a series of your own.

A window of the last two years goes through one recurrent layer; a linear read-out of its last
hidden state gives the change over each of the next 12 weeks at once. Adam trains both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import fastgru

__all__ = ["Problem", "Result", "load_co2", "prepare", "run"]

Array = NDArray[Any]

HORIZON = 12  # weeks forecast from each origin, the last week of a window
WINDOW = 104  # weeks that the network looks back: it sees every season twice
YEAR = 52
HELD_OUT = 261  # the last five years
BATCH = 64
LEARNING_RATE = 1e-2  # this and the epochs: from trials that trained to 1991, forecast 1992-1996

LAST_VALUE, SEASONAL, DRIFT = "last value", "seasonal naive", "seasonal naive + drift"


@dataclass(frozen=True)
class Problem:
    """A series cut into windows, those to train on and those to test on."""

    dates: Array  # (weeks,)
    ppm: Array  # (weeks,), gaps filled
    held_out: int  # index of the first held-out week
    train_origins: Array  # (N,), every target before held_out
    test_origins: Array  # (M,), every target from held_out on
    scale: float  # ppm that a network's output of 1 stands for
    x_train: Array  # (N, WINDOW, 2) float32
    y_train: Array  # (N, HORIZON) float32: scaled change since the origin
    x_test: Array  # (M, WINDOW, 2) float32


@dataclass(frozen=True)
class Result:
    """Forecasts of the held-out weeks by one trained network, and how far they were off."""

    cell: str
    forecast: Array  # (M, HORIZON) ppm, from each of Problem.test_origins
    losses: list[float]  # mean squared error of each epoch, scaled
    seconds: float  # training, without compilation
    error: Array  # (HORIZON,) mean absolute error 1..HORIZON weeks ahead, ppm
    naive_errors: dict[str, Array]  # the same for each naive forecast

    @property
    def better_naive(self) -> str:
        """Whichever of last value and seasonal naive errs less HORIZON weeks ahead."""
        return min((LAST_VALUE, SEASONAL), key=lambda name: float(self.naive_errors[name][-1]))


class Readout(NamedTuple):
    """Linear map from the hidden state to the scaled changes."""

    weight: Array  # (H, HORIZON)
    bias: Array  # (HORIZON,)

    def map(self, f: Callable[..., Array], *others: Readout) -> Readout:
        """Apply `f` array by array, as the `map` of `fastgru.Params` does."""
        return Readout(*(f(*arrays) for arrays in zip(self, *others, strict=True)))


P = TypeVar("P", "fastgru.Params", Readout)


class Adam:
    """Adam (Kingma and Ba, 2015) over whatever maps a function over its arrays."""

    def __init__(self, params: Any) -> None:
        self.m, self.v, self.steps = params.map(np.zeros_like), params.map(np.zeros_like), 0

    def step(self, params: P, grads: P, rate: float) -> P:
        self.steps += 1
        self.m = self.m.map(lambda m, g: 0.9 * m + 0.1 * g, grads)
        self.v = self.v.map(lambda v, g: 0.999 * v + 0.001 * g * g, grads)
        rate *= (1 - 0.999**self.steps) ** 0.5 / (1 - 0.9**self.steps)
        return params.map(lambda p, m, v: p - rate * m / (np.sqrt(v) + 1e-8), self.m, self.v)


def load_co2() -> tuple[Array, Array]:
    """Read the weekly CO2 record of Mauna Loa, 1958-2001 (see ``data/README.md``).

    Returns
    -------
    dates : ndarray of datetime64[D], shape (2284,)
        Saturdays, without a break.
    ppm : ndarray of float64, shape (2284,)
        CO2 concentration, NaN where the week is missing.
    """
    path = Path(__file__).with_name("data") / "co2.csv"
    table = np.genfromtxt(path, delimiter=",", skip_header=1, dtype="U8,f8", names="date,ppm")
    dates = [f"{date[:4]}-{date[4:6]}-{date[6:]}" for date in table["date"]]
    return np.array(dates, dtype="datetime64[D]"), table["ppm"]


def prepare(dates: Array, ppm: Array) -> Problem:
    """Fill the gaps of a weekly series, scale it and cut it into windows.

    Parameters
    ----------
    dates, ppm : ndarray, shape (weeks,)
        The series, NaN where a week is missing.

    Returns
    -------
    Problem
        No training array and no scale depends on a held-out week.
    """
    # Filling a gap looks at the next measured week: forecasts made inside a gap would know some of
    # their future. This record has no gap after 1985, so none reaches the held-out weeks.
    weeks, known = np.arange(len(ppm)), ~np.isnan(ppm)
    ppm = np.interp(weeks, weeks[known], ppm[known])

    held_out = len(ppm) - HELD_OUT
    past = ppm[:held_out]
    scale = float(np.std(past[HORIZON:] - past[:-HORIZON]))
    weekly_scale = float(np.std(np.diff(past)))

    def inputs(origins: Array) -> Array:
        # Levels relative to the origin: the rising series leaves the range of its past levels, not
        # that of its past changes. The week-to-week changes come along at a scale of their own.
        window = ppm[origins[:, None] + np.arange(-WINDOW, 1)]
        level = (window[:, 1:] - window[:, -1:]) / scale
        return np.stack([level, np.diff(window) / weekly_scale], axis=-1).astype(np.float32)

    train = np.arange(WINDOW, held_out - HORIZON)
    test = np.arange(held_out - 1, len(ppm) - HORIZON)
    y = ((ppm[_ahead(train)] - ppm[train, None]) / scale).astype(np.float32)
    return Problem(dates, ppm, held_out, train, test, scale, inputs(train), y, inputs(test))


def _ahead(origins: Array) -> Array:
    """Indices of the weeks 1..HORIZON after each origin, one row an origin."""
    return origins[:, None] + np.arange(1, HORIZON + 1)


def _naive_forecasts(problem: Problem) -> dict[str, Array]:
    """Forecasts that need no training, each (M, HORIZON) ppm."""
    last = problem.ppm[problem.test_origins, None]
    year_before = problem.ppm[_ahead(problem.test_origins) - YEAR]
    growth = last - problem.ppm[problem.test_origins - YEAR, None]
    return {LAST_VALUE: last, SEASONAL: year_before, DRIFT: year_before + growth}


def _hidden(h_n: Any) -> Array:
    """Final hidden state of the only layer, (N, H); an LSTM's h_n is a pair (h, c)."""
    hidden: Array = (h_n[0] if isinstance(h_n, tuple) else h_n)[0]
    return hidden


def _gradients(
    x: Array, y: Array, params: fastgru.Params, readout: Readout
) -> tuple[float, fastgru.Params, Readout]:
    """Mean squared error of a batch, and its gradients."""
    _, h_n, saved = fastgru.forward_train(x, params)
    h = _hidden(h_n)
    residual = h @ readout.weight + readout.bias - y
    d_output = residual * (2 / residual.size)
    dh = (d_output @ readout.weight.T)[None]
    grads = fastgru.backward(saved, dh_n=(dh, None) if isinstance(h_n, tuple) else dh)
    d_readout = Readout(h.T @ d_output, d_output.sum(axis=0))
    return float(np.mean(residual**2)), grads.params, d_readout


def run(
    cell: str = "gru",
    *,
    epochs: int = 20,
    hidden_size: int = 32,
    seed: int = 0,
    problem: Problem | None = None,
    progress: bool = False,
) -> Result:
    """Train one network on the past and let it forecast the held-out weeks.

    Parameters
    ----------
    cell : str
        A name from `fastgru.cells`, such as ``"gru"`` or ``"lstm"``.
    epochs : int
        Passes over the training windows.
    hidden_size : int
        Units of the recurrent layer.
    seed : int
        Decides the initial weights and the order of the windows.
    problem : Problem, optional
        The windows; by default those of the CO2 record.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Result
        Forecasts in ppm, their errors and those of the naive forecasts, the training time.
    """
    problem = problem or prepare(*load_co2())
    x, y = problem.x_train, problem.y_train
    rng = np.random.default_rng(seed)
    params = fastgru.init_params(x.shape[2], hidden_size, cell=cell, rng=rng)
    weight = rng.uniform(-1, 1, (hidden_size, HORIZON)) / np.sqrt(hidden_size)
    readout = Readout(weight.astype(np.float32), np.zeros(HORIZON, np.float32))
    adam, readout_adam = Adam(params), Adam(readout)
    # A batch thrown away compiles the kernels; of full size, so that they are the ones used below.
    _gradients(x[:BATCH], y[:BATCH], params, readout)

    batches = len(x) // BATCH
    losses = []
    start = time.perf_counter()
    bar = tqdm(range(epochs), desc=f"training the {cell}", unit="epoch", disable=not progress)
    for _ in bar:
        losses.append(0.0)
        for rows in rng.permutation(len(x))[: batches * BATCH].reshape(batches, BATCH):
            loss, d_params, d_readout = _gradients(x[rows], y[rows], params, readout)
            rate = LEARNING_RATE * (1 - adam.steps / (epochs * batches))  # falls linearly to 0
            params = adam.step(params, d_params, rate)
            readout = readout_adam.step(readout, d_readout, rate)
            losses[-1] += loss / batches
        bar.set_postfix(loss=f"{losses[-1]:.4f}")
    seconds = time.perf_counter() - start

    _, h_n = fastgru.forward(problem.x_test, params)
    change = (_hidden(h_n) @ readout.weight + readout.bias) * problem.scale
    forecast = problem.ppm[problem.test_origins, None] + change
    measured = problem.ppm[_ahead(problem.test_origins)]

    def error(forecast: Array) -> Array:
        return np.asarray(np.mean(np.abs(forecast - measured), axis=0))

    naive_errors = {name: error(naive) for name, naive in _naive_forecasts(problem).items()}
    return Result(cell, forecast, losses, seconds, error(forecast), naive_errors)


def draw(path: Path, problem: Problem, results: list[Result]) -> None:
    """Draw the first result's forecasts, and the errors of all, as a PNG; needs matplotlib."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    top, bottom = figure.subplots(2, height_ratios=[3, 2])
    dates, shown = problem.dates, slice(problem.held_out - YEAR, None)
    top.plot(dates[shown], problem.ppm[shown], ".", ms=4, color="0.6", label="measured")
    top.axvline(dates[problem.held_out], color="0.3", ls=":", label="held out from here")
    weeks = _ahead(problem.test_origins[::HORIZON])
    lines = top.plot(dates[weeks].T, results[0].forecast[::HORIZON].T, color="C0", lw=2)
    lines[0].set_label(f"{results[0].cell.upper()} forecast, a new one every {HORIZON} weeks")
    top.set(title="Weekly CO$_2$ at Mauna Loa", xlabel="date", ylabel="CO$_2$ (ppm)")
    top.legend(loc="lower right")

    ahead = np.arange(1, HORIZON + 1)
    for result in results:
        bottom.plot(ahead, result.error, "o-", label=result.cell.upper())
    for name, error in results[0].naive_errors.items():
        bottom.plot(ahead, error, "--", label=name)
    bottom.set(xlabel="weeks ahead", ylabel="mean absolute error (ppm)", xticks=ahead)
    bottom.set_ylim(bottom=0)
    bottom.legend(loc="upper left", ncols=2)
    figure.savefig(path, format="png")


def _row(name: str, error: Array, seconds: str = "") -> str:
    return f"{name:24}{error[-1]:>16.3f}{error.mean():>16.3f}{seconds:>16}"


def main(*, epochs: int, hidden_size: int, seed: int, plot: Path | None) -> None:
    """Train a GRU and an LSTM, print their errors and, unless `plot` is None, draw a PNG there."""
    dates, ppm = load_co2()
    problem = prepare(dates, ppm)
    print(f"Weekly CO2 at Mauna Loa: {len(ppm)} weeks from {dates[0]} to {dates[-1]};")
    print(f"the {np.isnan(ppm).sum()} missing ones are filled by linear interpolation.")
    print(f"Held out: the last {HELD_OUT} weeks, from {dates[problem.held_out]} on;")
    print("neither training nor scaling sees them.", flush=True)

    options: dict[str, Any] = {"epochs": epochs, "hidden_size": hidden_size, "seed": seed}
    gru, lstm = (run(cell, problem=problem, progress=True, **options) for cell in ("gru", "lstm"))

    print(
        f"\nmean absolute error, ppm  {HORIZON} weeks ahead    mean of 1-{HORIZON}   training time"
    )
    for result in (gru, lstm):
        print(_row(result.cell.upper(), result.error, f"{result.seconds:.1f} s"))
    for name, error in gru.naive_errors.items():
        print(_row(name, error))
    better = gru.better_naive
    ratio = gru.error[-1] / gru.naive_errors[better][-1]
    print(f"\nBetter of last value and seasonal naive {HORIZON} weeks ahead: {better};")
    print(f"the GRU's error is {ratio:.2f} of it.")
    print("Training times leave out compilation: one batch runs before the clock starts.")
    if plot is not None:
        try:
            draw(plot, problem, [gru, lstm])
            print(f"Forecast drawn to {plot}.")
        except ModuleNotFoundError:
            print('No plot: matplotlib is missing; get it by pip install "fastgru[plot]".')
