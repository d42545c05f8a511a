"""Constants of ONNX graphs, computed: what exporters put between stored tensors and weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .onnx_graph import OWN_DOMAINS, Computed, Given, Model, Scope, Stored, Value, label
from .onnx_operators import Operation, fill_value, is_moving, is_operator, results_of
from .onnx_tensors import BFLOAT16, array_of, shown

_LONGEST = 64  # chain of nodes from a weight to what it is made from


class NotConstantError(ValueError):
    """A value depends on what a model is given; `value` is what it depends on."""

    def __init__(self, message: str, value: Value) -> None:
        super().__init__(message)
        self.value = value


class Folded(NamedTuple):
    """A constant: its array, and the names of the floating-point tensors it was made from.

    `bfloat16` says that the model has it in that dtype, for which the array is float32.
    """

    array: Any
    tensors: tuple[str, ...]
    bfloat16: bool = False


class Folder:
    """What values of a model are, where that does not depend on its inputs.

    Parameters
    ----------
    model : Model
    known : mapping of int to Folded, optional
        Values, by `id`, that are taken to be these, and stand for others of more steps or samples:
        slices must not end within those.
    """

    def __init__(self, model: Model, known: Mapping[int, Folded] | None = None) -> None:
        self._model = model
        self._made = dict(known or {})
        self._of_any_size = bool(known)
        self._making: list[int] = []
        self.visited: list[Value] = []

    def fold(self, scope: Scope, name: str) -> Folded:
        """The constant of that name.

        Raises
        ------
        NotConstantError
            If it depends on an input of the model, or is computed by an operator that is not here.
        ValueError
            If the graph is damaged, or asks for too much memory.
        """
        value = scope.find(name)
        key = id(value)
        if key not in self._made:
            if key in self._making:
                raise ValueError(f"{shown(name)} is computed from itself")
            if len(self._making) > _LONGEST:
                raise ValueError(f"{shown(name)} is computed by more than {_LONGEST} nodes in turn")
            self._making.append(key)
            try:
                self._made[key] = self._value(value)
            finally:
                self._making.pop()
        self.visited.append(value)
        return self._made[key]

    def _value(self, value: Value) -> Folded:
        if isinstance(value, Given):
            raise NotConstantError(f"the input {shown(value.name)}", value)
        if isinstance(value, Stored):
            array = array_of(value.tensor, self._model.folder, self._model.budget)
            is_float = array.dtype.kind == "f"
            made_from = (value.tensor.name,) if is_float else ()
            return Folded(array, made_from, value.tensor.data_type == BFLOAT16)
        node = value.node
        if not is_operator(node):
            raise NotConstantError(
                f"{shown(node.output[value.output])} of {node.op_type} {shown(label(node))}", value
            )
        inputs = [self.fold(value.scope, name) if name else None for name in node.input]
        arrays = [None if made is None else made.array for made in inputs]
        operation = Operation(value.scope, node, arrays, self._model, self._of_any_size)
        results = results_of(operation)
        if value.output >= len(results):
            raise ValueError(f"{operation.what}: expected one output, got {len(node.output)}")
        result = results[value.output]
        names = [name for made in inputs if made is not None for name in made.tensors]
        if node.op_type == "Constant" and result.dtype.kind == "f":
            names = [node.output[0]]
        if node.op_type == "Shape":
            names = []
        if node.op_type in ("Constant", "ConstantOfShape"):
            tensor = value.scope.attribute(node, "value")
            is_bfloat16 = tensor is not None and tensor.data_type == BFLOAT16
        else:  # a Cast is never to bfloat16; the scale of whole numbers is their dtype
            is_bfloat16 = node.op_type not in ("Cast", "Shape") and any(
                made is not None and made.bfloat16 for made in inputs
            )
        return Folded(result, tuple(dict.fromkeys(names)), is_bfloat16)

    def repeated(self, scope: Scope, name: str) -> float | None:
        """The number that a value repeats whatever its shape will be; None if there is none."""
        for _ in range(_LONGEST):
            value = scope.find(name)
            if isinstance(value, Computed) and value.node.domain in OWN_DOMAINS:
                scope, node = value.scope, value.node
                if node.op_type == "ConstantOfShape":
                    return float(fill_value(Operation(scope, node, [], self._model)))
                if is_moving(node):
                    name = node.input[0]
                    continue
            break
        try:
            array = self.fold(scope, name).array
        except NotConstantError:
            return None
        first = float(array.flat[0]) if array.size and array.dtype.kind == "f" else None
        return first if first is not None and bool((array == first).all()) else None
