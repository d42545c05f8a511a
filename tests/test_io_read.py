"""`read`: what a file is told by its content; damaged and hostile files of every kind."""

import io as streams
import json
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_same_bits
from published import published

import fastgru
from fastgru.io.content import kind_of
from fastgru.io.found import Found, Layer
from fastgru.io.pytorch import from_torch
from fastgru.io.read import read
from fastgru.io.rtneural import to_rtneural


def drawn(cell: str = "gru", **options: Any) -> fastgru.Params:
    return fastgru.init_params(3, 4, cell=cell, rng=5, **options)


def with_header(header: Any, data: bytes) -> bytes:
    """A safetensors file of this header, which may be text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def safetensors() -> bytes:
    """Two modules and an embedding in a file of another program."""
    arrays = {f"enc.gru.{key}": array for key, array in drawn().to_dict().items()}
    arrays |= {f"dec.{key}": array for key, array in drawn("lstm").to_dict().items()}
    arrays["embedding"] = np.ones((2, 3), "f")
    header, data = {}, b""
    for name, array in arrays.items():
        place = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": place}
        data += array.tobytes()
    return with_header({"__metadata__": {"format": "pt"}} | header, data)


def archive(*names: str) -> bytes:
    stream = streams.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name in names:
            made.writestr(name, b"content")
    return stream.getvalue()


def npz() -> bytes:
    stream = streams.BytesIO()
    np.savez(stream, weight_ih=np.ones(3))
    return stream.getvalue()


def npy() -> bytes:
    stream = streams.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


def torch_file() -> bytes:
    """The names of what torch.save writes."""
    return archive("model/data.pkl", "model/byteorder", "model/data/0", "model/version")


def onnx_head(*fields: bytes) -> bytes:
    """The fields of a model: version, producer, and others."""
    return b"\x08\x08\x12\x07pytorch\x1a\x052.3.1" + b"".join(fields)


GRAPH = b"\x3a\x03abc"

# Content by what it is.
KINDS: dict[str, list[bytes]] = {
    "safetensors": [safetensors(), with_header({}, b"")],
    "json": [b'{"layers": []}', b" \n\t{", b"[]", b"\xef\xbb\xbf{}"],
    "keras": [archive("metadata.json", "config.json", "model.weights.h5")],
    "hdf5": [b"\x89HDF\r\n\x1a\n" + bytes(100)],
    "onnx": [
        onnx_head(GRAPH),
        onnx_head(b"\x28\x01\x32\x00", GRAPH),
        b"\x08\x0d" + GRAPH,
        onnx_head(b"\x3a\xff\xff\xff\x7f" + bytes(100)),  # of a larger file
        onnx_head(b"\x79" + bytes(8) + b"\x7d" + bytes(4) + GRAPH),
    ],
    "pickle": [
        *(pickle.dumps({"a": 1}, protocol) for protocol in range(2, 6)),
        torch_file(),
    ],
    "torchscript": [archive("m/data.pkl", "m/code/a.py", "m/constants.pkl")],
    "npz": [npz()],
    "npy": [npy()],
    "tflite": [b"\x1c\x00\x00\x00TFL3" + bytes(30)],
    "unknown": [
        b"",
        b"abc",
        bytes(1000),
        archive("a.txt"),
        archive("config.json"),
        b"PK\x03\x04" + bytes(100),
        b"\x08\x08",
        onnx_head(),
        onnx_head(b"\x3b" + GRAPH),  # a group, which no model has
        b"\xff" * 100,
        with_header(b"[]", b""),
        struct.pack("<Q", 100) + b"{}",
    ],
}
EACH = [(kind, content) for kind, contents in KINDS.items() for content in contents]
REMEDIES = {
    "pickle": r"it is a pickle, .*fastgru opens none.*safetensors\.torch\.save_file\(torch\.load\(",
    "torchscript": r"it is a TorchScript program, .*torch\.jit\.load\(path\)\.state_dict\(\)",
    "npz": "it holds NumPy arrays, .*numpy.load and from_arrays",
    "npy": "it holds NumPy arrays, .*numpy.load and from_arrays",
    "tflite": "it is a TensorFlow Lite model, .*save the Keras model",
    "unknown": r"expected a file of safetensors, Keras \(.keras, HDF5\), ONNX or RTNeural",
}
MODULES = {"keras": ("keras", "from_keras"), "hdf5": ("keras", "from_keras"),
           "onnx": ("onnx", "from_onnx")}  # fmt: skip


# --- what a file is -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "content"), EACH)
def test_content_is_recognised_whatever_the_name(kind: str, content: bytes, tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.json"):
        path = tmp_path / name
        path.write_bytes(content)
        assert kind_of(path) == kind
        if kind in REMEDIES:
            for reader in (read, from_torch):
                with pytest.raises(ValueError, match=f"^{path}: {REMEDIES[kind]}"):
                    reader(path)


@pytest.mark.parametrize("kind", MODULES)
def test_readers_get_the_path_and_the_options(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, function = MODULES[kind]
    calls = []

    def reader(path: Any, **options: Any) -> Found:
        calls.append((path, options))
        return Found("here", [])

    stub = types.ModuleType(module)
    setattr(stub, function, reader)
    monkeypatch.setitem(sys.modules, f"fastgru.io.{module}", stub)
    path = tmp_path / "model"
    path.write_bytes(KINDS[kind][0])
    assert read(path, dtype="float64").origin == "here"
    assert calls == [(path, {"dtype": "float64"})]


def test_readers_of_other_kinds_refuse_and_name_the_way(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(KINDS["onnx"][0])
    with pytest.raises(ValueError, match=r"model: expected safetensors, got onnx: io\.read"):
        from_torch(path)


def test_a_length_that_looks_like_the_start_of_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for length in (0x0280, 0x0380, 0x0480, 0x0580):
        content = with_header(b"{}" + b" " * (length - 2), b"")
        assert content[0] == 0x80
        path.write_bytes(content)
        assert kind_of(path) == "safetensors"


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        ("silero_vad.jit", "torchscript"),
        ("silero_vad.onnx", "onnx"),
        ("silero_vad_half.onnx", "onnx"),
        ("silero_vad_16k_op15.onnx", "onnx"),
        ("silero_vad_16k.safetensors", "safetensors"),
    ],
)
def test_published_files(member: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(published("silero-vad", f"silero_vad/data/{member}"))
    assert kind_of(path) == kind


def test_files_of_h5py_and_onnx(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "weights", "w") as file:
        file["a"] = 1
    assert kind_of(tmp_path / "weights") == "hdf5"
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    for model in (onnx.helper.make_model(graph), onnx.ModelProto(ir_version=8, graph=graph)):
        (tmp_path / "model").write_bytes(model.SerializeToString())
        assert kind_of(tmp_path / "model") == "onnx"


def test_layers_of_one_name_are_refused() -> None:
    layer = Layer("twice", fastgru.init_params(3, 4, rng=0), {})
    with pytest.raises(ValueError, match="layers: expected different names, got 'twice' twice"):
        Found("here", [layer, layer])


def test_paths_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"path: expected a str or an os\.PathLike, got 3"):
        read(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "no")
    with pytest.raises(OSError):  # noqa: PT011
        read(tmp_path)


# --- what is read ---------------------------------------------------------------------------------


def test_a_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(safetensors())
    found = read(str(path))
    assert [*found] == ["enc.gru", "dec"]
    assert_same_bits(found["enc.gru"].params, drawn())
    assert_same_bits(found["dec"].params, drawn("lstm"))
    assert found.left_out == ("embedding (2, 3) F32",)
    assert read(path, dtype="float64")["dec"].params.dtype == np.float64
    with pytest.raises(TypeError, match="unexpected keyword argument 'kind'"):
        read(path, kind=3)


def test_a_file_of_fastgru(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for cell in ("gru", "ligru"):
        fastgru.save(path, drawn(cell), {"trained on": "2024"})
        found = read(path)
        assert_same_bits(found.only, fastgru.load(path))
        assert found.only.cell == cell
        assert found[""].notes == ("trained on: 2024",)
        assert found[""].sources == {key: key for key in drawn(cell).to_dict()}
    with pytest.raises(TypeError, match=r"dtype: files of fastgru\.save .* take no options"):
        read(path, dtype="float64")


def test_a_file_of_fastgru_whose_version_is_damaged_is_no_file_of_pytorch(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    fastgru.save(path, drawn("gru_reset_before"))  # whose names and shapes are those of a GRU
    path.write_bytes(path.read_bytes().replace(b"fastgru.version", b"fastgru.versiom"))
    with pytest.raises(ValueError, match=r"weights: expected metadata of fastgru\.save, got"):
        read(path)
    with pytest.raises(ValueError, match=r"weights: fastgru\.save wrote it"):
        from_torch(path)


def test_a_model_of_rtneural(tmp_path: Path) -> None:
    path = tmp_path / "model"
    to_rtneural(drawn(), path)
    assert_same_bits(read(path).only, drawn())
    to_rtneural(drawn(), path, style="pytorch")
    assert_same_bits(read(path).only, drawn())


# --- hostile files --------------------------------------------------------------------------------


def result_of(content: bytes, path: Path, call: Callable[[Path], Found] = read) -> Found | str:
    """What a file gives: layers, or a refusal that names it; in little memory."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        return call(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        return str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 30 * len(content) + 200_000


ENTRY = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"a": ENTRY, "b": ENTRY}, 12, "'b': expected data from byte 12 on, .* got 0"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [8, 20]}}, 20, "'b': expected data from byte"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [16, 28]}}, 28, "'b': expected data from byte"),
        ({"a": ENTRY | {"data_offsets": [4, 16]}}, 16, "'a': expected data from byte 0 on"),
        ({"a": ENTRY}, 11, "expected 12 bytes of data, got 11"),
        ({"a": ENTRY}, 13, "expected 12 bytes of data, got 13"),
        ({"a": ENTRY | {"data_offsets": [12, 0]}}, 12, "'a': expected the first and last of 12"),
        ({"a": ENTRY | {"data_offsets": [-12, 0]}}, 12, "'a': expected the first and last of 12"),
        ({"a": ENTRY | {"data_offsets": [0, 2**64]}}, 12, "'a': expected the first and last of 12"),
        ({"a": ENTRY | {"shape": [2**62, 2**62], "data_offsets": [0, 2**62]}}, 12, "'a': expected"),
        ({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, 12,
         f"expected {2**42} bytes of data, got 12"),
        ({"a": ENTRY | {"shape": [1] * 9}}, 12, "'a': expected a shape of sizes from 0 up"),
        ({"a": ENTRY | {"shape": [3.0]}}, 12, "'a': expected a shape of sizes from 0 up"),
        ({"a": ENTRY | {"shape": {"b": 3}}}, 12, "'a': expected a shape of sizes from 0 up"),
        ({"a": ENTRY | {"dtype": "F33"}}, 12, "'a': expected dtype F64 or I64 .*, got 'F33'"),
        ({"a": ENTRY | {"dtype": None}}, 12, "'a': expected dtype F64 or I64 .*, got None"),
        ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, 1, "'a': expected the"),
        ({"a": ENTRY | {"more": 1}}, 12, "'a': expected dtype, shape and data_offsets"),
        ({"a": [1]}, 12, "'a': expected dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}, "a": ENTRY}, 12, "metadata: .* expected a str, got 1"),
        ({"__metadata__": [["a"]]}, 0, "metadata: expected a mapping of str to str"),
        (b'{"a":1,"a":1}', 0, "its header is not JSON .a name comes twice"),
        (b'{"__metadata__":{"a":"b","a":"c"}}', 0, "a name comes twice"),
        (b'{"\\ud800":1}', 0, "its header is not JSON"),
        (b'{"a":NaN}', 0, "its header is not JSON .NaN is no JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", 0, "its header is not JSON"),
        (b'{"a":' * 40_000, 0, "nested deeper"),
        (b'{"a":' + b"[" * 40_000 + b"}", 0, "nested deeper"),
        (b'{"a":"' + b'\\"' * 40_000, 0, "its header is not JSON"),
        (b"{" + b" " * (4 << 20) + b"}", 0, "expected a header of 2 to 4194304 bytes in a file"),
        (b'{"a":[' + b"[]," * 100_000 + b"[]]}", 0, "'a': expected dtype, shape and data_offsets"),
    ],
)  # fmt: skip
def test_hostile_safetensors(header: Any, size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'model'}: .*{message}"):
        _raise(result_of(with_header(header, bytes(size)), tmp_path / "model"))


def _raise(result: Found | str) -> None:
    if isinstance(result, str):
        raise ValueError(result)


def test_a_length_beyond_the_file(tmp_path: Path) -> None:
    for length in (2**63, 2**64 - 1, 2**40):
        content = struct.pack("<Q", length) + b"{}"
        for reader in (read, from_torch):
            result = result_of(content, tmp_path / "model", reader)
            assert "expected a file of safetensors" in str(result)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("read")


@pytest.fixture(scope="module")
def contents(folder: Path) -> dict[str, bytes]:
    """A file of each kind that is read here, and some that are not."""
    fastgru.save(folder / "own", drawn(), {"note": "text"})
    to_rtneural(drawn(), folder / "keras style")
    return {
        "safetensors": safetensors(),
        "own": (folder / "own").read_bytes(),
        "json": (folder / "keras style").read_bytes(),
        "torch": torch_file(),
        "npz": npz(),
        "pickle": pickle.dumps([1, 2]),
    }


def check_safetensors(content: bytes, found: Found) -> None:
    """All that a file says is accounted for, and weights are its bytes."""
    header, data = header_of(content)
    header.pop("__metadata__", None)
    left_out = {text.rpartition(" (")[0] for text in found.left_out}
    taken: set[str] = set()
    for layer in found.values():
        for key, array in layer.params.to_dict().items():
            source = layer.sources[key]
            if source == "zeros":
                assert not array.any()
                continue
            taken.add(source)
            first, last = header[source]["data_offsets"]
            assert list(array.shape) == header[source]["shape"]
            assert array.tobytes() == data[first:last]
    assert taken | left_out == set(header)
    assert not taken & left_out


def check(kind: str, content: bytes, folder: Path) -> None:
    result = result_of(content, folder / "damaged")
    if isinstance(result, str):
        return
    assert kind in ("safetensors", "own", "json")
    if kind == "own":
        assert_same_bits(result.only, drawn())  # by its checksum
    elif kind == "safetensors":
        check_safetensors(content, result)


WHICH = st.sampled_from(["safetensors", "own", "json", "torch", "npz", "pickle"])


@settings(max_examples=200, deadline=None)
@given(kind=WHICH, data=st.data())
def test_cut_and_lengthened_files(
    contents: dict[str, bytes], folder: Path, kind: str, data: st.DataObject
) -> None:
    content = contents[kind]
    first, last = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(content))])))
    middle = data.draw(st.binary(max_size=8))
    check(kind, content[:first] + middle + content[last:], folder)


@settings(max_examples=300, deadline=None)
@given(kind=WHICH, data=st.data())
def test_flipped_bits(
    contents: dict[str, bytes], folder: Path, kind: str, data: st.DataObject
) -> None:
    content = bytearray(contents[kind])
    end = min(len(content), 900)  # of the header, where there is one
    places = st.integers(0, 8 * end - 1) | st.integers(0, 8 * len(content) - 1)
    for bit in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[bit // 8] ^= 1 << bit % 8
    check(kind, bytes(content), folder)


@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from([content[:12] for _, content in EACH]), rest=st.binary(max_size=200))
def test_any_bytes_after_a_start(folder: Path, start: bytes, rest: bytes) -> None:
    path = folder / "any"
    path.write_bytes(start + rest)
    if kind_of(path) not in MODULES:
        result_of(start + rest, path)
