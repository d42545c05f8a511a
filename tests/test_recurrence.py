"""Every cell against the specification: outputs, and every gradient, over the whole matrix."""

import numpy as np
import pytest
import reference
from problems import (
    ALL_CELLS,
    DTYPES,
    SHIPPED_CELLS,
    Library,
    Problem,
    as_members,
    as_state,
    assert_close,
    assert_same_bits,
    draw,
    flatten,
    solve,
    specified,
)
from programs import run

import fastgru
from fastgru.kernels.cells import CELLS

# Rounding of one step: sums of I + H products, then elementary functions good to 3 ulp. The state
# forgets earlier errors, so T does not enter. In float64 the specification rounds as well.
FORWARD_K = 1.0
ELEMENTARY = 3.0
# Gradients sum over time and rows as well, and their terms can cancel.
BACKWARD_K = 16.0

LENGTHS = {"full": None, "uneven": [2, 0, 4]}
WIDE_LENGTHS = [6, 1, 0, 3, 6, 2, 5, 4, 1, 6, 6, 3, 2, 2, 5, 6, 0, 1, 4]  # 19 rows


def bound(problem: Problem, k: float) -> float:
    """eps (k sqrt(I + H) + 3), for the widest layer."""
    params = problem.params
    inputs = max(params.input_size, params.hidden_size * params.num_directions)
    eps = float(np.finfo(params.dtype).eps)
    return eps * (k * float(np.sqrt(inputs + params.hidden_size)) + ELEMENTARY)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_gradients_element_by_element(
    cell: str, L: int, D: int, lengths: str, library: Library
) -> None:
    """Against the complex step, which is exact: 1e-10 of every single derivative."""
    problem = draw(cell, (3, 4, 3, 5), L=L, D=D, lengths=LENGTHS[lengths])
    x, _, h0, steps, dy, dh_n = problem
    y, h_n, gradients = solve(problem, library)
    want_y, want_h = specified(problem)
    assert_close(y, want_y, bound(problem, FORWARD_K))
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert_close(got, want, bound(problem, FORWARD_K))

    dx, dh0, dlayers = reference.gradients(x, problem.layers, cell, h0, steps, dy, dh_n)
    assert_close(gradients.x, dx, 1e-10)
    for got, want in zip(as_members(gradients.h0), dh0, strict=True):
        assert_close(got, want, 1e-10)
    for layer, want_layer in zip(gradients.params.layers, dlayers, strict=True):
        for weights, want_weights in zip(layer, want_layer, strict=True):
            assert [name for name, _ in weights.items()] == list(want_weights)
            for name, got in weights.items():
                assert_close(got, want_weights[name], 1e-10)


@pytest.mark.parametrize("sizes", [(19, 6, 13, 37), (1, 9, 1, 1), (5, 6, 40, 16), (2, 3, 17, 65)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_sizes_that_fill_and_split_tiles(
    cell: str, dtype: str, sizes: tuple[int, int, int, int], library: Library
) -> None:
    """Rows, units and inputs that are and are not multiples of tiles and vectors."""
    lengths = WIDE_LENGTHS if sizes[0] == len(WIDE_LENGTHS) else None
    problem = draw(cell, sizes, lengths=lengths, dtype=dtype)
    y, h_n, gradients = solve(problem, library)
    want_y, want_h = specified(problem)
    assert_close(y, want_y, bound(problem, FORWARD_K))
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert_close(got, want, bound(problem, FORWARD_K))

    exact = problem.astype("float64")
    rng = np.random.default_rng(1)
    named = gradients.params.to_dict()
    for name, gradient in [("x", gradients.x), *named.items()]:
        direction = rng.standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        weights = fastgru.Params.from_dict(
            {key: direction if key == name else np.zeros(g.shape) for key, g in named.items()},
            cell=cell,
        )
        moved = (
            direction if name == "x" else None,
            None,
            [[dict(w.items()) for w in layer] for layer in weights.layers],
        )
        args = (exact.x, exact.layers, cell, exact.h0, lengths, exact.dy, exact.dh_n)
        want = reference.directional(*args, moved)
        got = float(np.vdot(direction, gradient.astype("float64")))
        scale = max(1.0, float(np.linalg.norm(gradient.astype("float64"))))
        assert abs(got - want) <= bound(problem, BACKWARD_K) * scale, name


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_float32_gradients_follow_float64(cell: str, library: Library) -> None:
    """Every gradient in float32, two layers, both directions, lengths."""
    exact = draw(cell, (19, 6, 13, 37), L=2, D=2, lengths=WIDE_LENGTHS)
    _, _, want = solve(exact)
    _, _, got = solve(exact.astype("float32"), library)
    for a, b in zip(
        [got.x, *as_members(got.h0), *got.params.to_dict().values()],
        [want.x, *as_members(want.h0), *want.params.to_dict().values()],
        strict=True,
    ):
        assert a.dtype == np.float32
        assert_close(a / np.abs(b).max(), b / np.abs(b).max(), bound(exact.astype("float32"), 4))


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_without_bias_and_initial_state(cell: str, D: int, library: Library) -> None:
    """No bias is a zero bias, no h0 a zero h0; the gradient of h0 is there all the same."""
    problem = draw(cell, L=2, D=D, bias=False)
    zeros = tuple(np.zeros_like(h) for h in problem.h0)
    problem = problem._replace(h0=zeros)
    x, params, _, _, dy, dh_n = library.take(problem)
    y, _, saved = fastgru.forward_train(x, params)
    want_y, _ = specified(problem)
    assert_close(library.give(y), want_y, bound(problem, FORWARD_K))
    gradients = library.give(fastgru.backward(saved, dy, as_state(dh_n)))
    assert not [key for key in gradients.params.to_dict() if key.startswith("bias")]
    _, _, with_zeros = solve(problem, library)
    for got, want in zip(as_members(gradients.h0), as_members(with_zeros.h0), strict=True):
        assert_close(got, want, 0.0)


@pytest.mark.parametrize(("N", "H"), [(40, 33), (512, 16)])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_weight_gradients_of_many_rows(cell: str, N: int, H: int) -> None:
    """Those of some 1 300 or 16 000 rows are the sums of those of few, and round hardly worse.

    The fewer rows are one block of time, with more groups of units than there are threads.
    """
    T, few = 64, 2
    lengths = np.random.default_rng(0).integers(0, T + 1, N)
    exact = draw(cell, (N, T, 4, H), lengths=lengths)
    problem = exact.astype("float32")
    _, _, whole = solve(exact)
    _, _, rounded = solve(problem)
    parts = []
    for first in range(0, N, few):
        rows = slice(first, first + few)
        state, dstate = ([m[:, rows] for m in members] for members in (exact.h0, exact.dh_n))
        part = exact._replace(
            x=exact.x[rows], h0=tuple(state), lengths=lengths[rows], dy=exact.dy[rows],
            dh_n=tuple(dstate),
        )  # fmt: skip
        _, _, gradients = solve(part)
        parts.append(gradients.params.to_dict())
    for name, gradient in rounded.params.to_dict().items():
        want = sum(part[name] for part in parts)
        largest = np.abs(want).max()
        assert_close(whole.params.to_dict()[name] / largest, want / largest, 1e-13)
        assert_close(gradient / largest, want / largest, bound(problem, 1.0))


@pytest.mark.parametrize(("N", "T"), [(3, 4), (40, 60)])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_gradients_of_many_inputs(cell: str, N: int, T: int) -> None:
    """More features than are multiplied at once: all of them twice, then with weights of 0."""
    problem = draw(cell, (N, T, 300, 33))
    weights = problem.params.to_dict()
    weights["weight_ih_l0"] = np.pad(weights["weight_ih_l0"], ((0, 0), (0, 300)))
    wide = fastgru.Params.from_dict(weights, cell=cell)
    _, _, want = solve(problem)
    _, _, got = solve(problem._replace(x=np.tile(problem.x, 2), params=wide))
    assert_same_bits(got.x, np.pad(want.x, ((0, 0), (0, 0), (0, 300))))
    for name, gradient in got.params.to_dict().items():
        once = want.params.to_dict()[name]
        assert_same_bits(gradient, np.tile(once, 2) if once.shape[-1] == 300 else once)


@pytest.mark.parametrize("H", [301, 512])
@pytest.mark.parametrize(("N", "T"), [(3, 4), (520, 2)])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_gradients_of_many_units(cell: str, N: int, T: int, H: int) -> None:
    """More units than are multiplied at once: all of them twice, each half without the other.

    Sums are made of chunks of 512: of 301 units, one ends within the second half, which then rounds
    otherwise. All else has the same bits.
    """

    def assert_equal(got: np.ndarray, want: np.ndarray) -> None:
        if H == 512:
            assert_same_bits(got, want)
        else:
            largest = np.abs(want).max()
            assert_close(got / largest, want / largest, 1e-13)

    problem = draw(cell, (N, T, 5, H))

    def twice(array: np.ndarray, across: bool) -> np.ndarray:
        """Gates of twice the units; across: weights of both halves, those of the other are 0."""
        gates = array.reshape(-1, H, *array.shape[1:])
        if across:
            rows = np.pad(gates, ((0, 0), (0, H), (0, H)))
            rows[:, H:, H:] = gates
        else:
            rows = np.concatenate([gates, gates], axis=1)
        return rows.reshape(-1, *rows.shape[2:])

    weights = problem.params.to_dict()
    wide = {name: twice(w, name.startswith("weight_hh")) for name, w in weights.items()}
    doubled = problem._replace(
        params=fastgru.Params.from_dict(wide, cell=cell),
        h0=tuple(np.tile(member, 2) for member in problem.h0),
        dy=np.tile(problem.dy, 2),
        dh_n=tuple(np.tile(member, 2) for member in problem.dh_n),
    )
    y, _, want = solve(problem)
    wide_y, _, got = solve(doubled)
    assert_same_bits(wide_y[:, :, :H], y)
    assert_equal(wide_y, np.tile(y, 2))
    for once, both in zip(as_members(want.h0), as_members(got.h0), strict=True):
        assert_equal(both, np.tile(once, 2))
    for name, gradient in got.params.to_dict().items():
        once = twice(want.params.to_dict()[name], across=False)
        assert_equal(gradient, np.tile(once, 2) if name.startswith("weight_hh") else once)


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_steps_that_no_sample_takes(cell: str) -> None:
    """Many samples, padded after their only step: what is computed first is empty."""
    N = 12_000
    problem = draw(cell, (N, 2, 4, 16), lengths=np.ones(N, np.intp))
    _, _, padded = solve(problem)
    short = problem._replace(x=problem.x[:, :1], lengths=None, dy=problem.dy[:, :1])
    _, _, want = solve(short)
    for name, gradient in padded.params.to_dict().items():
        assert_same_bits(gradient, want.params.to_dict()[name])


# --- long sums ------------------------------------------------------------------------------------


def rounding_of_sums(terms: int, largest: float = 1.0) -> float:
    """Error of sums of so many products, in eps, by chunks of 512, then of the chunks.

    Partial sums grow to `largest` like a random walk, and each addition rounds the one before it:
    over b terms that makes sqrt(b / 24) times the last one, mean square.
    """
    chunk = min(terms, 512)
    return largest * float(np.sqrt((chunk + terms / chunk) / 24))


@pytest.mark.parametrize("I", [10_000, 100_000])
@pytest.mark.parametrize("cell", SHIPPED_CELLS)
def test_very_wide_inputs(cell: str, I: int) -> None:
    """Pre-activations near 1 are sums of all inputs: with one accumulator they lost three digits.

    Against float64; three standard deviations are allowed.
    """
    eps = float(np.finfo("float32").eps)
    N, T, H = 8, 3, 16
    problem = draw(cell, (N, T, I, H), dtype="float32")
    scale = np.float32((3 * H / I) ** 0.5)
    problem = problem._replace(x=problem.x * scale)
    (y, _, gradients), (want_y, _, want) = solve(problem), solve(problem.astype("float64"))
    allowed = 3 * rounding_of_sums(I) + ELEMENTARY
    assert_close(y, want_y, eps * allowed)
    for got, exact in zip(flatten(gradients), flatten(want), strict=True):
        assert_close(got / np.abs(exact).max(), exact / np.abs(exact).max(), 4 * eps * allowed)


@pytest.mark.parametrize("cell", SHIPPED_CELLS)
def test_large_pre_activations(cell: str) -> None:
    """As in published models: the bound grows with them, for what they are sums of does."""
    eps = float(np.finfo("float32").eps)
    problem = draw(cell, (16, 20, 64, 64), dtype="float32", seed=3)
    problem = problem._replace(params=problem.params.map(lambda w: w * np.float32(11)))
    (weights,) = problem.params.layers[0]
    largest = float(np.abs(problem.x @ weights.weight_ih.T).max())
    assert largest > 25
    # One step: a network with such weights is chaotic over many.
    first = problem._replace(x=problem.x[:, :1], dy=problem.dy[:, :1])
    y, _, _ = solve(first)
    want_y, _, _ = solve(first.astype("float64"))
    assert_close(y, want_y, eps * (3 * rounding_of_sums(128, largest) + ELEMENTARY))


@pytest.mark.parametrize("cell", SHIPPED_CELLS)
def test_weight_gradients_of_very_many_rows(cell: str) -> None:
    """Equal rows, whose sums all round to the same side: half a million were off by 500 eps."""
    N = 1 << 20
    params = fastgru.init_params(1, 1, cell=cell, rng=0)
    members = range(len(CELLS[cell].states))

    def weight_gradients(rows: int, dtype: str) -> list[np.ndarray]:
        x, dy = np.full((rows, 1, 1), 0.1, dtype), np.full((rows, 1, 1), 0.3, dtype)
        h0 = as_state(tuple(np.full((1, rows, 1), 0.7, dtype) for _ in members))
        _, _, saved = fastgru.forward_train(x, params.map(lambda w: w.astype(dtype)), h0)
        return flatten(fastgru.backward(saved, dy).params)

    eps = float(np.finfo("float32").eps)
    # 0.1, 0.3 and 0.7 themselves round, and each sum of 128, of 512 of these, and of the rest.
    for got, one in zip(
        weight_gradients(N, "float32"), weight_gradients(1, "float64"), strict=True
    ):
        np.testing.assert_allclose(got / N, one, rtol=128 * eps, atol=0)


def test_totals_over_blocks_of_steps_and_threads() -> None:
    """160 000 rows less padding, whose sums begin again in each of the blocks of steps."""
    out = run(
        """
        import numba
        N, T = 40_000, 6
        params = fastgru.init_params(1, 1, rng=0)
        x, dy = (rng.standard_normal((N, T, 1)).astype("float32") for _ in range(2))
        steps = np.arange(N) % 5 + 1  # no sample takes the sixth

        def solved(dtype, rows=slice(None)):
            kind = lambda array: array.astype(dtype)
            _, _, saved = fastgru.forward_train(
                kind(x[rows]), params.map(kind), lengths=steps[rows]
            )
            return list(fastgru.backward(saved, kind(dy[rows])).params.to_dict().values())

        found = []
        for count in (1, 2, 3):
            numba.set_num_threads(count)
            found.append(solved("float32"))
        first, *others = [b"".join(a.tobytes() for a in arrays) for arrays in found]
        print(*(other == first for other in others))
        # Each part has too few rows for totals.
        parts = [solved("float64", slice(start, start + N // 4)) for start in range(0, N, N // 4)]
        for got, want in zip(found[0], map(sum, zip(*parts))):
            # Over the root of the number of rows, of which sums of random signs are.
            print(abs(got - want).max() / np.sqrt(steps.sum()))
        """,
        NUMBA_NUM_THREADS="3",
    )
    same, *errors = out.splitlines()
    assert same == "True True"
    assert max(map(float, errors)) < 16 * float(np.finfo("float32").eps)
