"""Cells that users write: registered, checked, compiled once and kept, or refused."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
from problems import ALL_CELLS

import fastgru
from fastgru.cell import (
    BIAS,
    INPUT,
    RECURRENT,
    UNIT,
    Cell,
    Operand,
    Phase,
    PreActivation,
    StepInput,
    UnitWeight,
    Weight,
    check_cell,
    constant_like,
    one_like,
    register_cell,
    sigmoid,
    tanh,
    zero_like,
)
from fastgru.kernels.cells import CELLS

# An LSTM with hard sigmoids, in a module of its own as users would have it.
MODULE = '''
import fastgru
from fastgru.cell import (
    BIAS, INPUT, RECURRENT, Cell, Phase, PreActivation, Weight, constant_like, is_positive,
    one_like, relu, tanh, zero_like,
)

SLOPE, HALF = 0.2, 0.5
GATES = "i", "f", "g", "o"


def hard(a):
    """a / 5 + 1/2, from 0 to 1."""
    positive = relu(constant_like(a, SLOPE) * a + constant_like(a, HALF))
    return positive - relu(positive - one_like(a))


def hard_gradient(s):
    return constant_like(s, SLOPE) * is_positive(s) * is_positive(one_like(s) - s)


def forward(a, state, values):
    a_i, a_f, a_g, a_o = a
    h, c = state
    i, f, g, o = hard(a_i), hard(a_f), tanh(a_g), hard(a_o)
    c_next = f * c + i * g
    t = tanh(c_next)
    return (o * t, c_next), (i, f, g, o, c, t)


def backward(h, values, dstate, dvalues):
    i, f, g, o, c, t = values
    dh, dc = dstate
    one = one_like(dh)
    dc = dc + dh * o * (one - t * t)
    d_i = dc * g * hard_gradient(i)
    d_f = dc * c * hard_gradient(f)
    d_g = dc * i * (one - g * g)
    d_o = dh * t * hard_gradient(o)
    return (d_i, d_f, d_g, d_o), (zero_like(dh), dc * f), ()


fastgru.register_cell(
    Cell(
        name="hard_lstm",
        gates=GATES,
        states=("h", "c"),
        weights=(
            Weight("weight_ih", INPUT, GATES),
            Weight("weight_hh", RECURRENT, GATES),
            Weight("offset", BIAS, GATES),
        ),
        phases=(
            Phase(
                tuple(PreActivation(gate) for gate in GATES),
                ("i", "f", "g", "o", "c", "t"),
                forward,
                backward,
            ),
        ),
        source="made up",
    )
)
'''

# Imports it, and writes its equations down once more for the specification.
USE = """
import pickle, sys
sys.path[:0] = sys.argv[1:] or PATHS
import numpy as np
import fastgru, own_cell, reference
from problems import *

def step(x, state, w):
    h, c = state
    a = reference.affine(x, w["weight_ih"], w.get("offset")) + h @ w["weight_hh"].T
    i, f, g, o = np.split(a, 4, axis=1)
    i, f, o = (
        np.where(v.real < -2.5, 0, np.where(v.real > 2.5, 1, v / 5 + 0.5)) for v in (i, f, o)
    )
    c = f * c + i * np.tanh(g)
    return o * np.tanh(c), c

reference.CELLS["hard_lstm"] = reference.Spec(step, 2)
"""


def program(folder: Path, text: str) -> str:
    """A program that uses the cell in a folder."""
    return USE.replace("PATHS", repr([str(folder), str(Path(__file__).parent)])) + text


def use(folder: Path, text: str, **environment: str) -> list[str]:
    return programs.python(program(folder, text), **environment).splitlines()


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A folder with the module."""
    (tmp_path / "own_cell.py").write_text(MODULE)
    return tmp_path


def test_a_registered_cell_is_like_the_others(module: Path) -> None:
    """Every function takes its name; gradients are those of the equations, by the complex step."""
    lines = use(
        module,
        """
assert "hard_lstm" in fastgru.cells()
fastgru.check_cell(CELLS["hard_lstm"])
compared = 0
for L in (1, 2):
    for D in (1, 2):
        for lengths in (None, [2, 0, 4]):
            problem = draw("hard_lstm", L=L, D=D, lengths=lengths)
            # gates that are shut and open, and between
            problem = problem._replace(params=problem.params.map(lambda w: 4 * w))
            y, h_n, gradients = solve(problem)
            want_y, want_h = specified(problem)
            assert_close(y, want_y, 1e-14)
            for got, want in zip(h_n, want_h):
                assert_close(got, want, 1e-14)
            dx, dh0, dlayers, _ = reference.gradients(
                problem.x, problem.layers, "hard_lstm", problem.h0, lengths, problem.dy,
                problem.dh_n,
            )
            assert_close(gradients.x, dx, 1e-12)
            for got, want in zip(gradients.h0, dh0):
                assert_close(got, want, 1e-12)
            for layer, own in zip(gradients.params.layers, dlayers):
                for weights, wanted in zip(layer, own):
                    assert [name for name, _ in weights.items()] == list(wanted)
                    for name, got in weights.items():
                        assert_close(got, wanted[name], 1e-12)
                        compared += 1
            given = problem.x, problem.params, as_state(problem.h0)
            forward = fastgru.forward(*given, lengths=lengths)
            assert_same_bits(forward, (y, h_n))
            assert_same_bits(
                fastgru.forward(given[0], fastgru.pack(given[1]), given[2], lengths=lengths),
                forward,
            )
            rounded, _, _ = solve(problem.astype("float32"))
            assert rounded.dtype == np.float32
            assert_close(rounded, y, 1e-5)

problem = draw("hard_lstm", L=2)
state = as_state(problem.h0)
y, h_n = fastgru.forward(problem.x, problem.params, state)
for t in range(problem.x.shape[1]):
    y_t, state = fastgru.step(problem.x[:, t], problem.params, state)
    assert_same_bits(y_t, y[:, t].copy())
assert_same_bits(state, h_n)
bare = fastgru.init_params(3, 5, cell="hard_lstm", bias=False)
print(compared, *problem.params.to_dict(), bare.bias)
""",
    )
    names = [
        f"{name}_l{layer}" for layer in (0, 1) for name in ("weight_ih", "weight_hh", "offset")
    ]
    assert lines == [" ".join(["54", *names, "False"])]


def test_params_of_it_are_pickled_by_its_name(module: Path) -> None:
    """A process that has registered the cell reads them; in one that has not, calls say so."""
    path = module / "params.pickle"
    use(
        module,
        f"""
params = fastgru.init_params(3, 5, cell="hard_lstm", rng=0, dtype="float64")
x = np.ones((2, 4, 3))
y, h_n, saved = fastgru.forward_train(x, params)
with open({str(path)!r}, "wb") as file:
    pickle.dump((params, fastgru.pack(params), saved, y), file)
""",
    )
    use(
        module,
        f"""
with open({str(path)!r}, "rb") as file:
    params, packed, saved, y = pickle.load(file)
assert params.cell == "hard_lstm"
assert_same_bits(fastgru.forward(np.ones((2, 4, 3)), params)[0], y)
assert_same_bits(fastgru.forward(np.ones((2, 4, 3)), packed)[0], y)
assert_same_bits(fastgru.backward(saved, y).params, fastgru.backward(saved, y).params)
""",
    )
    (params_alone,) = use(
        module,
        """
params = fastgru.init_params(3, 5, cell="hard_lstm", rng=0)
print(pickle.dumps(params).hex())
""",
    )
    assert "hard_lstm" not in fastgru.cells()
    params = pickle.loads(bytes.fromhex(params_alone))
    with pytest.raises(ValueError, match=r"^cell: expected one of .*, got 'hard_lstm'"):
        fastgru.forward(np.ones((2, 4, 3), "float32"), params)


def test_kernels_are_compiled_once_and_for_these_equations(module: Path) -> None:
    """A second process finds them; an edited file gets its own; the old ones are still there."""
    folder = module / "cache" / "fastgru"
    environment = {"NUMBA_CACHE_DIR": str(module / "cache")}
    text = """
params = fastgru.init_params(3, 5, cell="hard_lstm", rng=0, dtype="float64")
print(fastgru.forward(np.ones((2, 4, 3)), params)[0].sum().hex())
"""

    def kept() -> set[str]:
        return {path.name for path in folder.iterdir()}

    first = use(module, text, **environment)
    compiled = kept()
    assert compiled
    assert all(name.endswith(".kernel") for name in compiled)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert use(module, text, **environment) == first
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times

    path = module / "own_cell.py"
    path.write_text(MODULE.replace("SLOPE, HALF = 0.2", "SLOPE, HALF = 0.25"))
    edited = use(module, text, **environment)
    assert edited != first
    # The loops and products know no cell: equations alone are new.
    assert compiled < kept()
    assert len(kept()) < 2 * len(compiled)

    of_both = kept()
    path.write_text(MODULE)
    assert use(module, text, **environment) == first
    assert kept() == of_both


# --- check_cell -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_CELLS)
def test_all_cells_pass(name: str) -> None:
    check_cell(CELLS[name])


def gate_forward(a: Any, state: Any, values: Any) -> Any:
    (a_f,) = a
    return state, (sigmoid(a_f),)


def gate_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (f,) = values
    (df,) = dvalues
    return (df * f * (one_like(f) - f),), dstate, ()


def mix_forward(a: Any, state: Any, values: Any) -> Any:
    u, s, x_n, u_n = a
    (h,) = state
    (f,) = values
    n = tanh(x_n + s * u_n + u * h)
    return (h + f * (n - h),), (n, s, u_n)


def mix_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    f, n, s, u_n, u = values
    (dh,) = dstate
    one = one_like(f)
    d = dh * f * (one - n * n)
    return (d * h, d * u_n, d, d * s), (dh * (one - f) + d * u,), (dh * (n - h),)


def gated(h: Any, values: Any) -> Any:
    (f,) = values
    return f * h * h


def gated_gradient(h: Any, values: Any, d: Any) -> Any:
    (f,) = values
    return d * f * (h + h), (d * h * h,)


def made(**changes: Any) -> Cell:
    """A cell of two phases with everything in it, with some of its parts changed."""
    parts: dict[str, Any] = {
        "gate_forward": gate_forward,
        "gate_backward": gate_backward,
        "mix_forward": mix_forward,
        "mix_backward": mix_backward,
        "gated": gated,
        "gated_gradient": gated_gradient,
        "name": "own",
        "values": ("n", "s", "u_n"),
        "weights": (
            Weight("weight_ih", INPUT, ("f", "n")),
            Weight("weight_hh", RECURRENT, ("f", "n")),
            Weight("diagonal", UNIT, ("n",)),
            Weight("bias", BIAS, ("f", "n")),
        ),
    } | changes
    return Cell(
        name=parts["name"],
        gates=("f", "n"),
        states=("h",),
        weights=parts["weights"],
        phases=(
            Phase((PreActivation("f"),), ("f",), parts["gate_forward"], parts["gate_backward"]),
            Phase(
                (
                    UnitWeight("diagonal", "n"),
                    StepInput("attention"),
                    PreActivation("n", recurrent=False),
                    PreActivation("n", input=False),
                ),
                parts["values"],
                parts["mix_forward"],
                parts["mix_backward"],
                Operand(parts["gated"], parts["gated_gradient"]),
            ),
        ),
        source="made up",
    )


def test_the_cell_itself_passes() -> None:
    check_cell(made())


def scaled_gate(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (d_f,), before, _ = gate_backward(h, values, dstate, dvalues)
    return (d_f + d_f,), before, ()


def lost_state(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    d, (dh,), _ = gate_backward(h, values, dstate, dvalues)
    return d, (zero_like(dh),), ()


def wrong_u(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (d_u, d_s, d_x, d_n), before, earlier = mix_backward(h, values, dstate, dvalues)
    return (zero_like(h) - d_u, d_s, d_x, d_n), before, earlier


def wrong_attention(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (d_u, d_s, d_x, d_n), before, earlier = mix_backward(h, values, dstate, dvalues)
    return (d_u, d_s + d_s, d_x, d_n), before, earlier


def wrong_input_part(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (d_u, d_s, _, d_n), before, earlier = mix_backward(h, values, dstate, dvalues)
    return (d_u, d_s, d_n, d_n), before, earlier


def wrong_recurrent_part(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (d_u, d_s, d_x, _), before, earlier = mix_backward(h, values, dstate, dvalues)
    return (d_u, d_s, d_x, d_x), before, earlier


def wrong_dh(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    d, _, earlier = mix_backward(h, values, dstate, dvalues)
    return d, dstate, earlier


def wrong_df(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    d, before, (df,) = mix_backward(h, values, dstate, dvalues)
    return d, before, (df * h,)


def slightly_wrong(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    d, before, (df,) = mix_backward(h, values, dstate, dvalues)
    return d, before, (df + constant_like(df, TINY),)


TINY = 1e-10


def wrong_operand_dh(h: Any, values: Any, d: Any) -> Any:
    (f,) = values
    return d * f * h, (d * h * h,)


def wrong_operand_df(h: Any, values: Any, d: Any) -> Any:
    (f,) = values
    return d * f * (h + h), (d * h,)


def operand_without_df(h: Any, values: Any, d: Any) -> Any:
    (f,) = values
    return d * f * (h + h), ()


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"gate_backward": scaled_gate}, "backward of phase 0: d_f"),
        ({"gate_backward": lost_state}, "backward of phase 0: dh"),
        ({"mix_backward": wrong_u}, "backward of phase 1: d_diagonal[n]"),
        ({"mix_backward": wrong_attention}, "backward of phase 1: d_attention"),
        ({"mix_backward": wrong_input_part}, "backward of phase 1: d_n (input part)"),
        ({"mix_backward": wrong_recurrent_part}, "backward of phase 1: d_n (recurrent part)"),
        ({"mix_backward": wrong_dh}, "backward of phase 1: dh"),
        ({"mix_backward": wrong_df}, "backward of phase 1: df"),
        ({"mix_backward": slightly_wrong}, "backward of phase 1: df"),
        ({"gated_gradient": wrong_operand_dh}, "operand of phase 1: dh"),
        ({"gated_gradient": wrong_operand_df}, "operand of phase 1: df"),
        ({"gated_gradient": operand_without_df}, "operand of phase 1: df"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_derivative_is_found_and_named(changes: dict[str, Any], where: str) -> None:
    """The phase, the gradient, both numbers and the unit."""
    expected = re.escape(where) + r" differs, \S+ for \S+ at unit \d$"
    with pytest.raises(ValueError, match=f"^{expected}"):
        check_cell(made(**changes))


def test_registering_does_not_look_at_derivatives() -> None:
    """So that a cell can be tried out: check_cell is there to look at them."""
    before = dict(CELLS)
    try:
        register_cell(made(mix_backward=wrong_df, name="own_unchecked"))
        assert list(CELLS) == [*before, "own_unchecked"]
    finally:
        CELLS.pop("own_unchecked", None)
    assert before == CELLS


# --- refusals -------------------------------------------------------------------------------------


def with_literal(a: Any, state: Any, values: Any) -> Any:
    (a_f,) = a
    return state, (sigmoid(a_f * 0.5),)


def helper_with_literal(a: Any) -> Any:
    return a + 1.0


def calls_literal(a: Any, state: Any, values: Any) -> Any:
    (a_f,) = a
    return state, (sigmoid(helper_with_literal(a_f)),)


def with_numpy(a: Any, state: Any, values: Any) -> Any:
    (a_f,) = a
    return state, (np.tanh(a_f),)


numpy_tanh = np.tanh


def with_ufunc(a: Any, state: Any, values: Any) -> Any:
    (a_f,) = a
    return state, (numpy_tanh(a_f),)


def closure() -> Callable[..., Any]:
    scale = 3

    def forward(a: Any, state: Any, values: Any) -> Any:
        (a_f,) = a
        return state, (sigmoid(a_f * scale),)

    return forward


class Callback:
    def __call__(self, a: Any, state: Any, values: Any) -> Any:
        return state, (sigmoid(a[0]),)


def no_values(a: Any, state: Any, values: Any) -> Any:
    return state, ()


def too_many_states(a: Any, state: Any, values: Any) -> Any:
    (a_f,) = a
    return state + state, (sigmoid(a_f),)


def no_tuple(a: Any, state: Any, values: Any) -> Any:
    (a_f,) = a
    return sigmoid(a_f)


def other_arguments(a: Any, state: Any) -> Any:
    return state, a


def changes_h(a: Any, state: Any, values: Any) -> Any:
    (a_f,) = a
    (h,) = state
    f = sigmoid(a_f)
    return (h * f,), (f,)


def long_values(h: Any, values: Any, d: Any) -> Any:
    return d, (d, d)


def two_results(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    d, before, _ = mix_backward(h, values, dstate, dvalues)
    return d, before


def no_earlier(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    d, before, _ = mix_backward(h, values, dstate, dvalues)
    return d, before, ()


def three_terms(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (d_u, d_s, d_x, _), before, earlier = mix_backward(h, values, dstate, dvalues)
    return (d_u, d_s, d_x), before, earlier


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": "gru"}, ValueError, r"cell: expected a new name, got 'gru', which is taken"),
        ({"name": "Own"}, ValueError, r"cell: expected a name of a-z, 0-9 and _, got 'Own'"),
        ({"name": "own cell"}, ValueError, r"cell: expected a name of .*, got 'own cell'"),
        ({"name": ""}, ValueError, r"cell: expected a name of .*, got ''"),
        ({"name": "2own"}, ValueError, r"cell: expected a name of .*, got '2own'"),
        (
            {"gate_forward": with_literal},
            ValueError,
            r"forward of phase 0: with_literal holds 0.5, .* float64",
        ),
        (
            {"gate_forward": calls_literal},
            ValueError,
            r"forward of phase 0: helper_with_literal holds 1.0",
        ),
        (
            {"gate_forward": with_numpy},
            ValueError,
            r"forward of phase 0: with_numpy uses 'np', which is no primitive \(.*tanh.*\)",
        ),
        (
            {"gate_forward": with_ufunc},
            ValueError,
            r"forward of phase 0: with_ufunc uses 'numpy_tanh', which is no primitive",
        ),
        (
            {"gate_forward": closure()},
            TypeError,
            r"forward of phase 0: expected a function at module level",
        ),
        (
            {"gate_forward": Callback()},
            TypeError,
            r"forward of phase 0: expected a function at module level",
        ),
        (
            {"gate_forward": no_values},
            ValueError,
            r"forward of phase 0: expected 1 states and 1 values, got 1 and 0",
        ),
        (
            {"values": ("n", "u")},
            ValueError,
            r"forward of phase 1: expected 1 states and 2 values, got 1 and 3",
        ),
        (
            {"gate_forward": too_many_states},
            ValueError,
            r"forward of phase 0: expected 1 states and 1 values, got 2 and 1",
        ),
        ({"gate_forward": no_tuple}, TypeError, r"forward of phase 0: expected \(state, values\)"),
        ({"gate_forward": other_arguments}, ValueError, r"forward of phase 0: it does not run"),
        (
            {"gate_forward": changes_h},
            ValueError,
            r"forward of phase 0: expected h as it was: only the last phase changes it",
        ),
        ({"gated": with_numpy}, ValueError, r"operand of phase 1: with_numpy uses 'np'"),
        (
            {"weights": (*made().weights[:3], Weight("bias2", BIAS, ("f", "n")))},
            ValueError,
            r"weight 'bias2': expected a name of a-z and _",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) if isinstance(value, type) else None,
)
def test_what_register_cell_refuses(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = dict(CELLS)
    with pytest.raises(error, match=f"^{message}"):
        register_cell(made(**changes))
    assert before == CELLS
    if changes.get("name") != "gru":  # taken, but right
        with pytest.raises(error, match=f"^{message}"):
            check_cell(made(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mix_backward": two_results}, TypeError, "backward of phase 1: expected three tuples"),
        (
            {"mix_backward": no_earlier},
            ValueError,
            "backward of phase 1: expected gradients of 1 values, got 0",
        ),
        (
            {"mix_backward": three_terms},
            ValueError,
            "backward of phase 1: expected gradients of 4 pre-activations, got 3",
        ),
        (
            {"gated_gradient": long_values},
            ValueError,
            "operand of phase 1",
        ),
    ],
)
def test_what_check_cell_refuses(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        check_cell(made(**changes))


def test_what_is_no_cell() -> None:
    for function in (register_cell, check_cell):
        with pytest.raises(TypeError, match=r"^cell: expected a Cell, got str"):
            function("gru")  # type: ignore[arg-type]


def test_pre_activations_out_of_order() -> None:
    """Those that no product feeds, then input parts, then sums, then recurrent parts."""
    terms = (
        UnitWeight("diagonal", "n"),
        PreActivation("n", recurrent=False),
        PreActivation("f"),
        PreActivation("n", input=False),
    )
    Phase(terms, (), mix_forward, mix_backward)
    for first in range(3):
        swapped: list[Any] = list(terms)
        swapped[first : first + 2] = reversed(swapped[first : first + 2])
        with pytest.raises(ValueError, match=r"^pre-activations: expected weights of units"):
            Phase(tuple(swapped), (), mix_forward, mix_backward)


def test_phases_out_of_order() -> None:
    """Recurrent weights lie in the order of the phases."""
    cell = made()
    with pytest.raises(ValueError, match=r"^cell 'own': expected recurrent parts in the order"):
        Cell("own", cell.gates, cell.states, cell.weights, cell.phases[::-1], "made up")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda w: w[1:], "expected one input part for each gate of the input weights"),
        (lambda w: (w[0], *w[2:]), "expected one recurrent part for each gate"),
        (lambda w: (w[0], *w), "expected input weights, and one weight at most of every kind"),
        (
            lambda w: (*w, Weight("other", BIAS, ("q",))),
            r"other: expected gates of \('f', 'n'\), got \('q',\)",
        ),
    ],
    ids=["no input weights", "no recurrent weights", "two input weights", "another gate"],
)
def test_weights_that_do_not_fit(weights: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^cell 'own'.*{message}"):
        made(weights=weights(made().weights))


def test_two_numbers_a_step() -> None:
    cell = made()
    first, *rest = cell.phases[1].pre_activations
    terms = (first, StepInput("other"), *rest)
    phase = Phase(terms, ("n",), mix_forward, mix_backward)
    with pytest.raises(ValueError, match=r"^cell 'own': expected at most one step input"):
        Cell("own", cell.gates, cell.states, cell.weights, (cell.phases[0], phase), "made up")
