"""`from_rtneural`, `to_rtneural`: both forms of RTNeural's JSON, with every weight to the bit."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_same_bits

import fastgru
from fastgru.io.rtneural import from_rtneural, to_rtneural

CELLS = ("gru", "lstm")
each_cell = pytest.mark.parametrize("cell", CELLS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
I, H = 2, 4


def drawn(cell: str = "gru", dtype: str = "float32", **options: Any) -> fastgru.Params:
    return fastgru.init_params(I, H, cell=cell, dtype=dtype, rng=3, **options)


def without_recurrent_bias(params: fastgru.Params) -> fastgru.Params:
    """Params as an LSTM in the manner of Keras gives them."""
    arrays = params.to_dict()
    zeros = {k: np.zeros_like(a) for k, a in arrays.items() if k.startswith("bias_hh")}
    return fastgru.Params.from_dict(arrays | zeros, cell=params.cell)


def keras_model(cell: str, seed: int = 0) -> dict[str, Any]:
    """A model as RTNeural's python/model_utils.py writes it: a recurrent layer and a dense one."""
    draw, gates = np.random.default_rng(seed).uniform, {"gru": 3, "lstm": 4}[cell]
    bias = (2, 3 * H) if cell == "gru" else (4 * H,)
    kernels = [draw(-1, 1, s).astype("f4") for s in ((I, gates * H), (H, gates * H), bias)]
    dense = [draw(-1, 1, s).astype("f4").tolist() for s in ((H, 1), (1,))]
    return {
        "in_shape": [None, None, I],
        "layers": [
            {"type": cell, "activation": "tanh", "shape": [None, None, H],
             "weights": [array.tolist() for array in kernels]},
            {"type": "time-distributed-dense", "activation": "", "shape": [None, None, 1],
             "weights": dense},
        ],
    }  # fmt: skip


def keras_forward(cell: str, x: Any, weights: Any) -> Any:
    """h after each step, x (T, I), by Keras's equations, which RTNeural computes."""
    kernel, recurrent, bias = (np.array(w) for w in weights)
    h, c, outputs = np.zeros(H), np.zeros(H), []
    for row in x:
        if cell == "gru":
            x_z, x_r, x_n = np.split(row @ kernel + bias[0], 3)
            u_z, u_r, u_n = np.split(h @ recurrent + bias[1], 3)
            z, r = reference.sigmoid(x_z + u_z), reference.sigmoid(x_r + u_r)
            h = z * h + (1 - z) * np.tanh(x_n + r * u_n)
        else:
            i, f, g, o = np.split(row @ kernel + h @ recurrent + bias, 4)
            c = reference.sigmoid(f) * c + reference.sigmoid(i) * np.tanh(g)
            h = reference.sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


# --- layers in the manner of Keras ----------------------------------------------------------------


@each_cell
@both_dtypes
def test_a_model_of_keras_computes_what_its_equations_say(
    cell: str, dtype: str, tmp_path: Path
) -> None:
    model = keras_model(cell)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(model, indent=4))
    found = from_rtneural(path, dtype=dtype)
    assert found.origin == str(path)
    assert [*found] == ["layers[0]"]
    assert found.left_out == ("layers[1] 'time-distributed-dense'",)
    assert_same_bits(found.only, from_rtneural(model, dtype=dtype).only)
    assert found.only.dtype == dtype
    x = np.random.default_rng(1).uniform(-1, 1, (30, I)).astype(dtype)
    y, _ = fastgru.forward(x, found.only)
    expected = keras_forward(cell, x.astype("float64"), model["layers"][0]["weights"])
    # Each step rounds a few sums of I + H numbers below 1, and the states contract.
    np.testing.assert_allclose(y, expected, rtol=0, atol=50 * np.finfo(dtype).eps)


def test_sources_and_names() -> None:
    model = keras_model("lstm")
    model["layers"][0]["name"], model["layers"][1]["name"] = "rec", "head"
    model |= {"in_skip": 1, "samplerate": 48000}
    found = from_rtneural(model)
    assert found["rec"].sources == {
        "weight_ih_l0": "layers[0].weights[0]",
        "weight_hh_l0": "layers[0].weights[1]",
        "bias_ih_l0": "layers[0].weights[2]",
        "bias_hh_l0": "zeros",
    }
    assert found.left_out == ("head 'time-distributed-dense'", "in_skip", "samplerate")
    model["layers"][1]["type"] = ["gru"]  # JSON says anything
    assert from_rtneural(model).left_out[0] == "head ['gru']"
    model["layers"][1]["name"] = "rec"  # names that are no names
    assert [*from_rtneural(model)] == ["layers[0]"]


@each_cell
@both_dtypes
@pytest.mark.parametrize("layers", [1, 3])
def test_what_is_written_is_read(cell: str, dtype: str, layers: int, tmp_path: Path) -> None:
    params = drawn(cell, dtype, num_layers=layers)
    if cell == "lstm":
        params = without_recurrent_bias(params)
    path = tmp_path / "model.json"
    made = to_rtneural(params, path)
    assert json.loads(path.read_text()) == made
    assert made["in_shape"] == [None, None, I]
    found = from_rtneural(path, dtype=dtype)
    assert [*found] == [f"layers[{number}]" for number in range(layers)]
    for number, layer in enumerate(found.values()):
        expected = dict(params.layers[number][0].items())
        for name, array in layer.params.layers[0][0].items():
            assert array.tobytes() == expected[name].tobytes()


def test_an_lstm_has_the_sum_of_its_biases() -> None:
    params = drawn("lstm")
    arrays = params.to_dict()
    made = from_rtneural(to_rtneural(params), dtype="float64").only.to_dict()
    both = arrays["bias_ih_l0"].astype("f8") + arrays["bias_hh_l0"].astype("f8")
    assert (made["bias_ih_l0"] == both).all()
    assert not made["bias_hh_l0"].any()


@each_cell
def test_missing_biases_are_zeros(cell: str) -> None:
    made = from_rtneural(to_rtneural(drawn(cell, bias=False))).only
    assert made.bias
    assert not made.to_dict()["bias_ih_l0"].any()
    model = keras_model(cell)
    del model["layers"][0]["weights"][2]
    assert not from_rtneural(model).only.bias


def test_two_layers_of_keras_are_two() -> None:
    model = to_rtneural(drawn("gru"))
    model["layers"] += to_rtneural(fastgru.init_params(H, 3, cell="lstm", rng=0))["layers"]
    found = from_rtneural(model)
    assert [layer.params.cell for layer in found.values()] == ["gru", "lstm"]
    with pytest.raises(ValueError, match="mapping: expected one recurrent layer, got 'layers"):
        _ = found.only


def test_arrays_of_another_library_are_written_from_copies(simulated: Any) -> None:
    for style in ("keras", "pytorch"):
        written = to_rtneural(drawn().map(simulated.asarray), style=style)
        assert written == to_rtneural(drawn(), style=style)


# --- state dicts ----------------------------------------------------------------------------------


@each_cell
@both_dtypes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "gru", "rec."])
def test_a_state_dict_written_and_read(
    cell: str, dtype: str, bias: bool, prefix: str, tmp_path: Path
) -> None:
    params = drawn(cell, dtype, bias=bias)
    path = tmp_path / "model.json"
    made = to_rtneural(params, path, style="pytorch", prefix=prefix)
    assert json.loads(path.read_text()) == made
    start = f"{prefix}." if prefix == "gru" else prefix
    assert [*made] == [start + key for key in params.to_dict()]
    found = from_rtneural(path, dtype=dtype)
    assert [*found] == [prefix.removesuffix(".")]
    assert_same_bits(found.only, params)


def test_state_dicts_of_several_modules() -> None:
    first, second = drawn("gru"), drawn("lstm", num_layers=2, bidirectional=True)
    state_dict = {f"a.{k}": w.tolist() for k, w in first.to_dict().items()}
    state_dict |= {f"b.{k}": w.tolist() for k, w in second.to_dict().items()}
    state_dict |= {"dense.weight": [[1.0]], "dense.bias": [1.0]}
    for model, beside in (
        (state_dict, ()),
        ({"model_data": {"unit_type": "GRU", "skip": 1}, "state_dict": state_dict},
         ("model_data",)),
    ):  # fmt: skip
        found = from_rtneural(model)
        assert_same_bits(found["a"].params, first)
        assert_same_bits(found["b"].params, second)
        assert found.left_out == ("dense.weight", "dense.bias", *beside)


def test_arrays_in_place_of_lists() -> None:
    params = drawn("gru", "float64")
    assert_same_bits(from_rtneural(params.to_dict(), dtype="float64").only, params)


# --- refusals -------------------------------------------------------------------------------------


def changed(cell: str, change: Any) -> dict[str, Any]:
    model = keras_model(cell)
    change(model["layers"][0])
    return model


def member(place: int, value: Any) -> Any:
    return lambda layer: layer["weights"].__setitem__(place, value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "expected 'layers', or keys such as weight_ih_l0, .* got nothing"),
        ({"a": 1, "b": 2}, "or keys such as weight_ih_l0, .* got 'a', 'b'"),
        ({"state_dict": {"a": [1.0]}}, "or keys such as weight_ih_l0"),
        ({"layers": {}}, "layers: expected a list of objects, got dict"),
        ({"layers": [3]}, "layers: expected a list of objects"),
        ({"in_shape": 3, "layers": []}, "in_shape: expected a list of sizes, got 3"),
        ({"in_shape": [], "layers": []}, r"in_shape: expected a list of sizes, got \[\]"),
        (keras_model("gru") | {"in_shape": [None, None, 7]},
         r"layers\[0\]: expected 7 inputs, by the shapes, got 2"),
        (changed("gru", lambda of: of.update(shape=[None, None, 5])), "expected 5 units, .* got 4"),
        (changed("gru", lambda of: of.update(activation="relu")),
         r"layers\[0\]: expected activation 'tanh', got 'relu'"),
        (changed("gru", lambda of: of.update(weights=[])), "weights: expected kernel, recurrent"),
        (changed("gru", lambda of: of.pop("weights")), "weights: expected kernel, recurrent"),
        (changed("gru", member(2, [0.5] * 12)),
         r"weights\[2\]: expected shape \(2, 3\*H\), .* got \(12,\): RTNeural has no other GRU"),
        (changed("lstm", member(2, [0.5] * 15)), r"expected shape .*16.*, got \(15,\)"),
        (changed("lstm", member(0, [0.5] * 16)), r"weights\[0\]: expected a matrix, got .*\(16,\)"),
        (changed("lstm", member(0, [[0.5] * 32])), "layers|weight_hh_l0: expected shape"),
        (changed("gru", member(1, [[1.0], [1.0, 2.0]])),
         r"weights\[1\]: expected lists of equal length, got \[1, 2\]"),
        (changed("gru", member(1, [[1.0], ["2"]])), "nested lists of numbers, got str among them"),
        (changed("gru", member(1, [[1.0], [None]])), "nested lists of numbers, got NoneType among"),
        (changed("gru", member(1, [[1.0], [True]])), "nested lists of numbers, got bool among"),
        (changed("gru", member(1, [[1.0], 2.0])), "nested lists of numbers, got list among them"),
        (changed("gru", member(1, "abc")), "nested lists of numbers, got str among them"),
        (changed("gru", member(1, [[10**400]])), r"weights\[1\]: .* too large"),
        (changed("gru", member(1, [[1e39]])), "expected numbers that float32 has, got larger ones"),
        (changed("gru", member(1, [[float("inf")]])), "expected numbers that float32 has"),
        (changed("gru", member(1, [[float("nan")]])), "expected numbers that float32 has"),
        ({"weight_ih_l0": [[1.0]], "weight_hh_l0": 3}, "weight_hh_l0: expected a matrix, got"),
        ({"weight_ih_l0": [[1.0]]}, "module '': weight_hh_l0 is missing"),
    ],
)  # fmt: skip
def test_models_that_are_refused(model: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^mapping: .*({message})"):
        from_rtneural(model)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(model))
    with pytest.raises(ValueError, match=f"^{path}: "):
        from_rtneural(path)


def test_arguments_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="dtype: expected dtype float32 or float64"):
        from_rtneural({}, dtype="int32")
    with pytest.raises(TypeError, match=r"source: expected .* path of a JSON file, got int"):
        from_rtneural(3)  # type: ignore[arg-type]
    for change, message in (
        ({"params": drawn("gru", bidirectional=True)}, "RTNeural has no second direction"),
        ({"style": "onnx"}, "style: expected one of keras, pytorch, got 'onnx'"),
        ({"style": "pytorch", "params": drawn("gru", num_layers=2)}, "not weight_ih_l1: .*'keras'"),
        ({"prefix": "a"}, "prefix: expected none"),
        (
            {"params": drawn().map(lambda w: w * np.inf)},
            "weight_ih_l0: JSON has finite numbers alone",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            to_rtneural(**({"params": drawn(), "path": tmp_path / "a"} | change))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="params: expected Params, got dict"):
        to_rtneural({})  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_cells_that_rtneural_has_not() -> None:
    for cell in fastgru.cells():
        if cell not in CELLS:
            with pytest.raises(ValueError, match=f"RTNeural has no layer for cell {cell!r}"):
                to_rtneural(fastgru.init_params(3, 4, cell=cell, rng=0))


# --- hostile files --------------------------------------------------------------------------------


def refusal(content: bytes, folder: Path) -> str:
    """Why a file is refused, in little memory; "" if it is read."""
    path = folder / "hostile.json"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        from_rtneural(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        return str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 30 * len(content) + 200_000
    return ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"layers":' + b"[" * 100_000, "nested deeper than 12"),
        (b'{"layers":' + b"[" * 11 + b"]" * 11 + b"}", "layers: expected a list of objects"),
        (b'{"a":' * 50_000, "nested deeper than 12"),
        (b'{"layers": [NaN]}', "NaN is no JSON"),
        (b'{"layers": [-Infinity]}', "-Infinity is no JSON"),
        (b'{"layers": [], "layers": []}', "a name comes twice"),
        (b'{"layers": ' + b"1" * 5000 + b"}", "it is no JSON"),
        (b'{"layers": [}', "it is no JSON"),
        (b'{"layers": "\xff"}', "it is no JSON"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b"{" + b'"a":[' + b"[]," * 100_000 + b"[]]}", "or keys such as weight_ih_l0"),
        (b'{"weight_ih_l0":[' + b"[]," * 100_000 + b"[]]}", "weight_hh_l0 is missing"),
        (b"abc", "expected a file of safetensors, Keras"),
        (b"", "expected a file of safetensors, Keras"),
        (b"\x80\x04abc", "it is a pickle"),
    ],
)
def test_hostile_files(content: bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(content, tmp_path)


def test_files_of_absurd_length(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)  # takes no room
    with pytest.raises(
        ValueError, match=r"long\.json: expected JSON of at most 67108864 bytes, got"
    ):
        from_rtneural(path)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf \n" + json.dumps(keras_model("gru")).encode()
    assert refusal(content, tmp_path) == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rtneural")


CONTENTS = [
    json.dumps(model).encode()
    for model in (keras_model("gru"), keras_model("lstm"),
                  to_rtneural(drawn("lstm"), style="pytorch", prefix="rec"))
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_cut_files(folder: Path, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(CONTENTS))
    assert refusal(content[: data.draw(st.integers(0, len(content) - 1))], folder)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bits(folder: Path, data: st.DataObject) -> None:
    """A refusal, or what the text now says: weights have no checksum."""
    content = bytearray(data.draw(st.sampled_from(CONTENTS)))
    places = st.integers(0, 8 * 300) | st.integers(0, 8 * len(content) - 1)
    for bit in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[bit // 8] ^= 1 << bit % 8
    if not refusal(bytes(content), folder):
        found, said = from_rtneural(folder / "hostile.json"), from_rtneural(json.loads(content))
        assert [*found] == [*said]
        assert found.left_out == said.left_out
        for name, layer in found.items():
            assert_same_bits(layer.params, said[name].params)
