"""Gradients of x and of the weights: sums over many rows, columns and blocks of steps."""

import numpy as np
import pytest
from problems import (
    ALL_CELLS,
    ROW_CELLS,
    SHIPPED_CELLS,
    as_members,
    as_state,
    assert_close,
    assert_same_bits,
    draw,
    flatten,
    rounding,
    solve,
)
from programs import run

import fastgru
from fastgru.kernels.cells import CELLS


@pytest.mark.parametrize(("N", "H"), [(40, 33), (512, 16)])
@pytest.mark.parametrize("cell", ROW_CELLS)
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
        _, _, gradients = solve(exact.rows(slice(first, first + few)))
        parts.append(gradients.params.to_dict())
    for name, gradient in rounded.params.to_dict().items():
        want = sum(part[name] for part in parts)
        largest = np.abs(want).max()
        assert_close(whole.params.to_dict()[name] / largest, want / largest, 1e-13)
        assert_close(gradient / largest, want / largest, rounding(problem, 1.0))


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
    otherwise; so do sums over all units of a row, by which one may be normalised. All else has the
    same bits.
    """
    is_exact = H == 512 and not any(phase.norm for phase in CELLS[cell].phases)

    def assert_equal(got: np.ndarray, want: np.ndarray) -> None:
        if is_exact:
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
    assert_equal(wide_y[:, :, :H], y)
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
    _, _, want = solve(problem.steps(slice(1)))
    for name, gradient in padded.params.to_dict().items():
        assert_same_bits(gradient, want.params.to_dict()[name])


@pytest.mark.parametrize("cell", [cell for cell in SHIPPED_CELLS if cell in ROW_CELLS])
def test_weight_gradients_of_very_many_rows(cell: str) -> None:
    """Equal rows, whose sums all round to the same side: half a million were off by 500 eps."""
    N = 1 << 20
    params = fastgru.init_params(1, 1, cell=cell, rng=0)
    members = range(len(CELLS[cell].states))

    def weight_gradients(rows: int, dtype: str) -> list[np.ndarray]:
        x, dy = np.full((rows, 1, 1), 0.1, dtype), np.full((rows, 1, 1), 0.3, dtype)
        h0 = as_state(tuple(np.full((1, rows, 1), 0.7, dtype) for _ in members))
        takes = CELLS[cell].step_inputs
        options = {"attention": np.full((rows, 1), 0.2, dtype)} if takes else {}
        own = params.map(lambda w: w.astype(dtype))
        _, _, saved = fastgru.forward_train(x, own, h0, **options)
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
