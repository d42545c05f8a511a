"""The library against onnxruntime, an independent implementation, in float32."""

import numpy as np
import oracle
import pytest
from problems import Problem, as_members, as_state, assert_close, draw

import fastgru

EPS32 = float(np.finfo(np.float32).eps)

# |fastgru - onnxruntime| <= ORACLE_K * eps32 * sqrt(I + H) * max(1, |onnxruntime|), where the last
# is for the LSTM's c, which may pass 1. Both sides round. The worst of 1500 random problems a cell
# with I and H below 12 was 1.8 (gru), 1.6 (gru_reset_before) and 1.4 (lstm), at the smallest
# sizes, where the elementary functions' own error counts most; of 40 with I and H from 40 to 130,
# T = 50, it was 0.5.
ORACLE_K = 2.0
# But with one unit and one input these functions decide: 3 ulp on each side. Of 200 random problems
# a cell up to five passed 2 sqrt(2) eps32, the worst with 5.8; without sigmoid's table up to three,
# the worst with 7.0.
ELEMENTARY = 2 * 3.0

SIZES = [(3, 7, 5, 4), (3, 7, 1, 1), (3, 7, 19, 33), (17, 50, 48, 64)]  # N, T, I, H


def steps(N: int, T: int) -> list[int]:
    """Uneven lengths, T and 1 among them; 0 onnxruntime gets wrong."""
    return [T, 1, *(int(n) for n in np.random.default_rng(1).integers(1, T + 1, N - 2))]


def assert_agrees(problem: Problem, direction: str, given: bool = True) -> None:
    """One layer of both, in a direction; `given` says whether there is an initial state."""
    h0 = problem.h0 if given else None
    state = None if h0 is None else as_state(h0)
    y, h_n = fastgru.forward(problem.x, problem.params, state, lengths=problem.lengths)

    # The directions of one layer do not meet. So the second of a pair is what runs in reverse, and
    # both halves of the pair are held against single directions of the oracle as well.
    d = {"forward": slice(0, 1), "reverse": slice(1, 2), "bidirectional": slice(0, 2)}[direction]
    ((I, H), (layer,)) = (problem.params.input_size, problem.params.hidden_size), problem.layers
    want_y, want_h = oracle.run(
        problem.params.cell,
        problem.x,
        [layer[d]],
        None if h0 is None else tuple(h[d] for h in h0),
        problem.lengths,
        direction == "reverse",
    )
    bound = EPS32 * max(ORACLE_K * float(np.sqrt(I + H)), ELEMENTARY)
    assert y.dtype == np.float32
    assert_close(y[:, :, d.start * H : d.stop * H], want_y, bound)
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert got.dtype == np.float32
        assert_close(got[d], want, bound)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "h0"])
@pytest.mark.parametrize("lengths", ["whole", "uneven"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("cell", oracle.NODES)
def test_one_layer(
    cell: str,
    direction: str,
    lengths: str,
    given: bool,
    bias: bool,
    sizes: tuple[int, int, int, int],
) -> None:
    ends = steps(*sizes[:2]) if lengths == "uneven" else None
    D = 1 if direction == "forward" else 2
    problem = draw(cell, sizes, D=D, bias=bias, lengths=ends, dtype="float32")
    assert_agrees(problem, direction, given)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("cell", oracle.NODES)
def test_the_bound_does_not_grow_with_time(cell: str, direction: str) -> None:
    D = 1 if direction == "forward" else 2
    assert_agrees(draw(cell, (2, 1000, 3, 8), D=D, dtype="float32"), direction)
