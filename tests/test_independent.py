"""Cells against independent implementations: onnxruntime in float32, PyTorch's RNN in float64."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from problems import Problem, as_members, as_state, assert_close, draw, solve

import fastgru

Array = NDArray[Any]

# |difference| <= K eps sqrt(I + H) max(1, |onnxruntime's|): both sides round. The worst of 100
# draws was 1.4, with one unit, where the elementary functions decide, 3 ulp on each side, and 0.5
# with 33. With ReLU alone both have the same bits.
ORACLE_K = 2.0
ELEMENTARY = 2 * 3.0
SIZES = [(3, 7, 5, 4), (2, 5, 1, 1), (9, 20, 19, 33)]  # N, T, I, H


class Node(NamedTuple):
    """A node of ONNX, and how the weights of a cell become its own."""

    op: str
    gates: tuple[int, ...]  # for each of ONNX's gates, its place among the cell's
    attributes: dict[str, Any]
    signs: tuple[float, ...]  # of each of ONNX's gates


NODES = {
    "rnn_tanh": Node("RNN", (0,), {"activations": ["Tanh"]}, (1,)),
    "rnn_relu": Node("RNN", (0,), {"activations": ["Relu"]}, (1,)),
    "indrnn": Node("RNN", (0,), {"activations": ["Relu"]}, (1,)),
    "lstm_peephole": Node("LSTM", (0, 3, 1, 2), {}, (1, 1, 1, 1)),
    # i o f c of f g o: f is 1 - i, hence i = sigmoid(-a_f); its own rows are not read.
    "cifg": Node("LSTM", (0, 2, 0, 1), {"input_forget": 1}, (-1, 1, 1, 1)),
}
PEEPHOLES = (0, 2, 1)  # i o f of i f o


@cache
def session(cell: str, H: int, direction: str, given: frozenset[str]) -> Any:
    """A model whose weights are inputs."""
    op, _, attributes, _ = NODES[cell]
    ranks = {"X": 3, "W": 3, "R": 3, "B": 2, "lens": 1, "h0": 3}
    outputs = ["Y", "h_n"]
    if op == "LSTM":
        ranks |= {"c0": 3, "P": 2}
        outputs.append("c_n")
    if "activations" in attributes:
        directions = 2 if direction == "bidirectional" else 1
        attributes = {"activations": attributes["activations"] * directions}
    inputs = [name if name in given else "" for name in ranks]
    node = helper.make_node(op, inputs, outputs, hidden_size=H, direction=direction, **attributes)
    kinds = {"lens": TensorProto.INT32}
    graph = helper.make_graph(
        [node],
        cell,
        [
            helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), [None] * ranks[n])
            for n in ranks
            if n in given
        ],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * (4 if n == "Y" else 3))
            for n in outputs
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_onnx(problem: Problem, directions: slice) -> tuple[Array, tuple[Array, ...]]:
    """y (N, T, D*H) and members of h_n (D, N, H), of some directions of the only layer."""
    cell, H = problem.params.cell, problem.params.hidden_size
    _, gates, _, signs = NODES[cell]
    (layer,) = problem.layers
    layer = layer[directions]

    def packed(array: Array) -> Array:
        parts = np.split(array, len(array) // H)
        return np.concatenate([s * parts[g] for s, g in zip(signs, gates, strict=True)])

    feeds: dict[str, Array] = {"X": problem.x.transpose(1, 0, 2)}
    feeds["W"] = np.stack([packed(w["weight_ih"]) for w in layer])
    if "diag_hh" in layer[0]:
        feeds["R"] = np.stack([np.diag(w["diag_hh"]) for w in layer])
        feeds["B"] = np.stack([np.concatenate([w["bias"], np.zeros(H)]) for w in layer])
    else:
        feeds["R"] = np.stack([packed(w["weight_hh"]) for w in layer])
        biases = [[packed(w[name]) for name in ("bias_ih", "bias_hh")] for w in layer]
        feeds["B"] = np.stack([np.concatenate(both) for both in biases])
    if cell == "cifg":  # garbage in the rows of f
        for name in ("W", "R", "B"):
            feeds[name][:, 2 * H : 3 * H] = 1e6
    if "peephole" in layer[0]:
        peepholes = [np.split(w["peephole"], 3) for w in layer]
        feeds["P"] = np.stack([np.concatenate([p[g] for g in PEEPHOLES]) for p in peepholes])
    for name, member in zip(("h0", "c0"), problem.h0, strict=False):
        feeds[name] = member[directions]
    feeds = {name: np.ascontiguousarray(a, np.float32) for name, a in feeds.items()}
    if problem.lengths is not None:
        feeds["lens"] = np.asarray(problem.lengths, np.int32)
    direction = ("bidirectional", "forward", "reverse")[
        0 if len(layer) == 2 else 1 + (directions.start or 0)
    ]
    y, *h_n = session(cell, H, direction, frozenset(feeds)).run(None, feeds)
    T, D, N, _ = y.shape
    return y.transpose(2, 0, 1, 3).reshape(N, T, D * H), tuple(h_n)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("cell", NODES)
def test_onnxruntime(
    cell: str, direction: str, ragged: bool, sizes: tuple[int, int, int, int]
) -> None:
    """One layer; lengths from 1, as onnxruntime gets 0 wrong."""
    N, T, I, H = sizes
    lengths = [T, 1, *(1 + np.arange(N - 2) % T)] if ragged else None
    problem = draw(cell, sizes, D=2, lengths=lengths, dtype="float32")
    y, h_n = fastgru.forward(problem.x, problem.params, as_state(problem.h0), lengths=lengths)
    d = {"forward": slice(0, 1), "reverse": slice(1, 2), "bidirectional": slice(0, 2)}[direction]
    want_y, want_h = run_onnx(problem, d)
    eps = float(np.finfo(np.float32).eps)
    bound = eps * max(ORACLE_K * float(np.sqrt(I + H)), ELEMENTARY)
    assert_close(y[:, :, d.start * H : d.stop * H], want_y, bound)
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert_close(got[d], want, bound)


@pytest.mark.parametrize("lengths", [None, [4, 1, 6]], ids=["whole", "ragged"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_pytorch(activation: str, D: int, lengths: list[int] | None) -> None:
    """Two layers, outputs and every gradient; the weights go over by name."""
    torch = pytest.importorskip("torch")
    problem = draw(f"rnn_{activation}", (3, 6, 4, 5), L=2, D=D, lengths=lengths)
    y, h_n, gradients = solve(problem)

    module = torch.nn.RNN(
        4, 5, num_layers=2, nonlinearity=activation, batch_first=True, bidirectional=D == 2
    ).double()
    named = problem.params.to_dict()
    module.load_state_dict({name: torch.from_numpy(a) for name, a in named.items()})
    x = torch.from_numpy(problem.x).requires_grad_()
    h0 = torch.from_numpy(problem.h0[0]).requires_grad_()
    if lengths is None:
        want_y, want_h = module(x, h0)
    else:
        rnn = torch.nn.utils.rnn
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        packed_y, want_h = module(packed, h0)
        want_y, _ = rnn.pad_packed_sequence(packed_y, batch_first=True)
    loss = (want_y * torch.from_numpy(problem.dy)).sum()
    (loss + (want_h * torch.from_numpy(problem.dh_n[0])).sum()).backward()

    # Both sides round: at each step, and gradients are sums over rows and steps as well.
    tolerance = 16 * float(np.finfo("float64").eps) * float(np.sqrt(5 * D + 5))
    assert_close(y, want_y.detach().numpy(), tolerance)
    assert_close(h_n, want_h.detach().numpy(), tolerance)
    assert_close(gradients.x, x.grad.numpy(), tolerance)
    assert_close(gradients.h0, h0.grad.numpy(), tolerance)
    for name, parameter in module.named_parameters():
        assert_close(gradients.params.to_dict()[name], parameter.grad.numpy(), tolerance)
