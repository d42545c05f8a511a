"""ONNX models made by hand, of nodes with random weights, and what onnxruntime makes of them.

The weights are drawn in ONNX's own shapes; nothing of fastgru is used.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

NUM_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
INPUTS = ("X", "W", "R", "B", "lengths", "h", "c", "P")
IR_VERSION = 8  # old enough for any onnxruntime


def drawn(rng: Any, *shape: int) -> Any:
    return (0.5 * rng.standard_normal(shape)).astype(np.float32)


def weights(op: str, I: int, H: int, D: int = 1, seed: int = 0, parts: str = "WRB") -> Any:
    """Random weights of a node by the names of its inputs."""
    rng, rows = np.random.default_rng(seed), NUM_GATES[op] * H
    shapes = {"W": (D, rows, I), "R": (D, rows, H), "B": (D, 2 * rows), "P": (D, 3 * H)}
    return {name: drawn(rng, *shapes[name]) for name in parts}


def node(op: str, given: Sequence[str], H: int, outputs: Any = None, **attributes: Any) -> Any:
    """A recurrent node that reads values of these names, of `INPUTS`."""
    names = [name if name in given else "" for name in INPUTS]
    while not names[-1]:
        names.pop()
    outputs = outputs or (["Y", "Y_h", "Y_c"] if op == "LSTM" else ["Y", "Y_h"])
    return helper.make_node(op, names, outputs, hidden_size=H, **attributes)


def model(
    nodes: Sequence[Any],
    tensors: Mapping[str, Any],
    inputs: Sequence[str] = ("X",),
    outputs: Sequence[str] = ("Y",),
    *,
    opset: int = 17,
    **options: Any,
) -> Any:
    """A model of these nodes; tensors are arrays or TensorProtos."""
    kinds = {"lengths": TensorProto.INT32, "flag": TensorProto.BOOL, "count": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "made",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None)
            for name in inputs
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(array, name) if isinstance(array, np.ndarray) else array
            for name, array in tensors.items()
        ],
    )
    opsets = [helper.make_opsetid("", opset), *options.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, **options)


def run(made: Any, feeds: Mapping[str, Any]) -> list[Any]:
    """What onnxruntime makes of it, in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    content = made if isinstance(made, bytes) else made.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


class Drawn(NamedTuple):
    """A random model of one node, with what it takes."""

    model: Any
    feeds: dict[str, Any]
    sizes: tuple[int, int, int, int]  # T, N, D, H
    direction: str
    lengths: Any


def random_node(seed: int) -> Drawn:
    """A node with random attributes and inputs, of sizes up to 11."""
    rng = np.random.default_rng(seed)
    op = str(rng.choice(["GRU", "LSTM", "RNN"]))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    D = 2 if direction == "bidirectional" else 1
    I, H, N, T = (int(n) for n in rng.integers(1, 12, 4))
    attributes: dict[str, Any] = {"direction": direction}
    if direction == "forward" and rng.random() < 0.5:
        del attributes["direction"]
    parts, inputs, feeds = "WR", ["X"], {"X": drawn(rng, T, N, I)}
    if rng.random() < 0.7:
        parts += "B"
    if op == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(2))
    if op == "RNN" and rng.random() < 0.7:
        attributes["activations"] = [str(rng.choice(["Tanh", "Relu"]))] * D
    if op == "LSTM":
        which = rng.integers(3)
        parts += "P" if which == 0 else ""
        attributes |= {"input_forget": 1} if which == 1 else {}
        attributes |= {"activations": ["Sigmoid", "Tanh", "Tanh"] * D} if rng.integers(2) else {}
    tensors = weights(op, I, H, D, seed, parts)
    lengths = None
    if rng.random() < 0.5:
        lengths = rng.integers(1, T + 1, N).astype(np.int32)
        if rng.random() < 0.5:
            tensors["lengths"] = lengths
        else:
            inputs.append("lengths")
            feeds["lengths"] = lengths
    for name in "hc" if op == "LSTM" else "h":
        if rng.random() < 0.5:
            tensors[name] = np.repeat(drawn(rng, D, 1, H), N, axis=1)
    own = node(op, [*tensors, *inputs], H, **attributes)
    made = model([own], tensors, inputs, own.output, opset=int(rng.choice([7, 11, 14, 17, 21])))
    return Drawn(made, feeds, (T, N, D, H), direction, lengths)
