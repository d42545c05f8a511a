"""`from_arrays` and `Convention`: weights in any convention become the same weights, to the bit."""

import itertools
from typing import Any

import numpy as np
import pytest
from problems import SHIPPED_CELLS, assert_same_bits

import fastgru
from fastgru import io
from fastgru.io.convention import (
    UPDATE_GATES,
    Convention,
    bfloat16_to_float32,
    floating,
    gate_named,
    gates_named,
    negated_for,
)
from fastgru.kernels.cells import CELLS, RECURRENT

each_shipped_cell = pytest.mark.parametrize("cell", SHIPPED_CELLS)
I, H = 3, 5
OTHER = {"old": "new", "new": "old"}


def drawn(cell: str, dtype: str = "float32", **options: Any) -> fastgru.Params:
    """Random weights; variances are positive."""
    rng = np.random.default_rng(2)
    params = fastgru.init_params(I, H, cell=cell, dtype=dtype, rng=rng, **options)
    return params.map(lambda w: rng.uniform(0.2, 1, w.shape).astype(dtype))


def by_gate(cell: str, name: str, array: Any) -> dict[str, Any]:
    """The rows of each gate that a weight covers."""
    gates = next(w.gates for w in CELLS[cell].weights if w.name == name)
    return dict(zip(gates, np.split(array, len(gates)), strict=True))


def stacked(
    cell: str, name: str, array: Any, order: Any, transposed: bool, negated: Any = ()
) -> Any:
    """A weight as a library has it, made gate by gate."""
    rows = by_gate(cell, name, array)
    made = np.concatenate([-rows[g] if g in negated else rows[g] for g in order if g in rows])
    return made.T if transposed else made


def columns(params: fastgru.Params, change: Any) -> dict[str, list[Any]]:
    """Arguments of `from_arrays`: for each weight, its arrays by layer and direction."""
    made: dict[str, list[Any]] = {}
    for layer in params.layers:
        for weights in layer:
            for name, array in weights.items():
                made.setdefault(name, []).append(change(name, array))
    return made


# --- any convention -------------------------------------------------------------------------------


@each_shipped_cell
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_order_of_gates_and_transposed_or_not(cell: str, dtype: str) -> None:
    params = drawn(cell, dtype)
    for order in itertools.permutations(CELLS[cell].gates):
        for transposed in (False, True):
            given = columns(params, lambda n, a: stacked(cell, n, a, order, transposed))  # noqa: B023
            made = io.from_arrays(cell=cell, gate_order=order, transposed=transposed, **given)
            assert made.cell == cell
            assert_same_bits(made, params)
            assert all(array.flags.c_contiguous for array in made.to_dict().values())


@each_shipped_cell
def test_convention_writes_what_it_reads(cell: str) -> None:
    arrays = dict(drawn(cell).layers[0][0].items())
    senses = [frozenset[str](), *({negated_for(cell, s) for s in OTHER if cell in SWAPPED})]
    for order in itertools.permutations(CELLS[cell].gates):
        for transposed, negated in itertools.product((False, True), senses):
            convention = Convention(order, transposed, negated)
            written = convention.write(cell, arrays)
            read = convention.read(cell, written)
            assert list(read) == list(arrays)
            for name, array in arrays.items():
                assert read[name].tobytes() == array.tobytes()
                if not negated:
                    own = stacked(cell, name, array, order, transposed and array.ndim == 2)
                    assert written[name].tobytes() == np.ascontiguousarray(own).tobytes()


@each_shipped_cell
def test_layers_and_directions(cell: str) -> None:
    order = CELLS[cell].gates[::-1]
    for layers, bidirectional in ((1, True), (3, False), (2, True)):
        params = drawn(cell, num_layers=layers, bidirectional=bidirectional)
        given = columns(params, lambda n, a: stacked(cell, n, a, order, True))
        made = io.from_arrays(
            cell=cell, gate_order=order, transposed=True, bidirectional=bidirectional, **given
        )
        assert [*made.to_dict()] == [*params.to_dict()]
        assert_same_bits(made, params)


@each_shipped_cell
def test_gates_one_by_one(cell: str) -> None:
    params = drawn(cell)
    given = {n: by_gate(cell, n, a) for n, a in params.layers[0][0].items()}
    assert_same_bits(io.from_arrays(cell=cell, **given), params)
    turned = {
        name: {gate: part.T for gate, part in reversed(parts.items())}
        for name, parts in given.items()
    }
    assert_same_bits(io.from_arrays(cell=cell, transposed=True, **turned), params)


def test_what_needs_no_change_is_not_copied() -> None:
    given = dict(drawn("lstm").layers[0][0].items())
    made = io.from_arrays(cell="lstm", **given)
    for name, array in made.layers[0][0].items():
        assert np.shares_memory(array, given[name])


# --- what the update gate multiplies --------------------------------------------------------------


def forced(cell: str, gate: str, sign: int, params: fastgru.Params) -> fastgru.Params:
    """Params whose gate is open, or closed: by a bias, or by U where the state is positive."""
    weights = [w for w in CELLS[cell].weights if gate in w.gates]
    by = [w for w in weights if w.is_optional] or [w for w in weights if w.kind == RECURRENT]
    arrays = {name: array.copy() for name, array in params.to_dict().items()}
    for weight in by:
        by_gate(cell, weight.name, arrays[f"{weight.name}_l0"])[gate][...] = sign * 60
    return fastgru.Params.from_dict(arrays, cell=cell)


def stepped(params: fastgru.Params, h: Any, attention: float = 0.0) -> Any:
    """The state after a step from state h (1, H)."""
    given = {name: np.full(1, attention) for name in CELLS[params.cell].step_inputs}
    return fastgru.step(np.linspace(-1, 1, I), params, h, **given)[1]


def sense(cell: str, gate: str) -> str:
    """What an open gate multiplies: "old" keeps the state, "new" replaces it; else ""."""
    params, h = drawn(cell, "float64"), np.linspace(0.2, 0.7, H)[None]
    kept = [
        np.allclose(stepped(forced(cell, gate, sign, params), h), h, rtol=0, atol=1e-12)
        for sign in (1, -1)
    ]
    return {(True, False): "old", (False, True): "new"}.get(tuple(kept), "")


# Cells with one state that a gate z mixes with a candidate, or f where it is the only such gate.
MIXED = {
    cell: ("z" if "z" in CELLS[cell].gates else "f")
    for cell in SHIPPED_CELLS
    if "z" in CELLS[cell].gates or CELLS[cell].gates == ("f", "n")
}


def test_the_table_of_update_gates_is_what_the_cells_do() -> None:
    found = {cell: (gate, sense(cell, gate)) for cell, gate in MIXED.items()}
    assert found == UPDATE_GATES


def test_no_other_gate_mixes() -> None:
    for cell, gate in MIXED.items():
        assert not any(sense(cell, other) for other in CELLS[cell].gates if other != gate)


# In these the gate does nothing but mix, so that signs turn one sense into the other.
SWAPPED = tuple(c for c in MIXED if c not in ("mgu", "mgu1", "mgu2", "mgu3", "sligru", "augru"))


@pytest.mark.parametrize("cell", SWAPPED)
def test_the_other_sense_of_the_update_gate(cell: str) -> None:
    """By the own sense h' = z h + (1 - z) n, or the reverse; by the other one, h + n - h'."""
    params, h = drawn(cell, "float64"), np.linspace(0.2, 0.7, H)[None]
    gate, own = UPDATE_GATES[cell]
    n = stepped(forced(cell, gate, -1 if own == "old" else 1, params), h)
    given = columns(params, lambda name, array: array)
    same = io.from_arrays(cell=cell, update=own, **given)
    assert_same_bits(same, params)
    other = io.from_arrays(cell=cell, update=OTHER[own], **given)
    expected = h + n - stepped(params, h)
    assert np.abs(expected - stepped(params, h)).max() > 1e-3
    np.testing.assert_allclose(stepped(other, h), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", [c for c in MIXED if c not in SWAPPED])
def test_a_gate_that_does_more_than_mix_has_one_sense(cell: str) -> None:
    """MGU's f is the reset gate too, sligru's z is normalised with n, augru's z is attenuated."""
    given = columns(drawn(cell), lambda name, array: array)
    other = OTHER[UPDATE_GATES[cell][1]]
    with pytest.raises(ValueError, match=rf"update: cell '{cell}' .*{other}"):
        io.from_arrays(cell=cell, update=other, **given)


@each_shipped_cell
def test_cells_without_an_update_gate_refuse_a_sense(cell: str) -> None:
    if cell in UPDATE_GATES:
        assert negated_for(cell, None) == frozenset()
        assert negated_for(cell, UPDATE_GATES[cell][1]) == frozenset()
        return
    with pytest.raises(ValueError, match=f"update: cell {cell!r} has no update gate"):
        negated_for(cell, "old")


# --- other names of gates -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "order", "own"),
    [
        ("gru", "zrh", "zrn"),  # Keras, ONNX
        ("gru", "uro", "zrn"),  # oneDNN
        ("gru", ["update", "r", "n"], None),
        ("gru_reset_before", "zrh", "zrn"),
        ("lstm", "ifco", "ifgo"),  # Keras
        ("lstm", "iofc", "iofg"),  # ONNX
        ("lstm", "ifno", "ifgo"),
        ("mgu", "fh", "fn"),
        ("libru", "zn", "zc"),
        ("ugrnn", "ug", "zn"),
        ("gru", "zr", None),
        ("gru", "zrr", None),
        ("gru", "zrnn", None),
        ("gru", "zrc", "zrn"),
        ("lstm", "ifoo", None),
    ],
)
def test_names_of_gates(cell: str, order: Any, own: str | None) -> None:
    if own is None:
        with pytest.raises(ValueError, match=f"cell '{cell}'"):
            gates_named(cell, order)
    else:
        assert gates_named(cell, order) == tuple(own)


@each_shipped_cell
def test_own_names_come_first(cell: str) -> None:
    for gate in CELLS[cell].gates:
        assert gate_named(cell, gate) == gate


def test_gates_one_by_one_by_other_names() -> None:
    params = drawn("gru")
    names = {"r": "r", "z": "u", "n": "o"}
    given = {
        name: {names[gate]: part for gate, part in by_gate("gru", name, array).items()}
        for name, array in params.layers[0][0].items()
    }
    assert_same_bits(io.from_arrays(cell="gru", **given), params)


# --- biases ---------------------------------------------------------------------------------------

TWO_BIASES = [
    c for c in SHIPPED_CELLS if {"bias_ih", "bias_hh"} <= {w.name for w in CELLS[c].weights}
]


@pytest.mark.parametrize("cell", TWO_BIASES)
def test_both_biases_in_one_array(cell: str) -> None:
    params = drawn(cell, bidirectional=True)
    order = CELLS[cell].gates[::-1]
    given = columns(params, lambda n, a: stacked(cell, n, a, order, False))
    pairs = [*zip(given.pop("bias_ih"), given.pop("bias_hh"), strict=True)]
    for join in (np.stack, np.concatenate):
        bias = [join(pair) for pair in pairs]
        made = io.from_arrays(cell=cell, gate_order=order, bidirectional=True, bias=bias, **given)
        assert_same_bits(made, params)


@pytest.mark.parametrize("cell", TWO_BIASES)
@pytest.mark.parametrize("name", ["bias_ih", "bias_hh", "bias"])
def test_one_bias_of_two(cell: str, name: str) -> None:
    params = drawn(cell)
    given = dict(params.layers[0][0].items())
    only = given["bias_hh" if name == "bias_hh" else "bias_ih"]
    matrices = {n: a for n, a in given.items() if not n.startswith("bias")}
    made = io.from_arrays(cell=cell, **matrices, **{name: only})
    expected = {f"{n}_l0": a for n, a in given.items()}
    expected["bias_ih_l0" if name == "bias_hh" else "bias_hh_l0"] = np.zeros_like(only)
    assert_same_bits(made, fastgru.Params.from_dict(expected, cell=cell))


@each_shipped_cell
def test_no_biases(cell: str) -> None:
    if not CELLS[cell].can_lack_biases:
        return
    params = drawn(cell, bias=False)
    made = io.from_arrays(cell=cell, bias=None, **columns(params, lambda n, a: a))
    assert not made.bias
    assert_same_bits(made, params)


# --- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float16", ">f4", ">f8", "float64", "float32"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_conversion_on_request(kind: str, dtype: str) -> None:
    exact = drawn("gru", dtype).map(lambda w: w.astype("float16").astype(dtype))
    given = columns(exact, lambda n, a: a.astype(kind))
    assert_same_bits(io.from_arrays(cell="gru", dtype=dtype, **given), exact)


def test_byte_order_needs_no_request() -> None:
    given = columns(drawn("gru"), lambda n, a: a.astype(">f4"))
    assert_same_bits(io.from_arrays(cell="gru", **given), drawn("gru"))


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bfloat16_to_float32(bits)
    assert numbers.dtype == np.float32
    assert ((numbers.view(np.uint32) >> 16) == bits).all()
    assert bfloat16_to_float32(np.array([0x3FC0], np.uint16)) == 1.5
    ml_dtypes = pytest.importorskip("ml_dtypes")
    theirs = bits.view(ml_dtypes.bfloat16)
    ours = floating("a", theirs, "float32")
    assert (ours.view(np.uint32) == numbers.view(np.uint32))[~np.isnan(numbers)].all()


@pytest.mark.parametrize("kind", ["float16", "int32", "complex64", "bool", "U3", "O", "V2"])
def test_other_dtypes_are_refused(kind: str) -> None:
    given = columns(drawn("gru"), lambda n, a: a)
    given["weight_hh"] = [np.ones((15, 5)).astype(kind)]
    with pytest.raises(TypeError, match=r"weight_hh: expected float32 or float64, got .*float32'"):
        io.from_arrays(cell="gru", **given)
    if kind != "float16":
        with pytest.raises(TypeError, match="weight_hh: expected floating-point numbers, got"):
            io.from_arrays(cell="gru", dtype="float32", **given)


def test_numbers_that_a_dtype_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="a: expected numbers that float32 has, got larger ones"):
        floating("a", np.array([1.0, 1e39]), "float32")
    assert floating("a", np.array([np.inf, 1e-60]), "float32").tolist() == [np.inf, 0.0]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cell": "gru9"}, ValueError, "cell: expected one of gru, .*, got 'gru9'"),
        ({"gate_order": "zrx"}, ValueError, "cell 'gru' has no gate 'x': its gates are r, z, n"),
        ({"update": "next"}, ValueError, "update: expected 'new' or 'old', got 'next'"),
        ({"cell": "rnn_tanh", "update": "old"}, ValueError, "update: cell 'rnn_tanh' has no"),
        ({"transposed": 1}, TypeError, "transposed: expected True or False, got 1"),
        ({"bidirectional": "yes"}, TypeError, "bidirectional: expected True or False, got 'yes'"),
        ({"dtype": "int32"}, TypeError, "weight_ih_l0: expected dtype float32 or float64"),
        ({"weight_ih": None}, ValueError, "expected weight_ih, got weight_hh, bias_ih, bias_hh"),
        ({"weight_hh": None}, ValueError, r"weight_hh_l0: missing \(cell 'gru'\)"),
        ({"peephole": np.ones(15, "f")}, ValueError, "cell 'gru' has no peephole"),
        ({"bias": np.ones(15, "f")}, ValueError, "bias: holds bias_ih, which is given too"),
        ({"bias": np.ones(7, "f"), "bias_ih": None, "bias_hh": None}, ValueError,
         r"bias: expected shape \(15,\), \(2, 15\) or \(30,\), got \(7,\)"),
        ({"gate_order": "zrn", "weight_ih": np.ones((3, 16), "f")}, ValueError,
         r"weight_ih: expected rows in 3 blocks .*, got shape \(3, 16\)|weight_hh"),
        ({"gate_order": "zrn", "weight_ih": np.ones((16, 3), "f")}, ValueError,
         r"weight_ih: expected rows in 3 blocks .*, got shape \(16, 3\); .* transposed"),
        ({"weight_hh": np.ones((15, 6), "f")}, ValueError, "weight_hh_l0: expected shape"),
        ({"weight_hh": [np.ones((15, 5), "f")] * 2}, ValueError,
         "expected as many arrays of each weight, 1 a layer, got 1 weight_ih, 2 weight_hh"),
        ({"bidirectional": True}, ValueError, "expected as many .*, 2 a layer, got 1 weight_ih"),
        ({"weight_hh": {"r": np.ones((5, 5), "f"), "q": np.ones((5, 5), "f")}}, ValueError,
         "cell 'gru' has no gate 'q'"),
        ({"weight_hh": dict.fromkeys("rznh", np.ones((5, 5), "f"))}, ValueError,
         "weight_hh: expected an array for each of the gates r, z, n, got 'r', 'z', 'n', 'h'"),
        ({"bias_ih": {"z": np.ones(15, "f")}}, ValueError,
         "bias_ih: expected an array for each of the gates r, z, n, got 'z'"),
        ({"weight_hh": {}}, ValueError, "weight_hh: expected an array for each .*, got none"),
        ({"weight_hh": {g: np.ones((n, 5), "f") for g, n in zip("rzn", (4, 5, 6), strict=True)}},
         ValueError, r"weight_hh: expected arrays of one shape .*, got \(4, 5\), \(5, 5\)"),
        ({"weight_hh": dict.fromkeys("rzn", np.float32(1))}, ValueError,
         r"weight_hh: expected arrays of one shape for its gates, got \(\)"),
        ({"weight_ih": np.ones(15, "f"), "bias": np.ones(15, "f"), "bias_ih": None}, ValueError,
         r"weight_ih: expected a matrix, got shape \(15,\)"),
    ],
)  # fmt: skip
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"cell": "gru"} | dict(drawn("gru").layers[0][0].items()) | change
    with pytest.raises(error, match=message):
        io.from_arrays(**given)
