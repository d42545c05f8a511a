"""The demo: its data, its honesty about the held-out weeks, its command line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from commands import fastgru_command

import fastgru
from fastgru import __main__ as cli
from fastgru import demo

NEEDS_MATPLOTLIB = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib"
)

SHORT = ("--epochs", "1", "--hidden-size", "8")


@pytest.fixture(scope="module")
def problem() -> demo.Problem:
    return demo.prepare(*demo.load_co2())


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


def test_gru_beats_the_naive_forecasts(problem: demo.Problem) -> None:
    result = demo.run("gru", problem=problem)
    assert result.forecast.shape == (demo.HELD_OUT - demo.HORIZON + 1, demo.HORIZON)
    assert np.isfinite(result.forecast).all()
    assert result.losses[-1] < result.losses[0] / 5
    assert result.better_naive == "seasonal naive"
    # The errors are those of the forecasts given, at the weeks they are meant for.
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
    assert result.error[-1] < 0.5 * result.naive_errors[result.better_naive][-1]
    # Also better, though not by half, than the strongest forecast that needs no training.
    assert result.error[-1] < result.naive_errors["seasonal naive + drift"][-1]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_same_seed_same_forecast(problem: demo.Problem, cell: str) -> None:
    first, again, other = (
        demo.run(cell, epochs=1, hidden_size=8, seed=seed, problem=problem) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.forecast, again.forecast)
    assert not np.array_equal(first.forecast, other.forecast)


def test_command_line_without_matplotlib(tmp_path: Path, no_matplotlib: Path) -> None:
    done = fastgru_command("demo", *SHORT, cwd=tmp_path, path=no_matplotlib)
    assert done.returncode == 0, done.stderr
    assert 'pip install "fastgru[plot]"' in done.stdout
    for name in ("GRU", "LSTM", "last value", "seasonal naive", "mean absolute error, ppm"):
        assert name in done.stdout
    assert not list(tmp_path.iterdir())


def test_no_plot_does_not_ask_for_matplotlib(tmp_path: Path, no_matplotlib: Path) -> None:
    done = fastgru_command("demo", *SHORT, "--no-plot", cwd=tmp_path, path=no_matplotlib)
    assert done.returncode == 0, done.stderr
    assert "matplotlib" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@NEEDS_MATPLOTLIB
def test_command_line_draws_a_png(tmp_path: Path) -> None:
    path = tmp_path / "co2.png"
    done = fastgru_command("demo", *SHORT, "--plot", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list(tmp_path.iterdir()) == [path]


def test_info_shows_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    fastgru.show_config()
    assert shown == capsys.readouterr().out != ""


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["--epochs", "0"],
        ["--hidden-size", "x"],
        ["--seed", "-1"],
        ["--plot", "no/such/folder/forecast.png"],
        ["--plot", "a.png", "--no-plot"],
    ],
)
def test_bad_options_are_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", *args])
    assert caught.value.code == 2
    assert args[0] in capsys.readouterr().err
