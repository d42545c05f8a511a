"""Cells with a batch norm: statistics over valid steps alone, gradients through them, inference."""

import pickle
from typing import Any

import numpy as np
import pytest
import reference
from problems import (
    SHIPPED_CELLS,
    Problem,
    as_members,
    assert_close,
    assert_same_bits,
    draw,
    flatten,
    solve,
)
from programs import run

import fastgru
from fastgru.kernels.cells import CELLS

NORMALISED = ("ligru", "sligru", "libru")
LENGTHS = [2, 0, 4]
EPS = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}
NORM_EPS, MOMENTUM = 1e-5, 0.05

each_normalised = pytest.mark.parametrize("cell", NORMALISED)


def test_these_are_all_shipped_cells_with_a_batch_norm() -> None:
    """And their constants are those of the papers' own code."""
    assert {name for name in SHIPPED_CELLS if CELLS[name].norm} == set(NORMALISED)
    for cell in NORMALISED:
        norm = CELLS[cell].norm
        assert norm is not None
        assert (norm.eps, norm.momentum) == (NORM_EPS, MOMENTUM)


def unsettled(params: fastgru.Params, seed: int = 1, gain: float = 1.0) -> fastgru.Params:
    """Random scales, shifts and running statistics, where initial ones are 1 and 0."""
    rng = np.random.default_rng(seed)
    draws: dict[str, Any] = {
        "norm_weight": lambda shape: gain * rng.choice([-1, 1], shape) * rng.uniform(0.5, 1, shape),
        "norm_bias": lambda shape: rng.normal(0, 1, shape),
        "running_mean": lambda shape: rng.normal(0, 1, shape),
        "running_var": lambda shape: rng.uniform(0.5, 2, shape),
    }
    arrays = params.to_dict()
    for key, array in arrays.items():
        make = draws.get(key.partition("_l")[0])
        if make:  # exact in float32
            arrays[key] = make(array.shape).astype("float32").astype(array.dtype)
    return fastgru.Params.from_dict(arrays, cell=params.cell)


def drawn(cell: str, sizes: tuple[int, int, int, int] = (3, 4, 3, 5), **options: Any) -> Problem:
    problem = draw(cell, sizes, **options)
    return problem._replace(params=unsettled(problem.params))


def trained(problem: Problem) -> tuple[Any, Any, Any]:
    return fastgru.forward_train(problem.x, problem.params, *problem.h0, lengths=problem.lengths)


def statistics(a: Any) -> tuple[Any, Any, Any]:
    """Mean, biased and unbiased variance of rows."""
    return a.mean(axis=0), a.var(axis=0), a.var(axis=0, ddof=1)


def of_layer(params: fastgru.Params, layer: int, direction: int) -> dict[str, Any]:
    return dict(params.layers[layer][direction].items())


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
@each_normalised
def test_padding_is_not_read(cell: str, garbage: float) -> None:
    """Results, gradients and running statistics have the same bits, whatever lies in padding."""
    problem = drawn(cell, L=2, D=2, lengths=LENGTHS)
    valid = reference.valid_steps(problem.x, LENGTHS)[:, :, None]
    found = []
    for filler in (0.0, garbage):
        padded = problem._replace(
            x=np.where(valid, problem.x, filler), dy=np.where(valid, problem.dy, filler)
        )
        _, _, saved = fastgru.forward_train(padded.x, padded.params, *padded.h0, lengths=LENGTHS)
        found.append((*solve(padded), saved.params))
    assert_same_bits(tuple(found[1]), tuple(found[0]))


@each_normalised
def test_padding_does_not_count(cell: str) -> None:
    """Rows padded to more steps, and more rows without any, leave the statistics as they are."""
    problem = drawn(cell, lengths=LENGTHS)
    (h0,) = problem.h0
    _, _, saved = fastgru.forward_train(problem.x, problem.params, h0, lengths=LENGTHS)
    x = np.pad(problem.x, ((0, 2), (0, 3), (0, 0)), constant_values=7.0)
    padded_h0 = np.pad(h0, ((0, 0), (0, 2), (0, 0)), constant_values=0.5)
    _, _, longer = fastgru.forward_train(x, problem.params, padded_h0, lengths=[*LENGTHS, 0, 0])
    assert_same_bits(longer.params, saved.params)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@each_normalised
def test_running_statistics_of_one_batch(cell: str, lengths: Any) -> None:
    """Of both layers and directions: 19/20 of the old ones; the unbiased variance goes in."""
    problem = drawn(cell, L=2, D=2, lengths=lengths)
    before = pickle.dumps(problem.params)
    _, _, saved = fastgru.forward_train(problem.x, problem.params, *problem.h0, lengths=lengths)
    assert pickle.dumps(problem.params) == before
    h0 = tuple(member[:2] for member in problem.h0)
    y_below, _ = reference.forward(problem.x, problem.layers[:1], cell, h0, lengths)
    valid = reference.valid_steps(problem.x, lengths)
    for number, inputs in enumerate((problem.x, y_below)):
        for d in range(2):
            old, new = (of_layer(p, number, d) for p in (problem.params, saved.params))
            mean, _, unbiased = statistics(inputs[valid] @ old["weight_ih"].T)
            for name, own in (("running_mean", mean), ("running_var", unbiased)):
                want = (1 - MOMENTUM) * old[name] + MOMENTUM * own
                np.testing.assert_allclose(new[name], want, rtol=64 * EPS["float64"], atol=1e-15)
                assert np.abs(new[name] - old[name]).max() > 1e-3
            for name in ("weight_ih", "weight_hh", "norm_weight", "norm_bias"):
                assert new[name] is old[name]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_normalised
def test_running_statistics_of_several_batches(cell: str, dtype: str) -> None:
    """Each batch goes on from the params that the last one saved."""
    params = drawn(cell, dtype=dtype).params
    want = {k: a.astype("float64") for k, a in of_layer(params, 0, 0).items()}
    rng = np.random.default_rng(3)
    for batch in range(6):
        x = rng.normal(0.5, 1, (4, 5, 3)).astype(dtype)
        lengths = rng.integers(1, 6, 4)
        _, _, saved = fastgru.forward_train(x, params, lengths=lengths)
        params = saved.params
        rows = x[reference.valid_steps(x, lengths)].astype("float64")
        mean, _, unbiased = statistics(rows @ want["weight_ih"].T)
        for name, own in (("running_mean", mean), ("running_var", unbiased)):
            want[name] = (1 - MOMENTUM) * want[name] + MOMENTUM * own
            got = of_layer(params, 0, 0)[name]
            assert got.dtype == dtype
            # Sums of products of the dtype, and one rounding a batch.
            assert_close(got, want[name], (8 + batch) * EPS[dtype])


@each_normalised
def test_training_does_not_read_running_statistics(cell: str) -> None:
    problem = drawn(cell, L=2, D=2, lengths=LENGTHS)
    others = problem.params.map(lambda w: w)
    for name in ("running_mean", "running_var"):
        arrays = others.to_dict()
        arrays |= {k: a + 1 for k, a in arrays.items() if k.startswith(name)}
        others = fastgru.Params.from_dict(arrays, cell=cell)
    assert_same_bits(solve(problem._replace(params=others)), solve(problem))
    ends = [fastgru.forward(problem.x, p, *problem.h0)[0] for p in (problem.params, others)]
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


@each_normalised
def test_one_valid_step_is_refused(cell: str) -> None:
    """It has no variance; inference takes it, and so does every other cell."""
    params = drawn(cell).params
    x = np.ones((3, 4, 3))
    one_step = ((x[:1, :1], None), (x, [0, 1, 0]), (x[0, :1], None))
    for given, lengths in one_step:
        with pytest.raises(ValueError, match=r"^x: .*two valid steps.*batch norm") as raised:
            fastgru.forward_train(given, params, lengths=lengths)
        assert repr(cell) in str(raised.value)
        y, _ = fastgru.forward(given, params, lengths=lengths)
        assert np.isfinite(y).all()
    fastgru.step(x[:1, 0], params)
    fastgru.forward_train(x[:1, :2], params)
    fastgru.forward_train(x[:1, :1], fastgru.init_params(3, 5, cell="gru", dtype="float64"))


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [((0, 4, 3), None), ((3, 0, 3), None), ((3, 4, 3), [0, 0, 0])],
    ids=["no rows", "no steps", "no valid steps"],
)
@each_normalised
def test_batches_without_a_step(cell: str, shape: tuple[int, ...], lengths: Any) -> None:
    """The state and the statistics stay as they are, and the gradients of weights are 0."""
    params = drawn(cell, L=2, D=2).params
    x = np.full(shape, 0.7)
    h0 = np.full((4, shape[0], 5), 0.3)
    y, h_n, saved = fastgru.forward_train(x, params, h0, lengths=lengths)
    assert_same_bits(saved.params, params)
    assert_same_bits(h_n, h0)
    assert not y.any()
    gradients = fastgru.backward(saved, np.ones_like(y), np.ones_like(h_n))
    assert_same_bits(gradients.h0, np.ones_like(h0))
    assert not any(a.any() for a in flatten(gradients.x, gradients.params))


@each_normalised
def test_inputs_that_do_not_vary(cell: str) -> None:
    """A variance of 0: what is left is the shift, and no gradient of x is infinite."""
    problem = drawn(cell)
    problem = problem._replace(x=np.full_like(problem.x, 0.75))
    y, _, saved = trained(problem)
    zero = problem._replace(x=np.zeros_like(problem.x))
    want, _, _ = trained(zero)
    assert_close(y, want, 64 * EPS["float64"] / np.sqrt(NORM_EPS))
    gradients = fastgru.backward(saved, problem.dy)
    assert all(np.isfinite(a).all() for a in flatten(gradients))
    assert np.abs(gradients.params.layers[0][0].weight_ih).max() < 1e-9


@pytest.mark.parametrize("offset", [10.0, 1000.0])
@each_normalised
def test_inputs_far_from_zero(cell: str, offset: float) -> None:
    """float32 loses what their mean is in deviations, and no more; the variance is not squares."""
    exact = drawn(cell, (8, 20, 3, 5))
    shifted = (exact.x + offset).astype("float32")
    exact = exact._replace(x=shifted.astype("float64"))
    problem = exact.astype("float32")._replace(x=shifted)
    (want, _, exactly), (y, _, saved) = trained(exact), trained(problem)
    # sums of three inputs near the offset, whose deviations are near 1
    tolerance = EPS["float32"] * 8 * offset
    assert_close(y, want, tolerance)
    for name in ("running_mean", "running_var"):
        got, wanted = (of_layer(p.params, 0, 0)[name] for p in (saved, exactly))
        assert_close(got, wanted, tolerance)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("L", [1, 2])
@each_normalised
def test_gradients_go_through_the_statistics(cell: str, L: int) -> None:
    """Against the complex step, with scales, shifts and lengths: every element, to 1e-11."""
    problem = drawn(cell, (3, 4, 2, 3), L=L, D=2, lengths=LENGTHS)
    y, h_n, gradients = solve(problem)
    want_y, want_h = reference.forward(problem.x, problem.layers, cell, problem.h0, LENGTHS)
    assert_close(y, want_y, 1e-13)
    assert_close(h_n, want_h[0], 1e-13)
    dx, dh0, dlayers, _ = reference.gradients(
        problem.x, problem.layers, cell, problem.h0, LENGTHS, problem.dy, problem.dh_n
    )
    assert_close(gradients.x, dx, 1e-11)
    assert_close(gradients.h0, dh0[0], 1e-11)
    for layer, want_layer in zip(gradients.params.layers, dlayers, strict=True):
        for weights, want in zip(layer, want_layer, strict=True):
            for name, got in weights.items():
                assert_close(got, want[name], 1e-11)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@each_normalised
def test_gradients_of_what_the_norm_takes_out(cell: str, lengths: Any) -> None:
    """A constant added to all W x changes nothing, so their gradients over the batch sum to 0.

    Where a feature of x is constant, that sum is its weights' gradient; and the gradients of x sum
    to 0 over rows and steps. A factor in W x changes nothing either, but for the eps beside the
    variance: along its own row, the gradient of W is the scale times its gradient, times eps over
    variance + eps.
    """
    problem = drawn(cell, (4, 5, 3, 6), D=2, lengths=None if lengths is None else [*lengths, 5])
    x = problem.x.copy()
    x[:, :, 1] = 1.0
    problem = problem._replace(x=x)
    _, _, gradients = solve(problem)
    rows = x[reference.valid_steps(x, problem.lengths)]
    sums = [rows @ of_layer(problem.params, 0, d)["weight_ih"].T for d in range(2)]
    # Deviations from a mean have lost the digits that the mean takes.
    lost = max(float((np.abs(a).max(axis=0) / a.std(axis=0)).max()) for a in sums)
    tolerance = 16 * EPS["float64"] * lost
    assert tolerance < 1e-12
    largest = np.abs(gradients.x).max()
    assert largest > 0.1
    assert np.abs(gradients.x.sum(axis=(0, 1))).max() <= tolerance * largest
    for d in range(2):
        weights, of = of_layer(problem.params, 0, d), of_layer(gradients.params, 0, d)
        dW = of["weight_ih"]
        largest = np.abs(dW).max()
        assert largest > 0.1
        assert np.abs(dW[:, 1]).max() <= tolerance * largest
        _, variance, _ = statistics(sums[d])
        along = (dW * weights["weight_ih"]).sum(axis=1)
        left = weights["norm_weight"] * of["norm_weight"] * NORM_EPS / (variance + NORM_EPS)
        assert np.abs(left).max() > 1e-6
        assert np.abs(along - left).max() <= tolerance * largest


# --- inference ------------------------------------------------------------------------------------


def folded(w: dict[str, Any], mean: Any, variance: Any) -> tuple[Any, Any]:
    """W' and b' with W' x + b' = scale (W x - mean) / deviation + shift."""
    factor = w["norm_weight"] / np.sqrt(variance + NORM_EPS)
    return w["weight_ih"] * factor[:, None], w["norm_bias"] - factor * mean


@each_normalised
def test_inference_is_that_of_folded_weights(cell: str) -> None:
    """By hand, with the specification's steps; both directions, lengths."""
    problem = drawn(cell, D=2, lengths=LENGTHS)
    y, h_n = fastgru.forward(problem.x, problem.params, *problem.h0, lengths=LENGTHS)
    H = problem.params.hidden_size
    for d in range(2):
        w = of_layer(problem.params, 0, d)
        W, b = folded(w, w["running_mean"], w["running_var"])
        for row, length in enumerate(LENGTHS):
            h = problem.h0[0][d, row][None]
            for t in range(length)[:: -1 if d else 1]:
                a = problem.x[row, t] @ W.T + b
                (h,) = reference.CELLS[cell].step(a[None], (h,), w)
                assert_close(y[row, t, d * H : (d + 1) * H], h[0], 64 * EPS["float64"])
            assert_close(h_n[d, row], h[0], 64 * EPS["float64"])


@each_normalised
def test_training_is_inference_with_the_statistics_of_the_batch(cell: str) -> None:
    problem = drawn(cell, lengths=LENGTHS)
    y, h_n, _ = trained(problem)
    arrays = problem.params.to_dict()
    rows = problem.x[reference.valid_steps(problem.x, LENGTHS)]
    mean, biased, _ = statistics(rows @ arrays["weight_ih_l0"].T)
    arrays |= {"running_mean_l0": mean, "running_var_l0": biased}
    params = fastgru.Params.from_dict(arrays, cell=cell)
    want_y, want_h = fastgru.forward(problem.x, params, *problem.h0, lengths=LENGTHS)
    assert_close(y, want_y, 64 * EPS["float64"])
    assert_close(h_n, want_h, 64 * EPS["float64"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_normalised
def test_steps_are_forward_to_the_bit(cell: str, dtype: str) -> None:
    """With the running statistics, of params and of packed ones."""
    problem = drawn(cell, L=2, dtype=dtype)
    packed = fastgru.pack(problem.params)
    y, h_n = fastgru.forward(problem.x, problem.params, *problem.h0)
    assert_same_bits(fastgru.forward(problem.x, packed, *problem.h0), (y, h_n))
    (h,) = problem.h0
    for t in range(problem.x.shape[1]):
        y_t, h = fastgru.step(problem.x[:, t], packed if t % 2 else problem.params, h)
        assert_same_bits(y_t, y[:, t].copy())
    assert_same_bits(h, h_n)


# --- params, gradients and running statistics -----------------------------------------------------


@each_normalised
def test_gradients_are_of_trainable_weights(cell: str) -> None:
    """A step of gradient descent, and one of momentum, leave running statistics as they are."""
    problem = drawn(cell, L=2, D=2)
    _, _, saved = trained(problem)
    gradients = fastgru.backward(saved, problem.dy)
    assert not [k for k in gradients.params.to_dict() if k.startswith("running")]
    trainable = [k for k in problem.params.to_dict() if not k.startswith("running")]
    assert list(gradients.params.to_dict()) == trainable
    count = sum(problem.params.to_dict()[k].size for k in trainable)
    assert problem.params.num_parameters == gradients.params.num_parameters == count

    velocity = gradients.params.map(lambda g: 0.9 * g)
    velocity = velocity.map(lambda v, g: v + g, gradients.params)
    moved = saved.params.map(lambda w, v: w - 0.1 * v, velocity)
    assert list(moved.to_dict()) == list(saved.params.to_dict())
    for key, array in moved.to_dict().items():
        old = saved.params.to_dict()[key]
        if key in trainable:
            gradient = gradients.params.to_dict()[key]
            want = old - 0.1 * (0.9 * gradient + gradient)
            np.testing.assert_array_equal(array, want)
        else:
            assert_same_bits(array, old)
    fastgru.forward(problem.x, moved)
    both = saved.params.map(lambda w: 0.5 * w)  # a function of one array takes all of them
    assert_same_bits(both.layers[1][1].running_var, 0.5 * saved.params.layers[1][1].running_var)


@each_normalised
def test_params_and_gradients_travel(cell: str) -> None:
    """By pickle, and params by names: running statistics are weights like others there."""
    problem = drawn(cell, L=2, D=2)
    params = problem.params
    assert_same_bits(pickle.loads(pickle.dumps(params)), params)
    assert_same_bits(fastgru.Params.from_dict(params.to_dict(), cell=cell), params)
    _, _, saved = trained(problem)
    gradients = fastgru.backward(saved, problem.dy)
    assert_same_bits(pickle.loads(pickle.dumps(gradients)), gradients)
    again = pickle.loads(pickle.dumps(saved))
    assert_same_bits(again.params, saved.params)
    assert_same_bits(fastgru.backward(again, problem.dy), gradients)


@each_normalised
def test_gradients_are_no_params_to_compute_with(cell: str) -> None:
    problem = drawn(cell)
    _, _, saved = trained(problem)
    gradients = fastgru.backward(saved, problem.dy)
    with pytest.raises(ValueError, match="running statistics"):
        fastgru.forward(problem.x, gradients.params)
    arrays = problem.params.to_dict()
    del arrays["running_var_l0"]
    with pytest.raises(ValueError, match="running_var_l0: missing"):
        fastgru.Params.from_dict(arrays, cell=cell)


@each_normalised
def test_without_shifts(cell: str) -> None:
    """bias=False leaves norm_bias out, which is a shift of 0."""
    bare = draw(cell, bias=False, lengths=LENGTHS)
    assert "norm_bias_l0" not in bare.params.to_dict()
    assert not bare.params.bias
    arrays = bare.params.to_dict()
    zeros = np.zeros_like(arrays["norm_weight_l0"])
    with_zeros = fastgru.Params.from_dict(arrays | {"norm_bias_l0": zeros}, cell=cell)
    found, want = solve(bare), solve(bare._replace(params=with_zeros))
    assert_same_bits(found[:2], want[:2])
    assert "norm_bias_l0" not in found[2].params.to_dict()
    for key, gradient in found[2].params.to_dict().items():
        assert_same_bits(gradient, want[2].params.to_dict()[key])


def test_same_bits_for_any_number_of_threads() -> None:
    """Training in 1, 2 and 3 threads: statistics, outputs and gradients."""
    out = run(
        f"""
        import numba
        for cell in {NORMALISED}:
            params = fastgru.init_params(32, 64, cell=cell, rng=0)
            x = rng.standard_normal((25, 48, 32)).astype("float32")
            dy = rng.standard_normal((25, 48, 64)).astype("float32")
            steps = 2 * np.arange(25)
            results = []
            for count in (1, 2, 3):
                numba.set_num_threads(count)
                y, h_n, saved = fastgru.forward_train(x, params, lengths=steps)
                gradients = fastgru.backward(saved, dy)
                arrays = [y, h_n, gradients.x, gradients.h0, *gradients.params.to_dict().values()]
                arrays += saved.params.to_dict().values()
                results.append(b"".join(a.tobytes() for a in arrays))
            print(len(set(results)), max(way.workers for way in ways))
            ways.clear()
        """,
        NUMBA_NUM_THREADS="3",
    )
    assert out.splitlines() == ["1 3"] * len(NORMALISED)


# --- ligru and sligru: how far states go ----------------------------------------------------------


def growing(cell: str, dtype: str = "float32") -> Problem:
    """Recurrent weights of gain 4, which ligru's state grows by until it is infinite."""
    problem = draw(cell, (2, 200, 3, 8), dtype=dtype)
    arrays = problem.params.to_dict()
    arrays["weight_hh_l0"] = np.concatenate([0 * np.eye(8), 4 * np.eye(8)]).astype(dtype)
    return problem._replace(params=fastgru.Params.from_dict(arrays, cell=cell))


def test_ligru_warns_where_its_state_leaves_the_range() -> None:
    """Each function says so, at the caller's line, and names the cell that cannot grow."""
    problem = growing("ligru")
    (h0,) = problem.h0
    infinite = np.full_like(h0, np.inf)
    for call in (
        lambda: fastgru.forward(problem.x, problem.params, h0),
        lambda: fastgru.forward_train(problem.x, problem.params, h0),
        lambda: fastgru.step(problem.x[:, 0], problem.params, infinite),
    ):
        with pytest.warns(RuntimeWarning, match=r"'ligru' .*'sligru'") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]
    # As long as it is finite there is nothing to say: here warnings are errors.
    y, _ = fastgru.forward(problem.x[:, :50], problem.params, h0)
    assert 1e6 < np.abs(y).max() < np.inf


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sligru_cannot_grow(dtype: str) -> None:
    """No entry of a normalised row of 2 H passes sqrt(2 H - 1): n, and so h, stays below that."""
    problem = growing("sligru", dtype)
    y, h_n, _ = trained(problem)
    w = of_layer(problem.params, 0, 0)
    a = problem.x.reshape(-1, 3) @ w["weight_ih"].T
    normalised = w["norm_weight"] * (a - a.mean(axis=0)) / np.sqrt(a.var(axis=0) + NORM_EPS)
    most = np.abs(normalised).max() + np.sqrt(2 * 8 - 1)
    assert 1 < np.abs(y).max() <= most * (1 + 8 * EPS[dtype])
    assert np.isfinite(h_n).all()


# --- libru: states are probabilities --------------------------------------------------------------


def partial_sums(problem: Problem, y: Any) -> float:
    """The largest sum of magnitudes that a pre-activation is a sum of, with running statistics."""
    w = of_layer(problem.params, 0, 0)
    W, b = folded(w, w["running_mean"], w["running_var"])
    before = np.concatenate([problem.h0[0][0][:, None], y[:, :-1]], axis=1)
    logs = np.abs(np.log(before + 1e-11))
    sums = np.abs(problem.x) @ np.abs(W).T + np.abs(b) + logs @ np.abs(w["weight_hh"]).T
    return float(sums.max())


@pytest.mark.parametrize("gain", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("start", [0.0, 0.5, 1.0, None], ids=["0", "0.5", "1", "0 and 1"])
def test_libru_keeps_the_digits_of_small_probabilities(start: float | None, gain: float) -> None:
    """float32 against float64, relative to states as small as 1e-30.

    A small probability is e^a of its pre-activation: its relative error is the absolute error of a.
    That grows with the terms of a: each is a rounded weight times a logarithm good to 3 ulp, and
    each addition rounds what it has so far. At worst these errors have one sign and are some eps of
    the sum of all magnitudes; of 40 draws of each kind the worst was 0.9 of it, at h0 = 0, where
    all logarithms are the same number and err alike.
    """
    N, H = 4, 16
    for seed in range(3):
        problem = draw("libru", (N, 30, 6, H), seed=seed)
        h0 = np.random.default_rng(seed).integers(0, 2, (1, N, H)).astype(float)
        if start is not None:
            h0 = np.full((1, N, H), start)
        problem = problem._replace(params=unsettled(problem.params, seed, gain), h0=(h0,))
        y, _ = fastgru.forward(problem.x, problem.params, h0)
        rounded = problem.astype("float32")
        got, _ = fastgru.forward(rounded.x, rounded.params, *rounded.h0)
        seen = y > 1e-36  # float32 keeps all digits above 1.2e-38
        assert seen.any()
        relative = np.abs(got - y)[seen] / y[seen]
        bound = EPS["float32"] * (1.5 * partial_sums(problem, y) + 6)
        assert relative.max() <= bound
        assert 0 <= got.min() <= got.max() <= 1
        assert 0 < y.min() <= y.max() <= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_libru_never_passes_1(dtype: str) -> None:
    """Where z rounds to 1 while 1 - z is half an eps, z + (1 - z) is more than 1.

    A state of 1, with candidates of 1, then grew by one eps at every step. The update gates here
    lie around that place: a_z = -log(eps / 2).
    """
    H, T = 64, 200
    params = fastgru.init_params(1, H, cell="libru", dtype=dtype, rng=0)
    arrays = {
        k: np.zeros_like(a) if k.startswith("weight") else a for k, a in params.to_dict().items()
    }
    a_z = np.linspace(-0.05, 0.05, H) - np.log(EPS[dtype] / 2)
    arrays["norm_bias_l0"] = np.concatenate([a_z, np.full(H, 60.0)]).astype(dtype)
    params = fastgru.Params.from_dict(arrays, cell="libru")
    y, _ = fastgru.forward(np.zeros((1, T, 1), dtype), params, np.ones((1, 1, H), dtype))
    assert y.max() == 1
    assert y.min() > 1 - T * EPS[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_libru_with_shut_gates(dtype: str) -> None:
    """1 - z of a_z = 40, where 1 minus the gate is 0, still takes in the candidate: h0 = 0."""
    params = fastgru.init_params(1, 1, cell="libru", dtype=dtype, rng=0)
    arrays = {
        k: np.zeros_like(a) if k.startswith("weight") else a for k, a in params.to_dict().items()
    }
    arrays["norm_bias_l0"] = np.array([40, 0], dtype)
    params = fastgru.Params.from_dict(arrays, cell="libru")
    y, _ = fastgru.forward(np.zeros((1, 3, 1), dtype), params)
    want = 0.5 * np.exp(-40.0) * np.array([1, 2, 3])
    np.testing.assert_allclose(y[0, :, 0], want, rtol=64 * EPS[dtype])


def test_libru_gradients_at_the_ends() -> None:
    """At h0 = 0 and 1: the slope of log(h + 1e-11) is 1e11 at 0, and all is exact all the same."""
    problem = drawn("libru", (2, 3, 2, 3))
    h0 = np.zeros((1, 2, 3))
    h0[0, 1] = 1.0
    problem = problem._replace(h0=(h0,))
    _, _, gradients = solve(problem)
    dx, dh0, dlayers, _ = reference.gradients(
        problem.x, problem.layers, "libru", problem.h0, None, problem.dy, problem.dh_n
    )
    wanted = [dx, *dh0, *(a for a in dlayers[0][0].values() if a is not None)]
    found = [gradients.x, *as_members(gradients.h0), *gradients.params.to_dict().values()]
    assert np.abs(wanted[1]).max() > 1e3
    for got, want in zip(found, wanted, strict=False):  # running statistics, which come last
        assert np.isfinite(got).all()
        assert np.abs(got - want).max() <= 1e-11 * np.abs(want).max()
