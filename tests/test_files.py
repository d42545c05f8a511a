"""`save` and `load`: the same weights or an error, whatever happens to the file."""

import json
import os
import re
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_same_bits, everywhere

import fastgru
from fastgru import archive, files
from fastgru import cell as own
from fastgru.safetensors import Allowed, entry_of

ALLOWED = Allowed(("F32", "F64"), dimensions=2)
NOTES = {"trained on": "2024", "größe": 'µ \U0001f600 "quoted"\n', "": ""}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a cell with running statistics, two layers and directions."""
    path = tmp_path_factory.mktemp("files") / "weights.safetensors"
    fastgru.save(path, drawn("ligru"), NOTES)
    return path


def drawn(cell: str, dtype: str = "float32", **options: Any) -> fastgru.Params:
    """Random weights, running statistics too."""
    rng = np.random.default_rng(1)
    options = {"num_layers": 2, "bidirectional": True} | options
    params = fastgru.init_params(3, 5, cell=cell, dtype=dtype, rng=rng, **options)
    return params.map(lambda w: rng.uniform(0.5, 2, w.shape).astype(w.dtype))


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a file, and what follows it."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, data: bytes) -> bytes:
    """A file of this header, which may be text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def signed(header: dict[str, Any], data: bytes) -> bytes:
    """A file whose checksum is that of what it says."""
    entries = {n: entry_of(n, e, ALLOWED) for n, e in header.items() if n != "__metadata__"}
    metadata = header["__metadata__"]
    metadata["fastgru.sha256"] = archive._checksum(metadata, entries, [np.frombuffer(data, "u1")])
    return with_header(header, data)


# --- what is saved is loaded ----------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True), (3, False)])
def test_weights_come_back(
    cell: str, dtype: str, bias: bool, layers: int, bidirectional: bool, tmp_path: Path
) -> None:
    if not bias and not own.CELLS[cell].can_lack_biases:
        pytest.skip("the cell needs biases")
    params = drawn(cell, dtype, num_layers=layers, bidirectional=bidirectional, bias=bias)
    fastgru.save(tmp_path / "weights", params)
    loaded = fastgru.load(tmp_path / "weights")
    assert repr(loaded) == repr(params)
    assert [*loaded.to_dict()] == [*params.to_dict()]
    assert_same_bits(loaded, params)
    assert fastgru.load_metadata(tmp_path / "weights") == {}
    for array in loaded.to_dict().values():
        assert array.flags.carray
        assert array.base is None


def test_notes_come_back(written: Path) -> None:
    assert fastgru.load_metadata(written) == NOTES
    assert fastgru.load_metadata(str(written)) == NOTES


@everywhere
def test_the_package_safetensors_reads_the_file(cell: str, dtype: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    params = drawn(cell, dtype)
    fastgru.save(tmp_path / "weights", params, NOTES)
    with safetensors.safe_open(tmp_path / "weights", "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert NOTES.items() <= file.metadata().items()
    assert_same_bits(fastgru.Params.from_dict(arrays, cell=cell), params.map(np.array))


def test_data_is_aligned(written: Path) -> None:
    content = written.read_bytes()
    assert (len(content) - len(header_of(content)[1])) % 8 == 0


def test_arrays_of_any_memory(tmp_path: Path) -> None:
    params = drawn("gru")
    fastgru.save(tmp_path / "weights", params.map(np.asfortranarray))
    assert_same_bits(fastgru.load(tmp_path / "weights"), params)


def test_a_file_of_the_other_package_that_says_the_same(written: Path, tmp_path: Path) -> None:
    """Arrays in another order, keys too: what counts is what is said."""
    header, data = header_of(written.read_bytes())
    shuffled = dict(sorted(header.items()))
    (tmp_path / "weights").write_bytes(with_header(json.dumps(shuffled, indent=1).encode(), data))
    assert_same_bits(fastgru.load(tmp_path / "weights"), fastgru.load(written))


def test_a_cell_of_ones_own_must_be_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    fastgru.save(path, drawn("gru"))
    # Not by taking it out: it would come back as the last one.
    monkeypatch.setattr(files, "CELLS", {n: c for n, c in own.CELLS.items() if n != "gru"})
    with pytest.raises(ValueError, match=r"weights: it is of cell 'gru', .* fastgru.register_cell"):
        fastgru.load(path)


# --- a file is there as a whole or not at all -----------------------------------------------------


@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_save_leaves_the_old_file(
    failing: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    fastgru.save(path, drawn("gru"), {"which": "old"})

    def fail(*args: Any) -> Any:
        raise error("no")

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(os, "fsync", fail)
        elif failing == "replace":
            patch.setattr(Path, "replace", fail)
        else:
            patch.setattr(archive, "memoryview", fail, raising=False)
        with pytest.raises(error):
            fastgru.save(path, drawn("lstm"), {"which": "new"})
    assert os.listdir(tmp_path) == ["weights"]  # noqa: PTH208
    assert fastgru.load_metadata(path) == {"which": "old"}
    fastgru.save(path, drawn("lstm"), {"which": "new"})
    assert fastgru.load(path).cell == "lstm"


def test_a_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    fastgru.save(target, drawn("gru"))
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("no symbolic links here")
    fastgru.save(link, drawn("lstm"))
    assert link.is_symlink()
    assert fastgru.load(target).cell == "lstm"


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fastgru.save(tmp_path / "no" / "weights", drawn("gru"))
    with pytest.raises(FileNotFoundError):
        fastgru.load(tmp_path / "no")


# --- damaged files --------------------------------------------------------------------------------


def read_all(path: Path) -> tuple[fastgru.Params, dict[str, str]]:
    return fastgru.load(path), fastgru.load_metadata(path)


def check_damaged(content: bytes, written: Path) -> None:
    """A ValueError that names the file, or what was saved; and little memory."""
    path = written.with_name("damaged")
    path.write_bytes(content)
    refusal, result = "", None
    tracemalloc.start()
    try:
        result = read_all(path)
    except ValueError as error:
        refusal = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    if result is None:
        assert refusal.startswith(f"{path}: ")
    else:
        params, notes = result
        assert_same_bits(params, fastgru.load(written))
        assert params.cell == "ligru"
        assert notes == NOTES
    assert peak < 20 * len(content) + 100_000


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bits(written: Path, data: st.DataObject) -> None:
    content = bytearray(written.read_bytes())
    end = len(content) - len(header_of(bytes(content))[1])
    places = st.integers(0, 8 * end - 1) | st.integers(0, 8 * len(content) - 1)
    for bit in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[bit // 8] ^= 1 << bit % 8
    check_damaged(bytes(content), written)


def test_each_flipped_bit_of_the_length_and_of_some_of_the_header(written: Path) -> None:
    content = written.read_bytes()
    for bit in [*range(64), *range(64, 8 * 600, 7)]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        check_damaged(bytes(flipped), written)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_cut_and_lengthened_files(written: Path, data: st.DataObject) -> None:
    content = written.read_bytes()
    first, last = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(content))])))
    middle = data.draw(st.binary(max_size=8))
    check_damaged(content[:first] + middle + content[last:], written)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes(written: Path, content: bytes) -> None:
    check_damaged(content, written)
    check_damaged(with_header(content, b""), written)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"__metadata__":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a":' + b"1" * 10_000 + b"}",
        b'{"a":NaN}',
        b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
        b"[]",
        b"null",
        b"{}",
        b"\xff{}",
        b'{"a":1,"a":1}',
        b'{"__metadata__":1}',
        b'{"__metadata__":{"a":1}}',
        b'{"__metadata__":{"a":"\\ud800"}}',
        b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    ],
)
def test_strange_headers(text: bytes, written: Path) -> None:
    check_damaged(with_header(text, b""), written)
    with pytest.raises(ValueError, match="damaged: "):
        fastgru.load(written.with_name("damaged"))


Change = tuple[str, Any]


def changed(header: dict[str, Any], path: str, value: Any) -> None:
    """Set, or remove where that is None, a member of a header."""
    *parents, last = path.split("/")
    for parent in parents:
        header = header[parent]
    if value is None:
        del header[last]
    else:
        header[last] = value


def test_a_cell_that_is_not_registered_is_named(written: Path) -> None:
    header, data = header_of(written.read_bytes())
    header["__metadata__"]["fastgru.cell"] = "gru9"
    path = written.with_name("other")
    path.write_bytes(signed(header, data))
    with pytest.raises(ValueError, match="of cell 'gru9', which is not among gru, "):
        fastgru.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"__metadata__": None}, "expected metadata of fastgru.save, got none; if another program"),
        ({"__metadata__/fastgru.version": None}, "expected metadata of fastgru.save, got none"),
        ({"__metadata__/fastgru.version": "2"}, "version 2 of .* upgrade fastgru"),
        ({"__metadata__/fastgru.version": "x"}, "expected version 1 of the format, got 'x'"),
        ({"__metadata__/fastgru.bias": None}, "metadata lacks fastgru.bias"),
        ({"__metadata__/note": "other"}, "its content does not match its checksum"),
        ({"weight_ih_l0/dtype": "F16"}, "'weight_ih_l0': expected dtype F32 or F64, got 'F16'"),
        ({"weight_ih_l0/dtype": ["F32"]}, "expected dtype F32 or F64"),
        ({"weight_ih_l0/dtype": "F64"}, "'weight_ih_l0': expected the first and last of 240"),
        ({"weight_ih_l0/shape": [10, 4]}, "expected the first and last of 160 bytes"),
        ({"weight_ih_l0/shape": [-10, -3]}, "expected a shape of sizes from 1 up"),
        ({"weight_ih_l0/shape": [10.0, 3]}, "expected a shape of sizes from 1 up"),
        ({"weight_ih_l0/shape": [True, 30]}, "expected a shape of sizes from 1 up"),
        ({"weight_ih_l0/shape": [0, 3]}, "expected a shape of sizes from 1 up"),
        ({"weight_ih_l0/shape": 30}, "expected a shape of sizes from 1 up"),
        ({"weight_ih_l0/data_offsets": [4, 124]}, "expected data from byte 0 on"),
        ({"weight_ih_l0/data_offsets": [0]}, "expected the first and last of 120 bytes"),
        ({"weight_ih_l0/data_offsets": [-120, 0]}, "expected the first and last of 120 bytes"),
        ({"weight_ih_l0/more": 1}, "expected dtype, shape and data_offsets"),
        ({"weight_ih_l0/shape": None}, "expected dtype, shape and data_offsets"),
        ({"weight_ih_l0": 3}, "expected dtype, shape and data_offsets, got 3"),
        ({"weight_ih_l0": None}, "expected data from byte 0 on, after the array before"),
    ],
)
def test_wrong_headers(changes: dict[str, Any], message: str, written: Path) -> None:
    header, data = header_of(written.read_bytes())
    for place, value in changes.items():
        changed(header, place, value)
    path = written.with_name("damaged")
    path.write_bytes(with_header(header, data))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        fastgru.load(path)


@pytest.mark.parametrize(
    ("rename", "metadata", "message"),
    [
        (("weight_ih_l0", "weight_xx_l0"), {}, "not those of cell 'ligru': mapping: expected keys"),
        (("weight_ih_l0", "weight_ih_l9"), {}, "not those of cell 'ligru': mapping: weights are"),
        (None, {"fastgru.cell": "lstm"}, "its weights are not those of cell 'lstm'"),
        (None, {"fastgru.hidden_size": "6"}, "fastgru.hidden_size is '6', but by its weights"),
        (None, {"fastgru.num_layers": "10" * 50}, "fastgru.num_layers is"),
        (None, {"fastgru.bias": "False"}, "fastgru.bias is 'False', but by its weights it is"),
        (None, {"fastgru.dtype": "float64"}, "fastgru.dtype is 'float64', but"),
    ],
)
def test_files_with_a_right_checksum_that_are_wrong(
    rename: tuple[str, str] | None, metadata: dict[str, str], message: str, written: Path
) -> None:
    header, data = header_of(written.read_bytes())
    if rename is not None:
        header[rename[1]] = header.pop(rename[0])
    header["__metadata__"] |= metadata
    path = written.with_name("wrong")
    path.write_bytes(signed(header, data))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        fastgru.load(path)


def test_arrays_that_overlap_or_leave_gaps(written: Path) -> None:
    header, data = header_of(written.read_bytes())
    path = written.with_name("wrong")
    for shift in (-4, 4):
        moved = json.loads(json.dumps(header))
        for name, entry in moved.items():
            if name != "__metadata__" and entry["data_offsets"][0] > 0:
                entry["data_offsets"] = [at + shift for at in entry["data_offsets"]]
        path.write_bytes(with_header(moved, data if shift < 0 else data + b"0000"))
        with pytest.raises(ValueError, match="expected data from byte"):
            fastgru.load(path)
    for more in (data + b"\0", data[:-1]):
        path.write_bytes(with_header(header, more))
        with pytest.raises(ValueError, match=r"expected \d+ bytes of data, got \d+"):
            fastgru.load(path)


def test_arrays_as_large_as_no_memory(written: Path) -> None:
    header, data = header_of(written.read_bytes())
    last = max(header, key=lambda name: header[name].get("data_offsets", [0])[0])
    first, rows = header[last]["data_offsets"][0], 2**40
    header[last] |= {"shape": [rows], "data_offsets": [first, first + 4 * rows]}
    check_damaged(with_header(header, data), written)


# --- refusals of arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ([("a", "b")], TypeError, "metadata: expected a mapping of str to str, got"),
        ({3: "a"}, TypeError, "metadata: key 3: expected a str, got 3"),
        ({"a": 3}, TypeError, r"metadata: metadata\['a'\]: expected a str, got 3; json.dumps"),
        ({"a": "\ud800"}, ValueError, "got half a character"),
        ({"fastgru.cell": "gru"}, ValueError, "expected keys that do not start with 'fastgru.'"),
        ({"a": "b" * (4 << 20)}, ValueError, "metadata: expected a header of at most 4194304"),
    ],
)
def test_save_refuses_notes(
    metadata: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fastgru.save(tmp_path / "weights", drawn("gru"), metadata)
    assert not any(tmp_path.iterdir())


def test_refused_arguments(tmp_path: Path) -> None:
    params = drawn("gru")
    with pytest.raises(TypeError, match="params: expected Params, got Packed"):
        fastgru.save(tmp_path / "weights", fastgru.pack(params))  # type: ignore[arg-type]
    for call in (lambda: fastgru.save(3, params), lambda: fastgru.load(3)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"path: expected a str or an os.PathLike, got 3"):
            call()


def test_gradients_lack_running_statistics(tmp_path: Path) -> None:
    params = drawn("ligru", bidirectional=False)
    _, _, saved = fastgru.forward_train(np.ones((2, 3, 3), np.float32), params)
    gradients = fastgru.backward(saved, np.ones((2, 3, 5), np.float32)).params
    with pytest.raises(ValueError, match="params: expected all weights that load needs"):
        fastgru.save(tmp_path / "weights", gradients)


def test_arrays_of_another_library_are_saved_from_copies(simulated: Any, tmp_path: Path) -> None:
    params = drawn("gru")
    fastgru.save(tmp_path / "weights", params.map(simulated.asarray))
    loaded = fastgru.load(tmp_path / "weights")
    assert loaded.library == "numpy"
    assert_same_bits(loaded, params)


def test_nothing_is_pickled() -> None:
    assert "pickle" not in Path(str(sys.modules[files.__name__].__file__)).read_text("utf-8")


def test_the_examples_of_the_guide_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs/guide/files.md"
    pytest.importorskip("safetensors")
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        exec(block, names)
