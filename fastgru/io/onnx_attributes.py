"""What the attributes of a recurrent node of ONNX say: which cell it is, and which way it runs."""

from dataclasses import dataclass
from typing import Any

from .onnx_graph import OWN_DOMAINS, Scope
from .onnx_tensors import shown

MICROSOFT = "com.microsoft"
# Operators that are read, with ONNX's order of their gates, by fastgru's names.
GATES = {"GRU": "zrn", "LSTM": "iofg", "RNN": "n"}
_ACTIVATIONS = {
    "GRU": ("sigmoid", "tanh"),
    "LSTM": ("sigmoid", "tanh", "tanh"),
    "RNN": ("tanh",),
}
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
# output_sequence, of the first version, says whether Y is wanted, which fastgru always gives.
_OF_ALL = ("hidden_size", "direction", "layout", "output_sequence", "activations")
_KNOWN = {"GRU": "linear_before_reset", "LSTM": "input_forget"}
_OWN_CELL = "no cell of fastgru has it; write one of your own (fastgru.register_cell)"
# What some exporters of PyTorch write, whose GRU always resets after the product.
DOUBTFUL = (
    "linear_before_reset=0 in a file of PyTorch, whose own GRU is the other one: where outputs "
    'differ from PyTorch\'s, take Params.from_dict(layer.params.to_dict(), cell="gru")'
)


@dataclass(frozen=True)
class Kind:
    """What a node's attributes say.

    Attributes
    ----------
    operator : str
        GRU, LSTM or RNN.
    cell : str
        The cell of fastgru that computes the same.
    direction : str
    num_directions : int
    time_major : bool
        Whether X and Y have the steps before the samples.
    hidden_size : int or None
        None if it is left to the weights.
    """

    operator: str
    cell: str
    direction: str
    num_directions: int
    time_major: bool
    hidden_size: int | None


def is_recurrent(node: Any) -> bool:
    """Whether a node is one of the operators that are read."""
    return (node.domain in OWN_DOMAINS and node.op_type in GATES) or is_quantized(node)


def is_quantized(node: Any) -> bool:
    """Whether a node is onnxruntime's LSTM with weights of 8 bits."""
    return bool(node.domain == MICROSOFT and node.op_type == "DynamicQuantizeLSTM")


def kind_of(scope: Scope, node: Any, *, peepholes: bool) -> Kind:
    """What a node's attributes say.

    Parameters
    ----------
    scope : Scope
    node : onnx.NodeProto
    peepholes : bool
        Whether the node has an input P.

    Returns
    -------
    Kind

    Raises
    ------
    ValueError
        If no cell computes what the node does; the attribute is named.
    """
    operator = "LSTM" if is_quantized(node) else node.op_type
    found = _Attributes(scope, node)
    names = found.names()
    if len({*names}) != len(names):
        raise ValueError("expected each attribute once")
    for name in names:
        if name not in _OF_ALL and name != _KNOWN.get(operator):  # clip, activation_alpha, …
            raise ValueError(f"attribute {shown(name)}: {_OWN_CELL}")
    direction = found.text("direction", "forward")
    if direction not in _DIRECTIONS:
        raise ValueError(
            f"attribute 'direction': expected {', '.join(_DIRECTIONS)}, got {shown(direction)}"
        )
    directions = _DIRECTIONS[direction]
    layout = found.whole("layout", 0)
    if layout not in (0, 1):
        raise ValueError(f"attribute 'layout': expected 0 or 1, got {layout}")
    cell = _cell(operator, found, directions, peepholes)
    size = found.whole("hidden_size", 0) if "hidden_size" in names else None
    return Kind(operator, cell, direction, directions, layout == 0, size)


class _Attributes:
    """Attributes of a node by name, of the types that they must have."""

    def __init__(self, scope: Scope, node: Any) -> None:
        self._scope, self._node = scope, node

    def names(self) -> list[str]:
        return [found.name for found in self._scope.all_attributes(self._node)]

    def whole(self, name: str, default: int) -> int:
        return int(self._value(name, default, int))

    def text(self, name: str, default: str) -> str:
        return bytes(self._value(name, default.encode(), bytes)).decode()

    def texts(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        values = self._value(name, [text.encode() for text in default], list)
        if any(type(value) is not bytes for value in values):
            raise ValueError(f"attribute {name!r}: expected text, got numbers")
        return tuple(value.decode() for value in values)

    def _value(self, name: str, default: Any, kind: type) -> Any:
        value = self._scope.attribute(self._node, name, default)
        if type(value) is not kind:
            raise ValueError(
                f"attribute {name!r}: expected {kind.__name__}, got {type(value).__name__}"
            )
        return value


def _cell(operator: str, found: _Attributes, directions: int, peepholes: bool) -> str:
    """The cell that computes what a node does."""
    own = _ACTIVATIONS[operator]
    given = tuple(name.lower() for name in found.texts("activations", own * directions))
    functions = given[: len(own)]
    if len(given) != len(own) * directions or given != functions * directions:
        raise ValueError(
            f"attribute 'activations': expected {len(own)} for each of {directions} directions, "
            f"the same in all, got {shown(', '.join(given))}"
        )
    if operator == "RNN" and functions in (("tanh",), ("relu",)):
        return f"rnn_{functions[0]}"
    if functions != own:
        raise ValueError(
            f"attribute 'activations': expected {', '.join(own)}, got "
            f"{shown(', '.join(given))}: {_OWN_CELL}"
        )
    if operator == "GRU":
        return "gru" if found.whole("linear_before_reset", 0) else "gru_reset_before"
    forget = found.whole("input_forget", 0)
    if forget and peepholes:
        raise ValueError(
            f"attribute 'input_forget' and input 'P': coupled gates with peepholes: {_OWN_CELL}"
        )
    return "cifg" if forget else "lstm_peephole" if peepholes else "lstm"
