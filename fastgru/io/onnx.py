"""`from_onnx`: the GRU, LSTM and RNN nodes of ONNX models as params."""

import importlib
import os
import warnings
from collections import Counter
from types import ModuleType
from typing import Any

from ..check import check_flag, check_kind, check_path
from .found import Found, Layer
from .onnx_attributes import DOUBTFUL, GATES, MICROSOFT, is_recurrent
from .onnx_folding import Folder
from .onnx_graph import Computed, Model, Stored, Walk, label
from .onnx_merging import merged, stacks_of
from .onnx_nodes import Reader, layer_name
from .onnx_tensors import Budget, shown

_OPERATORS = frozenset((*GATES, "DynamicQuantizeLSTM"))
_FLOATS = (1, 10, 11, 16)  # float32, float16, float64, bfloat16, by ONNX's numbers


def from_onnx(
    source: "str | os.PathLike[str] | bytes | Any", *, dtype: Any = None, merge: bool = False
) -> Found:
    """Read the recurrent layers of an ONNX model.

    Parameters
    ----------
    source : str, os.PathLike, bytes or onnx.ModelProto
        The name of a file, its content, or the model. Weights in files of their own are read where
        the model is given by name, if they lie in its folder.
    dtype : dtype, optional
        Convert weights to float32 or float64. Without it nothing is converted, and other dtypes
        are refused.
    merge : bool
        Whether nodes that are layers of one stack become one `Layer`: each but the first reads y of
        the one below and nothing else reads that, and cells, sizes and directions are the same.

    Returns
    -------
    Found
        A `Layer` for each GRU, LSTM and RNN node, by its name: the node's, or that of its first
        output, after the names of the nodes in whose bodies it is. Left out are floating-point
        tensors that no layer is made from.

    Raises
    ------
    ModuleNotFoundError
        If the package onnx is not installed.
    TypeError
        If an argument is not as described.
    ValueError
        If the file is damaged, has no such node, or a node computes what no cell does.
    OSError
        If the file cannot be read.

    Warns
    -----
    UserWarning
        If a GRU in a file of PyTorch resets before the product, as PyTorch's own does not.

    Notes
    -----
    The format has no checksum: a damaged file whose parts still fit each other gives the weights
    that it says.

    Weights may be made by operators that move numbers or change their dtype (Slice, Concat,
    Unsqueeze, DequantizeLinear, …). These are computed here; nothing of a model is run.

    Examples
    --------
    >>> from fastgru import io
    >>> found = io.from_onnx("model.onnx", merge=True)  # doctest: +SKIP
    >>> print(found)  # doctest: +SKIP
    >>> y, h_n = fastgru.forward(x, found.only)  # doctest: +SKIP
    """
    kind = None if dtype is None else check_kind(dtype)
    read = _model_of(source)
    is_merged = check_flag("merge", merge)
    try:
        layers, left_out = _layers_of(read, kind, is_merged)
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise ValueError(f"{read.origin}: {error}") from error
    for layer in layers:
        if DOUBTFUL in layer.notes:
            warnings.warn(f"{read.origin}: {shown(layer.name)}: {DOUBTFUL}", stacklevel=2)
    return Found(read.origin, layers, left_out)


def onnx_package() -> ModuleType:
    """The package onnx, which is optional.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error}; ONNX models need the package onnx: pip install "fastgru[onnx]"',
            name=error.name,
        ) from error
    package: ModuleType = onnx
    return package


def _model_of(model: Any) -> Model:
    """A model from what the user gives."""
    onnx = onnx_package()
    if isinstance(model, onnx.ModelProto):
        return Model(model, "the model", None, Budget(model.ByteSize()))
    if isinstance(model, bytes):
        content, origin, folder = model, "the model", None
    elif not isinstance(model, str | os.PathLike):
        raise TypeError(
            "source: expected the name of a file, its content as bytes, or an onnx.ModelProto, got "
            f"{type(model).__qualname__}"
        )
    else:
        path = check_path(model)
        content, origin, folder = path.read_bytes(), str(path), path.parent
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except (_decode_error(), UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{origin}: it is no ONNX model, or damaged ({error})") from error
    if not proto.HasField("graph"):
        raise ValueError(f"{origin}: it is no ONNX model: there is no graph in it")
    return Model(proto, origin, folder, Budget(len(content)))


def _decode_error() -> type[Exception]:
    """What protobuf raises, which has no types; its version in Python alone raises others, too."""
    error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    return error


def _layers_of(model: Model, dtype: Any, merge: bool) -> tuple[list[Layer], list[str]]:
    """All layers of a model, and what is in none of them."""
    walk, folder, taken = Walk(model, _OPERATORS), Folder(model), set[str]()
    nodes, operators, others = [], Counter[str](), []
    for scope, node in walk:
        operators[node.op_type] += 1
        name = layer_name(scope, node, taken) if is_recurrent(node) else ""
        if name:
            try:
                nodes.append(Reader(model, folder, scope, node, name, dtype).read())
            except ValueError as error:
                raise ValueError(f"node {shown(name)} ({node.op_type}): {error}") from error
        elif node.op_type in _OPERATORS:
            others.append(f"{label(node)} ({node.domain or MICROSOFT}.{node.op_type})")
    if not nodes:
        found = ", ".join(name for name, _ in operators.most_common(8)) or "no nodes"
        raise ValueError(
            f"expected a node GRU, LSTM or RNN, got {shown(found)}; where an exporter has written "
            "a layer out as products and sigmoids, take its weights by onnx.numpy_helper.to_array "
            "and give them to fastgru.io.from_arrays"
        )
    layers = [node.layer for node in nodes]
    if merge:
        layers = [merged(stack) for stack in stacks_of(model, nodes)]
    return layers, [*others, *_unused(walk, folder)]


def _unused(walk: Walk, folder: Folder) -> list[str]:
    """Names of floating-point tensors that no weight was made from."""
    used = {id(value) for value in folder.visited}
    scopes = {id(scope): scope for scope, _ in walk} | {id(walk.main): walk.main}
    names = []
    for scope in scopes.values():
        for name, value in scope.values.items():
            match value:
                case Stored(tensor):
                    is_weight = tensor.data_type in _FLOATS
                case Computed(own, node, 0) if node.op_type == "Constant" and own is scope:
                    tensor = scope.attribute(node, "value")
                    is_weight = (
                        tensor is not None and tensor.data_type in _FLOATS and bool(tensor.dims)
                    )
                case _:
                    is_weight = False
            if is_weight and id(value) not in used:
                names.append(f"{scope.path}/{name.lstrip('/')}" if scope.path else name)
    return list(dict.fromkeys(names))
