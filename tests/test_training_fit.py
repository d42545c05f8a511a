"""Models and `fit`: gradients, what decides the result, and when training stops."""

import re
from typing import Any

import numpy as np
import pytest
from problems import Library, assert_same_bits

from fastgru import training
from fastgru.training import (
    SGD,
    Adam,
    Constant,
    Cosine,
    MSELoss,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    Schedule,
    Step,
    fit,
    init_model,
)
from fastgru.training.model import forward_pass, gradients_of

N, T, I, H, K = 6, 5, 3, 4, 2
LENGTHS = np.array([5, 1, 3, 5, 2, 4])
POOLINGS = "last", "steps", "mean", "max"


def arrays(model: training.Model) -> tuple[Any, ...]:
    return *model.params.to_dict().values(), model.weight, model.bias


def data(pooling: str, dtype: str = "float64", count: int = N) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, T, I)).astype(dtype)
    shape = (count, T, K) if pooling == "steps" else (count, K)
    return x, rng.normal(size=shape).astype(dtype)


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gradients_of_a_model(cell: str, pooling: str, bidirectional: bool, lengths: Any) -> None:
    """Along a random direction, against central differences."""
    model = init_model(
        I, H, K, cell=cell, num_layers=2, bidirectional=bidirectional, pooling=pooling,
        dtype="float64", rng=0,
    )  # fmt: skip
    x, y = data(pooling)
    counted = lengths if pooling == "steps" else None

    def loss(of: training.Model) -> tuple[float, Any, Any]:
        done = forward_pass(of, x, lengths=lengths)
        value, slope = MSELoss()(done.output, y, lengths=counted)
        return value, done, slope

    _, done, slope = loss(model)
    gradients = gradients_of(model, done, slope)
    rng = np.random.default_rng(1)
    direction = model.map(lambda w: rng.normal(size=w.shape))
    expected = sum((g * d).sum() for g, d in zip(arrays(gradients), arrays(direction), strict=True))
    step = 1e-6
    above, below = (
        loss(model.map(lambda w, d, s=s: w + s * d, direction))[0] for s in (step, -step)
    )
    assert (above - below) / (2 * step) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_predictions_do_not_depend_on_batches(pooling: str) -> None:
    model = init_model(I, H, K, pooling=pooling, rng=0)
    x, _ = data(pooling, "float32")
    whole = model.predict(x, lengths=LENGTHS)
    assert_same_bits(model.predict(x, lengths=LENGTHS, batch_size=4), whole)
    assert whole.shape == ((N, T, K) if pooling == "steps" else (N, K))
    alone = model.predict(x[2:3, : LENGTHS[2]])
    np.testing.assert_allclose(whole[2, ..., : alone.shape[-1]].reshape(-1)[: alone.size],
                               alone.reshape(-1), rtol=1e-5, atol=1e-7)  # fmt: skip


@pytest.mark.parametrize(
    ("x", "lengths", "error", "message"),
    [
        (np.ones((4, 5, I), "f4"), [3] * 5, ValueError, "lengths: expected a sequence of 4 whole"),
        (np.ones((4, 5, I), "f4"), 3, TypeError, "lengths: expected a sequence of 4 whole"),
        (np.ones((5, I), "f4"), None, ValueError, r"x: expected shape \(samples, steps, features"),
        ([1], None, TypeError, "x: expected a numpy or cupy ndarray"),
    ],
)
def test_predictions_are_of_samples(
    x: Any, lengths: Any, error: type[Exception], message: str
) -> None:
    for size in None, 2:
        with pytest.raises(error, match=message):
            init_model(I, H, K, rng=0).predict(x, lengths=lengths, batch_size=size)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_without_steps_the_readout_reads_zeros(pooling: str) -> None:
    model = init_model(I, H, K, pooling=pooling, rng=0)
    x = np.ones((2, 0, I), "float32")
    assert_same_bits(model.predict(x), np.zeros((2, K), "float32"))
    _, history = fit(model, x, np.ones((2, K), "float32"), epochs=1)
    assert history.loss == [1.0]


def test_a_model_is_immutable_and_says_what_it_is() -> None:
    model = init_model(I, H, K, cell="lstm", bidirectional=True, rng=0)
    with pytest.raises(AttributeError, match="immutable"):
        model.bias = 0
    assert "cell='lstm'" in repr(model)
    assert (model.input_size, model.output_size) == (I, K)
    assert model.num_parameters == model.params.num_parameters + K * 2 * H + K
    assert_same_bits(
        arrays(model), arrays(init_model(I, H, K, cell="lstm", bidirectional=True, rng=0))
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": np.ones((2, 5), "f4")}, ValueError, r"weight: expected shape \(outputs, 4\)"),
        ({"bias": np.ones(3, "f4")}, ValueError, r"bias: expected shape \(2,\), got \(3,\)"),
        ({"weight": np.ones((2, 4))}, TypeError, "weight: expected numpy and float32, as params"),
        ({"pooling": "first"}, ValueError, "pooling: expected one of 'last', 'steps', 'mean'"),
        ({"params": {}}, TypeError, "params: expected Params"),
    ],
)
def test_wrong_parts_of_a_model_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = init_model(I, H, K, rng=0)
    parts = {"params": model.params, "weight": model.weight, "bias": model.bias}
    with pytest.raises(error, match=message):
        training.Model(**(parts | change))


# --- fit ------------------------------------------------------------------------------------------


def sums(count: int, seed: int = 0) -> tuple[Any, Any]:
    """Sequences, and their means."""
    x = np.random.default_rng(seed).normal(size=(count, 12, 1)).astype("float32")
    return x, x.mean(axis=1)


def trained(**options: Any) -> training.Fitted:
    x, y = sums(96)
    given: dict[str, Any] = {"optimizer": Adam(1e-2), "epochs": 3, "batch_size": 16, "rng": 0}
    return fit(init_model(1, 8, 1, rng=0), x, y, **(given | options))


@pytest.mark.parametrize("cell", ["gru", "lstm", "ligru", "mingru"])
def test_training_finds_the_mean_of_a_sequence(cell: str) -> None:
    x, y = sums(256)
    model = init_model(1, 16, 1, cell=cell, rng=0)
    before = [array.copy() for array in arrays(model)]
    made, history = fit(model, x, y, optimizer=Adam(1e-2), epochs=25, rng=0, validation=sums(64, 1))
    assert min(history.validation_loss) < 0.2 * y.var()
    assert history.best_epoch == int(np.argmin(history.validation_loss))
    assert len(history.loss) == len(history.norm) == len(history.seconds) == 25
    assert_same_bits(tuple(before), arrays(model))
    found = MSELoss()(made.predict(sums(64, 1)[0]), sums(64, 1)[1])[0]
    assert found == pytest.approx(min(history.validation_loss))


def test_the_same_seed_gives_the_same_bits() -> None:
    first, again, other = trained(), trained(), trained(rng=1)
    assert_same_bits(arrays(first.model), arrays(again.model))
    assert first.history.loss == again.history.loss
    assert first.history.loss != other.history.loss


def test_accumulated_gradients_are_those_of_one_batch() -> None:
    """Of batches of one size, in the same order."""
    options: dict[str, Any] = {"optimizer": SGD(0.1), "epochs": 1, "max_grad_norm": None}
    one = trained(batch_size=32, **options)
    options["optimizer"] = SGD(0.1)
    parts = trained(batch_size=16, accumulate=2, **options)
    assert one.history.norm[0] == pytest.approx(parts.history.norm[0], rel=1e-5)
    for a, b in zip(arrays(one.model), arrays(parts.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_to_a_norm() -> None:
    """One step of descent moves the weights by at most rate times the limit."""
    start = init_model(1, 8, 1, rng=0)
    made, history = fit(
        start, *sums(16), optimizer=SGD(0.5), epochs=1, max_grad_norm=0.01, batch_size=16, rng=0
    )
    moved = made.map(lambda a, b: a - b, start)
    assert history.norm[0] > 0.01
    assert training.norm_of(moved) == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_padding_and_weights_of_samples_without_weight_do_not_matter() -> None:
    x, y = sums(64)
    lengths = np.random.default_rng(1).integers(1, 13, 64)
    weight = np.ones(64, "float32")
    weight[::4] = 0
    spoilt = x.copy()
    spoilt[np.arange(12) >= lengths[:, None]] = np.nan
    targets = y.copy()
    targets[::4] = np.nan
    model = init_model(1, 8, 1, rng=0)
    options: dict[str, Any] = {"lengths": lengths, "weight": weight, "epochs": 2, "rng": 0}
    first, again = fit(model, x, y, **options), fit(model, spoilt, targets, **options)
    assert_same_bits(arrays(first.model), arrays(again.model))


def test_batches_without_weight_are_left_out() -> None:
    """Also where each is a sample; what follows in a sequence still has its state."""
    x, y = sums(16)
    weight = (np.arange(16) % 2).astype("float32")
    optimizer = SGD(0.0)
    fit(
        init_model(1, 4, 1, rng=0), x, y, weight=weight, batch_size=1, epochs=1, rng=0,
        optimizer=optimizer,
    )  # fmt: skip
    assert optimizer.steps == 8
    tagger = init_model(1, 4, 1, pooling="steps", rng=0)
    late = np.ones((16, 12), "float32")
    late[:, :4] = 0
    found = fit(
        tagger, x, x, weight=late, truncate=4, batch_size=16, epochs=1, rng=0, optimizer=SGD(0.0)
    ).history.loss
    assert found == [pytest.approx(MSELoss()(tagger.predict(x), x, weight=late)[0], rel=1e-5)]


@pytest.mark.parametrize("truncate", [None, 5])
def test_weights_of_steps_are_cut_as_the_steps_are(truncate: int | None) -> None:
    """A step without weight is as good as one behind the end."""
    x, _ = sums(32)
    lengths = np.random.default_rng(1).integers(1, 9, 32)
    weight = (np.arange(12) < lengths[:, None]).astype("float32")
    model = init_model(1, 4, 1, pooling="steps", rng=0)
    options: dict[str, Any] = {"truncate": truncate, "epochs": 1, "batch_size": 32, "rng": 0}
    of_lengths = fit(model, x, x, lengths=lengths, **options)
    of_both = fit(model, x, x, lengths=lengths, weight=weight, **options)
    assert_same_bits(arrays(of_lengths.model), arrays(of_both.model))
    of_weights = fit(model, x, x, weight=weight, **options)
    for a, b in zip(arrays(of_lengths.model), arrays(of_weights.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_as_many_outputs_as_steps_are_not_cut() -> None:
    """Targets of samples, in batches that are cut to their longest sequence."""
    x, _ = sums(8)
    y = np.ones((8, 12), "float32")
    model = init_model(1, 4, 12, rng=0)
    _, history = fit(model, x, y, lengths=[3] * 8, optimizer=SGD(0.0), epochs=1, rng=0)
    assert history.loss == [pytest.approx(MSELoss()(model.predict(x, lengths=[3] * 8), y)[0])]


@pytest.mark.parametrize("seed", range(4))
def test_gradients_before_an_empty_batch_are_not_lost(seed: int) -> None:
    """Whether the batch without a valid step is the last or not."""
    x, y = sums(16)
    optimizer = SGD(0.1)
    _, history = fit(
        init_model(1, 4, 1, rng=0), x, y, lengths=[0] * 8 + [12] * 8, batch_size=8, accumulate=4,
        optimizer=optimizer, epochs=1, rng=seed,
    )  # fmt: skip
    assert optimizer.steps == 1
    assert len(history.norm) == 1


def test_batches_are_of_similar_lengths() -> None:
    lengths = np.random.default_rng(1).integers(1, 101, 640)
    seen: list[Any] = []

    class Noting(MSELoss):
        def __call__(self, output: Any, target: Any, **options: Any) -> Any:
            seen.append(output.shape[1])
            return super().__call__(output, target, **options)

    x = np.zeros((640, 100, 1), "float32")
    fit(init_model(1, 2, 1, pooling="steps", rng=0), x, x, lengths=lengths, loss=Noting(),
        epochs=1, batch_size=32, rng=0)  # fmt: skip
    assert len(seen) == 20
    assert sum(seen) < 0.65 * 100 * 20  # of what batches in the order of the data would take
    assert seen != sorted(seen)


def test_truncated_sequences_carry_their_state_on() -> None:
    """With a rate of 0 every piece has the loss of its part of the whole sequence."""
    x, y = data("steps", "float64")
    model = init_model(I, H, K, pooling="steps", dtype="float64", rng=0)
    values: list[float] = []

    class Noting(MSELoss):
        def __call__(self, output: Any, target: Any, **options: Any) -> Any:
            found = super().__call__(output, target, **options)
            values.append(found[0])
            return found

    fit(model, x, y, loss=Noting(), optimizer=SGD(0.0), truncate=2, epochs=1, batch_size=N, rng=0)
    output = model.predict(x)
    parts = [slice(0, 2), slice(2, 4), slice(4, 5)]
    expected = [MSELoss()(output[:, part], y[:, part])[0] for part in parts]
    assert values == pytest.approx(expected, rel=1e-12)


def test_validation_by_a_fraction_sets_samples_aside() -> None:
    _, history = trained(validation_fraction=0.25, epochs=2)
    assert len(history.validation_loss) == 2
    with pytest.raises(ValueError, match="validation is given too"):
        trained(validation_fraction=0.25, validation=sums(8))


def test_training_stops_when_nothing_improves() -> None:
    _, history = trained(optimizer=SGD(0.0), patience=2, epochs=10, validation=sums(8))
    assert history.stopped == "no new least loss for 2 epochs"
    assert len(history.loss) == 3
    assert history.best_epoch == 0


def test_a_loss_that_is_not_finite_stops_with_the_remedies() -> None:
    x, y = sums(96)
    x[7] = np.inf
    y = np.where(np.arange(96)[:, None] == 7, np.nan, y).astype("float32")
    with pytest.warns(RuntimeWarning, match=r"not finite after .* updates .* Lower the learning"):
        made, history = fit(init_model(1, 8, 1, rng=0), x, y, epochs=5, rng=0)
    assert history.best_epoch == -1
    assert_same_bits(arrays(made), arrays(init_model(1, 8, 1, rng=0)))
    assert re.search("max_grad_norm", history.stopped)


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    class Steep(MSELoss):
        def __call__(self, *args: Any, **options: Any) -> Any:
            value, slope = super().__call__(*args, **options)
            return value, np.full_like(slope, np.nan)

    model = init_model(1, 8, 1, rng=0)
    with pytest.warns(RuntimeWarning, match="the loss or its gradient is not finite after 0 updat"):
        made, history = fit(model, *sums(16), loss=Steep(), batch_size=16, epochs=2, rng=0)
    assert history.loss == []
    assert_same_bits(arrays(made), arrays(model))


def test_losses_below_zero_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    assert training.History(loss=[2.0, 1.0]).plot().get_yscale() == "log"
    assert training.History(loss=[2.0, -1.0]).plot().get_yscale() == "linear"


def test_an_interrupt_returns_the_best_so_far() -> None:
    def interrupt(progress: training.Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    _, history = trained(callbacks=[interrupt], epochs=10)
    assert history.stopped == "interrupted"
    assert len(history.loss) == 2


def test_callbacks_see_every_epoch_and_may_stop() -> None:
    seen: list[int] = []

    def note(progress: training.Progress) -> bool:
        seen.append(progress.epoch)
        assert progress.optimizer.steps == 6 * progress.epoch
        return progress.epoch == 3

    _, history = trained(callbacks=[note], epochs=10)
    assert seen == [1, 2, 3]
    assert history.stopped == "a callback asked for it"


def test_the_bar_shows_and_can_be_silent(capsys: pytest.CaptureFixture[str]) -> None:
    trained(epochs=2)
    assert capsys.readouterr().err == ""
    trained(epochs=2, progress=True)
    assert "loss=" in capsys.readouterr().err
    trained(epochs=2, progress="training the gru")
    assert "training the gru" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"y": np.ones((5, 1), "f4")},
            ValueError,
            r"y: expected 96 samples, .* got shape \(5, 1\)",
        ),
        ({"x": [[[1.0]]]}, TypeError, "x: expected a numpy or cupy ndarray"),
        ({"x": np.ones((96, 2), "f4")}, ValueError, r"x: expected shape \(samples, steps, feat"),
        ({"x": np.ones((0, 2, 1), "f4")}, ValueError, "x: expected at least one sample, got none"),
        ({"y": [1.0] * 96}, TypeError, "y: expected a numpy or cupy ndarray"),
        ({"y": np.ones((96, 1))}, TypeError, "target: expected dtype float32, as the output"),
        ({"weight": [1.0] * 96}, TypeError, "weight: expected a numpy or cupy ndarray"),
        (
            {"weight": np.ones((96, 12))},
            ValueError,
            r"weight: expected shape \(96,\), got \(96, 12\)",
        ),
        ({"weight": np.zeros(96)}, ValueError, "expected at least one step that counts, got none"),
        ({"lengths": [3]}, ValueError, "lengths: expected a sequence of 96 whole numbers"),
        ({"lengths": [13] * 96}, ValueError, "lengths: expected values from 0 to 12"),
        ({"lengths": [-1] * 96}, ValueError, "lengths: expected values from 0 to 12"),
        ({"validation": sums(4)[0]}, TypeError, r"validation: expected \(x, y\), .* got ndarray"),
        ({"validation": sums(4)[:1]}, TypeError, "validation: expected .* got tuple of length 1"),
        ({"validation": (sums(4)[0], 1)}, TypeError, "validation y: expected a numpy or cupy"),
        ({"validation_fraction": 0.999}, ValueError, "of 96 samples leaves none to train on"),
        ({"callbacks": print}, TypeError, "callbacks: expected a sequence of callables"),
        ({"callbacks": [1]}, TypeError, r"callbacks\[0\]: expected a callable, got 1"),
        ({"max_grad_norm": -1}, ValueError, "max_grad_norm: expected a number of at least 0"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"batch_size": 1.5}, TypeError, "batch_size"),
        ({"loss": "mse"}, TypeError, "loss: expected Loss"),
        ({"optimizer": 1e-3}, TypeError, "optimizer: expected Optimizer"),
        ({"truncate": 4}, ValueError, "truncate: expected pooling='steps', got 'last'"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction: expected .* below 1"),
        ({"max_grad_norm": "1"}, TypeError, "max_grad_norm: expected"),
        ({"progress": 1}, TypeError, "progress: expected True, False or a text"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    x, y = sums(96)
    with pytest.raises(error, match=message):
        fit(init_model(1, 8, 1, rng=0), **({"x": x, "y": y} | options))


@pytest.mark.parametrize("lengths", [None, [12, 0, 3, 5, 1, 12, 7, 2]])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_cupy_arrays_train_to_the_same_weights(
    simulated: Library, pooling: str, lengths: Any
) -> None:
    x, y = sums(8)
    model = init_model(1, 4, 1, pooling=pooling, dtype="float64", rng=0)
    x, y = x.astype("float64"), (x if pooling == "steps" else y).astype("float64")
    weight = np.arange(8.0)
    on_gpu = model.map(simulated.asarray)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "rng": 0, "lengths": lengths}
    there = [simulated.asarray(array) for array in (x, y, weight)]
    made, history = fit(on_gpu, *there[:2], weight=there[2], **options)
    expected, same = fit(model, x, y, weight=weight, **options)
    assert history.loss == pytest.approx(same.loss, rel=1e-10)
    for got, want in zip(arrays(made), arrays(expected), strict=True):
        assert type(got) is type(on_gpu.weight)
        np.testing.assert_allclose(simulated.asnumpy(got), want, rtol=1e-9, atol=1e-12)


# --- ensembles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_models_of_an_ensemble_are_those_of_their_seeds(workers: int) -> None:
    x, y = sums(96)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16}
    ensemble = training.fit_ensemble(
        lambda rng: init_model(1, 8, 1, rng=rng), x, y, seeds=range(4), workers=workers,
        optimizer=Adam(1e-2), schedule=ReduceOnPlateau(0.5, 1), **options,
    )  # fmt: skip
    for seed, (model, history) in enumerate(zip(*ensemble, strict=True)):
        rng = np.random.default_rng(seed)
        expected, same = fit(
            init_model(1, 8, 1, rng=rng), x, y, rng=rng, optimizer=Adam(1e-2),
            schedule=ReduceOnPlateau(0.5, 1), **options,
        )  # fmt: skip
        assert_same_bits(arrays(model), arrays(expected))
        assert history.loss == same.loss
    mean, spread = ensemble.predict(x)
    outputs = np.stack([model.predict(x) for model in ensemble.models])
    np.testing.assert_allclose(mean, outputs.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(spread, outputs.std(axis=0), rtol=1e-5)


def test_ensembles_refuse_what_is_of_one_model() -> None:
    x, y = sums(8)
    with pytest.raises(ValueError, match="rng: not for several models at once"):
        training.fit_ensemble(lambda rng: init_model(1, 2, 1, rng=rng), x, y, seeds=[1], rng=0)
    with pytest.raises(ValueError, match="seeds: expected at least one"):
        training.fit_ensemble(lambda rng: init_model(1, 2, 1, rng=rng), x, y, seeds=[])


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Constant(), [1, 1, 1]),
        (Constant(warmup=0.5), [0, 1, 1]),
        (Cosine(), [1, 0.5, 0]),
        (Cosine(0.2, warmup=0.5), [0, 1, 0.2]),
        (Polynomial(2.0), [1, 0.25, 0]),
        (Step(1, 0.1), [1, 0.1, 0.01]),
        (OneCycle(0.5, start=0.1, final=0.0), [0.1, 1, 0]),
        (ReduceOnPlateau(), [1, 1, 1]),
    ],
)
def test_factors_of_schedules(schedule: Schedule, factors: list[float]) -> None:
    assert [schedule.factor(done) for done in (0, 0.5, 1)] == pytest.approx(factors, abs=1e-12)


def test_fit_asks_the_schedule_before_every_update() -> None:
    asked: list[float] = []

    class Noting(Constant):
        def _factor(self, done: float) -> float:
            asked.append(done)
            return 1.0

    trained(schedule=Noting(), epochs=2)
    assert asked == pytest.approx([k / 12 for k in range(12)])
