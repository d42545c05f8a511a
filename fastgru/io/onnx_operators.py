"""Operators of ONNX that are computed here: those that move numbers or change their dtype.

What one makes is counted before it is made, so that a small file cannot ask for much memory.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .onnx_graph import OWN_DOMAINS, Model, Scope, label
from .onnx_tensors import BFLOAT16, array_of, element_dtype, shown

# Operators that give what they are given, but for shape, order and dtype.
_MOVING = frozenset(
    ("Identity", "Dropout", "Expand", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape")
) | frozenset(("Flatten", "Transpose", "Gather", "Cast"))

_NO_BOUND = 2**31 - 2  # some are one less


class Operation:
    """A node's inputs and attributes, as the operators below take them.

    `of_any_size` says that inputs stand for others of more steps or samples.
    """

    def __init__(
        self,
        scope: Scope,
        node: Any,
        inputs: list[Any],
        model: Model,
        of_any_size: bool = False,
    ) -> None:
        self.scope, self.node, self.inputs, self.model = scope, node, inputs, model
        self.of_any_size = of_any_size
        self.what = f"node {shown(label(node))} ({node.op_type})"

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.scope.attribute(self.node, name, default)

    def input(self, number: int) -> Any:
        """An input; None where it is left out."""
        return self.inputs[number] if number < len(self.inputs) else None

    def numbers(self, name: str, number: int) -> list[int] | None:
        """Whole numbers, which older versions have as an attribute, later ones as an input."""
        given = self.attribute(name)
        if given is not None:
            return [int(n) for n in given]
        array = self.input(number)
        if array is None:
            return None
        if array.dtype.kind not in "iu" or array.ndim > 1 or array.size > 64:
            raise ValueError(f"{name}: expected a few whole numbers, got {array.dtype} numbers")
        return [int(n) for n in array.ravel()]

    def spend(self, nbytes: int) -> None:
        self.model.budget.spend(nbytes, self.what)


def _constant(op: Operation) -> Any:
    makers: dict[str, Callable[[Any], Any]] = {
        "value": lambda tensor: array_of(tensor, op.model.folder, op.model.budget),
        "value_float": np.float32,
        "value_int": np.int64,
        "value_floats": lambda numbers: np.array(numbers, np.float32),
        "value_ints": lambda numbers: np.array(numbers, np.int64),
    }
    for name, make in makers.items():
        value = op.attribute(name)
        if value is not None and isinstance(value, list) == name.endswith("s"):
            return np.asarray(make(value))
    raise ValueError(f"expected one of {', '.join(makers)}")


def _filled(op: Operation) -> Any:
    return _broadcast(op, fill_value(op), op.numbers("shape", 0) or [])


def fill_value(op: Operation) -> Any:
    """The number that ConstantOfShape repeats."""
    tensor = op.attribute("value")
    if tensor is None:
        return np.float32(0)
    array = array_of(tensor, op.model.folder, op.model.budget)
    if array.size != 1:
        raise ValueError(f"expected one number to repeat, got {array.size}")
    return array.reshape(())[()]


def _broadcast(op: Operation, array: Any, shape: list[int]) -> Any:
    if any(n < 0 for n in shape):
        raise ValueError(f"expected sizes from 0 up, got {shape}")
    op.spend(math.prod(shape) * np.asarray(array).itemsize)
    return np.broadcast_to(array, shape)


def _expanded(op: Operation) -> Any:
    data, shape = op.inputs[0], op.numbers("shape", 1) or []
    if any(n < 0 for n in shape):
        raise ValueError(f"expected sizes from 0 up, got {shape}")
    # Either side may have ones. The arrays are views, which take no memory.
    of_both = np.broadcast_shapes(data.shape, tuple(shape))
    return _broadcast(op, data, list(of_both))


def _cast(op: Operation) -> Any:
    code = op.attribute("to")
    if type(code) is not int or code == BFLOAT16:  # to bfloat16 numbers would be rounded
        raise ValueError(f"to: expected a type other than bfloat16, got {code!r}")
    dtype = element_dtype(code, "to").newbyteorder("=")
    op.spend(op.inputs[0].size * dtype.itemsize)
    with np.errstate(all="ignore"):  # as the operator does
        return op.inputs[0].astype(dtype)


def _axes(axes: list[int], rank: int) -> list[int]:
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(f"axes: expected numbers from {-rank} to {rank - 1}, got {axes}")
    return [axis % rank for axis in axes]


def _unsqueezed(op: Operation) -> Any:
    axes = op.numbers("axes", 1)
    if axes is None:
        raise ValueError("axes: expected numbers, got none")
    return np.expand_dims(op.inputs[0], _axes(axes, op.inputs[0].ndim + len(axes)))


def _squeezed(op: Operation) -> Any:
    axes = op.numbers("axes", 1)
    if axes is None:
        return np.squeeze(op.inputs[0])
    return np.squeeze(op.inputs[0], tuple(_axes(axes, op.inputs[0].ndim)))


def _reshaped(op: Operation) -> Any:
    data, shape = op.inputs[0], op.numbers("shape", 1)
    if shape is None or any(n < -1 for n in shape):
        raise ValueError(f"shape: expected sizes from 0 up, or -1, got {shape}")
    if not op.attribute("allowzero", 0):
        shape = [data.shape[place] if n == 0 else n for place, n in enumerate(shape)]
    if not data.flags.c_contiguous:
        op.spend(data.nbytes)
    return data.reshape(shape)


def _flattened(op: Operation) -> Any:
    data = op.inputs[0]
    axis = op.attribute("axis", 1)
    if not -data.ndim <= axis <= data.ndim:
        raise ValueError(f"axis: expected a number from {-data.ndim} to {data.ndim}, got {axis}")
    if not data.flags.c_contiguous:
        op.spend(data.nbytes)
    lead = data.shape[: axis if axis >= 0 else data.ndim + axis]
    return data.reshape(math.prod(lead), math.prod(data.shape[len(lead) :]))


def _transposed(op: Operation) -> Any:
    return np.transpose(op.inputs[0], op.attribute("perm"))


def _sliced(op: Operation) -> Any:
    data, starts, ends = op.inputs[0], op.numbers("starts", 1), op.numbers("ends", 2)
    if starts is None or ends is None:
        raise ValueError("expected starts and ends")
    axes = op.numbers("axes", 3)
    axes = list(range(len(starts))) if axes is None else _axes(axes, data.ndim)
    steps = op.numbers("steps", 4) or [1] * len(starts)
    parts = [slice(None)] * data.ndim
    for axis, *part in zip(axes, starts, ends, steps, strict=True):
        # Exporters write a number without bound for an end that is the last one.
        if op.of_any_size and any(data.shape[axis] < abs(n) < _NO_BOUND for n in part[:2]):
            raise ValueError("a longer input would be cut")
        parts[axis] = slice(*part)
    return data[tuple(parts)]


def _concatenated(op: Operation) -> Any:
    if len({array.dtype for array in op.inputs}) > 1:
        raise ValueError("expected arrays of one dtype")
    (axis,) = _axes([op.attribute("axis", op.inputs[0].ndim)], op.inputs[0].ndim)
    op.spend(sum(array.nbytes for array in op.inputs))
    return np.concatenate(op.inputs, axis=axis)


def _split(op: Operation) -> Any:
    data, axis, count = op.inputs[0], op.attribute("axis", 0), len(op.node.output)
    (axis,) = _axes([axis], data.ndim)
    size = data.shape[axis]
    sizes = op.numbers("split", 1)
    if sizes is None:
        part = -(-size // count)
        sizes = [min(part, max(0, size - part * n)) for n in range(count)]
    if any(n < 0 for n in sizes) or sum(sizes) != size or len(sizes) != count:
        raise ValueError(f"split: expected {count} sizes whose sum is {size}, got {sizes}")
    return np.split(data, np.cumsum(sizes)[:-1], axis=axis)


def _gathered(op: Operation) -> Any:
    data, indices = op.inputs[:2]
    (axis,) = _axes([op.attribute("axis", 0)], data.ndim)
    if indices.dtype.kind not in "iu":
        raise ValueError(f"expected whole numbers as indices, got {indices.dtype}")
    op.spend(data.nbytes // max(1, data.shape[axis]) * indices.size)
    return np.take(data, indices, axis=axis)


def _dequantized(op: Operation) -> Any:
    data, scale, zero = op.inputs[0], op.inputs[1], op.input(2)
    if op.attribute("block_size", 0):
        raise ValueError("block_size: blocks are not there; expected one scale a tensor or axis")
    if data.dtype.kind not in "iu" or data.itemsize > 4 or scale.dtype.kind != "f":
        raise ValueError(f"expected whole numbers and a float scale, got {data.dtype}")
    if zero is not None and zero.shape != scale.shape:
        raise ValueError(f"expected a zero point of shape {scale.shape}, got {zero.shape}")
    if scale.size == 1:  # of one number, onnxruntime takes an axis for none
        scale, zero = scale.reshape(()), None if zero is None else zero.reshape(())
    else:
        (axis,) = _axes([op.attribute("axis", 1)], data.ndim)
        along = [1] * data.ndim
        along[axis] = data.shape[axis]
        scale = scale.reshape(along)
        zero = None if zero is None else zero.reshape(along)
    return dequantized(op, data, scale, zero)


def dequantized(op: Operation, data: Any, scale: Any, zero: Any) -> Any:
    """The numbers that whole numbers stand for: (data - zero) * scale."""
    op.spend(data.size * (8 + scale.itemsize))
    steps = data.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
    return steps.astype(scale.dtype) * scale


_OPERATORS: Mapping[str, Callable[[Operation], Any]] = {
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Identity": lambda op: op.inputs[0],
    "Dropout": lambda op: op.inputs[0],
    "Cast": _cast,
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Reshape": _reshaped,
    "Flatten": _flattened,
    "Transpose": _transposed,
    "Slice": _sliced,
    "Concat": _concatenated,
    "Split": _split,
    "Gather": _gathered,
    "Expand": _expanded,
    "Shape": lambda op: np.array(
        op.inputs[0].shape[op.attribute("start", 0) : op.attribute("end")], np.int64
    ),
    "DequantizeLinear": _dequantized,
}


def is_operator(node: Any) -> bool:
    """Whether a node is one of the operators that are computed here."""
    return node.domain in OWN_DOMAINS and node.op_type in _OPERATORS and _hands_on(node)


def is_moving(node: Any) -> bool:
    """Whether a node gives the numbers of its first input alone."""
    return bool(is_operator(node) and node.op_type in _MOVING and node.input)


def _hands_on(node: Any) -> bool:
    """Whether a Dropout only hands on; other operators always do what they are here for."""
    return node.op_type != "Dropout" or (
        len(node.input) < 3 and {a.name for a in node.attribute} <= {"ratio", "seed"}
    )


def results_of(op: Operation) -> list[Any]:
    """What an operator makes, one array an output.

    Raises
    ------
    ValueError
        If its inputs or attributes are not what it takes; the node is named.
    """
    needed = 0 if op.node.op_type == "Constant" else 1
    if len(op.inputs) < needed or (needed and op.inputs[0] is None):
        raise ValueError(f"{op.what}: expected inputs, got none")
    try:
        made = _OPERATORS[op.node.op_type](op)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{op.what}: {error}") from error
    return made if op.node.op_type == "Split" else [made]
