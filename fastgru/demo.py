"""Forecast the weekly CO2 record of Mauna Loa.

A window of the last two years goes through one recurrent layer; a linear read-out of its last
hidden state gives the change over each of the next 12 weeks at once. `fastgru.training` trains
both. The weights of the epoch with the least training loss make the forecasts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import training

__all__ = ["Problem", "Result", "load_co2", "prepare", "run"]

Array = NDArray[Any]

HORIZON = 12  # weeks forecast from each origin, the last week of a window
WINDOW = 104  # weeks that the network looks back: it sees every season twice
YEAR = 52
HELD_OUT = 261  # the last five years
BATCH = 64
SEEDS = 5  # networks of each cell: one alone does not tell a better cell from a lucky start
# These, how the rate falls, and the epochs: from trials with other seeds that trained to 1991 and
# forecast 1992-1996. About one LSTM in a hundred still becomes unstable: hence the best epoch's
# weights.
LEARNING_RATE = 1e-2  # at the start
LIMIT = 0.25  # greatest norm that a batch's gradients keep

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
    seed: int
    forecast: Array  # (M, HORIZON) ppm, from each of Problem.test_origins
    losses: list[float]  # mean squared error of each epoch, scaled
    seconds: float  # training, without compilation
    error: Array  # (HORIZON,) mean absolute error 1..HORIZON weeks ahead, ppm
    naive_errors: dict[str, Array]  # the same for each naive forecast

    @property
    def better_naive(self) -> str:
        """Whichever of last value and seasonal naive errs less HORIZON weeks ahead."""
        return min((LAST_VALUE, SEASONAL), key=lambda name: float(self.naive_errors[name][-1]))


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

    Raises
    ------
    ValueError
        If the dates are not a week apart: windows, seasons and horizon are of weekly series.
    """
    if not (np.diff(dates) == np.timedelta64(7, "D")).all():
        raise ValueError(
            "dates: expected a week between each and the next; for another series take the guide's "
            "page on forecasts, or copy this module and change WINDOW, YEAR and HORIZON"
        )
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
    model = training.init_model(x.shape[2], hidden_size, HORIZON, cell=cell, rng=rng)
    # A batch thrown away compiles the kernels; of full size, so that they are the ones used below.
    training.fit(model, x[:BATCH], y[:BATCH], epochs=1, batch_size=BATCH)

    start = time.perf_counter()
    model, history = training.fit(
        model,
        x,
        y,
        optimizer=training.Adam(LEARNING_RATE),
        # Falls to 0 early: large steps late in the training can make an LSTM unstable.
        schedule=training.Polynomial(2.0),
        epochs=epochs,
        batch_size=BATCH,
        max_grad_norm=LIMIT,
        rng=rng,
        progress=progress and f"training the {cell}, seed {seed}",
    )
    seconds = time.perf_counter() - start

    change = model.predict(problem.x_test) * problem.scale
    forecast = problem.ppm[problem.test_origins, None] + change
    measured = problem.ppm[_ahead(problem.test_origins)]

    def error(forecast: Array) -> Array:
        return np.asarray(np.mean(np.abs(forecast - measured), axis=0))

    naive_errors = {name: error(naive) for name, naive in _naive_forecasts(problem).items()}
    return Result(cell, seed, forecast, history.loss, seconds, error(forecast), naive_errors)


class Spread(NamedTuple):
    """Median, least and greatest of something over networks of several seeds."""

    median: Array
    least: Array
    greatest: Array

    @classmethod
    def of(cls, values: Sequence[Any]) -> Spread:
        """The spread over the first axis."""
        return cls(np.median(values, axis=0), np.min(values, axis=0), np.max(values, axis=0))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.least:.3f}-{self.greatest:.3f})"


def compare(name: str, errors: Sequence[float], other: str, other_errors: Sequence[float]) -> str:
    """Say whether the medians of two cells differ by more than the seeds of either cell do.

    Parameters
    ----------
    name, other : str
        Names of the cells.
    errors, other_errors : sequence of float
        Their errors in ppm, one a seed.

    Returns
    -------
    str
        A sentence or two.
    """
    if min(len(errors), len(other_errors)) < 2:
        return "One seed does not tell how much seeds matter: the cells cannot be compared."
    first, second = Spread.of(errors), Spread.of(other_errors)
    better = name if first.median < second.median else other
    difference = abs(first.median - second.median)
    spread = max(first.greatest - first.least, second.greatest - second.least)
    figures = f"medians differ by {difference:.3f} ppm, seeds of one cell by up to {spread:.3f}"
    if difference > spread:
        return f"The {better} errs less, by more than the spread over seeds:\n{figures}."
    return f"The cells do not differ by more than the spread over seeds:\n{figures}."


def draw(path: Path, problem: Problem, results: list[list[Result]]) -> None:
    """Draw one forecast, and each cell's errors over its seeds, as a PNG; needs matplotlib."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    top, bottom = figure.subplots(2, height_ratios=[3, 2])
    first = results[0][0]
    dates, shown = problem.dates, slice(problem.held_out - YEAR, None)
    top.plot(dates[shown], problem.ppm[shown], ".", ms=4, color="0.6", label="measured")
    top.axvline(dates[problem.held_out], color="0.3", ls=":", label="held out from here")
    weeks = _ahead(problem.test_origins[::HORIZON])
    lines = top.plot(dates[weeks].T, first.forecast[::HORIZON].T, color="C0", lw=2)
    about = f"{first.cell.upper()} forecast, seed {first.seed}, a new one every {HORIZON} weeks"
    lines[0].set_label(about)
    top.set(title="Weekly CO$_2$ at Mauna Loa", xlabel="date", ylabel="CO$_2$ (ppm)")
    top.legend(loc="lower right")

    ahead = np.arange(1, HORIZON + 1)
    for of_cell in results:
        spread = Spread.of([result.error for result in of_cell])
        seeds = "1 seed" if len(of_cell) == 1 else f"median and spread of {len(of_cell)} seeds"
        label = f"{of_cell[0].cell.upper()}, {seeds}"
        (line,) = bottom.plot(ahead, spread.median, "o-", label=label)
        bottom.fill_between(ahead, spread.least, spread.greatest, color=line.get_color(), alpha=0.2)
    for name, error in first.naive_errors.items():
        bottom.plot(ahead, error, "--", label=name)
    bottom.set(xlabel="weeks ahead", ylabel="mean absolute error (ppm)", xticks=ahead)
    bottom.set_ylim(bottom=0)
    bottom.legend(loc="upper left", ncols=2)
    figure.savefig(path, format="png")


def _row(name: str, *columns: str) -> str:
    return f"{name:24}" + "".join(f"{column:>22}" for column in columns)


def main(*, epochs: int, hidden_size: int, seed: int, seeds: int, plot: Path | None = None) -> None:
    """Train GRUs and LSTMs, print their errors and, unless `plot` is None, draw a PNG there.

    Parameters
    ----------
    epochs, hidden_size : int
        As for `run`.
    seed, seeds : int
        The first seed, and how many networks of each cell to train: their seeds count up from it.
    plot : Path, optional
        File to write.
    """
    dates, ppm = load_co2()
    problem = prepare(dates, ppm)
    print(f"Weekly CO2 at Mauna Loa: {len(ppm)} weeks from {dates[0]} to {dates[-1]};")
    print(f"the {np.isnan(ppm).sum()} missing ones are filled by linear interpolation.")
    print(f"Held out: the last {HELD_OUT} weeks, from {dates[problem.held_out]} on;")
    print("neither training nor scaling sees them.", flush=True)

    options: dict[str, Any] = {"epochs": epochs, "hidden_size": hidden_size}
    grus, lstms = (
        [
            run(cell, seed=number, problem=problem, progress=True, **options)
            for number in range(seed, seed + seeds)
        ]
        for cell in ("gru", "lstm")
    )

    numbers = f"seed {seed}" if seeds == 1 else f"seeds {seed} to {seed + seeds - 1}"
    print(f"\nNetworks with {numbers}: median (least-greatest).")
    about = "mean absolute error, ppm"
    print(_row(about, f"{HORIZON} weeks ahead", f"mean of 1-{HORIZON}", "training time"))
    for results in (grus, lstms):
        last = Spread.of([result.error[-1] for result in results])
        mean = Spread.of([result.error.mean() for result in results])
        seconds = np.median([result.seconds for result in results])
        print(_row(results[0].cell.upper(), str(last), str(mean), f"{seconds:.1f} s"))
    naive_errors, better = grus[0].naive_errors, grus[0].better_naive
    for name, error in naive_errors.items():
        print(_row(name, f"{error[-1]:.3f}", f"{error.mean():.3f}"))

    print(f"\n{HORIZON} weeks ahead:")
    gru_errors, lstm_errors = (
        [float(result.error[-1]) for result in results] for results in (grus, lstms)
    )
    print(compare("GRU", gru_errors, "LSTM", lstm_errors))
    gru_ratio, lstm_ratio = (
        np.median(errors) / naive_errors[better][-1] for errors in (gru_errors, lstm_errors)
    )
    print(f"Better of last value and seasonal naive: {better}; of its error, the GRU's median")
    print(f"is {gru_ratio:.2f}, the LSTM's {lstm_ratio:.2f}.")
    print("Training time: of one network, the median over the seeds. It leaves out compilation:")
    print("one batch runs before the clock starts.")
    if plot is not None:
        try:
            draw(plot, problem, [grus, lstms])
            print(f"Forecast drawn to {plot}.")
        except ModuleNotFoundError:
            print('No plot: matplotlib is missing; get it by pip install "fastgru[plot]".')
