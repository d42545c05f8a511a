"""Stacks of ONNX nodes, each of which reads the one below, as layers of one network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels.cells import CELLS
from ..params import Params
from .found import Layer
from .onnx_folding import Folded, Folder, NotConstantError
from .onnx_graph import Computed, Model, Value
from .onnx_nodes import Node

# Steps and samples of the sequences whose numbers are followed from a node to the next: of two, as
# a path may hold for one by chance.
_SIZES = ((2, 3), (3, 4))


def stacks_of(model: Model, nodes: Sequence[Node]) -> list[list[Node]]:
    """The nodes in stacks, lowest layer first; one alone is a stack.

    A node is put on another one if it reads y of that alone, with the directions side by side, and
    nothing else reads that y. This is found by following the numbers of a y from the one to the
    other, so it does not matter by which nodes an exporter joins directions.
    """
    # By the value that is y: a function's nodes come once for each call.
    by_y = {
        id(node.scope.find(node.proto.output[0])): node
        for node in nodes
        if node.proto.output and node.proto.output[0]
    }
    above: dict[int, Node] = {}
    lower: set[int] = set()
    for node in nodes:
        below = _below(model, node, by_y)
        if below is not None and id(below) not in above:
            above[id(below)] = node
            lower.add(id(node))
    stacks = []
    for node in nodes:
        if id(node) in lower:
            continue
        stack = [node]
        while id(stack[-1]) in above:
            stack.append(above[id(stack[-1])])
        stacks.append(stack)
    return stacks


def _below(model: Model, node: Node, by_y: Mapping[int, Node]) -> Node | None:
    """The node that this one is a further layer of; None if there is none."""
    name = node.proto.input[0]
    try:
        Folder(model).fold(node.scope, name)
    except NotConstantError as error:
        source = error.value
    else:
        return None
    below = by_y.get(id(source))
    if below is None or below is node or not _are_alike(below, node):
        return None
    paths = [_path(model, source, below, node, T, N) for T, N in _SIZES]
    if any(path is None or not _is_read_here_alone(path, below, node) for path in paths):
        return None
    return below


def _path(
    model: Model, source: Value, below: Node, node: Node, T: int, N: int
) -> Sequence[Value] | None:
    """What is made of y on the way up; None if what arrives is not y, directions side by side."""
    D, H = below.layer.params.num_directions, below.layer.params.hidden_size
    sizes = (T, N) if below.kind.time_major else (N, T)
    model.budget.spend(8 * T * N * D * H, "merging")
    labels = np.arange(T * N * D * H)
    # Y has the directions before the samples where steps come first, else last but one.
    shape = (T, D, N, H) if below.kind.time_major else (N, T, D, H)
    y = labels.reshape(shape)
    joined = (y.transpose(0, 2, 1, 3) if below.kind.time_major else y).reshape(*sizes, D * H)
    folder = Folder(model, {id(source): Folded(y, ())})
    try:
        got = folder.fold(node.scope, node.proto.input[0]).array
    except ValueError:  # it depends on something else too, or holds for other sizes alone
        return None
    return folder.visited if np.array_equal(got, joined) else None


def _are_alike(below: Node, node: Node) -> bool:
    """Whether two nodes can be layers of one network."""
    a, b = below.layer.params, node.layer.params
    return (
        (a.cell, a.hidden_size, a.dtype) == (b.cell, b.hidden_size, b.dtype)
        and below.scope is node.scope
        and below.kind.direction == node.kind.direction
        and below.kind.time_major == node.kind.time_major
        and below.lengths == node.lengths
        and b.input_size == a.hidden_size * a.num_directions
        # Of two states one of which is computed, the other one would be lost.
        and (below.asked == node.asked or not (below.layer.initial or node.layer.initial))
    )


def _is_read_here_alone(visited: Sequence[Value], below: Node, node: Node) -> bool:
    """Whether y, and what is made of it on the way, is read once only."""
    names = {below.proto.output[0]} | {
        name
        for value in visited
        if isinstance(value, Computed) and value.scope is node.scope
        for name in value.node.output
        if name
        and value.node.op_type not in ("Constant", "Shape")
        and value.node is not below.proto
    }
    return all(node.scope.uses[name] <= 1 for name in names)


def merged(stack: Sequence[Node]) -> Layer:
    """The layers of a stack of nodes as one."""
    first, *others = (node.layer for node in stack)
    if not others:
        return first
    arrays: dict[str, Any] = {}
    sources: dict[str, str] = {}
    bias = any(layer.params.bias for layer in (first, *others))
    for number, layer in enumerate((first, *others)):
        own = layer.params.to_dict() | (_zeros(layer.params) if bias else {})
        for key, array in own.items():
            new = key.replace("_l0", f"_l{number}")
            arrays[new] = array
            sources[new] = f"{layer.name}: {layer.sources.get(key, 'zeros')}"
    params = Params.from_dict(arrays, cell=first.params.cell)
    names = ", ".join(layer.name for layer in (first, *others))
    notes = [
        note if all(note in other.notes for other in (first, *others)) else f"{layer.name}: {note}"
        for layer in (first, *others)
        for note in layer.notes
    ]
    return Layer(
        first.name,
        params,
        {key: sources[key] for key in params.to_dict()},
        _initial([first, *others]),
        (f"merged from {names}", *dict.fromkeys(notes)),
    )


def _zeros(params: Params) -> dict[str, Any]:
    """Biases of 0 for a layer that has none, beside others that do."""
    if params.bias:
        return {}
    H, ends = params.hidden_size, ("_l0", "_l0_reverse")[: params.num_directions]
    optional = [weight for weight in CELLS[params.cell].weights if weight.is_optional]
    return {
        weight.name + end: np.zeros(weight.shape(0, H), params.dtype)
        for end in ends
        for weight in optional
    }


def _initial(layers: Sequence[Layer]) -> tuple[Any, ...]:
    """The initial states of all layers, one after the other; zeros where one has none."""
    given = [layer.initial for layer in layers if layer.initial]
    if not given:
        return ()
    members = [
        layer.initial or tuple(np.zeros_like(member) for member in given[0]) for layer in layers
    ]
    return tuple(np.concatenate(parts) for parts in zip(*members, strict=True))
