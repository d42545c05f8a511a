"""How the cells are related: where one is a special case of another, both compute the same.

Of two cells, each with weights made of the same few arrays, all results must agree: outputs, final
states, and the gradients of x, of h0 and of these arrays. The kernels of the two differ: other
products, other phases, other equations. Where the second one is a cell that onnxruntime knows, the
first is held against that, too.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
import reference
from problems import DTYPES, Problem, as_members, as_state, assert_close, draw, flatten, solve

import fastgru
from fastgru.kernels.cells import CELLS

Arrays = Mapping[str, Any]
Embedding = Callable[[Arrays], dict[str, Any]]

SIZES = (3, 4, 3, 5)  # N, T, I, H
LENGTHS = [2, 0, 4]
SATURATED = 60  # 1 - sigmoid(60) is 9e-27

# In units of eps sqrt(I + H), for the widest layer: both sides round, at each step, and gradients
# are sums over rows and steps as well. Of 12 draws of each pair the worst were 0.8 and 2.1, in
# either dtype.
FORWARD_K = 2.0
BACKWARD_K = 6.0


def stacked(array: Any, gates: str, wanted: str) -> Any:
    """Gates of an array that stacks `gates`, "r z n", as another one: "-f f 60 n".

    After a minus sign they are negated; a number stands for rows of it.
    """
    parts = dict(zip(gates.split(), np.split(array, len(gates.split())), strict=True))
    found = []
    for name in wanted.split():
        if name.strip("-") in parts:
            found.append(-parts[name[1:]] if name.startswith("-") else parts[name])
        else:
            found.append(np.full_like(next(iter(parts.values())), float(name)))
    return np.concatenate(found)


def diagonals(array: Any, gates: str, wanted: str) -> Any:
    """The same of an array with a number for each unit, as diagonal matrices."""
    vectors = np.split(stacked(array, gates, wanted), len(wanted.split()))
    return np.concatenate([np.diag(vector) for vector in vectors])


def two_biases(bias: Any) -> dict[str, Any]:
    """One bias as that of x's part, the other one being 0."""
    return {"bias_ih": bias, "bias_hh": np.zeros_like(bias)}


def same(w: Arrays) -> dict[str, Any]:
    return dict(w)


def restacked(gates: str, wanted: str, of_x: str | None = None) -> Embedding:
    """All arrays of a cell with weight_ih, weight_hh and one bias, for gates of another one."""
    return lambda w: {
        "weight_ih": stacked(w["weight_ih"], gates, wanted),
        "weight_hh": stacked(w["weight_hh"], gates, wanted),
        "bias": stacked(w["bias"], gates, of_x or wanted),
    }


def with_two_biases(embedding: Embedding) -> Embedding:
    """The same for a cell that has two biases."""

    def embedded(w: Arrays) -> dict[str, Any]:
        arrays = embedding(w)
        return {n: a for n, a in arrays.items() if n != "bias"} | two_biases(arrays["bias"])

    return embedded


def without_reset(w: Arrays) -> dict[str, Any]:
    """A GRU's weights with r = 1."""
    found = {name: stacked(array, "r z n", "0 z n") for name, array in w.items()}
    return found | {"bias_ih": stacked(w["bias_ih"], "r z n", f"{SATURATED} z n")}


def cifg_as_lstm(w: Arrays) -> dict[str, Any]:
    """i = sigmoid(-a_f) is 1 - f."""
    return {name: stacked(array, "f g o", "-f f g o") for name, array in w.items()}


def without_peepholes(w: Arrays) -> dict[str, Any]:
    H = w["weight_hh"].shape[1]
    return {**w, "peephole": np.zeros(3 * H, w["weight_hh"].dtype)}


def mingru_as_minlstm(w: Arrays) -> dict[str, Any]:
    """sigmoid(a) / (sigmoid(a) + sigmoid(-a)) is sigmoid(a)."""
    return {name: stacked(array, "z n", "-z z n") for name, array in w.items()}


def diagonal(gates: str, wanted: str) -> Embedding:
    """For a cell with matrices, and two biases, where a cell has numbers of units and one bias."""
    return lambda w: {
        "weight_ih": stacked(w["weight_ih"], gates, wanted),
        "weight_hh": diagonals(w["diag_hh"], gates, wanted),
        **two_biases(stacked(w["bias"], gates, wanted)),
    }


class Identity(NamedTuple):
    """Two cells that agree, with weights made of those of a third cell, or of the first one."""

    left: str
    right: str
    of_right: Embedding
    of_left: Embedding = same
    given: str = ""  # the cell that weights are drawn for: `left` if not given
    attention: float | None = None


def gru_of_candidate(w: Arrays) -> dict[str, Any]:
    """gru1's: r and z without x."""
    return {
        "weight_ih": stacked(w["weight_ih"], "n", "0 0 n"),
        "weight_hh": w["weight_hh"],
        **two_biases(w["bias"]),
    }


def mgu_of_candidate(w: Arrays) -> dict[str, Any]:
    """mgu1's: f without x."""
    return {**w, "weight_ih": stacked(w["weight_ih"], "n", "0 n")}


IDENTITIES = {
    "gru1": Identity("gru1", "gru_reset_before", gru_of_candidate),
    "gru2": Identity("gru2", "gru1", lambda w: {**w, "bias": stacked(w["bias"], "n", "0 0 n")}),
    "gru3": Identity(
        "gru3", "gru1", lambda w: {**w, "weight_hh": stacked(w["weight_hh"], "n", "0 0 n")}
    ),
    "mgu": Identity("mgu", "gru_reset_before", with_two_biases(restacked("f n", "f -f n"))),
    "mgu1": Identity("mgu1", "mgu", mgu_of_candidate),
    "mgu1 as gru1": Identity(
        "mgu1",
        "gru1",
        lambda w: {
            "weight_ih": w["weight_ih"],
            "weight_hh": stacked(w["weight_hh"], "f n", "f -f n"),
            "bias": stacked(w["bias"], "f n", "f -f n"),
        },
    ),
    "mgu2": Identity("mgu2", "mgu1", lambda w: {**w, "bias": stacked(w["bias"], "n", "0 n")}),
    "mgu3": Identity(
        "mgu3", "mgu1", lambda w: {**w, "weight_hh": stacked(w["weight_hh"], "n", "0 n")}
    ),
    "mgu3, f = 1": Identity(
        "mgu3",
        "rnn_tanh",
        lambda w: {
            "weight_ih": w["weight_ih"],
            "weight_hh": w["weight_hh"],
            **two_biases(stacked(w["bias"], "f n", "n")),
        },
        lambda w: {**w, "bias": stacked(w["bias"], "f n", f"{SATURATED} n")},
    ),
    "minlstm, a_f = -a_i": Identity("mingru", "minlstm", mingru_as_minlstm),
    "paragru": Identity("paragru", "gru_reset_before", diagonal("r z n", "r -z n")),
    "indrnn": Identity("indrnn", "rnn_relu", diagonal("n", "n")),
    "augru, attention 0": Identity(
        "augru", "gru_reset_before", with_two_biases(same), attention=0.0
    ),
    "augru, attention 1": Identity(  # h' = n
        "augru",
        "gru_reset_before",
        with_two_biases(restacked("r z n", "r 0 n", f"r -{SATURATED} n")),
        attention=1.0,
    ),
    "lstm_peephole, P = 0": Identity("lstm", "lstm_peephole", without_peepholes),
    "cifg": Identity("cifg", "lstm", cifg_as_lstm),
    "ugrnn": Identity(
        "ugrnn", "gru", with_two_biases(restacked("z n", "0 z n", f"{SATURATED} z n"))
    ),
    "gru, r = 1": Identity("gru", "gru_reset_before", without_reset, without_reset),
    "gru, U diagonal": Identity(
        "gru",
        "gru_reset_before",
        diagonal("r z n", "r z n"),
        diagonal("r z n", "r z n"),
        given="paragru",
    ),
}


def params_for(cell: str, given: fastgru.Params, embedding: Embedding) -> fastgru.Params:
    """Params of a cell, made of the weights of other params."""
    layers = [
        [fastgru.Weights(**embedding(dict(w.items()))) for w in layer] for layer in given.layers
    ]
    return fastgru.Params(cell, layers)


def pulled_back(
    embedding: Embedding, given: fastgru.Params, gradients: fastgru.Params
) -> list[Any]:
    """Gradients of the arrays that weights are made of, from those of the weights.

    By the chain rule: weights are linear in the arrays, up to constants.
    """
    found = []
    for layer, own_layer in zip(given.layers, gradients.layers, strict=True):
        for weights, own in zip(layer, own_layer, strict=True):
            zeros = {name: np.zeros_like(array) for name, array in weights.items()}
            origin = {key: array.copy() for key, array in embedding(zeros).items()}
            for array in zeros.values():
                gradient = np.zeros(array.shape)
                for at in np.ndindex(array.shape):
                    array[at] = 1
                    for key, moved in embedding(zeros).items():
                        gradient[at] += np.sum((moved - origin[key]) * getattr(own, key))
                    array[at] = 0
                found.append(gradient)
    return found


def drawn(identity: Identity, dtype: str = "float64", **options: Any) -> Problem:
    """A problem of the cell that weights are drawn for; its state and x fit both cells."""
    return draw(identity.given or identity.left, dtype=dtype, **options)


def of_side(problem: Problem, cell: str, embedding: Embedding, identity: Identity) -> Problem:
    """The problem for one of the two cells."""
    attention = None
    if CELLS[cell].step_inputs:
        N, T, _ = problem.x.shape
        attention = np.full((N, T), identity.attention, problem.x.dtype)
    params = params_for(cell, problem.params, embedding)
    # An LSTM's state has two members, and so have those of the cells that it is compared with.
    return problem._replace(params=params, attention=attention)


def unit_of_error(params: fastgru.Params) -> float:
    inputs = max(params.input_size, params.hidden_size * params.num_directions)
    return float(np.finfo(params.dtype).eps) * float(np.sqrt(inputs + params.hidden_size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", IDENTITIES)
def test_one_cell_is_a_case_of_another(name: str, dtype: str) -> None:
    """Two layers, both directions, rows of different lengths, one of them without a step."""
    identity = IDENTITIES[name]
    problem = drawn(identity, dtype, L=2, D=2, lengths=LENGTHS, sizes=SIZES)
    results = []
    for cell, embedding in (
        (identity.left, identity.of_left),
        (identity.right, identity.of_right),
    ):
        y, h_n, gradients = solve(of_side(problem, cell, embedding, identity))
        own = pulled_back(embedding, problem.params, gradients.params)
        results.append((flatten(y, h_n), [gradients.x, *as_members(gradients.h0), *own]))
    unit = unit_of_error(problem.params)
    (left, left_gradients), (right, right_gradients) = results
    for a, b in zip(left, right, strict=True):
        assert_close(a, b, FORWARD_K * unit)
    assert any(np.abs(a).max() > 0.1 for a in left_gradients)
    for a, b in zip(left_gradients, right_gradients, strict=True):
        assert_close(a, b, BACKWARD_K * unit)


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_comparison_sees_other_weights(name: str) -> None:
    """Weights moved by 1e-3 on one side alone move y by far more than the bound."""
    identity = IDENTITIES[name]
    problem = drawn(identity, D=2, sizes=SIZES)
    left, right = (
        of_side(problem, cell, embedding, identity)
        for cell, embedding in (
            (identity.left, identity.of_left),
            (identity.right, identity.of_right),
        )
    )
    moved = left._replace(params=left.params.map(lambda w: w + 1e-3))
    (y, _, _), (other, _, _) = solve(moved), solve(right)
    assert np.abs(y - other).max() > 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_mgu3_whose_gate_is_shut_keeps_its_state(dtype: str) -> None:
    """f = 0: h stays h0, whatever x is, and its gradient is the sum of all."""
    problem = draw("mgu3", SIZES, D=2, lengths=LENGTHS, dtype=dtype)
    weights = problem.params.to_dict()
    for name in ("bias_l0", "bias_l0_reverse"):
        weights[name] = stacked(weights[name], "f n", f"-{SATURATED} n")
    problem = problem._replace(params=fastgru.Params.from_dict(weights, cell="mgu3"))
    y, h_n, gradients = solve(problem)
    (h0,), (dh_n,) = problem.h0, problem.dh_n
    valid = reference.valid_steps(problem.x, LENGTHS)[:, :, None]
    both = np.concatenate([h0[0], h0[1]], axis=1)[:, None]
    # What is added in each step, 9e-27 of n - h, is lost beside any h that was drawn.
    np.testing.assert_array_equal(y, np.where(valid, both, 0).astype(dtype))
    np.testing.assert_array_equal(h_n, h0)
    dy = np.where(valid, problem.dy, 0).sum(axis=1)
    want = np.stack([dy[:, :5], dy[:, 5:]]) + dh_n
    assert_close(gradients.h0, want, 8 * float(np.finfo(dtype).eps))
    for gradient in (gradients.x, *gradients.params.to_dict().values()):
        assert np.abs(gradient).max() < 1e-24


@pytest.mark.parametrize("dtype", DTYPES)
def test_ugrnn_mixes_as_ligru_does(dtype: str) -> None:
    """With candidates that are constant, tanh's and ReLU's, and a batch norm that does nothing."""
    problem = draw("ugrnn", SIZES, D=2, lengths=LENGTHS, dtype=dtype)
    candidate = np.linspace(0.1, 0.9, SIZES[3])

    def weights(w: Arrays, bias: Any) -> dict[str, Any]:
        found = {n: stacked(w[n], "z n", "z 0") for n in ("weight_ih", "weight_hh")}
        return found | {"bias": np.concatenate([w["bias"][: SIZES[3]], bias]).astype(dtype)}

    def of_ligru(w: Arrays) -> dict[str, Any]:
        made = weights(w, np.tanh(candidate))
        ones, eps = np.ones_like(made["bias"]), 1e-5
        return {
            "weight_ih": made["weight_ih"],
            "weight_hh": made["weight_hh"],
            "norm_weight": ones,
            "norm_bias": made["bias"],
            "running_mean": 0 * ones,
            "running_var": (1 - eps) * ones,
        }

    state, options = as_state(problem.h0), problem.options
    ugrnn = params_for("ugrnn", problem.params, lambda w: weights(w, candidate))
    ligru = params_for("ligru", problem.params, of_ligru)
    y, h_n = fastgru.forward(problem.x, ugrnn, state, **options)
    other_y, other_h = fastgru.forward(problem.x, ligru, state, **options)
    unit = unit_of_error(ugrnn)
    assert_close(y, other_y, FORWARD_K * unit)
    assert_close(h_n, other_h, FORWARD_K * unit)
    assert np.abs(y).max() > 0.1


# --- onnxruntime ----------------------------------------------------------------------------------

# As in the comparison of cells that onnxruntime has: both sides round in float32.
ORACLE_K = 2.0
KNOWN = [name for name, identity in IDENTITIES.items() if identity.right in oracle.NODES]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("name", KNOWN)
def test_cases_of_cells_of_onnxruntime(name: str, direction: str) -> None:
    """The first cell computed here, the second one there; lengths from 1, as it gets 0 wrong."""
    identity = IDENTITIES[name]
    problem = drawn(identity, "float32", D=2, sizes=(4, 7, 5, 6), lengths=[7, 1, 4, 2])
    left, right = (
        of_side(problem, cell, embedding, identity)
        for cell, embedding in (
            (identity.left, identity.of_left),
            (identity.right, identity.of_right),
        )
    )
    y, h_n = fastgru.forward(left.x, left.params, as_state(left.h0), **left.options)
    d = {"forward": slice(0, 1), "reverse": slice(1, 2), "bidirectional": slice(0, 2)}[direction]
    want_y, want_h = oracle.run(
        identity.right,
        right.x,
        [right.layers[0][d]],
        tuple(h[d] for h in right.h0),
        right.lengths,
        direction == "reverse",
    )
    H, unit = left.params.hidden_size, unit_of_error(left.params)
    assert_close(y[:, :, d.start * H : d.stop * H], want_y, ORACLE_K * unit)
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert_close(got[d], want, ORACLE_K * unit)
