"""`to_onnx`: params as an ONNX model."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..archive import replace_file
from ..check import check_flag, check_path, check_type, whole_number
from ..files import on_host
from ..kernels.cells import CELLS
from ..params import Params
from .convention import Convention, blocks_of
from .onnx import onnx_package

_FIRST_OPSET = 14  # of these operators in their present form


class _Node(NamedTuple):
    """The operator that computes a cell, and its order of gates, by fastgru's names."""

    operator: str
    gates: str
    attributes: dict[str, Any]


_NODES = {
    "gru": _Node("GRU", "zrn", {"linear_before_reset": 1}),
    "gru_reset_before": _Node("GRU", "zrn", {"linear_before_reset": 0}),
    "lstm": _Node("LSTM", "iofg", {}),
    "lstm_peephole": _Node("LSTM", "iofg", {}),
    "cifg": _Node("LSTM", "fog", {"input_forget": 1}),  # f in the place of i
    "rnn_tanh": _Node("RNN", "n", {"activations": ["Tanh"]}),
    "rnn_relu": _Node("RNN", "n", {"activations": ["Relu"]}),
}


def to_onnx(
    params: Params,
    path: "str | os.PathLike[str] | None" = None,
    *,
    lengths: bool = False,
    states: bool = False,
    opset: int = 17,
) -> Any:
    """Make an ONNX model that computes what `forward` does.

    Parameters
    ----------
    params : Params
        Of float32, and of a cell that ONNX has: ``gru``, ``gru_reset_before``, ``lstm``,
        ``lstm_peephole``, ``cifg``, ``rnn_tanh``, ``rnn_relu``.
    path : str or os.PathLike, optional
        A file to write the model into; one that is there is replaced, when the new one is complete.
    lengths : bool
        Whether the model takes ``lengths``, (N,) of int32.
    states : bool
        Whether the model takes the initial state: ``h0``, and ``c0`` for an LSTM, (L * D, N, H)
        each. Without it that is zeros.
    opset : int
        Version of ONNX's operators, from 14 up.

    Returns
    -------
    onnx.ModelProto
        Its inputs are ``x``, (N, T, I), and those asked for; its outputs ``y``, (N, T, D * H),
        ``h_n``, and ``c_n`` for an LSTM, (L * D, N, H) each. N and T are free.

    Raises
    ------
    ModuleNotFoundError
        If the package onnx is not installed.
    TypeError
        If an argument is not as described, or the params are float64, which onnxruntime does not
        compute these operators in.
    ValueError
        If ONNX has no such cell, or the package onnx has no such version.
    OSError
        If the file cannot be written. An old one is then still there.

    Notes
    -----
    An input of an ONNX graph that may be left out needs a default of fixed size, so N would not be
    free. Thus arguments say which inputs there are.

    For a row of length 0 onnxruntime gives a final state of zeros, `forward` the initial one.

    Examples
    --------
    >>> import fastgru
    >>> from fastgru.io import to_onnx
    >>> params = fastgru.init_params(3, 16, num_layers=2, rng=0)
    >>> model = to_onnx(params, "weights.onnx", states=True)  # doctest: +SKIP
    """
    check_type("params", params, Params)
    target = None if path is None else check_path(path)
    with_lengths, with_states = check_flag("lengths", lengths), check_flag("states", states)
    version = whole_number("opset", opset)
    if params.cell not in _NODES:
        raise ValueError(f"params: ONNX has no cell {params.cell!r}, only {', '.join(_NODES)}")
    if params.dtype != np.float32:
        raise TypeError(
            f"params: expected float32, got {params.dtype}, which onnxruntime does not compute; "
            'params.map(lambda w: w.astype("float32")) converts'
        )
    onnx = onnx_package()
    newest = onnx.defs.onnx_opset_version()
    if not _FIRST_OPSET <= version <= newest:
        raise ValueError(f"opset: expected {_FIRST_OPSET} to {newest}, got {version}")
    graph = _Graph(onnx, params, with_lengths, with_states).made()
    opsets = [onnx.helper.make_opsetid("", version)]
    model = onnx.helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=onnx.helper.find_min_ir_version_for(opsets),
        producer_name="fastgru",
    )
    if target is not None:
        replace_file(Path(os.path.realpath(target)), [model.SerializeToString()])
    return model


class _Graph:
    """The graph of a model, node by node."""

    def __init__(self, onnx: Any, params: Params, lengths: bool, states: bool) -> None:
        self._onnx, self._params = onnx, Params.from_dict(on_host(params), cell=params.cell)
        self._lengths, self._states = lengths, states
        self._members = CELLS[params.cell].states  # h, or h and c
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []

    def made(self) -> Any:
        """The graph."""
        self._node("Transpose", ["x"], ["x_l0"], perm=[1, 0, 2])
        for number in range(self._params.num_layers):
            self._layer(number)
        last = f"x_l{self._params.num_layers}"
        self._node("Transpose", [last], ["y"], perm=[1, 0, 2])
        for member in self._members:
            own = [f"{member}_n_l{number}" for number in range(self._params.num_layers)]
            self._node("Concat", own, [f"{member}_n"], axis=0)
        p = self._params
        rows = p.num_layers * p.num_directions
        inputs = [self._value("x", ["N", "T", p.input_size])]
        if self._lengths:
            of_lengths = self._onnx.TensorProto.INT32
            inputs.append(self._onnx.helper.make_tensor_value_info("lengths", of_lengths, ["N"]))
        if self._states:
            inputs += [self._value(f"{m}0", [rows, "N", p.hidden_size]) for m in self._members]
        outputs = [
            self._value("y", ["N", "T", p.num_directions * p.hidden_size]),
            *(self._value(f"{m}_n", [rows, "N", p.hidden_size]) for m in self._members),
        ]
        return self._onnx.helper.make_graph(self._nodes, p.cell, inputs, outputs, self._tensors)

    def _layer(self, number: int) -> None:
        """A node, what it reads, and its outputs with the directions side by side."""
        node, D, H = (
            _NODES[self._params.cell],
            self._params.num_directions,
            self._params.hidden_size,
        )
        end = f"_l{number}"
        weights = {name + end: array for name, array in _arrays(self._params, number).items()}
        for name, array in weights.items():
            self._tensor(name, array)
        inputs = [
            f"x{end}", f"W{end}", f"R{end}", f"B{end}" if f"B{end}" in weights else "",
            "lengths" if self._lengths else "",
            *(self._initial(member, number) for member in self._members),
            f"P{end}" if f"P{end}" in weights else "",
        ]  # fmt: skip
        while not inputs[-1]:
            inputs.pop()
        attributes = dict(node.attributes)
        if "activations" in attributes:
            attributes["activations"] = attributes["activations"] * D
        self._node(
            node.operator,
            inputs,
            [f"y{end}", *(f"{member}_n{end}" for member in self._members)],
            hidden_size=H,
            direction="bidirectional" if D == 2 else "forward",
            **attributes,
        )
        # (T, D, N, H) to (T, N, D * H); sizes of 0 stand for those that come.
        self._node("Transpose", [f"y{end}"], [f"y_rows{end}"], perm=[0, 2, 1, 3])
        self._tensor(f"shape{end}", np.array([0, 0, D * H], np.int64))
        self._node("Reshape", [f"y_rows{end}", f"shape{end}"], [f"x_l{number + 1}"])

    def _initial(self, member: str, number: int) -> str:
        """The name of a layer's part of a member of the initial state; empty without one."""
        if not self._states:
            return ""
        D, end = self._params.num_directions, f"_l{number}"
        if self._params.num_layers == 1:
            return f"{member}0"
        for name, value in (("first", number * D), ("last", number * D + D), ("axis", 0)):
            if f"{name}{end}" not in {tensor.name for tensor in self._tensors}:
                self._tensor(f"{name}{end}", np.array([value], np.int64))
        parts = [f"{name}{end}" for name in ("first", "last", "axis")]
        self._node("Slice", [f"{member}0", *parts], [f"{member}0{end}"])
        return f"{member}0{end}"

    def _node(
        self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any
    ) -> None:
        self._nodes.append(
            self._onnx.helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes)
        )

    def _tensor(self, name: str, array: Any) -> None:
        self._tensors.append(self._onnx.numpy_helper.from_array(array, name))

    def _value(self, name: str, shape: list[Any]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, shape)


def _arrays(params: Params, number: int) -> dict[str, Any]:
    """W, R, and B and P where there are any, of a layer in ONNX's shapes."""
    cell, node = params.cell, _NODES[params.cell]
    convention = Convention(tuple(node.gates), negated=frozenset("f" if cell == "cifg" else ""))
    made: dict[str, list[Any]] = {}
    for weights in params.layers[number]:
        theirs = convention.write(cell, dict(weights.items()))
        if cell == "cifg":
            theirs = {name: _with_a_forget_gate(name, array) for name, array in theirs.items()}
        own = {"W": theirs["weight_ih"], "R": theirs["weight_hh"]}
        if "bias_ih" in theirs:
            own["B"] = np.concatenate([theirs["bias_ih"], theirs["bias_hh"]])
        if "peephole" in theirs:
            own["P"] = theirs["peephole"]
        for name, array in own.items():
            made.setdefault(name, []).append(array)
    return {name: np.stack(arrays) for name, arrays in made.items()}


def _with_a_forget_gate(name: str, array: Any) -> Any:
    """Rows of the gates i, o, g as those of i, o, f, g: f is 1 - i, and its rows are not read."""
    i, o, g = blocks_of(name, array, 3)
    return np.concatenate([i, o, np.zeros_like(i), g])
