"""`from_onnx` of damaged and hostile files: ValueError or what the file says, and little memory."""

import itertools
import os
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_made import model, node, weights

import fastgru
from fastgru.io.onnx import from_onnx

I, H = 3, 4


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def whole() -> Any:
    """A model with nodes of each kind, folded weights, a body and a function."""
    own = weights("LSTM", I, H, D=2)
    gru, rnn = weights("GRU", I, H), weights("RNN", I, H)
    body = helper.make_graph(
        [helper.make_node("GRU", ["X", "W1", "R1"], ["out"], hidden_size=H, linear_before_reset=1)],
        "body",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(gru["R"], "R1")],
    )
    function = helper.make_function(
        "own", "Layer", ["X", "W"], ["Y"],
        [helper.make_node("Constant", [], ["R"], value=numpy_helper.from_array(rnn["R"])),
         node("RNN", ["X", "W", "R"], H, ["Y"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [
        node("LSTM", ["X", *own], H, ["Y"], direction="bidirectional", name="lstm"),
        helper.make_node("Slice", ["w", "starts", "ends", "axes"], ["a"]),
        helper.make_node("Concat", ["a", "a"], ["b"], axis=0),
        helper.make_node("Unsqueeze", ["b", "axes"], ["W1"]),
        helper.make_node("Layer", ["X", "V"], ["U"], "call", domain="own"),
        helper.make_node("If", ["flag"], ["Z"], then_branch=body, else_branch=body),
    ]
    tensors = own | {
        "w": gru["W"][0],
        "V": rnn["W"],
        "starts": ints(0),
        "ends": ints(6),
        "axes": ints(0),
    }
    made = model(nodes, tensors, ["X", "flag"], ["Y", "Z"])
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


WHOLE = whole().SerializeToString()
DATA = [
    slice(start, start + len(raw))
    for raw in (array.tobytes() for array in weights("LSTM", I, H, D=2).values())
    for start in [WHOLE.index(raw)]
]


def read(content: bytes, times: float = 40.0) -> Any:
    """What is found, or None for a ValueError; whatever it is, it takes little memory."""
    refusal, found = "the model: ", None
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of PyTorch's files
            found = from_onnx(content, merge=True)
    except ValueError as error:
        refusal = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert refusal.startswith("the model: ")
    assert peak < times * len(content) + 600_000
    return found


def refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_onnx(content)
    assert read(content if isinstance(content, bytes) else content.SerializeToString()) is None


def test_the_whole_file_is_read() -> None:
    found = read(WHOLE)
    assert [layer.params.cell for layer in found.values()] == [
        "lstm",
        "rnn_tanh",
        "gru",
        "gru",
    ]
    assert DATA


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_flipped_bits(data: st.DataObject) -> None:
    """The format has no checksum: what still fits is read as it stands."""
    content = bytearray(WHOLE)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        content[bit // 8] ^= 1 << bit % 8
    found = read(bytes(content))
    for layer in found.values() if found is not None else ():
        assert isinstance(layer.params, fastgru.Params)


def test_each_flipped_bit_of_some_of_the_structure() -> None:
    outside = [
        n for n in range(len(WHOLE)) if not any(part.start <= n < part.stop for part in DATA)
    ]
    for number, place in enumerate(outside[::2]):
        content = bytearray(WHOLE)
        content[place] ^= 1 << number % 8
        read(bytes(content))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipped_bits_of_weights(data: st.DataObject) -> None:
    """They change one number each, and nothing else."""
    part = data.draw(st.sampled_from(DATA))
    place = data.draw(st.integers(part.start, part.stop - 1))
    content = bytearray(WHOLE)
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    whole, found = from_onnx(WHOLE)["lstm"], read(bytes(content))["lstm"]
    changed = [
        np.count_nonzero(a.view(np.uint32) != b.view(np.uint32))
        for a, b in zip(
            whole.params.to_dict().values(), found.params.to_dict().values(), strict=True
        )
    ]
    assert sum(changed) == 1


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_cut_and_lengthened_files(data: st.DataObject) -> None:
    first, last = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(WHOLE))])))
    middle = data.draw(st.binary(max_size=8))
    read(WHOLE[:first] + middle + WHOLE[last:])


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    assert read(content) is None


@pytest.mark.parametrize("size", range(0, len(WHOLE), 61))
def test_cut_files(size: int) -> None:
    assert read(WHOLE[:size]) is None


def test_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "no.onnx")
    with pytest.raises(OSError):  # noqa: PT011
        from_onnx(tmp_path)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(WHOLE[:-1])
    with pytest.raises(ValueError, match=r"damaged.onnx: it is no ONNX model, or damaged") as info:
        from_onnx(path)
    assert info.value.__cause__ is not None
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"damaged.onnx: it is no ONNX model: there is no graph"):
        from_onnx(path)


# --- tensors --------------------------------------------------------------------------------------


def tensor(**changes: Any) -> Any:
    """A model whose W has these fields."""
    own: dict[str, Any] = dict(weights("GRU", I, H))
    proto = numpy_helper.from_array(own["W"], "W")
    for name, value in changes.items():
        if name == "dims" or (name.endswith("_data") and name != "raw_data"):
            del getattr(proto, name)[:]
            getattr(proto, name).extend(value)
        else:
            setattr(proto, name, value)
    return model([node("GRU", ["X", *own], H)], own | {"W": proto})


RAW = weights("GRU", I, H)["W"].tobytes()
TENSORS = {
    "too short": ({"raw_data": RAW[:-1]}, "expected 144 bytes for shape .1, 12, 3., got 143"),
    "too long": ({"raw_data": RAW + b"\0"}, "expected 144 bytes .* got 145"),
    "none": ({"raw_data": b""}, "expected 144 bytes .* got 0"),
    "huge sizes": ({"dims": [2**40, 2**40, 2**40]}, "expected [0-9]{37} bytes .* got 144"),
    "negative sizes": ({"dims": [-1, -12, 3]}, "expected sizes from 0 up, got"),
    "many sizes": ({"dims": [1] * 100}, "expected sizes from 0 up"),
    "sizes of 0": ({"dims": [0, 12, 3], "raw_data": b""}, "W and R: expected three axes|got shape"),
    "text": ({"data_type": TensorProto.STRING}, "expected elements of float16.* got type 8"),
    "no type": ({"data_type": 0}, "expected elements of float16"),
    "4 bits": ({"data_type": TensorProto.INT4}, "expected elements of float16"),
    "two places": ({"float_data": [1.0] * 36}, "expected data in one place, got float_data"),
    "bits that do not fit": (
        {"data_type": TensorProto.FLOAT16, "raw_data": b"", "int32_data": [70_000] * 36},
        "expected data in one place|expected numbers of uint16",
    ),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_do_not_fit(what: str) -> None:
    changes, message = TENSORS[what]
    refused(tensor(**changes), message)


def test_numbers_that_do_not_fit_their_type() -> None:
    made = tensor(data_type=TensorProto.FLOAT16, int32_data=[70_000] * 36)
    made.graph.initializer[0].ClearField("raw_data")
    refused(made, "expected numbers of uint16, got larger ones")


# --- bombs ----------------------------------------------------------------------------------------


def bomb(*steps: Any, **tensors: Any) -> Any:
    """A GRU whose W these nodes make."""
    own: dict[str, Any] = {n: a for n, a in weights("GRU", I, H).items() if n != "W"}
    nodes = [helper.make_node(op, inputs, outputs, **more) for op, inputs, outputs, more in steps]
    return model([*nodes, node("GRU", ["X", "W", *own], H)], own | tensors)


def doubled(times: int) -> list[Any]:
    names = ["w", *map(str, range(times - 1)), "W"]
    return [("Concat", [names[n], names[n]], [names[n + 1]], {"axis": 0}) for n in range(times)]


SMALL = np.ones((4, 3), np.float32)
BOMBS = {
    "ConstantOfShape": bomb(("ConstantOfShape", ["s"], ["W"], {}), s=ints(1, 2**40, 3)),
    "ConstantOfShape of 0": bomb(("ConstantOfShape", ["s"], ["W"], {}), s=ints(0, 2**62, 2**62)),
    "Expand": bomb(("Expand", ["w", "s"], ["W"], {}), w=SMALL, s=ints(2**40, 4, 3)),
    "Concat": bomb(*doubled(50), w=SMALL),
    "Gather": bomb(
        *(
            (("Gather", [a, "i"], [b], {}))
            for a, b in zip("wabcdefgh", [*"abcdefgh", "W"], strict=True)
        ),
        w=SMALL,
        i=np.zeros((2, 40), np.int64),
    ),
    "Reshape of one number": bomb(
        ("Expand", ["w", "s"], ["a"], {}),
        ("Reshape", ["a", "t"], ["W"], {}),
        w=SMALL[:1, :1],
        s=ints(2**20, 2**20),
        t=ints(-1, 2, 2),
    ),
}


@pytest.mark.parametrize("what", BOMBS)
def test_small_files_that_ask_for_much_memory(what: str) -> None:
    refused(BOMBS[what], r"would make [0-9]+ bytes of a model of|expected three axes|array is too|"
            "Maximum allowed|too large")  # fmt: skip


def test_a_layer_that_is_called_too_often() -> None:
    """Functions that call functions, each twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    own = weights("GRU", I, H)
    leaf = [helper.make_node("GRU", ["X", "W", "R", "B"], ["Y"], hidden_size=H)]
    functions = []
    for depth in range(30):
        calls = [
            helper.make_node(f"F{depth - 1}", list("XWRB"), [name], name, domain="own")
            for name in ("Y", "Z")
        ]
        functions.append(
            helper.make_function(
                "own", f"F{depth}", list("XWRB"), ["Y"], calls if depth else leaf, opsets
            )
        )
    made = model([helper.make_node("F29", list("XWRB"), ["Y"], domain="own")], own)
    made.functions.extend(functions)
    made.opset_import.append(helper.make_opsetid("own", 1))
    refused(made, "functions are called too often")


def test_functions_that_call_themselves() -> None:
    """Or others, one in the other, too deep."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    call = helper.make_node("F", ["X"], ["Y"], domain="own")
    made = model([call], {})
    made.functions.append(helper.make_function("own", "F", ["X"], ["Y"], [call], opsets))
    refused(made, "function 'F' calls itself")
    made.functions.append(made.functions[0])
    refused(made, "function 'F' is defined twice, or one of")
    made = model([helper.make_node("GRU", list("XWR"), ["Y"])], weights("GRU", I, H))
    made.functions.append(helper.make_function("", "GRU", ["X"], ["Y"], [call], opsets))
    refused(made, "function 'GRU' is defined twice, or one of ONNX's own")
    own = weights("GRU", I, H)
    made = model([helper.make_node("F0", list("XWRB"), ["Y"], domain="own")], own)
    for depth in range(60):
        call = helper.make_node(f"F{depth + 1}", list("XWRB"), ["Y"], domain="own")
        inner = call if depth < 59 else helper.make_node("GRU", list("XWRB"), ["Y"])
        made.functions.append(
            helper.make_function("own", f"F{depth}", list("XWRB"), ["Y"], [inner], opsets)
        )
    refused(made, "or functions are too deep")


# --- graphs ---------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    info = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    inner = [node("GRU", ["X", "W", "R"], H, ["out"])]
    for _ in range(depth):
        body = helper.make_graph(inner, "body", [], [info])
        inner = [helper.make_node("If", ["flag"], ["out"], then_branch=body, else_branch=body)]
        del inner[0].attribute[1:]
    return model(inner, weights("GRU", I, H, parts="WR"), ["X", "flag"], ["out"])


def test_deeply_nested_graphs() -> None:
    assert len(from_onnx(nested(20))) == 1
    content = b""
    for _ in range(3000):  # a graph in an attribute in a node in a graph, which protobuf refuses
        for key in (0x32, 0x2A, 0x0A):
            content = bytes([key]) + varint(len(content)) + content
    assert read(b"\x3a" + varint(len(content)) + content) is None


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def test_cycles_and_chains() -> None:
    step = ("Identity", ["b"], ["a"], {}), ("Identity", ["a"], ["b"], {})
    refused(bomb(*step, ("Identity", ["b"], ["W"], {})), "'[ab]' is computed from itself")
    refused(bomb(("Identity", ["W"], ["W"], {})), "'W' is computed from itself")
    names = ["w", *map(str, range(5000)), "W"]
    chain = [("Identity", [a], [b], {}) for a, b in itertools.pairwise(names)]
    refused(bomb(*chain, w=SMALL[None]), "is computed by more than 64 nodes in turn")


def test_names() -> None:
    refused(bomb(("Identity", ["w"], ["W"], {})), "'w' is read, but no node and no initializer")
    twice = [("Identity", ["w"], ["W"], {})] * 2
    refused(bomb(*twice, w=SMALL[None]), "'W' is made twice in one graph")
    long = "x" * 1_000_000
    with pytest.raises(ValueError, match="is read") as info:
        from_onnx(bomb(("Identity", [long], ["W"], {})))
    assert len(str(info.value)) < 1000
    own = weights("GRU", I, H)
    found = from_onnx(model([node("GRU", ["X", *own], H, name=long)], own))
    assert [*found] == [long]


WRONG_NODES = {
    "axes": ("Unsqueeze", ["w", "i"], {}, {"i": ints(9)}),
    "no axes": ("Unsqueeze", ["w"], {}, {}),
    "an axis": ("Flatten", ["w"], {"axis": 3}, {}),
    "many axes": ("Unsqueeze", ["w", "i"], {}, {"i": ints(*range(64))}),
    "axes of text": ("Transpose", ["w"], {"perm": ["a", "b"]}, {}),
    "a permutation": ("Transpose", ["w"], {"perm": [0, 0]}, {}),
    "huge axes": ("Squeeze", ["w", "i"], {}, {"i": ints(2**62)}),
    "a size that is not 1": ("Squeeze", ["w", "i"], {}, {"i": ints(0)}),
    "a shape": ("Reshape", ["w", "i"], {}, {"i": ints(7, 7)}),
    "a shape of -2": ("Reshape", ["w", "i"], {}, {"i": ints(-2, 6)}),
    "a shape that copies too far": ("Reshape", ["w", "i"], {}, {"i": ints(4, 3, 0)}),
    "a float shape": ("Reshape", ["w", "w"], {}, {}),
    "no shape": ("Reshape", ["w"], {}, {}),
    "a long shape": ("Reshape", ["w", "i"], {}, {"i": np.ones(10_000, np.int64)}),
    "indices": ("Gather", ["w", "i"], {}, {"i": ints(4)}),
    "float indices": ("Gather", ["w", "w"], {}, {}),
    "a step of 0": ("Slice", ["w", "i", "i", "i", "i"], {}, {"i": ints(0)}),
    "starts without ends": ("Slice", ["w", "i"], {}, {"i": ints(0)}),
    "unequal numbers": ("Slice", ["w", "i", "j"], {}, {"i": ints(0), "j": ints(1, 2)}),
    "sizes of a split": ("Split", ["w", "i"], {}, {"i": ints(99)}),
    "no axis": ("Concat", ["w", "w"], {}, {}),
    "shapes that do not fit": ("Concat", ["w", "v"], {"axis": 0}, {"v": SMALL[:, :2]}),
    "dtypes that differ": ("Concat", ["w", "i"], {"axis": 0}, {"i": np.ones((4, 3), np.int64)}),
    "a type": ("Cast", ["w"], {"to": 99}, {}),
    "a type of text": ("Cast", ["w"], {"to": "FLOAT"}, {}),
    "a negative shape": ("Expand", ["w", "i"], {}, {"i": ints(-1, 3)}),
    "whole numbers": ("DequantizeLinear", ["w", "w"], {}, {}),
    "a zero point": (
        "DequantizeLinear", ["q", "s", "z"], {},
        {"q": np.ones((4, 3), np.int8), "s": np.float32([1] * 4), "z": np.zeros(3, np.int8)},
    ),
    "blocks": (
        "DequantizeLinear", ["q", "s"], {"block_size": 2},
        {"q": np.ones((4, 3), np.int8), "s": np.ones((2, 3), np.float32)},
    ),
    "no inputs": ("Identity", [], {}, {}),
    "an empty input": ("Identity", [""], {}, {}),
    "no value": ("Constant", [], {}, {}),
    "a value that is none": ("Constant", [], {"value_ints": 3.5}, {}),
    "several numbers": (
        "ConstantOfShape", ["i"],
        {"value": numpy_helper.from_array(np.ones(2, np.float32))}, {"i": ints(1, 12, 3)},
    ),
    "a negative size": ("ConstantOfShape", ["i"], {}, {"i": ints(-1, 12, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_NODES)
def test_nodes_that_cannot_be_computed(what: str) -> None:
    op, inputs, attributes, tensors = WRONG_NODES[what]
    made = bomb((op, inputs, ["W"], attributes), w=SMALL, **tensors)
    refused(made, rf"^the model: node 'Y' \(GRU\): node 'W' \({op}\): ")


def test_sparse_tensors() -> None:
    own = weights("GRU", I, H)
    made = model([node("GRU", ["X", *own], H)], {name: own[name] for name in "RB"})
    made.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=numpy_helper.from_array(own["W"], "W"), dims=[1, 12, 3])
    )
    refused(made, "W: expected a constant, but it depends on the input 'sparse W'")


def test_names_that_are_no_text() -> None:
    content = bomb(("Identity", ["wwww"], ["W"], {}), wwww=SMALL[None]).SerializeToString()
    for count in (1, 2):
        refused(content.replace(b"wwww", b"\xff\xff\xff\xff", count), "UTF-8|utf-8")


def test_attributes_of_types_that_no_operator_here_has() -> None:
    own = weights("GRU", I, H)
    made = node("GRU", ["X", *own], H)
    made.attribute[0].type = onnx.AttributeProto.TYPE_PROTO
    refused(model([made], own), "attribute 'hidden_size': expected numbers, text, tensors or gra")


def test_bodies_in_functions_in_bodies() -> None:
    """Together deeper than protobuf itself allows."""
    inner, outer = nested(25), nested(25)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    outer.functions.append(
        helper.make_function("own", "F", ["X", "W", "R", "flag"], ["out"], inner.graph.node, opsets)
    )
    outer.opset_import.append(helper.make_opsetid("own", 1))
    graph = outer.graph
    while graph.node[0].op_type == "If":
        graph = graph.node[0].attribute[0].g
    graph.node[0].CopyFrom(helper.make_node("F", ["X", "W", "R", "flag"], ["out"], domain="own"))
    refused(outer, "graphs are nested deeper than 40")


def test_outputs_that_there_are_not() -> None:
    refused(bomb(("Identity", ["w"], ["a", "W"], {}), w=SMALL), "expected one output, got 2")


# --- data in other files --------------------------------------------------------------------------


def outside(folder: Path, location: str, **entries: str) -> Path:
    """A model whose W is in another file, at byte 8."""
    own: dict[str, Any] = dict(weights("GRU", I, H))
    proto = numpy_helper.from_array(own["W"], "W")
    proto.ClearField("raw_data")
    proto.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": location, "offset": "8"} | entries).items():
        proto.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    path = folder / "model.onnx"
    path.write_bytes(model([node("GRU", ["X", *own], H)], own | {"W": proto}).SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data of W in it, in one below, and beside it."""
    inside = tmp_path / "model"
    (inside / "below").mkdir(parents=True)
    for path in (inside, inside / "below", tmp_path):
        (path / "data").write_bytes(b"\0" * 8 + RAW + b"\0")
    return inside


@pytest.mark.parametrize("location", ["data", "below/data", "./data"])
def test_data_beside_the_model(location: str, folder: Path) -> None:
    plain = from_onnx(tensor()).only.to_dict()
    for entries in ({}, {"length": str(len(RAW))}, {"checksum": "of nobody"}):
        path = outside(folder, location, **entries)
        found = from_onnx(path).only.to_dict()
        assert all(np.array_equal(found[key], plain[key]) for key in plain)
    with pytest.raises(ValueError, match=r"data is in the file .* give the model by the"):
        from_onnx(path.read_bytes())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../data"}, "in the model's folder, got '../data'"),
        ({"location": "below/../../data"}, "in the model's folder"),
        ({"location": "below/../data"}, "in the model's folder"),
        ({"location": ""}, "expected the name of a file"),
        ({"location": "data\0"}, "expected the name of a file"),
        ({"location": "..\\data"}, "expected the name of a file"),
        ({"location": "C:data"}, "expected the name of a file"),
        ({"location": "."}, "in the model's folder"),
        ({"location": "nothing"}, "its data should be in .*nothing"),
        ({"location": "below"}, "expected a regular file"),
        ({"offset": "10"}, "expected 144 bytes within the 153 of"),
        ({"offset": str(2**63)}, "expected 144 bytes within"),
        ({"offset": "-1"}, "expected offset of its data from 0 up, got '-1'"),
        ({"offset": "9" * 5000}, "expected offset of its data from 0 up"),
        ({"length": "143"}, "expected 144 bytes within .* got 143 from byte 8 on"),
        ({"length": "x"}, "expected length of its data from 0 up"),
    ],
)
def test_data_that_is_not_beside_the_model(
    entries: dict[str, str], message: str, folder: Path
) -> None:
    path = outside(folder, **({"location": "data"} | entries))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"model.onnx: node 'Y' \(GRU\): tensor 'W': .*{message}"):
        from_onnx(path)


def test_data_by_an_absolute_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"in the model's folder|expected the name of a file"):
        from_onnx(outside(folder, str(folder / "data")))


def test_links(folder: Path) -> None:
    """One that leads out of the folder is not followed; one inside is."""
    try:
        (folder / "out").symlink_to(folder.parent / "data")
        (folder / "up").symlink_to(folder.parent, target_is_directory=True)
        (folder / "within").symlink_to(folder / "data")
    except OSError:
        pytest.skip("no symbolic links here")
    for location in ("out", "up/data"):
        with pytest.raises(ValueError, match="nor a link to one"):
            from_onnx(outside(folder, location))
    assert from_onnx(outside(folder, "within")).only.cell == "gru_reset_before"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="expected a regular file"):
        from_onnx(outside(folder, "pipe"))
