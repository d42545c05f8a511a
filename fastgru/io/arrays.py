"""`from_arrays`: weights whose conventions no file says."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..check import cell_named, check_flag
from ..kernels.cells import Cell
from ..names import named_arrays
from ..params import Params
from .convention import (
    Convention,
    floating,
    fused_biases,
    gate_named,
    gates_named,
    negated_for,
)


def from_arrays(
    *,
    cell: str,
    gate_order: str | Iterable[str] | None = None,
    update: str | None = None,
    transposed: bool = False,
    bidirectional: bool = False,
    dtype: Any = None,
    **weights: Any,
) -> Params:
    """Make params from arrays in any convention.

    Parameters
    ----------
    cell : str
        One of `fastgru.cells()`.
    gate_order : str or sequence of str, optional
        The order in which the arrays stack their gates: ``"zrn"``, ``"ifco"``. Keras's and ONNX's
        h or c for a candidate, and oneDNN's u and o, are understood. fastgru's own by default.
    update : {"old", "new"}, optional
        What the update gate multiplies: the old state, as in PyTorch, h' = (1 - z) n + z h, or the
        new candidate, as in the paper, h' = (1 - z) h + z n. As in fastgru's cell by default.
    transposed : bool
        Whether matrices multiply from the right, x @ W, so their shapes are (I, G * H), (H, G * H).
    bidirectional : bool
        Whether the arrays of each layer come in pairs, forward and backward.
    dtype : dtype, optional
        Convert to float32 or float64. Without it nothing is converted, and other dtypes are
        refused.
    **weights : array, mapping, or sequence of them
        By the names of the cell's weights: weight_ih, weight_hh, bias_ih, bias_hh, … For more than
        one layer or direction, sequences in the order of `Params`. In place of a stacked array, a
        mapping from gates to their arrays. ``bias=`` for a cell with two: (2, G * H) or
        (2 * G * H,) both, (G * H,) the input's. If one of two biases is missing, it is 0.

    Returns
    -------
    Params

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or the arrays do not fit the cell.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import io
    >>> draw = np.random.default_rng(0).normal
    >>> kernel, recurrent, bias = draw(size=(3, 24)), draw(size=(8, 24)), draw(size=(2, 24))
    >>> io.from_arrays(
    ...     cell="gru", gate_order="zrh", transposed=True,
    ...     weight_ih=kernel, weight_hh=recurrent, bias=bias,
    ... ).hidden_size
    8
    """
    table = cell_named(cell)
    directions = 1 + check_flag("bidirectional", bidirectional)
    convention = Convention(
        gates=table.gates if gate_order is None else gates_named(cell, gate_order),
        transposed=check_flag("transposed", transposed),
        negated=negated_for(cell, update),
    )
    columns = {
        name: [
            _stacked(name, table, array, convention, dtype)
            for array in (value if _is_sequence(value) else [value])
        ]
        for name, value in weights.items()
        if value is not None
    }
    if table.input_weight.name not in columns:
        raise ValueError(
            f"expected {table.input_weight.name}, got {', '.join(columns) or 'nothing'}"
        )
    counts = {name: len(column) for name, column in columns.items()}
    if len({*counts.values()}) != 1 or next(iter(counts.values())) % directions:
        raise ValueError(
            f"expected as many arrays of each weight, {directions} a layer, got "
            + ", ".join(f"{count} {name}" for name, count in counts.items())
        )
    by_place = [
        convention.read(
            cell, _with_own_biases(table, dict(zip(columns, row, strict=True)), convention)
        )
        for row in zip(*columns.values(), strict=True)
    ]
    layers = [by_place[n : n + directions] for n in range(0, len(by_place), directions)]
    return Params.from_dict(named_arrays(layers), cell=cell)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _stacked(name: str, cell: Cell, value: Any, convention: Convention, dtype: Any) -> Any:
    """An array; out of those of single gates, if they come one by one."""
    if not isinstance(value, Mapping):
        return floating(name, value, dtype)
    weight = next((weight for weight in cell.weights if weight.name == name), None)
    own = cell.gates if weight is None else weight.gates  # None: both biases in one
    named = [(gate_named(cell.name, gate), gate) for gate in value]
    if sorted(gate for gate, _ in named) != sorted(own):
        raise ValueError(
            f"{name}: expected an array for each of the gates {', '.join(own)}, got "
            f"{', '.join(map(repr, value)) or 'none'}"
        )
    by_gate = {
        gate: floating(f"{name}[{theirs!r}]", value[theirs], dtype) for gate, theirs in named
    }
    shapes = {array.shape for array in by_gate.values()}
    axis = int(convention.transposed and weight is not None and weight.is_matrix)
    if len(shapes) > 1 or len(next(iter(shapes))) <= axis:
        raise ValueError(
            f"{name}: expected arrays of one shape for its gates, got "
            f"{', '.join(map(str, sorted(shapes)))}"
        )
    return np.concatenate([by_gate[g] for g in convention.gates if g in by_gate], axis=axis)


def _with_own_biases(cell: Cell, arrays: dict[str, Any], convention: Convention) -> dict[str, Any]:
    """The arrays of a layer and direction, with a fused bias taken apart."""
    if "bias" not in arrays or any(weight.name == "bias" for weight in cell.weights):
        return arrays
    matrix = arrays[cell.input_weight.name]
    if matrix.ndim != 2:
        raise ValueError(f"{cell.input_weight.name}: expected a matrix, got shape {matrix.shape}")
    rows = matrix.shape[1 if convention.transposed else 0]
    own = fused_biases("bias", cell, arrays.pop("bias"), rows // len(cell.input_gates))
    twice = own.keys() & arrays.keys()
    if twice:
        raise ValueError(f"bias: holds {', '.join(sorted(twice))}, which is given too")
    return arrays | own
