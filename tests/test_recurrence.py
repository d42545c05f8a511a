"""Every cell against the specification: outputs, and every gradient, over the whole matrix."""

import numpy as np
import pytest
import reference
from problems import (
    ALL_CELLS,
    BARE_CELLS,
    DTYPES,
    ROW_CELLS,
    Library,
    as_members,
    assert_close,
    draw,
    flatten,
    rounding,
    solve,
    specified,
    with_statistics,
)

from fastgru.kernels.cells import CELLS

# Rounding of one step: sums of I + H products, then elementary functions good to 3 ulp. The state
# forgets earlier errors, so T does not enter. In float64 the specification rounds as well.
FORWARD_K = 1.0
# Gradients sum over time and rows as well, and their terms can cancel.
BACKWARD_K = 16.0

LENGTHS = {"full": None, "uneven": [2, 0, 4]}
WIDE_LENGTHS = [6, 1, 0, 3, 6, 2, 5, 4, 1, 6, 6, 3, 2, 2, 5, 6, 0, 1, 4]  # 19 rows


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_gradients_element_by_element(
    cell: str, L: int, D: int, lengths: str, library: Library
) -> None:
    """Against the complex step, which is exact: 1e-10 of every single derivative."""
    problem = draw(cell, (3, 4, 3, 5), L=L, D=D, lengths=LENGTHS[lengths])
    x, _, h0, steps, dy, dh_n, attention = problem
    y, h_n, gradients = solve(problem, library)
    want_y, want_h = specified(problem)
    assert_close(y, want_y, rounding(problem, FORWARD_K))
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert_close(got, want, rounding(problem, FORWARD_K))

    dx, dh0, dlayers, dattention = reference.gradients(
        x, problem.layers, cell, h0, steps, dy, dh_n, attention
    )
    assert_close(gradients.x, dx, 1e-10)
    assert (gradients.attention is None) == (attention is None)
    if attention is not None:
        assert_close(gradients.attention, dattention, 1e-10)
    for got, want in zip(as_members(gradients.h0), dh0, strict=True):
        assert_close(got, want, 1e-10)
    for layer, want_layer in zip(gradients.params.layers, dlayers, strict=True):
        for weights, want_weights in zip(layer, want_layer, strict=True):
            trainable = [w.name for w in CELLS[cell].weights if w.is_trainable]
            assert [name for name, _ in weights.items()] == trainable
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
    assert_close(y, want_y, rounding(problem, FORWARD_K))
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert_close(got, want, rounding(problem, FORWARD_K))

    exact = problem.astype("float64")
    rng = np.random.default_rng(1)
    named = gradients.params.to_dict()
    for name, gradient in [("x", gradients.x), *named.items()]:
        direction = rng.standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        moved = (
            direction if name == "x" else None,
            None,
            [[{} if name == "x" else {name.removesuffix("_l0"): direction}]],
        )
        args = (exact.x, exact.layers, cell, exact.h0, lengths, exact.dy, exact.dh_n)
        want = reference.directional(*args, moved, exact.attention)
        got = float(np.vdot(direction, gradient.astype("float64")))
        scale = max(1.0, float(np.linalg.norm(gradient.astype("float64"))))
        assert abs(got - want) <= rounding(problem, BACKWARD_K) * scale, name


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_float32_gradients_follow_float64(cell: str, library: Library) -> None:
    """Every gradient in float32, two layers, both directions, lengths."""
    exact = draw(cell, (19, 6, 13, 37), L=2, D=2, lengths=WIDE_LENGTHS)
    _, _, want = solve(exact)
    _, _, got = solve(exact.astype("float32"), library)
    for a, b in zip(flatten(got), flatten(want), strict=True):
        assert a.dtype == np.float32
        assert_close(a / np.abs(b).max(), b / np.abs(b).max(), rounding(exact.astype("float32"), 4))


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", BARE_CELLS)
def test_without_bias_and_initial_state(cell: str, D: int, library: Library) -> None:
    """No bias is a zero bias, no h0 a zero h0; the gradient of h0 is there all the same."""
    problem = draw(cell, L=2, D=D, bias=False)
    given = library.take(problem._replace(h0=None))
    y, _, saved = given.forward_train()
    zeros = tuple(np.zeros_like(h) for h in problem.h0)
    want_y, _ = specified(problem._replace(h0=zeros))
    assert_close(library.give(y), want_y, rounding(problem, FORWARD_K))
    gradients = library.give(given.backward(saved))
    names = [name for name, _ in gradients.params.layers[0][0].items()]
    assert names == [w.name for w in CELLS[cell].weights_with(bias=False) if w.is_trainable]
    _, _, with_zeros = solve(problem._replace(h0=zeros), library)
    for got, want in zip(as_members(gradients.h0), as_members(with_zeros.h0), strict=True):
        assert_close(got, want, 0.0)


@pytest.mark.parametrize("sizes", [(19, 6, 13, 37), (1, 9, 1, 1), (3, 4, 40, 16)])
@pytest.mark.parametrize("cell", [name for name in ALL_CELLS if name not in ROW_CELLS])
def test_inference_of_cells_that_train_with_the_statistics_of_a_batch(
    cell: str, sizes: tuple[int, int, int, int], library: Library
) -> None:
    """Against the specification, with running statistics that are not those of this batch."""
    lengths = WIDE_LENGTHS if sizes[0] == len(WIDE_LENGTHS) else None
    problem = with_statistics(draw(cell, sizes, L=2, D=2, lengths=lengths))
    y, h_n = (library.give(result) for result in library.take(problem).forward())
    want_y, want_h = specified(problem, training=False)
    assert np.abs(want_y - specified(problem)[0]).max() > 1e-3
    assert_close(y, want_y, rounding(problem, FORWARD_K))
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert_close(got, want, rounding(problem, FORWARD_K))
