"""Models in files, and trainings that go on where they were cut off."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_same_bits

import fastgru
from fastgru import training
from fastgru.training import SGD, Adam, Checkpoint, Cosine, ReduceOnPlateau, fit, init_model


def arrays(model: training.Model) -> tuple[Any, ...]:
    return *model.params.to_dict().values(), model.weight, model.bias


@pytest.mark.parametrize("pooling", ["last", "steps"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["gru", "ligru", "mingru"])
def test_a_model_comes_back(cell: str, dtype: str, pooling: str, tmp_path: Path) -> None:
    model = init_model(
        3, 4, 2, cell=cell, num_layers=2, bidirectional=True, pooling=pooling, dtype=dtype, rng=0
    )
    path = tmp_path / "model.safetensors"
    training.save_model(path, model, {"scale": "2.5"})
    loaded = training.load_model(path)
    assert repr(loaded) == repr(model)
    assert_same_bits(arrays(loaded), arrays(model))
    assert fastgru.load_metadata(path) == {"scale": "2.5"}


def test_kinds_of_files_are_told_apart(tmp_path: Path) -> None:
    model, path = init_model(3, 4, 2, rng=0), tmp_path / "file"
    training.save_model(path, model)
    with pytest.raises(ValueError, match=r"file: it holds a model of fastgru.training, not params"):
        fastgru.load(path)
    fastgru.save(path, model.params)
    with pytest.raises(ValueError, match="file: expected a model, got params"):
        training.load_model(path)
    with pytest.raises(ValueError, match="file: expected a checkpoint, got params"):
        fit(model, *data(), checkpoint=Checkpoint(path))
    with pytest.raises(TypeError, match="model: expected Model"):
        training.save_model(path, model.params)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metadata: expected keys"):
        training.save_model(path, model, {"fastgru.kind": "x"})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    training.save_model(path, init_model(2, 3, 1, rng=0))
    return path


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_model_is_refused(written: Path, drawn: st.DataObject) -> None:
    content = bytearray(written.read_bytes())
    if drawn.draw(st.booleans()):
        del content[drawn.draw(st.integers(0, len(content) - 1)) :]
    else:
        place = drawn.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << drawn.draw(st.integers(0, 7))
    path = written.with_name("damaged")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: "):
        training.load_model(path)


# --- checkpoints ----------------------------------------------------------------------------------


def data(count: int = 96) -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(count, 8, 1)).astype("float32")
    return x, x.mean(axis=1)


class CutOffError(Exception):
    pass


def trained(cut: int | None = None, **options: Any) -> training.Fitted:
    """Six epochs, if nothing cuts them off."""

    def stop(progress: training.Progress) -> None:
        if progress.epoch == cut:
            raise CutOffError

    kept: dict[str, Any] = {"optimizer": Adam(1e-2), "schedule": Cosine(), "epochs": 6}
    kept |= {"batch_size": 16, "validation_fraction": 0.25, "rng": 3, "callbacks": [stop]}
    return fit(init_model(1, 8, 1, rng=0), *data(), **(kept | options))


@pytest.mark.parametrize("cut", [1, 4])
@pytest.mark.parametrize("make", [Cosine, lambda: ReduceOnPlateau(0.5, patience=1)])
def test_a_training_that_was_cut_off_gives_the_same_bits(
    make: Any, cut: int, tmp_path: Path
) -> None:
    whole = trained(schedule=make())
    checkpoint = Checkpoint(tmp_path / "run")
    with pytest.raises(CutOffError):
        trained(cut, schedule=make(), checkpoint=checkpoint)
    again = trained(schedule=make(), checkpoint=Checkpoint(tmp_path / "run"))
    assert_same_bits(arrays(again.model), arrays(whole.model))
    assert again.history.loss == whole.history.loss
    assert again.history.validation_loss == whole.history.validation_loss
    assert again.history.best_epoch == whole.history.best_epoch
    assert again.history.seconds == sorted(again.history.seconds)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    first, again = trained(checkpoint=checkpoint), trained(checkpoint=checkpoint)
    assert_same_bits(arrays(first.model), arrays(again.model))
    assert len(again.history.loss) == 6


def test_a_training_that_stopped_early_is_not_taken_up(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": SGD(0.0), "patience": 2}
    first = trained(checkpoint=Checkpoint(tmp_path / "run"), **options)
    again = trained(checkpoint=Checkpoint(tmp_path / "run"), **options)
    assert len(first.history.loss) == 3
    assert again.history == first.history


def test_losses_and_schedules_of_ones_own_may_give_numbers_of_numpy(tmp_path: Path) -> None:
    class Own(training.Constant):
        def factor(self, done: float) -> Any:
            return np.float32(1)

    class OwnLoss(training.MSELoss):
        def __call__(self, *args: Any, **options: Any) -> Any:
            value, slope = super().__call__(*args, **options)
            return np.float32(value), slope

    options: dict[str, Any] = {"schedule": Own(), "loss": OwnLoss(), "epochs": 2}
    first = trained(checkpoint=Checkpoint(tmp_path / "run"), **options)
    assert trained(checkpoint=Checkpoint(tmp_path / "run"), **options).history == first.history


def test_samples_set_aside_stay_so(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    with pytest.raises(ValueError, match="rng: expected a seed, as there are a checkpoint and"):
        trained(checkpoint=checkpoint, rng=None)
    trained(checkpoint=checkpoint, epochs=1)
    with pytest.raises(ValueError, match="run: it is of another training"):
        trained(checkpoint=checkpoint, epochs=1, rng=4)


def test_checkpoints_are_written_when_they_are_due(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(CutOffError):
        trained(1, checkpoint=Checkpoint(path, epochs=2))
    assert not path.exists()
    with pytest.raises(CutOffError):
        trained(2, checkpoint=Checkpoint(path, epochs=2, seconds=3600))
    assert not path.exists()
    with pytest.raises(CutOffError):
        trained(2, checkpoint=Checkpoint(path, epochs=2))
    assert path.exists()


@pytest.mark.parametrize(
    "change", [{"epochs": 7}, {"batch_size": 8}, {"optimizer": Adam(1e-3)}, {"max_grad_norm": 2.0}]
)
def test_another_training_does_not_go_on(change: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    with pytest.raises(CutOffError):
        trained(1, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"run: it is of another training .* delete it"):
        trained(checkpoint=checkpoint, **change)


PROGRAM = """
import sys, numpy as np
from fastgru import training
x = np.random.default_rng(0).normal(size=(96, 8, 1)).astype("float32")
model, history = training.fit(
    training.init_model(1, 8, 1, rng=0), x, x.mean(axis=1), epochs=400, batch_size=16, rng=0,
    checkpoint=training.Checkpoint(sys.argv[1], epochs=2),
    callbacks=[lambda progress: print(progress.epoch, flush=True)],
)
print(float(model.weight.sum()).hex(), float(history.loss[-1]).hex())
"""


def test_a_killed_run_loses_what_came_after_its_last_checkpoint(tmp_path: Path) -> None:
    def program(name: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / name)]
        where = {"PYTHONPATH": str(Path(fastgru.__file__).parents[1])}
        return subprocess.Popen(command, env=os.environ | where, stdout=subprocess.PIPE, text=True)

    with program("whole") as whole:
        lines, _ = whole.communicate(timeout=120)
        *_, expected = lines.splitlines()
    with program("killed") as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if line == "7\n":
                killed.kill()
                break
    with program("killed") as again:
        lines, _ = again.communicate(timeout=120)
    first, *_, got = lines.splitlines()
    assert 7 <= int(first) <= 400  # the sixth epoch's checkpoint, or a later one
    assert got == expected
