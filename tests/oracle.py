"""onnxruntime as an independent oracle for one layer: float32, one GRU or LSTM node, one thread.

The conversions are written out here rather than taken from fastgru, which must not check itself.
ONNX packs gates as z, r, h and i, o, f, c, puts directions on a leading axis, joins both biases.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[Any]


class Node(NamedTuple):
    op: str
    gates: tuple[int, ...]  # for each of ONNX's gates, its place in PyTorch's order
    attributes: dict[str, Any]


NODES = {
    "gru": Node("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "gru_reset_before": Node("GRU", (1, 0, 2), {"linear_before_reset": 0}),
    "lstm": Node("LSTM", (0, 3, 1, 2), {}),
}
STATES = {"GRU": ("h",), "LSTM": ("h", "c")}


@cache
def session(cell: str, H: int, direction: str, given: frozenset[str]) -> Any:
    """A model whose weights are inputs, so that one session serves every draw of them."""
    op, _, attributes = NODES[cell]
    states = STATES[op]
    ranks = {"X": 3, "W": 3, "R": 3, "B": 2, "lens": 1} | {f"{s}0": 3 for s in states}
    # An absent optional input has an empty name: the operator's own default is compared.
    inputs = [name if name in given else "" for name in ranks]
    outputs = ["Y", *(f"{s}_n" for s in states)]
    node = helper.make_node(op, inputs, outputs, hidden_size=H, direction=direction, **attributes)
    graph = helper.make_graph(
        [node],
        cell,
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT32 if name == "lens" else TensorProto.FLOAT, [None] * rank
            )
            for name, rank in ranks.items()
            if name in given
        ],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [None] * (4 if name == "Y" else 3)
            )
            for name in outputs
        ],
    )
    # Old enough for any onnxruntime, whatever the newest versions that the onnx package writes.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    cell: str,
    x: Array,
    layers: Sequence[Sequence[Mapping[str, Array | None]]],
    h0: tuple[Array, ...] | None = None,
    lengths: Sequence[int] | Array | None = None,
    reverse: bool = False,
) -> tuple[Array, tuple[Array, ...]]:
    """x (N, T, I), h0 of (D, N, H) arrays -> y (N, T, D*H), h_n of (D, N, H) arrays.

    `layers` holds one layer, of one or two directions; `reverse` runs a single direction backwards.
    No length may be 0: onnxruntime then returns a zero state even when an initial one is given.
    """
    (layer,) = layers
    gates = NODES[cell].gates

    def packed(name: str) -> list[Array]:
        """One array a direction, gates reordered; empty where the weights lack it."""
        arrays = [w.get(name) for w in layer]
        return [
            np.concatenate([np.split(a, len(gates))[g] for g in gates])
            for a in arrays
            if a is not None
        ]

    W, R = np.stack(packed("weight_ih")), np.stack(packed("weight_hh"))
    feeds = {"X": x.transpose(1, 0, 2), "W": W, "R": R}
    bias_ih, bias_hh = packed("bias_ih"), packed("bias_hh")
    if bias_ih or bias_hh:
        none = [np.zeros(W.shape[1])] * len(layer)
        feeds["B"] = np.concatenate([bias_ih or none, bias_hh or none], axis=1)
    if h0 is not None:
        feeds |= {f"{s}0": a for s, a in zip(STATES[NODES[cell].op], h0, strict=True)}
    feeds = {name: np.ascontiguousarray(a, np.float32) for name, a in feeds.items()}
    if lengths is not None:
        feeds["lens"] = np.asarray(lengths, np.int32)

    assert not (reverse and len(layer) == 2)
    direction = "bidirectional" if len(layer) == 2 else "reverse" if reverse else "forward"
    onnx_y, *h_n = session(cell, R.shape[2], direction, frozenset(feeds)).run(None, feeds)
    T, D, N, H = onnx_y.shape
    return onnx_y.transpose(2, 0, 1, 3).reshape(N, T, D * H), tuple(h_n)
