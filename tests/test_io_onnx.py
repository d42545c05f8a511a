"""`from_onnx`: nodes against onnxruntime, where weights come from, what is refused, stacks."""

import warnings
from typing import Any

import numpy as np
import onnx
import onnx_made
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_made import drawn, model, node, run, weights
from problems import as_members

import fastgru
from fastgru.io.onnx import from_onnx
from fastgru.io.reversal import reverse_steps

EPS32 = float(np.finfo(np.float32).eps)
I, H = 3, 4


def one(op: str, given: Any = (), *, D: int = 1, tensors: Any = None, **attributes: Any) -> Any:
    """A model of one node with random weights."""
    own = weights(op, I, H, D) | (tensors or {})
    direction = {"direction": "bidirectional"} if D == 2 else {}
    made = node(op, ["X", *own, *given], H, **direction, **attributes)
    return model([made], own, ["X", *given], made.output)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(120))
def test_random_nodes_against_onnxruntime(seed: int) -> None:
    made = onnx_made.random_node(seed)
    T, N, D, H = made.sizes
    want_y, *want_h = run(made.model, made.feeds)
    layer = from_onnx(made.model)["Y"]
    x, options = made.feeds["X"], {"lengths": made.lengths, "time_major": True}
    backward = made.direction == "reverse"
    y, h_n = fastgru.forward(
        reverse_steps(x, **options) if backward else x,
        layer.params,
        layer.initial_state(N),
        **options,
    )
    y = reverse_steps(y, **options) if backward else y
    # Both sides round sums of I + H products and what these are added to, so by eps (sqrt(I + H) +
    # max |a|); a is at most the sum of the absolute weights, times that of x. Steps let it grow, as
    # their gains may pass 1: of 2000 random nodes the worst was 1.6 times that, for rnn_tanh.
    sums = max(float(np.abs(w).sum(axis=-1).max()) for w in layer.params.to_dict().values())
    bound = 4 * EPS32 * (float(np.sqrt(x.shape[2] + H)) + sums * max(1.0, np.abs(x).max()))
    assert np.abs(y - want_y.transpose(0, 2, 1, 3).reshape(T, N, D * H)).max() <= bound
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert np.abs(got - want).max() <= bound * max(1, np.abs(want).max())
    assert any("runs backward" in note for note in layer.notes) == backward
    assert any("sequence_lens" in note for note in layer.notes) == (made.lengths is not None)


def test_samples_first() -> None:
    """layout=1, which onnxruntime does not have, says nothing of the weights."""
    h = np.repeat(drawn(np.random.default_rng(0), 1, 2, H), 5, axis=0)  # (N, D, H)
    found = from_onnx(one("GRU", D=2, tensors={"h": h}, layout=1, linear_before_reset=1))
    other = from_onnx(one("GRU", D=2, linear_before_reset=1))["Y"]
    layer = found["Y"]
    assert same(layer.params, other.params)
    assert "layout=1: x and y have the samples first" in layer.notes[0]
    assert np.array_equal(layer.initial[0], h[0])


def same(a: fastgru.Params, b: fastgru.Params) -> bool:
    """Whether two params are of the same cell and equal."""
    ours, theirs = a.to_dict(), b.to_dict()
    return (
        a.cell == b.cell
        and [*ours] == [*theirs]
        and all(np.array_equal(ours[key], theirs[key]) for key in ours)
    )


@pytest.mark.parametrize("lengths", [None, [0, 3, 5, 1]])
@pytest.mark.parametrize("time_major", [False, True])
def test_reversed_steps(time_major: bool, lengths: Any) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5, 2))
    got = reverse_steps(x.swapaxes(0, 1) if time_major else x, lengths, time_major=time_major)
    got = got.swapaxes(0, 1) if time_major else got
    for row, end in enumerate(lengths or [5] * 4):
        assert np.array_equal(got[row, :end], x[row, :end][::-1])
        assert np.array_equal(got[row, end:], x[row, end:])
    for wrong in ([1, 2], [6, 0, 0, 0], [-1, 0, 0, 0], [1.0, 1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="lengths: expected 4 whole numbers from 0 to 5"):
            reverse_steps(x, wrong)
    with pytest.raises(ValueError, match="x: expected 3 axes"):
        reverse_steps(x[0])


# --- where weights come from ----------------------------------------------------------------------


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


# Nodes that make W, (1, 12, 3), of a GRU out of tensors, by what they test.
PATHS: dict[str, tuple[list[tuple[str, list[str], dict[str, Any]]], dict[str, Any]]] = {
    "Identity": ([("Identity", ["w"], {})], {"w": (1, 12, 3)}),
    "Dropout": ([("Dropout", ["w"], {})], {"w": (1, 12, 3)}),
    "Unsqueeze": ([("Unsqueeze", ["w", "axes"], {})], {"w": (12, 3), "axes": ints(0)}),
    "Squeeze": ([("Squeeze", ["w", "axes"], {})], {"w": (1, 1, 12, 3), "axes": ints(-3)}),
    "Squeeze all": (
        [("Squeeze", ["w"], {}), ("Unsqueeze", ["0", "axes"], {})],
        {"w": (1, 12, 1, 3), "axes": ints(0)},
    ),
    "Reshape": ([("Reshape", ["w", "shape"], {})], {"w": (1, 6, 6), "shape": ints(0, -1, 3)}),
    "Reshape of columns": (
        [("Transpose", ["w"], {"perm": [1, 0]}), ("Reshape", ["0", "shape"], {})],
        {"w": (3, 12), "shape": ints(1, 12, 3)},
    ),
    "Flatten": (
        [("Flatten", ["w"], {"axis": 2}), ("Unsqueeze", ["0", "axes"], {})],
        {"w": (3, 4, 3), "axes": ints(0)},
    ),
    "Transpose": ([("Transpose", ["w"], {"perm": [2, 1, 0]})], {"w": (3, 12, 1)}),
    "Slice": (
        [("Slice", ["w", "starts", "ends", "axes", "steps"], {})],
        {"w": (1, 24, 5), "starts": ints(-2, 1), "ends": ints(-(2**63) + 1, 4), "axes": ints(1, 2),
         "steps": ints(-2, 1)},
    ),
    "Concat": ([("Concat", ["w", "v"], {"axis": 1})], {"w": (1, 8, 3), "v": (1, 4, 3)}),
    "Split": (
        [("Split", ["w", "sizes"], {"axis": 1}), ("Concat", ["0", "0b"], {"axis": 1})],
        {"w": (1, 12, 3), "sizes": ints(5, 7)},
    ),
    "Split evenly": (
        [("Split", ["w"], {"axis": 2}), ("Concat", ["0b", "0"], {"axis": 1})],
        {"w": (1, 6, 6)},
    ),
    "Gather": ([("Gather", ["w", "rows"], {"axis": 1})],
               {"w": (1, 7, 3), "rows": ints(0, 6, -1, 3, 2, 2, 1, 5, 4, -7, 1, 0)}),
    "Expand": ([("Expand", ["w", "shape"], {})], {"w": (12, 1), "shape": ints(1, 1, 3)}),
    "Shape": (
        [("Shape", ["v"], {}), ("Reshape", ["w", "0"], {})],
        {"w": (36,), "v": (1, 12, 3)},
    ),
    "Cast": (
        [("Cast", ["w"], {"to": TensorProto.FLOAT16}), ("Cast", ["0"], {"to": TensorProto.FLOAT})],
        {"w": (1, 12, 3)},
    ),
    "DequantizeLinear": (
        [("DequantizeLinear", ["q", "scale", "zero"], {})],
        {"q": np.arange(-18, 18, dtype=np.int8).reshape(1, 12, 3), "scale": np.float32(0.05),
         "zero": np.int8(3)},
    ),
    "DequantizeLinear by one": (
        [("DequantizeLinear", ["q", "scale", "zero"], {})],
        {"q": np.arange(-18, 18, dtype=np.int8).reshape(1, 12, 3),
         "scale": np.array([0.05], np.float32), "zero": np.array([3], np.int8)},
    ),
    "DequantizeLinear by rows": (
        [("DequantizeLinear", ["q", "scales"], {"axis": 1})],
        {"q": np.arange(36, dtype=np.uint8).reshape(1, 12, 3),
         "scales": np.linspace(0.1, 0.2, 12, dtype=np.float32)},
    ),
}  # fmt: skip


def made_by(path: str) -> tuple[list[Any], dict[str, Any]]:
    """The nodes of a path, whose result is W, and its tensors."""
    steps, tensors = PATHS[path]
    rng = np.random.default_rng(0)
    nodes = []
    for number, (op, inputs, attributes) in enumerate(steps):
        last = number == len(steps) - 1
        outputs = ["W" if last else str(number), *(["0b"] if op == "Split" else [])]
        nodes.append(helper.make_node(op, inputs, outputs, **attributes))
    return nodes, {
        name: drawn(rng, *value) if isinstance(value, tuple) else np.asarray(value)
        for name, value in tensors.items()
    }


@pytest.mark.parametrize("path", PATHS)
def test_weights_made_by_nodes(path: str) -> None:
    """What is computed here are the bits that onnxruntime computes."""
    nodes, tensors = made_by(path)
    own = {name: array for name, array in weights("GRU", I, H).items() if name != "W"}
    gru = node("GRU", ["X", "W", *own], H, linear_before_reset=1)
    made = model([*nodes, gru], tensors | own, outputs=["Y", "W"])
    _, W = run(made, {"X": np.zeros((1, 1, I), np.float32)})
    plain = from_onnx(model([gru], own | {"W": W}))
    found = from_onnx(made)
    assert same(found.only, plain.only)
    names = [name for name in "wv" if name in tensors]
    if path != "Shape" and not path.startswith("DequantizeLinear"):
        assert found["Y"].sources["weight_ih_l0"] == f"W[0]: {', '.join(names)}"
        assert found.left_out == ()


def test_attributes_of_old_versions() -> None:
    """Axes, starts and ends were attributes once."""
    nodes = [
        helper.make_node("Slice", ["w"], ["a"], starts=[1], ends=[13], axes=[0]),
        helper.make_node("Unsqueeze", ["a"], ["b"], axes=[0, 3]),
        helper.make_node("Squeeze", ["b"], ["W"], axes=[3]),
    ]
    own = weights("GRU", I, H)
    wide = np.concatenate([own["W"][0, :1], own["W"][0], own["W"][0, :3]])
    gru = node("GRU", ["X", "W", "R", "B"], H, linear_before_reset=1)
    made = model([*nodes, gru], {"w": wide, "R": own["R"], "B": own["B"]}, opset=9)
    assert same(from_onnx(made).only, from_onnx(model([gru], own)).only)


CONSTANTS = {
    "value": lambda a: {"value": numpy_helper.from_array(a)},
    "value_floats": lambda a: {"value_floats": a.ravel().tolist()},
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_nodes_that_are_constants(kind: str) -> None:
    own = weights("LSTM", I, H)
    nodes = []
    for name, array in own.items():
        nodes += [
            helper.make_node("Constant", [], [f"{name}0"], **CONSTANTS[kind](array)),
            helper.make_node("Constant", [], [f"{name}1"], value_ints=list(array.shape)),
            helper.make_node("Reshape", [f"{name}0", f"{name}1"], [name]),
        ]
    made = model([*nodes, node("LSTM", ["X", *own], H)], {})
    found = from_onnx(made)
    assert same(found.only, from_onnx(model([node("LSTM", ["X", *own], H)], own)).only)
    assert found["Y"].sources["weight_hh_l0"] == "R[0]: R0"


def test_zeros_of_a_shape() -> None:
    own = weights("GRU", I, H)
    del own["B"]
    fill = helper.make_node(
        "ConstantOfShape", ["shape"], ["B"], value=numpy_helper.from_array(np.float32([0.25]))
    )
    gru = node("GRU", ["X", "W", "R", "B"], H)
    found = from_onnx(model([fill, gru], own | {"shape": ints(1, 24)}))
    assert (found.only.to_dict()["bias_hh_l0"] == 0.25).all()


# ONNX's numbers of types, and how float32 becomes their bits, and these float32 again.
DTYPES = {
    "float16": (10, lambda a: a.astype(np.float16), lambda a: a.astype(np.float32)),
    "float64": (11, lambda a: a.astype(np.float64), lambda a: a.astype(np.float32)),
    "bfloat16": (
        16,
        lambda a: (a.view(np.uint32) >> 16).astype(np.uint16),
        lambda a: (a.astype(np.uint32) << 16).view(np.float32),
    ),
}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_other_dtypes(kind: str, one_by_one: bool) -> None:
    code, narrowed, widened = DTYPES[kind]
    own = {name: narrowed(array) for name, array in weights("GRU", I, H).items()}
    tensors = {}
    for name, array in own.items():
        tensors[name] = proto = onnx.TensorProto(name=name, dims=array.shape, data_type=code)
        if not one_by_one:
            proto.raw_data = array.tobytes()
        elif kind == "float64":
            proto.double_data.extend(array.ravel().tolist())
        else:  # bits
            proto.int32_data.extend(array.ravel().view(np.uint16).tolist())
    gru = node("GRU", ["X", *own], H, linear_before_reset=1)
    made = model([gru], tensors)
    plain = model([gru], {name: widened(array) for name, array in own.items()})
    assert same(from_onnx(made, dtype="float32").only, from_onnx(plain).only)
    if kind != "float64":
        with pytest.raises(ValueError, match=rf"'Y' \(GRU\): W: .* {kind}; dtype='float32' conv"):
            from_onnx(made)
    if kind == "float64":
        assert from_onnx(made).only.dtype == np.float64
    cast = [helper.make_node("Cast", [f"{n}_"], [n], to=TensorProto.FLOAT) for n in own]
    stored = {f"{name}_": proto for name, proto in tensors.items()}
    for name, proto in stored.items():
        proto.name = name
    assert same(from_onnx(model([*cast, gru], stored)).only, from_onnx(plain).only)


@pytest.mark.parametrize("op", ["GRU", "RNN"])
def test_arrays_are_ones_own(op: str) -> None:
    """Also where nothing of them is moved: they can be written to, and keep no file in memory."""
    made = one(op, tensors={"h": np.ones((1, 1, H), np.float32)})
    layer = from_onnx(made.SerializeToString())["Y"]
    for array in (*layer.params.to_dict().values(), *layer.initial):
        assert array.flags.carray
        assert array.base is None


def test_weights_of_eight_bits() -> None:
    """onnxruntime's DynamicQuantizeLSTM, whose matrices are transposed."""
    rng = np.random.default_rng(0)
    tensors = {"B": weights("LSTM", I, H)["B"]}
    floats = {"B": tensors["B"]}
    for name, columns in (("W", I), ("R", H)):
        data = rng.integers(-100, 100, (1, columns, 4 * H)).astype(np.int8)
        scale = rng.uniform(0.002, 0.006, (1, 4 * H)).astype(np.float32)
        zero = np.zeros((1, 4 * H), np.int8)
        tensors |= {name: data, f"{name}_scale": scale, f"{name}_zero": zero}
        floats[name] = (data.astype(np.float32) * scale[:, None]).transpose(0, 2, 1)
    inputs = ["X", "W", "R", "B", "", "", "", "", "W_scale", "W_zero", "R_scale", "R_zero"]
    own = helper.make_node(
        "DynamicQuantizeLSTM", inputs, ["Y", "Y_h", "Y_c"], hidden_size=H, domain="com.microsoft"
    )
    made = model([own], tensors, opsets=[helper.make_opsetid("com.microsoft", 1)])
    layer = from_onnx(made)["Y"]
    plain = model([node("LSTM", ["X", "W", "R", "B"], H)], floats)
    assert same(layer.params, from_onnx(plain).only)
    assert "onnxruntime rounds inputs and states to 8 bits too" in layer.notes[0]
    for name, array, message in (
        ("W", np.zeros((1, I, 4 * H), np.int16), "W: expected 8-bit weights of three axes"),
        ("R_scale", np.ones(5, np.float32), "R: expected scales and zero points of one of shapes"),
    ):
        wrong = model([own], tensors | {name: array}, opsets=made.opset_import[1:])
        with pytest.raises(ValueError, match=message):
            from_onnx(wrong)
    x = drawn(rng, 6, 2, I)
    (want,), (got,) = run(made, {"X": x}), run(plain, {"X": x})
    assert 0 < np.abs(got - want).max() < 0.05  # of 8 bits


# --- bodies and functions -------------------------------------------------------------------------


def test_bodies_of_nodes() -> None:
    """If, Loop and Scan; weights of the graph around, and of the body."""
    own = weights("GRU", I, H)

    def body(name: str, inputs: Any, outputs: Any, *, extra: Any = ()) -> Any:
        gru = node("GRU", ["X", "W", "R", "B"], H, [f"{name}_y"], name=f"/{name}/GRU")
        return helper.make_graph(
            [gru, *extra],
            name,
            inputs,
            [helper.make_tensor_value_info(output, kind, None) for output, kind in outputs],
            [numpy_helper.from_array(2 * own["B"], "B")],
        )

    FLOAT, BOOL, INT = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
    condition = helper.make_node("Identity", ["going"], ["goes"])
    info = helper.make_tensor_value_info
    then, otherwise = (body(name, [], [(f"{name}_y", FLOAT)]) for name in ("yes", "no"))
    loop = body(
        "turn",
        [info("i", INT, []), info("going", BOOL, [])],
        [("goes", BOOL), ("turn_y", FLOAT)],
        extra=[condition],
    )
    scan = body("each", [info("row", FLOAT, None)], [("each_y", FLOAT)])
    nodes = [
        helper.make_node("If", ["flag"], ["Y"], "If_0", then_branch=then, else_branch=otherwise),
        helper.make_node("Loop", ["count", "flag"], ["all"], "Loop_0", body=loop),
        helper.make_node("Scan", ["X"], ["rows"], body=scan, num_scan_inputs=1),
    ]
    tensors = {"W": own["W"], "R": own["R"]}
    made = model(nodes, tensors, ["X", "flag", "count"], ["Y", "all", "rows"])
    found = from_onnx(made)
    assert [*found] == [
        "If_0.else_branch/no/GRU",
        "If_0.then_branch/yes/GRU",
        "Loop_0.body/turn/GRU",
        "rows.body/each/GRU",
    ]
    plain = from_onnx(model([node("GRU", ["X", "W", "R", "B"], H)], own | {"B": 2 * own["B"]})).only
    for layer in found.values():
        assert same(layer.params, plain)


def with_functions(made: Any, *functions: Any) -> Any:
    made.functions.extend(functions)
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def test_functions() -> None:
    """A function called twice, by another one and with other weights; attributes of the call."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = node("GRU", ["X", "W", "R"], H, ["Y", ""], name="gru")
    inner.attribute.append(
        onnx.AttributeProto(name="linear_before_reset", ref_attr_name="reset", type=2)
    )
    layer = helper.make_function(
        "own", "Layer", ["X", "W", "R"], ["Y"], [inner], opsets, attributes=["reset"]
    )
    outer = helper.make_function(
        "own", "Outer", ["X", "w"], ["Y"],
        [helper.make_node("Identity", ["w"], ["v"]),
         helper.make_node("Constant", [], ["r"], value=numpy_helper.from_array(RECURRENT)),
         helper.make_node("Layer", ["X", "v", "r"], ["Y"], "inside", domain="own", reset=1)],
        opsets,
    )  # fmt: skip
    own = weights("GRU", I, H, parts="WR")
    calls = [
        helper.make_node("Layer", ["X", "W", "R"], ["A"], "first", domain="own", reset=0),
        helper.make_node("Outer", ["X", "W"], ["Y"], "second", domain="own"),
    ]
    found = from_onnx(with_functions(model(calls, own), layer, outer))
    assert [*found] == ["first/gru", "second/inside/gru"]
    first, second = (layer.params for layer in found.values())
    assert (first.cell, second.cell) == ("gru_reset_before", "gru")
    assert np.array_equal(first.to_dict()["weight_ih_l0"], second.to_dict()["weight_ih_l0"])
    assert np.array_equal(np.split(second.to_dict()["weight_hh_l0"], 3)[2], RECURRENT[0, 2 * H :])


RECURRENT = drawn(np.random.default_rng(7), 1, 3 * H, H)


def test_names_are_unique() -> None:
    own = weights("RNN", I, H)
    nodes = [node("RNN", ["X", *own], H, [output], name=name)
             for output, name in (("a", "rnn"), ("b", "rnn"), ("c", ""))]  # fmt: skip
    found = from_onnx(model(nodes, own, outputs=["a"]))
    assert [*found] == ["rnn", "rnn_2", "c"]


def test_what_is_left_out() -> None:
    own = weights("GRU", I, H)
    nodes = [
        node("GRU", ["X", *own], H),
        helper.make_node("GRU", ["X"], ["Z"], "theirs", domain="other"),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(own["B"])),
        helper.make_node("MatMul", ["Y", "dense"], ["out"]),
    ]
    tensors = own | {"dense": drawn(np.random.default_rng(0), 4, 4), "shape": ints(1)}
    found = from_onnx(model(nodes, tensors))
    assert [*found] == ["Y"]
    assert found.left_out == ("theirs (other.GRU)", "dense", "k")


# --- initial states and lengths -------------------------------------------------------------------


def state_of(nodes: Any, tensors: Any, inputs: Any = ("X",)) -> Any:
    """The layer of an LSTM whose h comes from these nodes."""
    own = weights("LSTM", I, H, D=2)
    lstm = node("LSTM", ["X", *own, "h"], H, direction="bidirectional")
    return from_onnx(model([*nodes, lstm], own | tensors, inputs))["Y"]


def test_initial_states() -> None:
    rng = np.random.default_rng(0)
    row = drawn(rng, 2, 1, H)
    size = [
        helper.make_node("Shape", ["X"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "one"], ["n"]),
        helper.make_node("Concat", ["two", "n", "four"], ["shape"], axis=0),
    ]
    numbers = {"one": ints(1), "two": ints(2), "four": ints(H)}
    expand = helper.make_node("Expand", ["row", "shape"], ["h"])
    fill = helper.make_node(
        "ConstantOfShape", ["shape"], ["h"], value=numpy_helper.from_array(np.float32([0.5]))
    )
    zeros = helper.make_node("ConstantOfShape", ["shape"], ["h"])
    cases = {
        "the same rows": (state_of([], {"h": np.repeat(row, 3, axis=1)}), row[:, 0]),
        "a row for any batch": (state_of([*size, expand], numbers | {"row": row}), row[:, 0]),
        "a number": (state_of([*size, fill], numbers), np.full((2, H), 0.5)),
    }
    for name, (layer, want) in cases.items():
        h, c = layer.initial
        assert np.array_equal(h, want), name
        assert (c == 0).all()
        assert layer.notes == ()
        assert [member.shape for member in layer.initial_state(7)] == [(2, 7, H)] * 2
    assert state_of([*size, zeros], numbers).initial == ()
    differing = state_of([], {"h": drawn(rng, 2, 3, H)})
    assert differing.initial == ()
    assert differing.notes == ("initial_h differs between samples: give the same to forward",)
    computed = state_of([*size, expand], numbers, ["X", "row"])
    assert computed.notes == ("initial_h comes from the input 'row': give the same to forward",)
    given = state_of([], {}, ["X", "h"])
    assert given.initial == ()
    assert given.notes == ("initial_h comes from the input 'h': give the same to forward",)
    with pytest.raises(ValueError, match="initial_h: expected 2 directions of 4 units, got shape"):
        state_of([], {"h": drawn(rng, 1, 3, H)})


def test_lengths_are_noted() -> None:
    given = from_onnx(one("GRU", ["lengths"]))["Y"].notes
    assert given == ("sequence_lens comes from the input 'lengths': give the same to forward, "
                     "as lengths",)  # fmt: skip
    constant = from_onnx(one("GRU", tensors={"lengths": np.array([3, 1], np.int32)}))["Y"].notes
    assert constant == ("sequence_lens is [3 1]: give it to forward, as lengths",)


# --- what is refused ------------------------------------------------------------------------------


def twice(made: Any) -> Any:
    """A node whose first attribute is there twice."""
    made.attribute.append(made.attribute[0])
    return made


REFUSED: dict[str, tuple[Any, str]] = {
    "clip": (lambda: one("GRU", clip=3.0), "attribute 'clip': no cell of fastgru has it"),
    "alpha": (lambda: one("LSTM", activation_alpha=[1.0]), "attribute 'activation_alpha'"),
    "beta": (lambda: one("RNN", activation_beta=[1.0]), "attribute 'activation_beta'"),
    "input_forget of a GRU": (lambda: one("GRU", input_forget=1), "attribute 'input_forget'"),
    "another activation": (
        lambda: one("LSTM", activations=["HardSigmoid", "Tanh", "Tanh"]),
        "'activations': expected sigmoid, tanh, tanh, got 'hardsigmoid, tanh, tanh'",
    ),
    "another one in reverse": (
        lambda: one("GRU", D=2, activations=["Sigmoid", "Tanh", "Sigmoid", "Relu"]),
        "expected 2 for each of 2 directions, the same in all",
    ),
    "mixed ones of a RNN": (
        lambda: one("RNN", D=2, activations=["Tanh", "Relu"]),
        "expected 1 for each of 2 directions, the same in all",
    ),
    "activations that are numbers": (
        lambda: one("GRU", activations=[1, 2]), "attribute 'activations': expected text",
    ),
    "a state of another dtype": (
        lambda: one("GRU", tensors={"h": np.arange(H, dtype=np.float64).reshape(1, 1, H)}),
        "initial_h: expected float32 as the weights, got float64",
    ),
    "too few": (lambda: one("GRU", activations=["Sigmoid"]), "expected 2 for each of 1 direc"),
    "peepholes and coupled gates": (
        lambda: one("LSTM", tensors=weights("LSTM", I, H, parts="P"), input_forget=1),
        "'input_forget' and input 'P'",
    ),
    "direction": (lambda: one("GRU", direction="sideways"), "attribute 'direction': expected"),
    "layout": (lambda: one("GRU", layout=2), "attribute 'layout': expected 0 or 1"),
    "layout of another type": (lambda: one("GRU", layout=1.0), "'layout': expected int, got float"),
    "directions of the weights": (
        lambda: one("GRU", direction="bidirectional"),
        r"W: expected shape \(2, 12, 3\), got \(1, 12, 3\)",
    ),
    "size": (
        lambda: model([node("GRU", "XWRB", 5)], weights("GRU", I, H)),
        "attribute 'hidden_size': expected 4 by the weights, got 5",
    ),
    "size of 0": (
        lambda: model([node("GRU", "XWRB", 0)], weights("GRU", I, H)),
        "attribute 'hidden_size': expected 4 by the weights, got 0",
    ),
    "an attribute twice": (
        lambda: model([twice(node("GRU", "XWRB", H))], weights("GRU", I, H)),
        "expected each attribute once",
    ),
    "a bias that does not fit": (
        lambda: one("GRU", tensors={"B": np.zeros((1, 12), np.float32)}),
        r"B: expected shape \(1, 24\)",
    ),
    "weights that are given": (
        lambda: model([node("GRU", "XWR", H)], {"R": weights("GRU", I, H)["R"]}, ["X", "W"]),
        "W: expected a constant, but it depends on the input 'W'",
    ),
    "weights that are computed": (
        lambda: model(
            [helper.make_node("Tanh", ["R"], ["W"], "squash"), node("GRU", "XWR", H)],
            {"R": weights("GRU", H, H)["R"]},
        ),
        "W: expected a constant, but it depends on 'W' of Tanh 'squash'",
    ),
    "two dtypes": (
        lambda: one("GRU", tensors={"B": np.zeros((1, 24))}), "expected weights of one dtype",
    ),
    "whole numbers": (
        lambda: one("GRU", tensors={"B": np.zeros((1, 24), np.int32)}),
        "B: expected float32 or float64, got int32",
    ),
    "no weights": (lambda: model([node("GRU", "XR", H)], weights("GRU", I, H)), "W and R, got"),
    "too many inputs": (
        lambda: model([helper.make_node("RNN", list("XWRBabcde"), ["Y"])], {}),
        "expected 3 to 6 inputs, got 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_nodes_are_named(what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=rf"^the model: node 'Y' \((GRU|LSTM|RNN)\): .*{message}"):
        from_onnx(make())


def test_models_without_recurrent_nodes() -> None:
    made = model([helper.make_node("Tanh", ["X"], ["Y"])], {})
    with pytest.raises(ValueError, match=r"expected a node GRU, LSTM or RNN, got 'Tanh'.*from_arr"):
        from_onnx(made)


def test_refused_arguments() -> None:
    for wrong, kind in ((3, "int"), (None, "NoneType")):
        with pytest.raises(
            TypeError, match=f"source: expected the name of a file, .*, got {kind}$"
        ):
            from_onnx(wrong)
    made = one("GRU")
    with pytest.raises(TypeError, match="dtype: expected dtype float32 or float64"):
        from_onnx(made, dtype="float16")
    with pytest.raises(TypeError, match="merge: expected True or False"):
        from_onnx(made, merge=1)  # type: ignore[arg-type]


def test_a_gru_of_pytorch_that_is_not() -> None:
    made = one("GRU")
    made.producer_name = "pytorch"
    with pytest.warns(UserWarning, match="the model: 'Y': linear_before_reset=0 in a file of PyT"):
        found = from_onnx(made)
    assert "whose own GRU is the other one" in found["Y"].notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = one("GRU", linear_before_reset=1)
        made.producer_name = "pytorch"
        assert from_onnx(made)["Y"].notes == ()


# --- stacks ---------------------------------------------------------------------------------------

JOINS: dict[str, tuple[int, list[tuple[str, list[str], dict[str, Any]]]]] = {
    "Squeeze": (1, [("Squeeze", ["Y0", "axis"], {})]),
    "Reshape": (1, [("Reshape", ["Y0", "flat"], {})]),
    "Transpose, Reshape": (
        2, [("Transpose", ["Y0"], {"perm": [0, 2, 1, 3]}), ("Reshape", ["0", "shape"], {})],
    ),
    "Squeeze, Slice": (
        1, [("Squeeze", ["Y0", "axis"], {}), ("Slice", ["0", "first", "last", "first"], {})],
    ),
    "Split, Concat": (
        2,
        [("Split", ["Y0"], {"axis": 1}), ("Concat", ["0", "0b"], {"axis": 3}),
         ("Squeeze", ["1", "axis"], {})],
    ),
}  # fmt: skip
WRONG: dict[str, tuple[int, list[tuple[str, list[str], dict[str, Any]]]]] = {
    "directions that are not side by side": (2, [("Reshape", ["Y0", "shape"], {})]),
    "samples for steps": (
        1, [("Squeeze", ["Y0", "axis"], {}), ("Transpose", ["0"], {"perm": [1, 0, 2]})],
    ),
    "a step late": (
        1, [("Squeeze", ["Y0", "axis"], {}), ("Slice", ["0", "axis", "ends", "first"], {})],
    ),
    "directions exchanged": (
        2,
        [("Split", ["Y0"], {"axis": 1}), ("Concat", ["0b", "0"], {"axis": 3}),
         ("Squeeze", ["1", "axis"], {})],
    ),
    "the first steps": (
        1, [("Squeeze", ["Y0", "axis"], {}), ("Slice", ["0", "first", "two", "first"], {})],
    ),
    "many steps, not all": (
        1, [("Squeeze", ["Y0", "axis"], {}), ("Slice", ["0", "first", "ends", "first"], {})],
    ),
    "the last steps": (
        1, [("Squeeze", ["Y0", "axis"], {}), ("Slice", ["0", "back", "last", "first"], {})],
    ),
    "two steps, taken": (
        1, [("Squeeze", ["Y0", "axis"], {}), ("Gather", ["0", "both"], {"axis": 0})],
    ),
    "a function on the way": (1, [("Squeeze", ["Y0", "axis"], {}), ("Tanh", ["0"], {})]),
}  # fmt: skip


def stacked(D: int, steps: Any, *, outputs: Any, op: str = "GRU", **second: Any) -> Any:
    """Two nodes, the second of which reads what these steps make of the first one's Y0."""
    tensors = {"axis": ints(1), "shape": ints(0, 0, D * H), "flat": ints(0, -1, H)}
    tensors |= {"ends": ints(99), "first": ints(0), "two": ints(2), "both": ints(0, 1)}
    tensors |= {"back": ints(-99), "last": ints(2**63 - 1)}
    direction = "bidirectional" if D == 2 else "forward"
    nodes = []
    for number, size in enumerate((I, D * H)):
        parts = weights(op, size, H, D, number)
        tensors |= {f"{name}{number}": array for name, array in parts.items()}
        own = {"direction": direction} | ({"linear_before_reset": 1} if op == "GRU" else {})
        nodes.append(
            helper.make_node(
                op,
                [f"X{number}", *(f"{name}{number}" for name in parts)],
                [f"Y{number}", f"h{number}"],
                f"node_{number}",
                hidden_size=H,
                **(own | (second if number else {})),
            )
        )
    path = []
    for number, (step, inputs, attributes) in enumerate(steps):
        last = number == len(steps) - 1
        made = ["X1" if last else str(number), *(["0b"] if step == "Split" else [])]
        path.append(helper.make_node(step, inputs, made, **attributes))
    return model([nodes[0], *path, nodes[1]], tensors, ["X0"], outputs)


@pytest.mark.parametrize("op", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("join", JOINS)
def test_stacks_are_merged(join: str, op: str) -> None:
    D, steps = JOINS[join]
    made = stacked(D, steps, outputs=["Y1", "h0", "h1"], op=op)
    assert [*from_onnx(made)] == ["node_0", "node_1"]
    found = from_onnx(made, merge=True)
    assert [*found] == ["node_0"]
    layer = found["node_0"]
    assert (layer.params.num_layers, layer.params.num_directions) == (2, D)
    assert layer.notes == ("merged from node_0, node_1",)
    assert layer.sources["weight_ih_l1"] == "node_1: W[0]: W1"
    x = drawn(np.random.default_rng(1), 7, 5, I)
    y, h_n = fastgru.forward(x, found.only, time_major=True)
    want_y, *want_h = run(made, {"X0": x})
    bound = 30 * EPS32 * H  # two layers, whose sums are up to H
    assert np.abs(y - want_y.transpose(0, 2, 1, 3).reshape(y.shape)).max() <= bound
    assert np.abs(as_members(h_n)[0] - np.concatenate(want_h)).max() <= bound


@pytest.mark.parametrize("what", WRONG)
def test_other_paths_are_not_merged(what: str) -> None:
    D, steps = WRONG[what]
    assert [*from_onnx(stacked(D, steps, outputs=["Y1"]), merge=True)] == ["node_0", "node_1"]


def of_two_operators() -> Any:
    """An RNN on a GRU of the same sizes."""
    made, other = (stacked(1, SQUEEZE, outputs=["Y1"], op=op) for op in ("GRU", "RNN"))
    tensors = {tensor.name: tensor for tensor in (*made.graph.initializer,)}
    tensors |= {t.name: t for t in other.graph.initializer if t.name in ("W1", "R1", "B1")}
    nodes = [*made.graph.node[:-1], other.graph.node[-1]]
    return model(nodes, tensors, ["X0"], ["Y1"])


def with_lengths_above() -> Any:
    made = stacked(1, SQUEEZE, outputs=["Y1"])
    made.graph.initializer.append(numpy_helper.from_array(np.array([3], np.int32), "lengths"))
    made.graph.node[-1].input.append("lengths")
    return made


def read_in_a_body() -> Any:
    """A body of an If reads y, too."""
    made = stacked(1, SQUEEZE, outputs=["Y1"])
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    bodies = [
        helper.make_graph([helper.make_node("Tanh", ["Y0"], ["out"])], name, [], [value])
        for name in ("yes", "no")
    ]
    branch = helper.make_node("If", ["f"], ["Z"], then_branch=bodies[0], else_branch=bodies[1])
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "f"))
    made.graph.node.append(branch)
    return made


def with_states(below: str, above: str) -> Any:
    """States of the two nodes: a constant for one of them, an input of the model for the other."""
    made = stacked(1, SQUEEZE, outputs=["Y1"])
    made.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, H), np.float32), "state"))
    made.graph.input.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, None))
    for own, name in zip((made.graph.node[0], made.graph.node[-1]), (below, above), strict=True):
        own.input.extend(["", name])
    return made


def on_a_constant() -> Any:
    made = stacked(1, SQUEEZE, outputs=["Y1"])
    made.graph.node[-1].input[0] = "constant"
    x = np.zeros((5, 2, H), np.float32)
    made.graph.initializer.append(numpy_helper.from_array(x, "constant"))
    return made


SQUEEZE = JOINS["Squeeze"][1]
SEPARATE = {
    "y is a result": lambda: stacked(1, SQUEEZE, outputs=["Y1", "Y0"]),
    "what is made of y is a result": lambda: stacked(1, SQUEEZE, outputs=["Y1", "X1"]),
    "a body reads y": read_in_a_body,
    "two operators": of_two_operators,
    "two cells": lambda: stacked(1, SQUEEZE, outputs=["Y1"], linear_before_reset=0),
    "two directions": lambda: stacked(1, SQUEEZE, outputs=["Y1"], direction="reverse"),
    "lengths of one alone": with_lengths_above,
    "a constant x": on_a_constant,
    "a state given for one alone": lambda: with_states("given", "state"),
}


@pytest.mark.parametrize("what", SEPARATE)
def test_nodes_that_are_no_stack(what: str) -> None:
    assert [*from_onnx(SEPARATE[what](), merge=True)] == ["node_0", "node_1"]


def test_notes_of_a_stack() -> None:
    """What is said of one layer names it."""
    made = with_states("given", "given")
    note = "initial_h comes from the input 'given': give the same to forward"
    merged = "merged from node_0, node_1"
    assert from_onnx(made, merge=True)["node_0"].notes == (merged, note)
    del made.graph.node[-1].input[-2:]
    assert from_onnx(made, merge=True)["node_0"].notes == (merged, f"node_0: {note}")


def test_stacks_in_functions() -> None:
    """A function of two nodes, called twice with other weights."""
    inside = stacked(1, SQUEEZE, outputs=["Y1"])
    own = {tensor.name: tensor for tensor in inside.graph.initializer}
    names = ["W0", "R0", "B0", "W1", "R1", "B1"]
    constant = helper.make_node("Constant", [], ["axis"], value=own["axis"])
    function = helper.make_function(
        "own", "Two", ["X0", *names], ["Y1"], [constant, *inside.graph.node],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    twofold = {name: 2 * numpy_helper.to_array(own[name]) for name in names}
    tensors = own | {f"{name}x": array for name, array in twofold.items()}
    calls = [
        helper.make_node(
            "Two", ["X", *(f"{name}{end}" for name in names)], [out], out, domain="own"
        )
        for end, out in (("", "a"), ("x", "b"))
    ]
    made = with_functions(model(calls, tensors, ["X"], ["a", "b"]), function)
    found = from_onnx(made, merge=True)
    assert [*found] == ["a/node_0", "b/node_0"]
    one_fold, two_fold = (layer.params for layer in found.values())
    plain = from_onnx(inside, merge=True).only
    assert same(one_fold, plain)
    assert same(two_fold, plain.map(lambda w: 2 * w))


def test_states_of_a_stack() -> None:
    """Zeros stand for the state of a layer that has none; biases likewise."""
    made = stacked(1, SQUEEZE, outputs=["Y1"])
    h = drawn(np.random.default_rng(0), 1, 1, H)
    made.graph.initializer.append(numpy_helper.from_array(h, "state"))
    made.graph.node[-1].input.extend(["", "state"])
    del made.graph.node[0].input[3]
    (layer,) = from_onnx(made, merge=True).values()
    assert np.array_equal(layer.initial[0], np.concatenate([np.zeros((1, H)), h[0]]))
    assert layer.notes == ("merged from node_0, node_1",)
    assert (layer.params.to_dict()["bias_ih_l0"] == 0).all()
    assert layer.sources["bias_ih_l0"] == "node_0: zeros"
    x = drawn(np.random.default_rng(1), 7, 5, I)
    y, _ = fastgru.forward(x, layer.params, layer.initial_state(5), time_major=True)
    made.graph.node[-1].input[-1] = "states"
    made.graph.initializer.append(numpy_helper.from_array(np.repeat(h, 5, axis=1), "states"))
    (want,) = run(made, {"X0": x})
    assert np.abs(y - want[:, 0]).max() <= 30 * EPS32 * H
