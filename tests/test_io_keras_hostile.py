"""Files that are damaged, or made to do harm: the right weights or ValueError, nothing else."""

import gzip
import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgru.io.found import Found
from fastgru.io.keras import from_keras

DATA = Path(__file__).parent / "data" / "keras"
NAMES = ("mixed_bfloat16.keras", "mixed_bfloat16.h5", "mixed_bfloat16.weights.h5")
CONTENT = {
    name: gzip.decompress((DATA / f"{name}.gz").read_bytes()) for name in (*NAMES, "cudnn.h5")
}
# Of the file's length: what is in memory when it has been read, with some for what reads it.
MOST_MEMORY, FOR_READING = 8, 2 << 20

each_file = pytest.mark.parametrize("name", NAMES)
few = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "file"


def arrays_of(found: Found) -> dict[str, Any]:
    return {
        f"{name}.{key}": array
        for name, layer in found.items()
        for key, array in layer.params.to_dict().items()
    }


def read(path: Path, content: bytes) -> Found | None:
    """What a file of this content holds; None if it is refused."""
    path.write_bytes(content)
    try:
        return from_keras(path)
    except ValueError as error:
        refused = str(error)
    assert str(path) in refused
    return None


def data_in(content: bytes) -> list[range]:
    """Where the numbers of arrays are in an HDF5 file."""
    places = []

    def place(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
            first = item.id.get_offset()
            places.append(range(first, first + item.id.get_storage_size()))

    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(place)
    return places


def assert_right(found: Found | None, name: str) -> None:
    """The weights of the file as Keras wrote it, under whatever name."""
    if found is None or not len(found):
        return
    exact = np.load(DATA / "mixed_bfloat16.npz")
    (layer,) = found.values()
    kernel = layer.params.to_dict()["weight_ih_l0"]
    z, r, n = np.split(exact["gru.0"].T, 3)
    assert np.array_equal(kernel, np.concatenate([r, z, n])), name


# --- accidents ------------------------------------------------------------------------------------


@each_file
def test_the_files_are_read(name: str, target: Path) -> None:
    found = read(target, CONTENT[name])
    assert found is not None
    assert len(found) == 1
    assert_right(found, name)


@each_file
@few
@given(data=st.data())
def test_files_that_were_cut(name: str, target: Path, data: Any) -> None:
    length = data.draw(st.integers(0, len(CONTENT[name]) - 1))
    assert read(target, CONTENT[name][:length]) is None


@few
@given(at=st.integers(0, 8 * len(CONTENT[NAMES[0]]) - 1))
def test_archives_with_a_wrong_bit(target: Path, at: int) -> None:
    """Archives have checksums: what is read is what was written."""
    content = bytearray(CONTENT[NAMES[0]])
    content[at // 8] ^= 1 << at % 8
    assert_right(read(target, bytes(content)), f"bit {at}")


@pytest.mark.parametrize("name", NAMES[1:])
@few
@given(data=st.data())
def test_hdf5_with_a_wrong_bit(name: str, target: Path, data: Any) -> None:
    """HDF5 has no checksums, so a number may be another one; nothing else may."""
    content = bytearray(CONTENT[name])
    at = data.draw(st.integers(0, 8 * len(content) - 1))
    content[at // 8] ^= 1 << at % 8
    found = read(target, bytes(content))
    if found is not None:
        for array in arrays_of(found).values():
            assert array.dtype == np.float32
            assert array.nbytes <= len(content)


@each_file
@few
@given(data=st.data())
def test_files_with_other_bytes_in_them(name: str, target: Path, data: Any) -> None:
    content = bytearray(CONTENT[name])
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.binary(min_size=1, max_size=32))
    content[at : at + len(other)] = other
    read(target, bytes(content))


@few
@given(
    content=st.binary(max_size=200),
    start=st.sampled_from([b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b""]),
)
def test_files_of_anything(target: Path, content: bytes, start: bytes) -> None:
    assert read(target, start + content) is None


# --- HDF5 that is made to do harm -----------------------------------------------------------------

GROUP = "layers/gru/cell/vars"
KERNEL, RECURRENT, BIAS = (np.ones(s, np.float32) for s in ((3, 12), (4, 12), (2, 12)))


def plain(file: Any) -> None:
    for n, array in enumerate((KERNEL, RECURRENT, BIAS)):
        file[f"{GROUP}/{n}"] = array


def replaced(make: Callable[[Any, Path], None]) -> Callable[[Any, Path], None]:
    """A file whose kernel is made otherwise."""

    def write(file: Any, folder: Path) -> None:
        plain(file)
        del file[f"{GROUP}/0"]
        make(file, folder)

    return write


def external_storage(file: Any, folder: Path) -> None:
    (folder / "secret").write_bytes(KERNEL.tobytes())
    file.create_dataset(
        f"{GROUP}/0", KERNEL.shape, "f4", external=[(str(folder / "secret"), 0, KERNEL.nbytes)]
    )


def virtual(file: Any, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = KERNEL
    layout = h5py.VirtualLayout(KERNEL.shape, "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", KERNEL.shape)
    file.create_virtual_dataset(f"{GROUP}/0", layout)


def external_link(file: Any, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = KERNEL
    file[f"{GROUP}/0"] = h5py.ExternalLink(str(folder / "other.h5"), "x")


def external_group(file: Any, folder: Path) -> None:
    plain(file)
    del file["layers/gru/cell"]
    file["layers/gru/cell"] = h5py.ExternalLink(str(folder / "other.h5"), "x")


def soft_link(file: Any, folder: Path) -> None:
    file["elsewhere"] = KERNEL
    file[f"{GROUP}/0"] = h5py.SoftLink("/elsewhere")


def references(file: Any, folder: Path) -> None:
    file.create_dataset(f"{GROUP}/0", (3, 12), h5py.ref_dtype)


def texts(file: Any, folder: Path) -> None:
    file.create_dataset(f"{GROUP}/0", (3, 12), h5py.string_dtype())


def expanding(file: Any, folder: Path) -> None:
    file.create_dataset(
        f"{GROUP}/0", (1 << 16, 12 << 10), "f4", compression="gzip", chunks=(1 << 10, 12 << 10)
    )


def never_written(file: Any, folder: Path) -> None:
    file.create_dataset(f"{GROUP}/0", (1 << 20, 12 << 10), "f4")


def own_numbers(file: Any, folder: Path) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(120)
    space = h5py.h5s.create_simple((3, 12))
    h5py.h5d.create(file[GROUP].id, b"0", kind, space)
    file[f"{GROUP}/0"][...] = KERNEL


def same_bytes(file: Any, folder: Path) -> None:
    del file[f"{GROUP}/1"]
    file[f"{GROUP}/0"] = np.ones((4, 12), np.float32)
    file[f"{GROUP}/1"] = file[f"{GROUP}/0"]


def holds_itself(file: Any, folder: Path) -> None:
    plain(file)
    file["layers/again"] = file["layers"]


def deep(file: Any, folder: Path) -> None:
    plain(file)
    file["/".join(["a"] * 500)] = KERNEL


def many_names(file: Any, folder: Path) -> None:
    plain(file)
    for n in range(300):
        file[f"layers/{n}"] = file["layers/gru"]


def texts_too_long(file: Any, folder: Path) -> None:
    plain(file)
    file[GROUP].attrs["name"] = "x" * 60000
    file[GROUP].attrs["other"] = np.zeros(3)


def no_text(file: Any, folder: Path) -> None:
    plain(file)
    file[GROUP].attrs["name"] = np.zeros(3)


def not_numbered(file: Any, folder: Path) -> None:
    plain(file)
    file[f"{GROUP}/7"] = np.ones(12, np.float32)


def group_for_array(file: Any, folder: Path) -> None:
    file.create_group(f"{GROUP}/0")


HOSTILE: dict[str, tuple[Callable[[Any, Path], None], str]] = {
    "external storage": (replaced(external_storage), "in one piece"),
    "virtual": (replaced(virtual), "in one piece"),
    "external link": (replaced(external_link), "link to another place"),
    "external group": (external_group, "link to another place"),
    "soft link": (replaced(soft_link), "link to another place"),
    "references": (replaced(references), "expected numbers"),
    "texts": (replaced(texts), "expected numbers"),
    "expanding": (replaced(expanding), "in one piece"),
    "never written": (replaced(never_written), "bytes for shape"),
    "numbers of its own": (replaced(own_numbers), "IEEE"),
    "one array twice": (replaced(same_bytes), "shares its bytes"),
    "a group in itself": (holds_itself, "holds itself"),
    "deep": (deep, "at most 64 deep"),
    "many names": (many_names, "holds itself"),
    "no text": (no_text, "expected text"),
    "a group for an array": (replaced(group_for_array), "expected an array"),
}


@pytest.mark.parametrize("link", [h5py.SoftLink("/there"), h5py.ExternalLink("other.h5", "/")])
@pytest.mark.parametrize("place", ["layer_names", "weight_names"])
def test_names_that_lead_through_links(link: Any, place: str, tmp_path: Path) -> None:
    """Names in attributes are paths: none of their parts may be a link."""
    path, names = tmp_path / "hostile.h5", ("kernel", "recurrent_kernel", "bias")
    weights = dict(zip(names, (KERNEL, RECURRENT, BIAS), strict=True))
    with h5py.File(tmp_path / "other.h5", "w") as other, h5py.File(path, "w") as file:
        for group in (other, file.create_group("there")):
            for name, array in weights.items():
                group[f"gru/{name}"] = array
            group["gru"].attrs["weight_names"] = names
        layer = "link/gru" if place == "layer_names" else "real"
        file.attrs["layer_names"] = [layer]
        (file if place == "layer_names" else file.create_group("real"))["link"] = link
        if place == "weight_names":
            file["real"].attrs["weight_names"] = [f"link/gru/{name}" for name in names]
    with pytest.raises(ValueError, match="link to another place"):
        from_keras(path)


@pytest.mark.parametrize("case", HOSTILE)
def test_hdf5_made_to_do_harm(case: str, tmp_path: Path) -> None:
    write, message = HOSTILE[case]
    path = tmp_path / "hostile.weights.h5"
    with h5py.File(path, "w") as file:
        write(file, tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        measured(path)
    assert str(path) in str(refused.value)


def measured(path: Path) -> Found:
    """What a file holds; what it takes to read it is a small multiple of its length."""
    tracemalloc.start()
    try:
        return from_keras(path)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= MOST_MEMORY * path.stat().st_size + FOR_READING


def test_what_is_harmless_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plain.weights.h5"
    for write in (lambda f, p: plain(f), texts_too_long, not_numbered):
        with h5py.File(path, "w") as file:
            write(file, tmp_path)
        found = measured(path)
        assert len(found) == (write is not not_numbered)


def test_texts_of_wrong_lengths(target: Path) -> None:
    """The HDF5 library takes such lengths as they are, and fills gigabytes or never ends."""
    content = CONTENT["mixed_bfloat16.weights.h5"]
    heap = content.find(b"GCOL")
    (length,) = {
        n for n in range(1, 9000) if struct.pack("<IQI", n, heap, 1) in content
    }  # of the first text in the heap
    reference = struct.pack("<IQI", length, heap, 1)
    first = heap + 16
    wrong = [content.replace(reference, struct.pack("<IQI", n, heap, 1)) for n in (1 << 31, 5000)]
    wrong += [
        content.replace(reference, struct.pack("<IQI", length, *place))
        for place in ((heap, 999), (heap + 8, 1), (1 << 40, 1))
    ]
    wrong += [
        content[: first + 8] + struct.pack("<Q", n) + content[first + 16 :] for n in (0, 1 << 63)
    ]
    wrong.append(content[:first] + bytes(16) + content[first + 16 :])
    for damaged in wrong:
        assert damaged != content
        assert read(target, damaged) is None


def test_headers_that_hold_themselves(target: Path) -> None:
    content = CONTENT["mixed_bfloat16.h5"]
    with h5py.File(io.BytesIO(content)) as file:
        address = h5py.h5o.get_info(file.id).addr
    size = len(content) - address
    more = struct.pack("<HHB3xQQ", 0x10, 16, 0, address + 16, 1 << 12)
    header = struct.pack("<BBHIII", 1, 0, 9999, 1, len(more), 0) + more
    assert size > len(header)
    damaged = content[:address] + header + content[address + len(header) :]
    assert read(target, damaged) is None


CONFIGS = {
    "no JSON": b"{",
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "models in models": None,
    "no model": b"3",
    "no class": b'{"config": {}}',
    "no layers": b'{"class_name": "Sequential", "config": 3}',
    "layers of another kind": b'{"class_name": "Sequential", "config": {"layers": 3}}',
    "a name twice": b'{"class_name": "GRU", "class_name": "LSTM"}',
    "long number": b'{"class_name": ' + b"9" * 10_000 + b"}",
    "no UTF-8": b'{"class_name": "\xff"}',
    "UTF-16": '{"class_name": 3}'.encode("utf-16"),
    "a cell of another kind": json.dumps(
        {
            "class_name": "Sequential",
            "config": [{"class_name": "RNN", "config": {"name": "a", "cell": [3]}}],
        }
    ).encode(),
    "cells of another kind": json.dumps(
        {
            "class_name": "Sequential",
            "config": [
                {
                    "class_name": "RNN",
                    "config": {
                        "name": "a",
                        "cell": {"class_name": "StackedRNNCells", "config": {"cells": {}}},
                    },
                }
            ],
        }
    ).encode(),
    "a direction of another kind": json.dumps(
        {
            "class_name": "Sequential",
            "config": [{"class_name": "Bidirectional", "config": {"name": "a", "layer": 3}}],
        }
    ).encode(),
}


def nested(depth: int) -> bytes:
    config: Any = {"name": "gru", "layers": []}
    for _ in range(depth):
        layer = {"class_name": "Sequential", "config": config}
        config = {"name": "a", "layers": [layer]}
    return json.dumps({"class_name": "Sequential", "config": config}).encode()


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_made_to_do_harm(case: str, tmp_path: Path) -> None:
    config = CONFIGS[case] or nested(200)
    path = tmp_path / "hostile.keras"
    with zipfile.ZipFile(io.BytesIO(CONTENT[NAMES[0]])) as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("config.json", config)
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    with pytest.raises(ValueError, match=r"hostile\.keras: .*(configuration|expected|nested|JSON)"):
        from_keras(path)
    path = tmp_path / "hostile.h5"
    path.write_bytes(CONTENT["mixed_bfloat16.h5"])
    if len(config) < 60_000:
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = np.bytes_(config)
        with pytest.raises(ValueError, match=r"hostile\.h5: "):
            from_keras(path)


# --- archives that are made to do harm ------------------------------------------------------------


def archive(path: Path, members: list[tuple[str, bytes]], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "assets/../../evil", "C:/evil", "..\\evil", "config.json"]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_lead_out_of_an_archive(name: str, tmp_path: Path) -> None:
    members = [("config.json", b"{}"), ("model.weights.h5", b""), (name, b"")]
    path = archive(tmp_path / "hostile.keras", members)
    with pytest.raises(ValueError, match=r"inside the archive|comes twice"):
        from_keras(path)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
@pytest.mark.parametrize("lies", [False, True])
def test_archives_that_expand(name: str, lies: bool, tmp_path: Path) -> None:
    members = {"config.json": b"{}", "model.weights.h5": b"", name: bytes(64 << 20)}
    path = archive(tmp_path / "bomb.keras", [*members.items()], compression=zipfile.ZIP_DEFLATED)
    if lies:  # about the length
        content = path.read_bytes()
        length, small = (struct.pack("<I", n) for n in (64 << 20, 1000))
        assert content.count(length) == 2
        path.write_bytes(content.replace(length, small))
    with pytest.raises(ValueError, match=r"bomb\.keras: "):
        measured(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_of_other_methods(method: int, tmp_path: Path) -> None:
    members = [("config.json", b"{}"), ("model.weights.h5", b"")]
    path = archive(tmp_path / "other.keras", members, compression=method)
    with pytest.raises(ValueError, match="stored or deflated"):
        from_keras(path)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("the system does not list open files")
    before = len([*descriptors.iterdir()])
    for name, content in CONTENT.items():
        path = tmp_path / name
        for length in (len(content), len(content) // 2):
            read(path, content[:length])
    assert len([*descriptors.iterdir()]) == before
