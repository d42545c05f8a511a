"""The demo: its data, its honesty about the held-out weeks, its command line."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import fastgru_command

from fastgru import __main__ as cli
from fastgru import demo, training

NEEDS_MATPLOTLIB = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib"
)

SHORT = ("--epochs", "1", "--hidden-size", "8")


@pytest.fixture(scope="module")
def problem() -> demo.Problem:
    return demo.prepare(*demo.load_co2())


@pytest.fixture(scope="module")
def default_results(problem: demo.Problem) -> list[demo.Result]:
    """Every network that the demo trains if it is given no options."""
    options: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "main", options.update)
        assert cli.main(["demo"]) == 0
    seeds = range(options["seed"], options["seed"] + options["seeds"])
    sizes = {name: options[name] for name in ("epochs", "hidden_size")}
    return [
        demo.run(cell, seed=seed, problem=problem, **sizes)
        for cell, seed in itertools.product(("gru", "lstm"), seeds)
    ]


def test_the_record_is_the_published_one() -> None:
    dates, ppm = demo.load_co2()
    assert len(dates) == len(ppm) == 2284
    assert str(dates[0]) == "1958-03-29"
    assert str(dates[-1]) == "2001-12-29"
    assert np.all(np.diff(dates) == np.timedelta64(7, "D"))
    assert np.isnan(ppm).sum() == 59
    assert (ppm[0], ppm[-1]) == (316.1, 371.5)
    assert np.isnan(ppm[6])  # 1958-05-10
    assert 310 < np.nanmin(ppm) < np.nanmax(ppm) < 375
    # No forecast starts in a gap, or near enough to one for its filling to look ahead.
    assert not np.isnan(ppm[-demo.HELD_OUT - demo.WINDOW :]).any()


def test_training_windows_end_before_the_held_out_weeks(problem: demo.Problem) -> None:
    assert str(problem.dates[problem.held_out]) == "1997-01-04"
    assert (problem.train_origins + demo.HORIZON).max() == problem.held_out - 1
    assert (problem.test_origins + 1).min() == problem.held_out
    assert (problem.test_origins + demo.HORIZON).max() == len(problem.ppm) - 1
    assert problem.train_origins.min() == demo.WINDOW


def test_no_training_number_depends_on_the_held_out_weeks(problem: demo.Problem) -> None:
    dates, ppm = demo.load_co2()
    ppm[problem.held_out :] = np.random.default_rng(0).uniform(0, 1000, demo.HELD_OUT)
    other = demo.prepare(dates, ppm)
    assert other.scale == problem.scale
    np.testing.assert_array_equal(other.x_train, problem.x_train)
    np.testing.assert_array_equal(other.y_train, problem.y_train)
    assert not np.array_equal(other.x_test, problem.x_test)


def test_no_input_depends_on_weeks_after_its_origin(problem: demo.Problem) -> None:
    row = 100
    dates, ppm = demo.load_co2()
    ppm[problem.test_origins[row] + 1 :] = 0
    other = demo.prepare(dates, ppm)
    np.testing.assert_array_equal(other.x_test[: row + 1], problem.x_test[: row + 1])


def test_windows_hold_what_they_say(problem: demo.Problem) -> None:
    origin, x, y = problem.train_origins[7], problem.x_train[7], problem.y_train[7]
    assert x.shape == (demo.WINDOW, 2)
    assert x.dtype == y.dtype == np.float32
    assert x[-1, 0] == 0
    np.testing.assert_allclose(
        x[0, 0] * problem.scale, problem.ppm[origin - demo.WINDOW + 1] - problem.ppm[origin], 1e-4
    )
    np.testing.assert_allclose(
        y[-1] * problem.scale, problem.ppm[origin + demo.HORIZON] - problem.ppm[origin], 1e-4
    )


def test_both_cells_beat_the_naive_forecasts_at_every_seed(
    default_results: list[demo.Result],
) -> None:
    assert len(default_results) >= 6
    for result in default_results:
        about = (result.cell, result.seed)
        assert np.isfinite(result.forecast).all(), about
        assert np.isfinite(result.losses).all(), about
        assert result.losses[-1] < result.losses[0] / 5, about
        assert result.better_naive == "seasonal naive"
        assert result.error[-1] < 0.5 * result.naive_errors[result.better_naive][-1], about
        # Also better, though not by half, than the strongest forecast that needs no training.
        assert result.error[-1] < result.naive_errors["seasonal naive + drift"][-1], about


def test_errors_are_those_of_the_forecasts(
    problem: demo.Problem, default_results: list[demo.Result]
) -> None:
    """At the weeks they are meant for."""
    result = default_results[0]
    assert result.forecast.shape == (demo.HELD_OUT - demo.HORIZON + 1, demo.HORIZON)
    measured = problem.ppm[problem.test_origins + demo.HORIZON]
    np.testing.assert_allclose(
        result.error[-1], np.abs(result.forecast[:, -1] - measured).mean(), rtol=1e-6
    )
    last_value = problem.ppm[problem.test_origins]
    np.testing.assert_allclose(
        result.naive_errors["last value"][-1], np.abs(last_value - measured).mean(), rtol=1e-6
    )
    year_before = problem.ppm[problem.test_origins + demo.HORIZON - 52]
    np.testing.assert_allclose(
        result.naive_errors["seasonal naive"][-1], np.abs(year_before - measured).mean(), rtol=1e-6
    )


def test_training_clips_and_its_rate_falls(
    problem: demo.Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `training.fit` is told: the rest is tested with it."""
    given: list[dict[str, Any]] = []
    fit = training.fit

    def watched(*args: Any, **options: Any) -> Any:
        given.append(options)
        return fit(*args, **options)

    monkeypatch.setattr(training, "fit", watched)
    result = demo.run("lstm", epochs=2, hidden_size=8, problem=problem)
    (_, options) = given  # the first one compiles
    assert options["max_grad_norm"] == demo.LIMIT
    assert options["schedule"].factor(1.0) == 0
    assert len(result.losses) == 2


def test_dates_must_be_weekly() -> None:
    dates, ppm = demo.load_co2()
    with pytest.raises(ValueError, match="dates: expected a week between"):
        demo.prepare(dates[0] + np.arange(len(ppm)), ppm)


def test_cells_are_told_apart_only_beyond_the_spread_over_seeds() -> None:
    apart = demo.compare("GRU", [0.50, 0.51, 0.52], "LSTM", [0.40, 0.43, 0.41])
    assert apart == (
        "The LSTM errs less, by more than the spread over seeds:\n"
        "medians differ by 0.100 ppm, seeds of one cell by up to 0.030."
    )
    swapped = demo.compare("LSTM", [0.40, 0.43, 0.41], "GRU", [0.50, 0.51, 0.52])
    assert swapped == apart
    alike = demo.compare("GRU", [0.50, 0.51, 0.52], "LSTM", [0.40, 0.60, 0.41])
    assert alike == (
        "The cells do not differ by more than the spread over seeds:\n"
        "medians differ by 0.100 ppm, seeds of one cell by up to 0.200."
    )
    assert "cannot be compared" in demo.compare("GRU", [0.5], "LSTM", [0.4])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_same_seed_same_forecast(problem: demo.Problem, cell: str) -> None:
    first, again, other = (
        demo.run(cell, epochs=1, hidden_size=8, seed=seed, problem=problem) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.forecast, again.forecast)
    assert not np.array_equal(first.forecast, other.forecast)


def test_command_line_without_matplotlib(tmp_path: Path, no_matplotlib: Path) -> None:
    done = fastgru_command("demo", *SHORT, "--plot", cwd=tmp_path, path=no_matplotlib)
    assert done.returncode == 0, done.stderr
    assert 'pip install "fastgru[plot]"' in done.stdout
    for name in ("GRU", "LSTM", "last value", "seasonal naive", "mean absolute error, ppm"):
        assert name in done.stdout
    assert "Networks with seeds 0 to" in done.stdout
    assert "the spread over seeds" in done.stdout
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_unasked(tmp_path: Path, no_matplotlib: Path) -> None:
    done = fastgru_command("demo", *SHORT, cwd=tmp_path, path=no_matplotlib)
    assert done.returncode == 0, done.stderr
    assert "matplotlib" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_command_line_counts_seeds_from_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    run = demo.run

    def watched(cell: str, *, seed: int, **options: Any) -> demo.Result:
        trained.append((cell, seed))
        return run(cell, seed=seed, **options)

    monkeypatch.setattr(demo, "run", watched)
    assert cli.main(["demo", *SHORT, "--seed", "7", "--seeds", "2"]) == 0
    assert trained == [("gru", 7), ("gru", 8), ("lstm", 7), ("lstm", 8)]
    assert "Networks with seeds 7 to 8:" in capsys.readouterr().out
    assert cli.main(["demo", *SHORT, "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "Networks with seed 0:" in shown
    assert "cannot be compared" in shown


@NEEDS_MATPLOTLIB
def test_command_line_draws_a_png(tmp_path: Path) -> None:
    path = tmp_path / "forecast.png"
    done = fastgru_command("demo", *SHORT, "--plot", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "args",
    [
        ["--epochs", "0"],
        ["--hidden-size", "x"],
        ["--seed", "-1"],
        ["--seeds", "0"],
        ["--plot", "no/such/folder/forecast.png"],
    ],
)
def test_bad_options_are_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", *args])
    assert caught.value.code == 2
    assert args[0] in capsys.readouterr().err
