"""The command line beside `demo` and `bench`: what it prints, compiles and refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import fastgru_command
from programs import run

import fastgru
from fastgru import __main__ as cli


def test_info_shows_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    fastgru.show_config()
    assert shown == capsys.readouterr().out != ""


def test_nobody_reads_what_is_printed() -> None:
    """As with ``fastgru info | head -1``: neither a traceback nor a complaint at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "fastgru", "info"],
        env=os.environ | {"PYTHONPATH": str(Path(fastgru.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_compile_fills_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls then compile nothing, in one thread and in several."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    options = ("--cell", "lstm", "--dtype", "float32")
    done = fastgru_command("compile", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lstm float32 forward" in done.stderr, "no progress is shown"
    assert str(tmp_path / "cache") in done.stdout
    out = run(
        """
        from numba.core import event
        params, x, dy = draw(24, 30, 32, 64)
        params = fastgru.init_params(32, 64, cell="lstm", rng=0)
        import numba
        with event.install_recorder("numba:run_pass") as recorder:
            for count in (1, 2):
                numba.set_num_threads(count)
                y, h_n, saved = fastgru.forward_train(x, params, lengths=[30] * 23 + [29])
                fastgru.backward(saved, dy)
        print(len(recorder.buffer), [way.workers for way in ways])
        """,
        NUMBA_NUM_THREADS="2",
    )
    assert out.split() == ["0", "[1,", "2]"]


def test_compile_says_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nowhere")
    done = fastgru_command("compile", "--cell", "gru", "--dtype", "float64", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(r"error: (\d+) of \1 kernels could not be written: /proc/now", done.stdout)


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "demo" in capsys.readouterr().err
