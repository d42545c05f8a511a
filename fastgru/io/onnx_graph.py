"""Graphs of ONNX models: which names stand for which values, in bodies and functions too."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .onnx_tensors import Budget, check_text, shown

_DEEPEST = 40  # graphs within graphs
_VISITS, _AT_LEAST = 8, 128  # nodes, for each of the file: functions may be called often
OWN_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Computed:
    """A value that a node of a graph computes."""

    scope: "Scope"
    node: Any
    output: int


@dataclass(frozen=True)
class Stored:
    """A value that a graph holds: a TensorProto."""

    tensor: Any


@dataclass(frozen=True)
class Given:
    """A value that comes from outside: an input of a model, or of a body."""

    name: str


Value = Computed | Stored | Given


@dataclass(eq=False)
class Scope:
    """A graph, or a call of a function, with the names that are known in it.

    Attributes
    ----------
    path : str
        Of the nodes around it.
    values : dict
        By name. What a call hands to a function is a value of the caller.
    uses : Counter
        How often a name is read, bodies of nodes included; results are read once.
    outer : Scope or None
        Whose names are known here too.
    attributes : dict
        What attributes of a function's nodes may refer to.
    """

    path: str
    values: dict[str, Value] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    outer: "Scope | None" = None
    attributes: dict[str, Any] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)

    def find(self, name: str) -> Value:
        """The value of that name, here or around."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        raise ValueError(f"{shown(name)} is read, but no node and no initializer makes it")

    def define(self, name: str, value: Value) -> None:
        check_text(name)
        if name in self.values:
            raise ValueError(f"{shown(name)} is made twice in one graph")
        self.values[name] = value

    def attribute(self, node: Any, name: str, default: Any = None) -> Any:
        """The value of a node's attribute."""
        for found in self.all_attributes(node):
            if found.name == name:
                return attribute_value(found, label(node))
        return default

    def all_attributes(self, node: Any) -> Iterator[Any]:
        """A node's attributes; those that a function leaves to its callers, as these have them."""
        for found in node.attribute:
            if not found.ref_attr_name:
                yield found
            elif found.ref_attr_name in self.attributes:
                referred = type(found)()
                referred.CopyFrom(self.attributes[found.ref_attr_name])
                referred.name = found.name
                yield referred


@dataclass(frozen=True)
class Model:
    """A model as it is read.

    Attributes
    ----------
    proto : onnx.ModelProto
    origin : str
        The name of the file, for messages.
    folder : Path or None
        Where its external data may lie.
    budget : Budget
    """

    proto: Any
    origin: str
    folder: Path | None
    budget: Budget


def label(node: Any) -> str:
    """A node's name; without one, that of its first output."""
    return node.name or next(filter(None, node.output), "") or node.op_type


def attribute_value(attribute: Any, what: str) -> Any:
    """The value of an attribute: int, float, bytes, a tensor, a graph, or a list of them."""
    one = {
        attribute.FLOAT: "f",
        attribute.INT: "i",
        attribute.STRING: "s",
        attribute.TENSOR: "t",
        attribute.GRAPH: "g",
    }
    several = {
        attribute.FLOATS: "floats",
        attribute.INTS: "ints",
        attribute.STRINGS: "strings",
        attribute.GRAPHS: "graphs",
    }
    if attribute.type in one:
        return getattr(attribute, one[attribute.type])
    if attribute.type in several:
        return list(getattr(attribute, several[attribute.type]))
    raise ValueError(
        f"{shown(what)}: attribute {shown(attribute.name)}: expected numbers, text, tensors or "
        f"graphs, got type {attribute.type} of onnx.AttributeProto"
    )


class Walk:
    """All nodes of a model, each with its scope, in its order.

    A function's nodes come once for each call, since what they read is the call's.

    Parameters
    ----------
    model : Model
    wanted : set of str
        Operators that are looked for: functions without one are passed over.
    """

    def __init__(self, model: Model, wanted: frozenset[str]) -> None:
        self._wanted = wanted
        self._functions: dict[tuple[str, str], Any] = {}
        for function in model.proto.functions:
            key = (function.domain, function.name)
            check_text(*key, *function.output)
            if key in self._functions or function.domain in OWN_DOMAINS:
                raise ValueError(
                    f"function {shown(function.name)} is defined twice, or one of ONNX's own"
                )
            self._functions[key] = function
        self._has_wanted: dict[tuple[str, str], bool] = {}
        self._left = 0
        opsets = {entry.domain: int(entry.version) for entry in model.proto.opset_import}
        self.main = Scope("", opsets=opsets)
        self._nodes: list[tuple[Scope, Any]] = []
        self._left = _VISITS * self._count(model) + _AT_LEAST
        self._enter_graph(model.proto.graph, self.main, 0)

    def __iter__(self) -> Iterator[tuple[Scope, Any]]:
        return iter(self._nodes)

    def _count(self, model: Model) -> int:
        """Nodes of the file."""
        graphs, count = [model.proto.graph, *model.proto.functions], 0
        while graphs:
            graph = graphs.pop()
            count += len(graph.node)
            graphs += [body for node in graph.node for _, body in bodies(node)]
        return count

    def _enter_graph(self, graph: Any, scope: Scope, depth: int) -> None:
        for tensor in graph.initializer:
            scope.define(tensor.name, Stored(tensor))
        for tensor in graph.sparse_initializer:
            scope.define(tensor.values.name, Given(f"sparse {tensor.values.name}"))
        for given in graph.input:  # one that has an initializer too can be left out by the caller
            if given.name not in scope.values:
                scope.define(given.name, Given(given.name))
        results = [result.name for result in graph.output]
        check_text(*results)
        self._enter(graph.node, results, scope, depth)

    def _enter(self, listed: Any, results: list[str], scope: Scope, depth: int) -> None:
        nodes = list(listed)
        if depth > _DEEPEST:
            raise ValueError(f"graphs are nested deeper than {_DEEPEST}")
        for node in nodes:
            check_text(node.name, node.op_type, node.domain, *node.input)
            check_text(*(name for a in node.attribute for name in (a.name, a.ref_attr_name)))
            for number, name in enumerate(node.output):
                check_text(name)
                if name:
                    scope.define(name, Computed(scope, node, number))
        scope.uses.update(results)
        for node in nodes:
            self._left -= 1
            if self._left < 0:
                raise ValueError("functions are called too often: more nodes than a model can have")
            if node.op_type != "Shape":  # which reads sizes alone
                scope.uses.update(set(node.input))
            self._nodes.append((scope, node))
            for name, body in bodies(node):
                inner = self._inner(scope, f"{label(node)}.{name}")
                inner.outer, inner.attributes = scope, scope.attributes
                self._enter_graph(body, inner, depth + 1)
                scope.uses.update(inner.uses)
            key = (node.domain, node.op_type)
            if key in self._functions and self._leads_to_wanted(key, ()):
                self._enter_function(self._functions[key], node, scope, depth)

    def _enter_function(self, function: Any, call: Any, scope: Scope, depth: int) -> None:
        inner = self._inner(scope, label(call))
        inner.attributes = {a.name: a for a in function.attribute_proto}
        inner.attributes |= {a.name: a for a in scope.all_attributes(call)}
        inner.opsets = {entry.domain: int(entry.version) for entry in function.opset_import}
        for number, name in enumerate(function.input):
            handed = call.input[number] if number < len(call.input) else ""
            inner.define(name, scope.find(handed) if handed else Given(name))
        self._enter(function.node, list(function.output), inner, depth + 1)

    @staticmethod
    def _inner(scope: Scope, name: str) -> Scope:
        path = f"{scope.path}/{name.lstrip('/')}" if scope.path else name
        return Scope(path, opsets=scope.opsets)

    def _leads_to_wanted(self, key: tuple[str, str], callers: tuple[Any, ...]) -> bool:
        """Whether a function has an operator that is looked for, or calls one that does."""
        if key in callers or len(callers) > _DEEPEST:
            raise ValueError(f"function {shown(key[1])} calls itself, or functions are too deep")
        if key not in self._has_wanted:
            graphs, found = [self._functions[key]], False
            while graphs:
                for node in graphs.pop().node:
                    graphs += [body for _, body in bodies(node)]
                    called = (node.domain, node.op_type)
                    found |= node.op_type in self._wanted
                    if called in self._functions:
                        found |= self._leads_to_wanted(called, (*callers, key))
            self._has_wanted[key] = found
        return self._has_wanted[key]


def bodies(node: Any) -> Iterator[tuple[str, Any]]:
    """The graphs that a node holds, by their attributes' names."""
    for attribute in node.attribute:
        if attribute.type == attribute.GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == attribute.GRAPHS:
            for number, graph in enumerate(attribute.graphs):
                yield f"{attribute.name}[{number}]", graph
