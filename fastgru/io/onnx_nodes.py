"""Recurrent nodes of ONNX: what each says, and the weights that it has."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..check import cell_named
from ..names import named_arrays, suffix
from ..params import Params
from .convention import Convention, floating, fused_biases
from .found import Layer
from .onnx_attributes import DOUBTFUL, GATES, Kind, is_quantized, kind_of
from .onnx_folding import Folded, Folder, NotConstantError
from .onnx_graph import Computed, Model, Scope, label
from .onnx_operators import Operation, dequantized

_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
# Of quantized weights, after those.
_SCALES = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")
_NUM_INPUTS = {"GRU": 6, "RNN": 6, "LSTM": 8, "DynamicQuantizeLSTM": 12}


@dataclass(frozen=True)
class Node:
    """A recurrent node as it was read.

    Attributes
    ----------
    layer : Layer
    scope : Scope
    proto : onnx.NodeProto
    kind : Kind
    lengths : object
        What its sequence_lens is; None without.
    asked : bool
        Whether an initial state is computed by the model.
    """

    layer: Layer
    scope: Scope
    proto: Any
    kind: Kind
    lengths: Any
    asked: bool


class Reader:
    """Reads one node.

    Parameters
    ----------
    model : Model
    folder : Folder
    scope : Scope
    node : onnx.NodeProto
    name : str
        What the layer will be called.
    dtype : dtype or None
        To convert to.
    """

    def __init__(
        self, model: Model, folder: Folder, scope: Scope, node: Any, name: str, dtype: Any
    ) -> None:
        self._model, self._folder, self._scope, self._node = model, folder, scope, node
        self._name, self._dtype = name, dtype
        self._notes: list[str] = []
        most = _NUM_INPUTS[node.op_type]
        if not 3 <= len(node.input) <= most:
            raise ValueError(f"expected 3 to {most} inputs, got {len(node.input)}")
        inputs = zip((*_INPUTS, *_SCALES), node.input, strict=False)
        self._inputs = {part: given for part, given in inputs if given}
        self._kind = kind_of(scope, node, peepholes="P" in self._inputs)

    def read(self) -> Node:
        """The layer of the node.

        Raises
        ------
        ValueError
            If it is none that a cell computes, or its weights are not constants that fit.
        """
        kind = self._kind
        if kind.cell == "gru_reset_before" and self._model.proto.producer_name == "pytorch":
            self._notes.append(DOUBTFUL)
        params, sources = self._params(self._weights())
        if kind.direction == "reverse":
            self._notes.append(
                "runs backward in time: reverse the valid steps of x before and of y after "
                "(fastgru.io.reverse_steps)"
            )
        if not kind.time_major:
            self._notes.append("layout=1: x and y have the samples first, as fastgru has them")
        lengths = self._lengths()
        initial, asked = self._initial(params)
        layer = Layer(self._name, params, sources, initial, tuple(self._notes))
        return Node(layer, self._scope, self._node, kind, lengths, asked)

    # --- weights ------------------------------------------------------------------------------

    def _constant(self, part: str) -> Folded | None:
        """One of the weights; None where the node has none."""
        if part not in self._inputs:
            return None
        try:
            return self._folder.fold(self._scope, self._inputs[part])
        except NotConstantError as error:
            raise ValueError(
                f"{part}: expected a constant, but it depends on {error}, which the model "
                "computes or is given"
            ) from error

    def _weights(self) -> dict[str, Folded]:
        """W, R, and B and P where they are there, in shapes that fit."""
        found = {part: self._constant(part) for part in ("W", "R", "B", "P")}
        weights = {part: made for part, made in found.items() if made is not None}
        if "W" not in weights or "R" not in weights:
            raise ValueError("expected weights W and R, got none")
        if is_quantized(self._node):
            for part in ("W", "R"):
                weights[part] = self._dequantized(part, weights[part])
            self._notes.append(
                "its weights have 8 bits; onnxruntime rounds inputs and states to 8 bits too, so "
                "its outputs differ"
            )
        directions, gates = self._kind.num_directions, len(GATES[self._kind.operator])
        W, R = weights["W"].array, weights["R"].array
        if W.ndim != 3 or R.ndim != 3 or 0 in W.shape or 0 in R.shape:
            raise ValueError(f"W and R: expected three axes, got shapes {W.shape}, {R.shape}")
        H = R.shape[2]
        expected = {
            "W": (directions, gates * H, W.shape[2]),
            "R": (directions, gates * H, H),
            "B": (directions, 2 * gates * H),
            "P": (directions, 3 * H),
        }
        for part, made in weights.items():
            if made.array.shape != expected[part]:
                raise ValueError(f"{part}: expected shape {expected[part]}, got {made.array.shape}")
            if made.bfloat16 and self._dtype is None:
                raise ValueError(
                    f"{part}: expected float32 or float64, got bfloat16; dtype='float32' converts "
                    "it"
                )
            weights[part] = made._replace(array=self._floating(part, made.array))
        if len({made.array.dtype for made in weights.values()}) > 1:
            raise ValueError("expected weights of one dtype; dtype='float32' converts them")
        stated = self._kind.hidden_size
        if stated not in (None, H):
            raise ValueError(f"attribute 'hidden_size': expected {H} by the weights, got {stated}")
        return weights

    def _floating(self, part: str, array: Any) -> Any:
        if self._dtype is not None:
            self._model.budget.spend(array.size * np.dtype(self._dtype).itemsize, part)
        try:
            return floating(part, array, self._dtype)
        except TypeError as error:
            raise ValueError(str(error)) from error

    def _dequantized(self, part: str, weights: Folded) -> Folded:
        """Weights of DynamicQuantizeLSTM, (D, I, 4H): a scale for each direction, or column."""
        scale, zero = self._constant(f"{part}_scale"), self._constant(f"{part}_zero_point")
        data = weights.array
        if scale is None or zero is None or data.ndim != 3 or data.dtype.itemsize != 1:
            raise ValueError(f"{part}: expected 8-bit weights of three axes, scales, zero points")
        shapes = ((data.shape[0],), (data.shape[0], data.shape[2]))
        if scale.array.shape not in shapes or zero.array.shape not in shapes:
            raise ValueError(f"{part}: expected scales and zero points of one of shapes {shapes}")
        along = [array.reshape(len(array), 1, -1) for array in (scale.array, zero.array)]
        operation = Operation(self._scope, self._node, [], self._model)
        made = dequantized(operation, data, *along).transpose(0, 2, 1)
        return Folded(made, (self._inputs[part],))

    def _params(self, weights: dict[str, Folded]) -> tuple[Params, dict[str, str]]:
        """Params, and for each of their arrays what it was made from."""
        cell = self._kind.cell
        table = cell_named(cell)
        # Coupled gates: f = 1 - i comes from the rows of i, with the other sign.
        gates = ("f", "o", "g") if cell == "cifg" else tuple(GATES[self._kind.operator])
        convention = Convention(gates, negated=frozenset("f" if cell == "cifg" else ""))
        places, sources = [], {}
        for d in range(self._kind.num_directions):
            own = {part: made.array[d] for part, made in weights.items()}
            self._model.budget.spend(sum(array.nbytes for array in own.values()), "weights")
            H = own["R"].shape[1]
            if cell == "cifg":
                own = {part: _coupled(array, H) for part, array in own.items()}
            arrays = {"weight_ih": own["W"], "weight_hh": own["R"]}
            if "B" in own:
                arrays |= fused_biases("B", table, own["B"], H)
            if "P" in own:
                arrays["peephole"] = own["P"]
            read = convention.read(cell, arrays)
            # The bytes of a file are neither aligned nor to be written to.
            places.append(
                {
                    name: np.require(array, None, ["C", "A", "W", "O"])
                    for name, array in read.items()
                }
            )
            for name in arrays:
                part = {"weight_ih": "W", "weight_hh": "R", "peephole": "P"}.get(name, "B")
                tensors = ", ".join(weights[part].tensors)
                sources[name + suffix(0, d)] = f"{part}[{d}]: {tensors or 'numbers'}"
        return Params.from_dict(named_arrays([places]), cell=cell), sources

    # --- what is not a weight -----------------------------------------------------------------

    def _lengths(self) -> Any:
        """What sequence_lens is, so that two nodes can be compared; None without."""
        if "sequence_lens" not in self._inputs:
            return None
        name = self._inputs["sequence_lens"]
        try:
            array = self._folder.fold(self._scope, name).array
        except NotConstantError as error:
            self._notes.append(
                f"sequence_lens comes from {error}: give the same to forward, as lengths"
            )
        else:
            self._notes.append(
                f"sequence_lens is {np.array2string(array, threshold=16)}: give it to forward, "
                "as lengths"
            )
        return id(self._scope.find(name))

    def _initial(self, params: Params) -> tuple[tuple[Any, ...], bool]:
        """The members of the initial state that the file has; whether the model computes one."""
        members, asked = [], False
        for state in cell_named(params.cell).states:
            member, computed = self._member(f"initial_{state}", params)
            members.append(member)
            asked |= computed
        if asked or all(member is None for member in members):
            return (), asked
        shape = (params.num_directions, params.hidden_size)
        zeros = np.zeros(shape, params.dtype)
        return tuple(zeros if member is None else member for member in members), False

    def _member(self, part: str, params: Params) -> tuple[Any, bool]:
        """One member, (D, H), None for zeros; whether it is computed by the model."""
        if part not in self._inputs:
            return None, False
        name, shape = self._inputs[part], (params.num_directions, params.hidden_size)
        samples_first = not self._kind.time_major
        repeated = self._folder.repeated(self._scope, name)
        if repeated is not None:
            return (np.full(shape, repeated, params.dtype) if repeated else None), False
        try:
            array = self._folder.fold(self._scope, name).array
        except NotConstantError as error:
            array = self._expanded(name, (1, *shape) if samples_first else (shape[0], 1, shape[1]))
            if array is None:
                self._notes.append(f"{part} comes from {error}: give the same to forward")
                return None, True
        rows = array.swapaxes(0, 1) if samples_first and array.ndim == 3 else array
        if rows.ndim != 3 or (rows.shape[0], rows.shape[2]) != shape:
            raise ValueError(
                f"{part}: expected {shape[0]} directions of {shape[1]} units, got shape "
                f"{array.shape}"
            )
        if not rows.shape[1] or not (rows == rows[:, :1]).all():
            self._notes.append(f"{part} differs between samples: give the same to forward")
            return None, True
        self._model.budget.spend(rows[:, 0].nbytes, part)
        member = np.require(self._floating(part, rows[:, 0]), None, ["C", "A", "W", "O"])
        if member.dtype != params.dtype:
            raise ValueError(f"{part}: expected {params.dtype} as the weights, got {member.dtype}")
        return member, False

    def _expanded(self, name: str, shape: tuple[int, ...]) -> Any:
        """The one row that a node repeats for a batch of any size; None if there is none."""
        value = self._scope.find(name)
        if not isinstance(value, Computed) or value.node.op_type != "Expand":
            return None
        try:
            array = self._folder.fold(value.scope, value.node.input[0]).array
        except NotConstantError:
            return None
        return array if array.shape == shape else None


def _coupled(array: Any, H: int) -> Any:
    """Rows without those of the forget gate, which is 1 - i: gates i, o, g."""
    blocks = np.split(array, len(array) // H)
    return np.concatenate([block for place, block in enumerate(blocks) if place % 4 != 2])


def layer_name(scope: Scope, node: Any, taken: set[str]) -> str:
    """The path of a node by which its layer is found; made unique."""
    own = label(node)
    base = f"{scope.path}/{own.lstrip('/')}" if scope.path else own
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name
