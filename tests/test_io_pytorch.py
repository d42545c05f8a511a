"""`from_torch`, `to_torch`: the modules of a state dict, with their weights to the bit."""

import importlib.util
import json
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import assert_same_bits
from published import published

import fastgru
from fastgru.io.pytorch import from_torch, to_torch

CELLS = {"gru": "gru", "lstm": "lstm", "rnn_tanh": "rnn_tanh", "rnn_relu": "rnn_relu"}
GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}
each_cell = pytest.mark.parametrize("cell", CELLS)
SIZES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "F8_E4M3": "u1"}


def drawn(cell: str = "gru", dtype: str = "float32", **options: Any) -> fastgru.Params:
    return fastgru.init_params(3, 5, cell=cell, dtype=dtype, rng=1, **options)


def with_prefix(prefix: str, params: fastgru.Params) -> dict[str, Any]:
    return {f"{prefix}{key}": array for key, array in params.to_dict().items()}


def safetensors(arrays: dict[str, tuple[str, Any]], metadata: Any = None) -> bytes:
    """A file as the package safetensors writes it: arrays by name, each with its dtype's name."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (kind, array) in arrays.items():
        content = np.ascontiguousarray(array, SIZES[kind]).tobytes()
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": place}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def of_kind(kind: str, mapping: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    return {name: (kind, array) for name, array in mapping.items()}


class Tensor:
    """What is used of a tensor of PyTorch, which is not needed for it."""

    def __init__(self, array: Any, dtype: str | None = None, on: str = "cuda") -> None:
        self.array, self.on, self.shape = array, on, array.shape
        self.dtype = f"torch.{dtype or array.dtype.name}"

    def detach(self) -> "Tensor":
        return Tensor(self.array, self.dtype.removeprefix("torch."), "detached")

    def cpu(self) -> "Tensor":
        assert self.on == "detached"
        return Tensor(self.array, self.dtype.removeprefix("torch."), "cpu")

    def float(self) -> "Tensor":
        return Tensor(self.array.astype("float32"), None, self.on)

    def numpy(self) -> Any:
        assert self.on == "cpu"
        if self.dtype not in ("torch.float32", "torch.float64", "torch.float16"):
            raise TypeError("Got unsupported ScalarType")
        return self.array


# --- modules of a mapping -------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wrapped", [np.asarray, Tensor])
def test_modules_of_all_kinds(cell: str, dtype: str, bias: bool, wrapped: Any) -> None:
    for layers in (1, 3):
        for bidirectional in (False, True):
            for prefix in ("", "rnn.", "model.encoder.0."):
                params = drawn(
                    cell, dtype, bias=bias, num_layers=layers, bidirectional=bidirectional
                )
                mapping = {k: wrapped(a) for k, a in with_prefix(prefix, params).items()}
                named = None if cell == "rnn_tanh" else cell
                found = from_torch(mapping, cell=named if cell == "rnn_relu" else None)
                assert [*found] == [prefix.removesuffix(".")]
                assert found.left_out == ()
                assert found.only.cell == cell
                assert_same_bits(found.only, params)
                (layer,) = found.values()
                assert layer.sources == {k: prefix + k for k in params.to_dict()}


@each_cell
def test_cells_of_one_step(cell: str) -> None:
    params = drawn(cell)
    mapping = {f"dec.{k.removesuffix('_l0')}": a for k, a in params.to_dict().items()}
    found = from_torch(mapping, cell={"dec": cell})
    assert_same_bits(found["dec"].params, params)
    assert found["dec"].sources["bias_hh_l0"] == "dec.bias_hh"


def test_several_modules_and_what_is_left_out() -> None:
    gru, lstm = drawn("gru", bidirectional=True), drawn("lstm")
    mapping = {
        "embedding.weight": np.ones((9, 3), "f"),
        **with_prefix("encoder.", gru),
        "norm.num_batches_tracked": np.array(7),
        **with_prefix("decoder.", lstm),
        "attention.bias": np.ones(4, "f2"),
        "_extra_state": None,
    }
    found = from_torch(mapping)
    assert [*found] == ["encoder", "decoder"]
    assert_same_bits(found["encoder"].params, gru)
    assert_same_bits(found["decoder"].params, lstm)
    assert found.left_out == (
        "embedding.weight (9, 3) float32",
        "norm.num_batches_tracked () int64",
        "attention.bias (4,) float16",
        "_extra_state NoneType",
    )
    assert "left out: embedding.weight (9, 3) float32" in str(found)


def test_a_checkpoint_that_holds_the_state_dict() -> None:
    checkpoint = {"epoch": 3, "state_dict": with_prefix("a.", drawn())}
    with pytest.raises(
        TypeError, match=r"got a mapping in 'state_dict', .* mapping\['state_dict'\]"
    ):
        from_torch(checkpoint)
    found = from_torch(checkpoint["state_dict"] | {"_extra_state": {"a": 1}})  # type: ignore[operator]
    assert found.left_out == ("_extra_state dict",)


def test_nothing_found_is_an_empty_result() -> None:
    found = from_torch({"weight": np.ones((2, 2))})
    assert [*found] == []
    assert found.left_out == ("weight (2, 2) float64",)
    with pytest.raises(ValueError, match="mapping: expected one recurrent layer, got none"):
        _ = found.only


def test_the_nonlinearity_of_an_rnn_is_said() -> None:
    mapping = with_prefix("a.", drawn("rnn_relu")) | with_prefix("b.", drawn("gru"))
    found = from_torch(mapping)
    assert found["a"].params.cell == "rnn_tanh"
    assert len(found["a"].notes) == 1
    assert "cell='rnn_relu'" in found["a"].notes[0]
    assert found["b"].notes == ()
    found = from_torch(mapping, cell={"a": "rnn_relu"})
    assert [layer.params.cell for layer in found.values()] == ["rnn_relu", "gru"]
    assert found["a"].notes == ()
    assert from_torch(mapping, cell={"a": "rnn_tanh"})["a"].notes == ()


def test_other_cells_with_the_same_names() -> None:
    for cell in ("gru_reset_before", "cifg"):
        params = drawn(cell)
        assert_same_bits(from_torch(params.to_dict(), cell=cell).only, params)


@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
def test_a_missing_bias_is_zeros(missing: str) -> None:
    params = drawn("lstm", num_layers=2)
    mapping = params.to_dict()
    zeros = np.zeros_like(mapping.pop(f"{missing}_l1"))
    found = from_torch(mapping)
    expected = mapping | {f"{missing}_l1": zeros}
    assert_same_bits(found.only, fastgru.Params.from_dict(expected, cell="lstm"))
    assert found[""].sources[f"{missing}_l1"] == "zeros"


def test_a_layer_without_biases_among_others() -> None:
    mapping = drawn("gru", num_layers=2).to_dict()
    expected = {k: np.zeros_like(a) if k.startswith("bias") and k.endswith("0") else a
                for k, a in mapping.items()}  # fmt: skip
    del mapping["bias_ih_l0"], mapping["bias_hh_l0"]
    found = from_torch(mapping)
    assert_same_bits(found.only, fastgru.Params.from_dict(expected))
    assert found[""].sources["bias_ih_l0"] == "zeros"


def test_a_single_hidden_unit() -> None:
    for cell in ("gru", "lstm", "rnn_tanh"):
        params = fastgru.init_params(1, 1, cell=cell, rng=0)
        assert from_torch(params.to_dict()).only.cell == cell


def test_arrays_are_kept_not_copied() -> None:
    mapping = drawn("gru").to_dict()
    for key, array in from_torch(mapping).only.to_dict().items():
        assert np.shares_memory(array, mapping[key])
    turned = {key: np.asfortranarray(array) for key, array in mapping.items()}
    assert_same_bits(from_torch(turned).only, drawn("gru"))


# --- dtypes ---------------------------------------------------------------------------------------


def halved(kind: str) -> tuple[dict[str, Any], fastgru.Params]:
    """Weights that 16 bits hold, as those and in float32."""
    if kind == "float16":
        half = {k: a.astype("f2") for k, a in drawn("gru").to_dict().items()}
        return half, fastgru.Params.from_dict({k: a.astype("f4") for k, a in half.items()})
    full = {k: a.view("u4") & 0xFFFF0000 for k, a in drawn("gru").to_dict().items()}
    half = {k: (a >> 16).astype("u2") for k, a in full.items()}
    return half, fastgru.Params.from_dict({k: a.view("f4") for k, a in full.items()})


@pytest.mark.parametrize(("kind", "name"), [("float16", "F16"), ("bfloat16", "BF16")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sixteen_bits_on_request(kind: str, name: str, dtype: str, tmp_path: Path) -> None:
    half, full = halved(kind)
    expected = full.map(lambda w: w.astype(dtype))
    stored = half if kind == "float16" else full.to_dict()
    tensors = {k: Tensor(a, kind) for k, a in stored.items()}
    assert_same_bits(from_torch(tensors, dtype=dtype).only, expected)
    path = tmp_path / "half.safetensors"
    path.write_bytes(safetensors(of_kind(name, half)))
    assert_same_bits(from_torch(path, dtype=dtype).only, expected)
    message = f"weight_ih_l0: expected float32 or float64, got {kind}; dtype='float32' converts it"
    with pytest.raises(TypeError, match=f"^{message}"):
        from_torch(tensors)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        from_torch(path)


def test_conversion_between_float32_and_float64() -> None:
    params = drawn("lstm")
    double = params.map(lambda w: w.astype("float64"))
    assert_same_bits(from_torch(params.to_dict(), dtype="float64").only, double)
    assert_same_bits(from_torch(double.to_dict(), dtype=np.float32).only, params)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F64"])
def test_a_safetensors_file(kind: str, tmp_path: Path) -> None:
    params = drawn("lstm", "float32" if kind == "F32" else "float64", num_layers=2)
    arrays = of_kind("I64", {"steps": np.array(3)})
    arrays |= of_kind("F8_E4M3", {"head.weight": np.ones((2, 9), "u1")})
    arrays |= of_kind(kind, with_prefix("model.rnn.", params))
    arrays |= of_kind("F32", {"empty": np.ones((0, 4), "f"), "conv": np.ones((2, 1, 1, 1, 3), "f")})
    path = tmp_path / "model"
    path.write_bytes(safetensors(arrays, {"format": "pt"}))
    found = from_torch(str(path))
    assert found.origin == str(path)
    assert_same_bits(found["model.rnn"].params, params)
    assert found.left_out == (
        "steps () I64", "head.weight (2, 9) F8_E4M3", "empty (0, 4) F32",
        "conv (2, 1, 1, 1, 3) F32",
    )  # fmt: skip
    for array in found.only.to_dict().values():
        assert array.flags.owndata or array.base is None


def test_a_file_of_the_package_safetensors(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    params = drawn("gru", bidirectional=True)
    arrays = with_prefix("a.", params) | {"b": np.ones((2, 3), "f2"), "c": np.array(True)}
    package.save_file(arrays, tmp_path / "model", {"format": "pt"})
    found = from_torch(tmp_path / "model")
    assert_same_bits(found["a"].params, params)
    assert sorted(found.left_out) == ["b (2, 3) F16", "c () BOOL"]


def test_arrays_that_two_keys_share(tmp_path: Path) -> None:
    """In the form of safetensors.torch.save_model: one of the keys is in the metadata alone."""
    params = drawn("gru", bidirectional=True)
    arrays = of_kind("F32", with_prefix("a.", params))
    shared = {f"b.{key}": f"a.{key}" for key in params.to_dict()} | {"b.head": "head"}
    for key in [key for key in arrays if key.endswith("_reverse")]:
        shared[key] = key.removesuffix("_reverse")
        shared[key.replace("a.", "b.")] = shared[key]
        del arrays[key]
    arrays |= of_kind("F32", {"head": ONES})
    path = tmp_path / "model"
    path.write_bytes(safetensors(arrays, metadata={"format": "pt", **shared}))
    found = from_torch(path)
    assert [*found] == ["a", "b"]
    forward = {key: a for key, a in params.to_dict().items() if not key.endswith("_reverse")}
    both = forward | {f"{key}_reverse": array for key, array in forward.items()}
    for layer in found.values():
        assert_same_bits(layer.params, fastgru.Params.from_dict(both, cell="gru"))
    assert found.left_out == ("head (15, 5) F32", "b.head (15, 5) F32")
    again = found["a"].params.to_dict(), found["b"].params.to_dict()
    assert again[0]["weight_hh_l0"] is again[1]["weight_hh_l0_reverse"]  # read once


def test_silero_vad(tmp_path: Path) -> None:
    """A published file: an LSTMCell among convolutions."""
    path = tmp_path / "silero"
    path.write_bytes(published("silero-vad", "silero_vad/data/silero_vad_16k.safetensors"))
    found = from_torch(path)
    assert [*found] == ["lstm_cell"]
    assert repr(found.only) == repr(fastgru.init_params(128, 128, cell="lstm", rng=0))
    assert len(found.left_out) == 11
    package = pytest.importorskip("safetensors.numpy")
    arrays = package.load_file(path)
    for key, array in found.only.to_dict().items():
        theirs = arrays[f"lstm_cell.{key.removesuffix('_l0')}"]
        assert array.tobytes() == theirs.tobytes()


def test_a_file_of_fastgru_is_not_mistaken(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    fastgru.save(path, drawn("gru_reset_before"))  # whose shapes are those of a GRU of PyTorch
    with pytest.raises(ValueError, match=r"weights: fastgru.save wrote it: fastgru.load and"):
        from_torch(path)


# --- refusals -------------------------------------------------------------------------------------

ONES = np.ones((15, 5), "f")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight_hr_l0": ONES}, ValueError, r"a.weight_hr_l0: the LSTM 'a' has a projection \(pr"),
        ({"weight_hh_l0": None}, ValueError, "module 'a': weight_hh_l0 is missing"),
        ({"weight_ih_l0": None}, ValueError, "module 'a': weight_ih_l0 is missing"),
        ({"weight_ih_l1": ONES}, ValueError, "module 'a': weight_hh_l1 is missing"),
        ({"weight_ih_l2": ONES, "weight_hh_l2": ONES}, ValueError,
         "module 'a': mapping: weights are missing for _l1"),
        ({"weight_hh_l0": np.ones((10, 5), "f")}, ValueError,
         r"a.weight_hh_l0: expected shape \(G\*H, H\), G 4 for an LSTM, .*, got \(10, 5\)"),
        ({"weight_hh_l0": np.ones((16, 5), "f")}, ValueError, r"got \(16, 5\)"),
        ({"weight_hh_l0": np.ones((15, 0), "f")}, ValueError, "weight_hh_l0: expected a matrix"),
        ({"weight_hh_l0": np.ones(15, "f")}, ValueError, r"expected a matrix, got shape \(15,\)"),
        ({"weight_ih_l0": np.array(1.0, "f")}, ValueError, r"expected a matrix, got shape \(\)"),
        ({"weight_ih_l0": np.ones((20, 3), "f")}, ValueError, "module 'a': weight_ih_l0: expected"),
        ({"bias_ih_l0": np.ones(14, "f")}, ValueError, "module 'a': bias_ih_l0: expected shape"),
        ({"bias_ih_l0": np.ones(15)}, TypeError, "module 'a': bias_ih_l0: expected dtype float32"),
        ({"bias_ih_l0": np.ones(15, "i8")}, TypeError, "a.bias_ih_l0: expected float32 or float64"),
        ({"bias_ih_l0": [1.0] * 15}, TypeError, "a.bias_ih_l0: expected a tensor or .*, got list"),
        ({"bias_ih": np.ones(15, "f")}, ValueError,
         "a.bias_ih: stands for the same weight as a.bias_ih_l0: leave one out"),
        ({"bias_ih_l0": Tensor(np.ones(15, "f"), "float8_e4m3fn")}, TypeError,
         "a.bias_ih_l0: expected a dense tensor of floating-point numbers, .* ScalarType"),
    ],
)  # fmt: skip
def test_state_dicts_that_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    mapping = with_prefix("a.", drawn("gru")) | {f"a.{key}": a for key, a in change.items()}
    mapping = {key: array for key, array in mapping.items() if array is not None}
    with pytest.raises(error, match=message):
        from_torch(mapping)


@pytest.mark.parametrize(
    "keys",
    [
        ["parametrizations.weight_hh_l0.original0", "parametrizations.weight_hh_l0.original1"],
        ["parametrizations.bias_hh_l0.original"],
        ["parametrizations.weight_hh.original"],
        ["bias_ih_l0_orig", "bias_ih_l0_mask"],
        ["weight_hh_l0_reverse_orig", "weight_hh_l0_reverse_mask"],
        ["weight_hh_l1_g", "weight_hh_l1_v"],
    ],
)
@pytest.mark.parametrize("prefix", ["", "a.b."])
def test_weights_that_are_computed_from_others(keys: list[str], prefix: str) -> None:
    """Read without them, layers would lack biases, directions, or further layers."""
    of = keys[0].removeprefix("parametrizations.").partition(".")[0]
    of = of.removesuffix("_orig").removesuffix("_g")
    weights = with_prefix(prefix, drawn("gru"))
    weights.pop(prefix + of, None)
    message = f"{keys[0]}: PyTorch computes {prefix}{of} from it"
    with pytest.raises(ValueError, match=message):
        from_torch(weights | {prefix + key: ONES for key in keys})


def test_names_that_only_look_like_those_of_computed_weights() -> None:
    params = drawn("gru")
    names = ("weight_ih_g", "linear.weight_orig", "a.parametrizations.w.original")
    others = dict.fromkeys((*names, "weight_ih_l0_orig"), ONES)  # the last of one that is there
    found = from_torch(params.to_dict() | others)
    assert_same_bits(found.only, params)
    assert len(found.left_out) == len(others)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cell": "gru9"}, ValueError, "cell: expected one of gru, .*, got 'gru9'"),
        ({"cell": 3}, ValueError, "cell: expected one of gru, .*, got 3"),
        ({"cell": "mgu"}, ValueError, "cell: expected one whose weights are weight_ih, .* 'mgu'"),
        (
            {"cell": "lstm"},
            ValueError,
            r"cell: 'lstm' has 4 gates, but .*, of shape \(15, 5\), has 3; .*'a': 'gru'",
        ),
        ({"cell": {"b": "gru"}}, ValueError, "cell: expected names among 'a', got 'b'"),
        ({"cell": {"a": "lstm_peephole"}}, ValueError, "expected one whose weights are"),
        ({"dtype": "float16"}, TypeError, "dtype: expected dtype float32 or float64"),
        ({"dtype": "no"}, TypeError, "dtype: expected float32 or float64, got 'no'"),
    ],
)
def test_options_that_are_refused(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    mapping = with_prefix("a.", drawn("gru"))
    with pytest.raises(error, match=message):
        from_torch(mapping, **options)
    path = tmp_path / "model"
    path.write_bytes(safetensors(of_kind("F32", mapping)))
    with pytest.raises(error, match=message):
        from_torch(path, **options)


def test_arguments_that_are_refused() -> None:
    with pytest.raises(TypeError, match=r"source: expected a mapping .*, got int$"):
        from_torch(3)  # type: ignore[arg-type]
    module = types.SimpleNamespace(state_dict=dict)
    with pytest.raises(TypeError, match=r"got SimpleNamespace; its \.state_dict\(\) is one"):
        from_torch(module)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mapping: expected keys that are str, got 3"):
        from_torch({3: ONES})  # type: ignore[dict-item]
    with pytest.raises(FileNotFoundError):
        from_torch("no such file")


def test_errors_in_a_file_name_it_and_the_key(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(safetensors(of_kind("I64", drawn().to_dict())))
    with pytest.raises(ValueError, match=r"model: 'weight_ih_l0': expected dtype F64, .* got I64"):
        from_torch(path, dtype="float32")
    mixed = of_kind("F32", drawn().to_dict()) | of_kind("F64", {"bias_ih_l0": np.ones(15)})
    path.write_bytes(safetensors(mixed))
    with pytest.raises(ValueError, match=r"model: module '': bias_ih_l0: expected dtype float32"):
        from_torch(path)
    assert from_torch(path, dtype="float64").only.dtype == np.float64


# --- and back -------------------------------------------------------------------------------------


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyTorch, or what is used of it."""
    if importlib.util.find_spec("torch") is None:
        fake = types.ModuleType("torch")
        fake.tensor = np.array  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torch", fake)
    return importlib.import_module("torch")


@each_cell
@pytest.mark.parametrize("prefix", ["", "rnn", "encoder.rnn."])
def test_what_is_written_is_read(cell: str, prefix: str, torch: Any) -> None:
    params = drawn(cell, num_layers=2, bidirectional=True)
    read_only = params.map(lambda w: np.frombuffer(w.tobytes(), w.dtype).reshape(w.shape))
    written = to_torch(read_only, prefix)
    found = from_torch(written, cell=cell)
    assert [*found] == [prefix.removesuffix(".")]
    assert_same_bits(found.only, params)
    for array in found.only.to_dict().values():
        assert array.flags.writeable


def test_arrays_of_another_library_are_written_from_copies(simulated: Any, torch: Any) -> None:
    written = to_torch(drawn("lstm").map(simulated.asarray))
    assert_same_bits(from_torch(written).only, drawn("lstm"))


def test_cells_that_pytorch_has_not(torch: Any) -> None:
    for cell in fastgru.cells():
        if cell not in CELLS:
            params = fastgru.init_params(3, 4, cell=cell, rng=0)
            with pytest.raises(ValueError, match=f"PyTorch has no module for cell {cell!r}: exp"):
                to_torch(params)
    with pytest.raises(TypeError, match="params: expected Params, got dict"):
        to_torch({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prefix: expected str, got int"):
        to_torch(drawn(), 3)  # type: ignore[arg-type]


def test_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install torch; params.to_dict\(\) are"):
        to_torch(drawn())


def test_reading_imports_no_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    tensors = {key: Tensor(array) for key, array in drawn().to_dict().items()}
    assert_same_bits(from_torch(tensors).only, drawn())
