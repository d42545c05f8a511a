"""`from_keras` and `to_keras`: files of Keras and its own answers; equations, written out.

The files are in data/keras; `make.py` beside them says how they were made.
"""

import copy
import gzip
import io as streams
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import toys
from problems import assert_same_bits

import fastgru
from fastgru.io.keras import from_keras, to_keras
from fastgru.io.keras_config import layers_in, snake_case
from fastgru.io.stacking import stack_layers

DATA = Path(__file__).parent / "data" / "keras"
CELLS = ("gru", "gru_reset_before", "lstm", "rnn_tanh", "rnn_relu")
WHOLE = ("many.keras", "many.h5", "old.keras", "old.h5")
# 5 steps of sums of at most 16 products of numbers below 1; states, and their errors, stay near 1.
TOLERANCE = 64 * float(np.finfo("float32").eps)


def unpacked(name: str, folder: Path) -> Path:
    """A file of the data, as Keras wrote it."""
    path = folder / name
    path.write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))
    return path


def answers(name: str) -> dict[str, Any]:
    with np.load(DATA / f"{name}.npz") as arrays:
        return dict(arrays)


def arrays_of(of: Mapping[str, Any], key: str) -> list[Any]:
    """What `get_weights` gave for a layer."""
    return [of[f"{key}.{n}"] for n in range(6) if f"{key}.{n}" in of]


def config_of(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("config.json"))


def changed(path: Path, change: Callable[[Any], Any]) -> Path:
    """An archive whose configuration is another one."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    made = path.with_name("changed.keras")
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made


def layer_config(config: Any, name: str) -> Any:
    """The configuration of a layer of the outermost model."""
    return next(la["config"] for la in config["config"]["layers"] if la["config"]["name"] == name)


# --- files ----------------------------------------------------------------------------------------

# What Keras makes of y, of (N, T, H) or two of them side by side, and the last states.
AS_KERAS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda y, h: y[..., :3] + y[..., 3:],
    "last": lambda y, h: np.concatenate([h[0], h[1]], axis=-1),
}


@pytest.mark.parametrize("name", WHOLE)
def test_layers_of_a_file_compute_what_keras_computed(name: str, tmp_path: Path) -> None:
    found, given = from_keras(unpacked(name, tmp_path)), answers(name.partition(".")[0])
    assert [*found] == [
        *("both", "wrapped", "stack/gru_cell", "stack/gru_cell_1", "inner/gru", "inner/lstm"),
        *("before", "bare", "sum", "tanh", "relu", "reversed", "last"),
    ]
    check_against(found, given)
    left = "\n".join(found.left_out)
    assert "inner/mix: Dense (4, 4), (4,)" in found.left_out
    assert "steps/dense: Dense (3, 2), (2,)" in found.left_out
    assert "masking: Masking no weights" in found.left_out
    assert "optimizer" in left
    assert all("masking" in "".join(layer.notes) for layer in found.values())
    for layer in found.values():
        assert set(layer.sources) == set(layer.params.to_dict())


def check_against(found: Any, given: Mapping[str, Any]) -> None:
    names = {key[:-2] for key in given if key.endswith(".x")}
    for name in names:
        params = (
            stack_layers(found, ["stack/gru_cell", "stack/gru_cell_1"])
            if name == "stack"
            else found[name].params
        )
        x = given[f"{name}.x"]
        x = x[:, ::-1].copy() if name == "reversed" else x
        y, state = fastgru.forward(x, params)
        made = AS_KERAS.get(name, lambda y, h: y)(y, state[0] if type(state) is tuple else state)
        np.testing.assert_allclose(made, given[f"{name}.y"], atol=TOLERANCE, err_msg=name)


def test_a_file_of_weights_alone(tmp_path: Path) -> None:
    path = unpacked("many.weights.h5", tmp_path)
    with pytest.raises(ValueError, match=r"weights.h5: bare: without biases only cell="):
        from_keras(path)
    found = from_keras(path, cell={"bare": "gru", "relu": "rnn_relu"})
    check_against(found, answers("many"))
    assert found.left_out[0] == "inner/mix: (4, 4), (4,)"
    assert "only shapes are known: taken as LSTM" in str(found["wrapped"])


def test_layers_of_one_name(tmp_path: Path) -> None:
    """Attributes of a model may be layers of one name; then their places are their names."""
    given, path = answers("lists"), tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        for place, called, key in (("a", "gru", "gru"), ("b", "gru", "gru"), ("c", "x", "lstm")):
            file.create_group(f"{place}/vars").attrs["name"] = called
            for number, array in enumerate(arrays_of(given, f"{key}.bias.one")):
                file[f"{place}/cell/vars/{number}"] = array + (place == "b")
    found = from_keras(path)
    assert [*found] == ["a", "b", "x"]
    for name in ("a", "b"):
        arrays = [array + (name == "b") for array in arrays_of(given, "gru.bias.one")]
        assert_same_bits(found[name].params, from_keras(arrays).only)


def test_a_direction_without_biases(tmp_path: Path) -> None:
    arrays, path = arrays_of(answers("lists"), "lstm.bias.both"), tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        for side, given in (("forward_layer", arrays[:3]), ("backward_layer", arrays[3:5])):
            for number, array in enumerate(given):
                file[f"both/{side}/cell/vars/{number}"] = array
    found = from_keras(path)
    assert_same_bits(found.only, from_keras([*arrays[:5], np.zeros_like(arrays[5])]).only)
    assert found["both"].sources["bias_ih_l0_reverse"] == "zeros"


@pytest.mark.parametrize("name", ["many.h5", "old.h5"])
def test_weights_alone_as_keras_2_has_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    with h5py.File(unpacked(name, tmp_path)) as model, h5py.File(path, "w") as weights:
        for key in model["model_weights"]:
            model.copy(f"model_weights/{key}", weights)
        weights.attrs["layer_names"] = model["model_weights"].attrs["layer_names"]
    with pytest.raises(ValueError, match="bare: without biases"):
        from_keras(path)
    found = from_keras(path, cell={"bare": "gru", "relu": "rnn_relu"})
    whole = from_keras(tmp_path / name)
    for layer in ("both", "wrapped", "before", "bare", "sum", "tanh", "relu", "reversed", "last"):
        assert_same_bits(found[layer].params, whole[layer].params)
    inner = [name for name in found if name.startswith("inner/")]
    assert len(inner) == 2
    assert_same_bits(found[inner[0]].params, whole["inner/lstm"].params)


def test_names_in_parts(tmp_path: Path) -> None:
    """Lists of names that are too long for one attribute."""
    path = unpacked("many.h5", tmp_path)
    whole = from_keras(path)
    with h5py.File(path, "r+") as file:
        attributes = file["model_weights"].attrs
        names = [*attributes["layer_names"]]
        del attributes["layer_names"]
        attributes["layer_names0"], attributes["layer_names1"] = names[:3], names[3:]
    assert [*from_keras(path)] == [*whole]


@pytest.mark.parametrize("name", ["cudnn.h5", "cudnn.weights.h5"])
def test_cudnn_layers(name: str, tmp_path: Path) -> None:
    found = from_keras(unpacked(name, tmp_path))
    given = answers("cudnn")
    names = {"gru": "cu_dnngru", "lstm": "cu_dnnlstm", "both": "bidirectional"}
    for layer, other in names.items():
        read = found[layer if name == "cudnn.h5" else other]
        y, _ = fastgru.forward(given[f"{layer}.x"], read.params)
        np.testing.assert_allclose(y, given[f"{layer}.y"], atol=TOLERANCE)
        assert "CuDNN" in read.notes[0]
        assert "only shapes" not in str(read)


def test_cudnn_weights_in_a_layer_of_another_class(tmp_path: Path) -> None:
    path = unpacked("cudnn.h5", tmp_path)
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        settings = '"activation": "tanh", "recurrent_activation": "hard_sigmoid", "units"'
        config = config.replace("CuDNNGRU", "GRU").replace('"units"', settings)
        file.attrs["model_config"] = config
    with pytest.raises(ValueError, match=r"gru: expected GRU with .*got .*'hard_sigmoid'"):
        from_keras(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = config.replace("hard_sigmoid", "sigmoid")
    assert_same_bits(
        from_keras(path)["gru"].params,
        from_keras(unpacked("cudnn.weights.h5", tmp_path))["cu_dnngru"].params,
    )


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_bfloat16"])
def test_other_dtypes(dtype: str, suffix: str, tmp_path: Path) -> None:
    path = unpacked(dtype + suffix, tmp_path)
    exact = from_keras(arrays_of(answers(dtype), "gru")).only
    assert_same_bits(from_keras(path, dtype="float32").only, exact)
    assert_same_bits(
        from_keras(path, dtype="float64").only, exact.map(lambda array: array.astype("float64"))
    )
    if dtype.startswith("mixed"):
        assert_same_bits(from_keras(path).only, exact)
    else:
        with pytest.raises(ValueError, match=rf"{dtype}.*dtype='float32'"):
            from_keras(path)


# --- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", ["one", "both"])
@pytest.mark.parametrize("bias", ["bias", "bare"])
@pytest.mark.parametrize("cell", CELLS)
def test_lists_compute_what_keras_computed(cell: str, bias: str, both: str) -> None:
    given, key = answers("lists"), f"{cell}.{bias}.{both}"
    weights = arrays_of(given, key)
    is_told = cell == "rnn_relu" or (bias == "bare" and "gru" in cell)
    params = from_keras(weights, cell=cell if is_told else None).only
    assert params.cell == cell
    assert params.bias is (bias == "bias")
    assert params.bidirectional is (both == "both")
    y, _ = fastgru.forward(given[f"{key}.x"], params)
    np.testing.assert_allclose(y, given[f"{key}.y"], atol=TOLERANCE)
    (back,) = to_keras(params)
    assert len(back) == len(weights)
    for array, expected in zip(back, weights, strict=True):
        assert array.dtype == expected.dtype
        assert array.tobytes() == np.ascontiguousarray(expected).tobytes()
    if bias == "bare" and "gru" in cell:
        with pytest.raises(ValueError, match="without biases only cell="):
            from_keras(weights)


def split(kernel: Any, gates: int) -> list[Any]:
    """The blocks of columns that CuDNN layers of Keras hand to cuDNN, each flattened."""
    return [block.ravel() for block in np.split(kernel, gates, axis=1)]


def cudnn_gru(x: Any, kernel: Any, recurrent: Any, bias: Any, H: int) -> Any:
    """What cuDNN computes of CuDNNGRU's weights: flat runs of numbers, read as (H, I), (H, H)."""
    N, T, I = x.shape
    W_z, W_r, W_n = (w.reshape(H, I) for w in split(kernel, 3))
    U_z, U_r, U_n = (u.reshape(H, H) for u in split(recurrent, 3))
    b_z, b_r, b_n, c_z, c_r, c_n = np.split(bias, 6)
    h, y = np.zeros((N, H)), []
    for t in range(T):
        z = 1 / (1 + np.exp(-(x[:, t] @ W_z.T + b_z + h @ U_z.T + c_z)))
        r = 1 / (1 + np.exp(-(x[:, t] @ W_r.T + b_r + h @ U_r.T + c_r)))
        n = np.tanh(x[:, t] @ W_n.T + b_n + r * (h @ U_n.T + c_n))
        h = (1 - z) * n + z * h
        y.append(h)
    return np.stack(y, axis=1)


def cudnn_lstm(x: Any, kernel: Any, recurrent: Any, bias: Any, H: int) -> Any:
    """The same of CuDNNLSTM."""
    N, T, I = x.shape
    W = [w.reshape(H, I) for w in split(kernel, 4)]
    U = [u.reshape(H, H) for u in split(recurrent, 4)]
    biases = np.split(bias, 8)
    h, c, y = np.zeros((N, H)), np.zeros((N, H)), []
    for t in range(T):
        a = [x[:, t] @ W[g].T + biases[g] + h @ U[g].T + biases[4 + g] for g in range(4)]
        i, f, o = (1 / (1 + np.exp(-a[g])) for g in (0, 1, 3))
        c = f * c + i * np.tanh(a[2])
        h = o * np.tanh(c)
        y.append(h)
    return np.stack(y, axis=1)


@pytest.mark.parametrize(("gates", "oracle"), [(3, cudnn_gru), (4, cudnn_lstm)])
@pytest.mark.parametrize(("I", "H"), [(1, 4), (3, 5), (4, 4), (6, 2)])
def test_lists_of_cudnn_layers(gates: int, oracle: Callable[..., Any], I: int, H: int) -> None:
    rng = np.random.default_rng(I)
    shapes = (I, gates * H), (H, gates * H), (2 * gates * H,)
    weights = [rng.uniform(-1, 1, shape) for shape in shapes]
    x = rng.uniform(-1, 1, (3, 6, I))
    y, _ = fastgru.forward(x, from_keras(weights).only)
    np.testing.assert_allclose(y, oracle(x, *weights, H), rtol=0, atol=1e-13)


def test_lists_by_name() -> None:
    given = answers("lists")
    lists = {
        "first": arrays_of(given, "gru.bias.one"),
        "dense": [np.zeros((4, 2)), np.zeros(2)],
        "dropout": [],
        "second": arrays_of(given, "lstm.bias.both"),
    }
    found = from_keras(lists)
    assert {name: layer.params.cell for name, layer in found.items()} == {
        "first": "gru",
        "second": "lstm",
    }
    assert found.left_out == ("dense: (4, 2), (2,)", "dropout: no weights")
    assert found["first"].sources["bias_hh_l0"] == "first: weights[2]"
    assert not any("Bidirectional" in note for note in found["first"].notes)
    assert any("directions of Bidirectional" in note for note in found["second"].notes)
    assert [*from_keras(lists, layers=["second"])] == ["second"]
    with pytest.raises(ValueError, match=r"layers: expected names among .*, got 'third'"):
        from_keras(lists, layers=["third"])
    with pytest.raises(ValueError, match=r"cell: expected names among .*, got 'third'"):
        from_keras(lists, cell={"third": "gru"})


H, I = 4, 3
WRONG_LISTS = {
    "dense": [(I, H), (H,)],
    "five gates": [(I, 5 * H), (H, 5 * H), (5 * H,)],
    "no whole gates": [(I, 3 * H + 1), (H, 3 * H + 1)],
    "bias of another size": [(I, 3 * H), (H, 3 * H), (H,)],
    "bias of a GRU": [(I, 4 * H), (H, 4 * H), (2, 4 * H)],
    "kernels of two sizes": [(I, 3 * H), (H, 4 * H)],
    "one": [(I, 3 * H)],
    "none": [],
    "Keras 1": [(I, H), (H, H), (H,)] * 3,
    "no inputs": [(0, 3 * H), (H, 3 * H)],
    "two cells": [(I, 3 * H), (H, 3 * H), (2, 3 * H), (I, 4 * H), (H, 4 * H), (4 * H,)],
    "two sizes": [(I, 3 * H), (H, 3 * H), (2, 3 * H), (I, 6 * H), (2 * H, 6 * H), (2, 6 * H)],
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_wrong_lists(name: str) -> None:
    with pytest.raises(ValueError, match="expected") as refused:
        from_keras([np.zeros(shape) for shape in WRONG_LISTS[name]])
    assert ("Keras 2" in str(refused.value)) == (name == "Keras 1")


def test_wrong_arguments() -> None:
    weights = arrays_of(answers("lists"), "gru.bias.one")
    with pytest.raises(TypeError, match="source: expected the name of a file, a list"):
        from_keras(3)
    with pytest.raises(TypeError, match="source: expected"):
        from_keras({3: weights})
    with pytest.raises(TypeError, match=r"float16; dtype='float32'"):
        from_keras([w.astype("float16") for w in weights])
    with pytest.raises(TypeError, match="dtype: expected dtype float32 or float64"):
        from_keras(weights, dtype="float16")
    with pytest.raises(TypeError, match="cell: expected a cell's name"):
        from_keras(weights, cell=3)
    with pytest.raises(ValueError, match="cell: expected one of"):
        from_keras(weights, cell="GRU")
    for wrong in ("gru_reset_before", "lstm"):
        with pytest.raises(ValueError, match=f"bias of shape .* got cell='{wrong}'"):
            from_keras(weights, cell=wrong)
    with pytest.raises(TypeError, match="layers: expected a sequence"):
        from_keras(weights, layers="gru")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        from_keras(tmp_path / "none.keras")
    with pytest.raises(IsADirectoryError):
        from_keras(tmp_path)


def test_h5py_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unpacked("float16.h5", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fastgru\[keras\]"'):
        from_keras(path)
    from_keras(arrays_of(answers("float16"), "gru"))


# --- settings -------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "hard sigmoid": ("before", {"recurrent_activation": "hard_sigmoid"}, "'hard_sigmoid'"),
    "relu": ("wrapped.cell", {"activation": "relu"}, "activation='relu'"),
    "no activation": ("tanh", {"activation": None}, "activation='linear'"),
    "a function": ("tanh", {"activation": {"class_name": "function", "config": "f"}}, "'f'"),
    "of Keras 1": ("before", {"recurrent_activation": ...}, r"'\(missing\)'"),
    "units": ("before", {"units": 3}, "expected units=2"),
    "bias": ("before", {"use_bias": False}, "expected use_bias=True"),
    "no bias": ("bare", {"use_bias": True}, "expected use_bias=False"),
    "reset": ("before", {"reset_after": True}, "expected reset_after=False"),
    "reset not said": ("bare", {"reset_after": ...}, "'bare'"),
    "direction": ("both.layer", {"go_backwards": True}, "expected go_backwards=False"),
    "merged": ("sum", {"merge_mode": "max"}, "merge_mode 'max'"),
    "name": ("tanh", {"name": 3}, "expected a layer's name, got 3"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_not_the_cells(case: str, tmp_path: Path) -> None:
    name, settings, message = SETTINGS[case]
    name, _, inner = name.partition(".")

    def change(config: Any) -> None:
        changed = layer_config(config, name)
        changed = changed[inner]["config"] if inner else changed
        for key, value in settings.items():
            if value is ...:
                del changed[key]
            else:
                changed[key] = value

    path = changed(unpacked("many.keras", tmp_path), change)
    with pytest.raises(ValueError, match=message) as refused:
        from_keras(path)
    assert str(path) in str(refused.value)
    if case not in ("name", "direction", "merged"):
        others = [other for other in from_keras(tmp_path / "many.keras") if other != name]
        found = from_keras(path, layers=others)
        assert [*found] == others
        assert f"{name}: not asked for" in found.left_out


def test_settings_that_a_user_should_know_are_notes(tmp_path: Path) -> None:
    def change(config: Any) -> None:
        layer_config(config, "before").update(stateful=True, recurrent_dropout=0.5)
        layer_config(config, "before").update(implementation=1, unroll=True)
        layer_config(config, "sum").update(merge_mode=None)

    plain = from_keras(unpacked("many.keras", tmp_path))
    found = from_keras(changed(tmp_path / "many.keras", change))
    new = [note for note in found["before"].notes if note not in plain["before"].notes]
    assert [note.partition(":")[0] for note in new] == ["stateful", "recurrent_dropout"]
    assert "y[..., :H] and y[..., H:]" in found["sum"].notes[0]
    assert "go_backwards" in plain["reversed"].notes[0]
    assert "dropout" in plain["inner/gru"].notes[0]
    assert "h_n[0] and h_n[1]" in plain["last"].notes[0]


def test_a_cell_of_ones_own_takes_what_no_other_does(tmp_path: Path) -> None:
    def change(config: Any) -> None:
        layer_config(config, "before")["recurrent_activation"] = "hard_sigmoid"

    path = unpacked("many.keras", tmp_path)
    plain = from_keras(path)["before"].params
    toy = next(
        (
            toy.name
            for toy in toys.TOYS
            if {*toy.gates} == {*"rzn"} and toy.name not in CELLS and toy.norm is None
        ),
        None,
    )
    own = toy or "augru"  # of the same gates
    found = from_keras(changed(path, change), cell={"before": own})
    assert found["before"].params.cell == own
    read = found["before"].params.to_dict()["weight_hh_l0"]
    blocks = dict(zip(fastgru.cell.CELLS[own].gates, np.split(read, 3), strict=True))
    expected = np.split(plain.to_dict()["weight_hh_l0"], 3)
    for gate, block in zip("rzn", expected, strict=True):
        assert np.array_equal(blocks[gate], block)
    with pytest.raises(ValueError, match=r"is a GRU that is fastgru's 'gru_reset_before'"):
        from_keras(path, cell={"before": "gru"})


def test_classes_that_are_not_keras_own(tmp_path: Path) -> None:
    def change(config: Any) -> None:
        layer = next(la for la in config["config"]["layers"] if la["config"]["name"] == "before")
        layer |= {"module": "mine.layers", "registered_name": "mine>GRU"}

    path = changed(unpacked("many.keras", tmp_path), change)
    found = from_keras(path)
    assert "before" not in found
    (left,) = [left for left in found.left_out if left.startswith("before")]
    assert left.startswith("before: recurrent by its shapes, but its class, or one around ")
    name = left.partition(":")[0]
    read = from_keras(path, cell={name: "gru_reset_before"})
    assert not [left for left in read.left_out if left.startswith("before")]
    assert_same_bits(read[name].params, from_keras(tmp_path / "many.keras")["before"].params)


def test_the_first_models_of_keras_2() -> None:
    """Sequential models were lists, and GRUs did not say reset_after."""
    gru = {"units": 4, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
    config = [{"class_name": "GRU", "config": {"name": "gru_1", "trainable": True, **gru}}]
    (layer,) = layers_in(json.dumps({"class_name": "Sequential", "config": config}))
    assert layer.name == "gru_1"
    assert layer.cells[0].settings["units"] == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [("GRU", "gru"), ("SimpleRNN", "simple_rnn"), ("CuDNNGRU", "cu_dnngru"), ("RNN", "rnn")],
)
def test_snake_case(name: str, expected: str) -> None:
    assert snake_case(name) == expected


def test_weights_that_do_not_fit_the_configuration(tmp_path: Path) -> None:
    path = unpacked("many.keras", tmp_path)
    config = config_of(path)

    def twice(config: Any) -> None:
        layers = config["config"]["layers"]
        layers.append(copy.deepcopy(next(la for la in layers if la["class_name"] == "GRU")))

    def once_more(config: Any) -> None:
        twice(config)
        config["config"]["layers"][-1]["config"]["name"] = "more"

    with pytest.raises(ValueError, match="the layer 'before' comes twice"):
        from_keras(changed(path, twice))
    with pytest.raises(ValueError, match=r"expected its weights in layers/gru_3.*two models share"):
        from_keras(changed(path, once_more))
    whole = unpacked("many.h5", tmp_path)
    with h5py.File(whole, "r+") as file:
        text = json.loads(file.attrs["model_config"])
        layer_config(text, "tanh")["name"] = "other"
        file.attrs["model_config"] = json.dumps(text)
    with pytest.raises(ValueError, match=r"other: expected weights of 1 .* got 0"):
        from_keras(whole)
    assert config["class_name"] == "Functional"


# --- back to Keras --------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_there_and_back(cell: str, both: bool, bias: bool) -> None:
    params = fastgru.init_params(
        3, 4, cell=cell, num_layers=3, bidirectional=both, bias=bias, dtype="float64", rng=0
    )
    if cell != "gru" and bias:  # one bias in Keras: there is a sum to be rounded
        zero = params.map(np.zeros_like)
        params = fastgru.Params.from_dict(
            {k: (zero.to_dict()[k] if "bias_hh" in k else v) for k, v in params.to_dict().items()},
            cell=cell,
        )
    lists = to_keras(params)
    assert [len(arrays) for arrays in lists] == [(2 + bias) * (1 + both)] * 3
    found = from_keras({f"layer {n}": arrays for n, arrays in enumerate(lists)}, cell=cell)
    assert_same_bits(stack_layers(found), params)


def test_two_biases_become_their_sum() -> None:
    params = fastgru.init_params(3, 4, cell="lstm", dtype="float64", rng=0)
    ((_, _, bias),) = to_keras(params)
    arrays = params.to_dict()
    assert np.array_equal(bias, arrays["bias_ih_l0"] + arrays["bias_hh_l0"])


def test_arrays_of_another_library_are_written_from_copies(simulated: Any) -> None:
    params = fastgru.init_params(3, 4, cell="gru", rng=0)
    (written,), (plain,) = to_keras(params.map(simulated.asarray)), to_keras(params)
    for array, expected in zip(written, plain, strict=True):
        assert type(array) is np.ndarray
        assert np.array_equal(array, expected)


def test_what_keras_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"expected a cell that Keras has, gru, .*, got 'mgu'"):
        to_keras(fastgru.init_params(3, 4, cell="mgu"))
    with pytest.raises(TypeError, match="params: expected Params"):
        to_keras([])  # type: ignore[arg-type]


# --- stacks ---------------------------------------------------------------------------------------


def found_of(*params: fastgru.Params, initial: tuple[Any, ...] = ()) -> fastgru.io.Found:
    layers = [
        fastgru.io.Layer(f"layer {n}", p, dict.fromkeys(p.to_dict(), ""), initial)
        for n, p in enumerate(params)
    ]
    return fastgru.io.Found("test", layers)


@pytest.mark.parametrize("cell", ["gru", "lstm", "ligru"])
@pytest.mark.parametrize("both", [True, False])
def test_a_stack_is_its_layers_one_after_the_other(cell: str, both: bool) -> None:
    whole = fastgru.init_params(3, 4, cell=cell, num_layers=3, bidirectional=both, rng=0)
    parts = [fastgru.Params(cell, whole.layers[:2]), fastgru.Params(cell, whole.layers[2:])]
    assert_same_bits(stack_layers(found_of(*parts)), whole)
    assert_same_bits(stack_layers(found_of(*parts[::-1]), ["layer 1", "layer 0"]), whole)


def test_layers_that_are_no_stack() -> None:
    def params(input_size: int = 4, hidden_size: int = 4, **options: Any) -> fastgru.Params:
        return fastgru.init_params(input_size, hidden_size, rng=0, **options)

    others = {
        "cell": params(cell="lstm"),
        "hidden_size": params(hidden_size=5),
        "bidirectional": params(bidirectional=True),
        "bias": params(bias=False),
        "input_size": params(input_size=5),
    }
    for what, other in others.items():
        with pytest.raises(ValueError, match=f"'layer 1': expected {what}"):
            stack_layers(found_of(params(), other))
    with pytest.raises(TypeError, match="dtype"):
        stack_layers(found_of(params(), params(dtype="float64")))
    with pytest.raises(ValueError, match="initial state"):
        stack_layers(found_of(params(), initial=(np.zeros((1, 4)),)))
    with pytest.raises(ValueError, match="at least one layer"):
        stack_layers(found_of())
    with pytest.raises(ValueError, match="each layer once"):
        stack_layers(found_of(params()), ["layer 0", "layer 0"])
    with pytest.raises(KeyError, match="layer 7"):
        stack_layers(found_of(params()), ["layer 7"])
    with pytest.raises(TypeError, match="names"):
        stack_layers(found_of(params()), "layer 0")


def test_an_archive_without_its_members(tmp_path: Path) -> None:
    path = unpacked("many.keras", tmp_path)
    for lacking in ("config.json", "model.weights.h5"):
        other = tmp_path / "other.keras"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
            for name in old.namelist():
                if name != lacking:
                    new.writestr(name, old.read(name))
        with pytest.raises(ValueError, match=f"expected {lacking} in the archive"):
            from_keras(other)
    compressed = tmp_path / "compressed.keras"
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert compressed.stat().st_size < path.stat().st_size / 3
    assert_same_bits(from_keras(compressed)["both"].params, from_keras(path)["both"].params)


def test_a_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = unpacked("float16.keras", tmp_path)
    shutil.move(path, tmp_path / "model")
    assert from_keras(str(tmp_path / "model"), dtype="float32").only.hidden_size == 3
    (tmp_path / "text").write_bytes(streams.BytesIO(b"import os").getvalue())
    with pytest.raises(ValueError, match=r"text: expected a file of Keras.*neither"):
        from_keras(tmp_path / "text")
