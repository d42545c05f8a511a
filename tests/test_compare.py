"""``fastgru compare``: the table of cells, with and without training."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import fastgru_command
from problems import SHIPPED_CELLS

import fastgru
from fastgru.benchmarks import compare, turns
from fastgru.kernels.cells import CELLS

PAIR = ("mingru", "augru")  # of which one needs attention
SIZES: dict[str, Any] = {"hidden_size": 5, "rounds": 1}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows of a few steps, timed for an instant."""
    for name, value in (("STEPS", 3), ("ROWS", 2), ("INPUTS", 4)):
        monkeypatch.setattr(compare, name, value)
    monkeypatch.setattr(turns, "wait_until_idle", lambda: None)
    monkeypatch.setattr(turns, "TURN", 1e-3)
    monkeypatch.setattr(turns, "TRIAL", 1e-3)


def rows_of(table: str) -> dict[str, list[str]]:
    """Cells of a Markdown table, by the first one of their row."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in rows} == {10}
    assert set(rows[1]) == {"---"}
    return {row[0]: row[1:] for row in (rows[0], *rows[2:])}


def check_facts(one: dict[str, Any]) -> None:
    """What does not depend on time, counted anew."""
    cell, params = CELLS[one["cell"]], fastgru.init_params(4, 5, cell=one["cell"])
    assert one["gates"] == list(cell.gates)
    assert one["source"] == cell.source
    trainable = [w.name for w in cell.weights if w.is_trainable]
    arrays = dict(params.layers[0][0].items())
    assert one["parameters"] == sum(arrays[name].size for name in trainable)
    matrices = [w.name for w in cell.weights if w.is_matrix]
    assert one["multiplications"] == sum(arrays[name].size for name in matrices)
    assert one["kept bytes"] >= 4 * 5  # outputs at least
    for mode in compare.MODES:
        assert 0 < one[f"{mode} seconds"] < 10
        assert one[f"{mode} relative"] > 0


def test_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table is printed; the same one is in the Markdown file, and its numbers are in JSON."""
    pytest.importorskip("matplotlib")
    json_path, markdown_path, plot = (tmp_path / f"c.{end}" for end in ("json", "md", "png"))
    status = compare.main(
        cell=PAIR, seeds=0, epochs=1, json_path=json_path, markdown_path=markdown_path, plot=plot,
        **SIZES,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0
    rows = rows_of(printed)
    assert list(rows) == ["cell", *PAIR]
    assert "I = 4, H = 5; 2 rows of 3 steps; times relative to the lstm's." in printed
    assert markdown_path.read_text() in printed
    for path in (json_path, markdown_path, plot):
        assert str(path) in printed
    assert plot.read_bytes().startswith(b"\x89PNG")

    written = json.loads(json_path.read_text())
    assert written["machine"]["processor"] in printed
    assert [one["cell"] for one in written["cells"]] == list(PAIR)
    for one in written["cells"]:
        check_facts(one)
        assert "errors" not in one
        own = rows[one["cell"]]
        assert own[0] == " ".join(one["gates"])
        assert own[1:3] == [str(one["parameters"]), str(one["multiplications"])]
        assert own[4:7] == [f"{one[f'{mode} relative']:.2f}" for mode in compare.MODES]
        assert own[7:] == ["", ""]


def test_times_are_relative_to_the_lstm() -> None:
    """It is timed whether or not it is asked for, and is in the table where it is."""
    found = compare.measure(["gru", "lstm"], 5, 1, 0, 1)
    gru, lstm = sorted(found, key=lambda one: str(one["cell"]))
    for mode in compare.MODES:
        assert lstm[f"{mode} relative"] == 1
        ratio = gru[f"{mode} seconds"] / lstm[f"{mode} seconds"]
        np.testing.assert_allclose(gru[f"{mode} relative"], ratio)
    assert [one["cell"] for one in compare.measure(["gru"], 5, 1, 0, 1)] == ["gru"]


def test_with_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One network of each cell that can have the series; it has no attention to give."""
    pytest.importorskip("matplotlib")
    plot, json_path = tmp_path / "c.png", tmp_path / "c.json"
    status = compare.main(cell=PAIR, seeds=1, epochs=1, json_path=json_path, plot=plot, **SIZES)
    assert status == 0
    rows = rows_of(capsys.readouterr().out)
    error, seconds = rows["mingru"][7:]
    assert re.fullmatch(r"(\d+\.\d{3}) \(\1-\1\)", error)
    assert float(seconds) >= 0
    assert rows["augru"][7:] == ["", ""]
    mingru, augru = json.loads(json_path.read_text())["cells"]
    assert len(mingru["errors"]) == 1
    assert 0 < mingru["errors"][0] < 20  # ppm; the series spans 60
    assert mingru["training seconds"] > 0
    assert "errors" not in augru
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize("cell", SHIPPED_CELLS)
def test_every_cell_can_be_compared(cell: str) -> None:
    (one,) = compare.measure([cell], 5, 1, 0, 1)
    check_facts(one)


def test_without_matplotlib(no_matplotlib: Path, tmp_path: Path) -> None:
    """Everything else is there, and the status says that something is missing."""
    done = fastgru_command(
        "compare", "--cell", "gru", "--hidden-size", "4", "--rounds", "1", "--seeds", "0",
        "--plot", "--json", "--markdown",
        cwd=tmp_path, path=no_matplotlib,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "No plot" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"compare.json", "compare.md"}
    assert "| gru |" in (tmp_path / "compare.md").read_text()


def test_help(tmp_path: Path) -> None:
    done = fastgru_command("compare", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for option in ("--cell", "--hidden-size", "--rounds", "--seeds", "--epochs", "--json"):
        assert option in done.stdout
    assert set(re.findall(r"\w+", done.stdout)) >= set(SHIPPED_CELLS)


@pytest.mark.parametrize(
    "args",
    [("--cell", "gpu"), ("--seeds", "-1"), ("--rounds", "0"), ("--json", "none/compare.json")],
    ids=" ".join,
)
def test_refused(args: tuple[str, ...], tmp_path: Path) -> None:
    done = fastgru_command("compare", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert args[0] in done.stderr
    assert list(tmp_path.iterdir()) == []
