"""How libraries lay the weights of a cell out: order of gates, transposed matrices, signs, biases.

Everything that another library's weights need to become fastgru's, and the reverse, is here; a
reader says which convention its files have. Rows are moved and signs are changed: no bit is lost.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels.cells import (
    CELLS,
    INPUT,
    NORM_MEAN,
    NORM_VARIANCE,
    Cell,
    Weight,
)

# Which gate a cell's update gate is, and what it multiplies: the state that is there ("old") or the
# candidate ("new"). Cells without one, such as the LSTM, are not here.
UPDATE_GATES = {
    "gru": ("z", "old"),
    "gru_reset_before": ("z", "old"),
    "gru1": ("z", "old"),
    "gru2": ("z", "old"),
    "gru3": ("z", "old"),
    "mgu": ("f", "new"),
    "mgu1": ("f", "new"),
    "mgu2": ("f", "new"),
    "mgu3": ("f", "new"),
    "ligru": ("z", "old"),
    "sligru": ("z", "old"),
    "libru": ("z", "old"),
    "mingru": ("z", "new"),
    "augru": ("z", "old"),
    "paragru": ("z", "new"),
    "ugrnn": ("z", "old"),
}

# Cells whose update gate does more than mix, so that no signs turn one sense into the other: MGU's
# is the reset gate too, SLi-GRU's is normalised with the candidate, attention lessens AUGRU's.
_ONE_SENSE = ("mgu", "mgu1", "mgu2", "mgu3", "sligru", "augru")

# Other names of gates: Keras and ONNX call a candidate h or c, oneDNN a GRU's gates u, r, o.
_ALIASES = {"h": "ngc", "c": "gn", "g": "nc", "o": "n", "u": "z", "n": "gc"}


@dataclass(frozen=True)
class Convention:
    """How a library lays out the weights of one layer and direction.

    Attributes
    ----------
    gates : tuple of str
        All gates of the cell, by fastgru's names, in the order in which the library stacks them.
    transposed : bool
        Whether matrices multiply from the right, so gates are blocks of columns: (I, G * H).
    negated : frozenset of str
        Gates whose sums have the other sign: ``sigmoid(-a) == 1 - sigmoid(a)``.
    """

    gates: tuple[str, ...]
    transposed: bool = False
    negated: frozenset[str] = frozenset()

    def read(self, cell: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The library's arrays of one layer and direction as fastgru's, by the same names.

        Where some biases are missing, and not all, those are zeros. What needs no change is not
        copied.
        """
        table = CELLS[cell]
        made = {
            weight.name: self._changed(table, weight, arrays[weight.name], into_own=True)
            for weight in table.weights
            if weight.name in arrays
        }
        unknown = set(arrays) - set(made)
        if unknown:
            raise ValueError(f"cell {cell!r} has no {', '.join(sorted(unknown))}")
        return with_all_biases(table, made)

    def write(self, cell: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """fastgru's arrays of one layer and direction as the library has them."""
        table = CELLS[cell]
        weights = {weight.name: weight for weight in table.weights}
        return {
            name: self._changed(table, weights[name], array, into_own=False)
            for name, array in arrays.items()
        }

    def _changed(self, cell: Cell, weight: Weight, array: Any, into_own: bool) -> Any:
        """An array with its gates where they belong."""
        # What a batch norm normalises keeps its sign: scale and shift change theirs.
        is_normalised = cell.norm and weight.kind in (INPUT, NORM_MEAN, NORM_VARIANCE)
        negated = frozenset[str]() if is_normalised else self.negated
        theirs = tuple(gate for gate in self.gates if gate in weight.gates)
        have, want = (theirs, weight.gates) if into_own else (weight.gates, theirs)
        turned = self.transposed and weight.is_matrix
        if turned and into_own:
            array = array.T
        if have != want or not negated.isdisjoint(have):
            blocks = dict(zip(have, blocks_of(weight.name, array, len(have)), strict=True))
            for gate in negated.intersection(have):
                blocks[gate] = -blocks[gate]
            array = np.concatenate([blocks[gate] for gate in want])
        if turned and not into_own:
            array = array.T
        return np.ascontiguousarray(array)


def blocks_of(name: str, array: Any, count: int) -> list[Any]:
    """The rows of an array in so many blocks of equal size, one a gate.

    Raises
    ------
    ValueError
        If the rows cannot be shared out.
    """
    if not array.ndim or len(array) % count:
        raise ValueError(
            f"{name}: expected rows in {count} blocks of equal size, one a gate, got shape "
            f"{array.shape}; where gates are blocks of columns, matrices are transposed"
        )
    return np.split(array, count)


def with_all_biases(cell: Cell, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays in the order of the cell's weights; zeros where one of two biases is missing."""
    optional = [weight for weight in cell.weights if weight.is_optional]
    made = dict(arrays)
    if any(weight.name in made for weight in optional):
        matrix = made[cell.input_weight.name]
        hidden_size = len(matrix) // len(cell.input_gates)
        for weight in optional:
            if weight.name not in made:
                made[weight.name] = np.zeros(weight.shape(0, hidden_size), matrix.dtype)
    return {weight.name: made[weight.name] for weight in cell.weights if weight.name in made}


def fused_biases(name: str, cell: Cell, bias: Any, hidden_size: int) -> dict[str, Any]:
    """One array of biases as the cell's own, still in the library's order of gates.

    For a cell with two biases, of G gates: (2, G * H), both; (2 * G * H,), one after the other;
    (G * H,), the input's, so the recurrent one is missing.

    Raises
    ------
    ValueError
        If the shape is none of these.
    """
    names = [weight.name for weight in cell.weights if weight.is_optional]
    rows = len(cell.gates) * hidden_size
    if len(names) == 1 or bias.shape == (rows,):
        return {names[0]: bias}
    if bias.shape not in ((2, rows), (2 * rows,)):
        raise ValueError(
            f"{name}: expected shape ({rows},), (2, {rows}) or ({2 * rows},), got {bias.shape}"
        )
    return dict(zip(names, bias.reshape(2, rows), strict=True))


def gate_named(cell: str, gate: str) -> str:
    """A gate of a cell by fastgru's name, for a name that other libraries use.

    Raises
    ------
    ValueError
        If the cell has no such gate.
    """
    own = CELLS[cell].gates
    names: list[str] = [gate, *_ALIASES.get(gate, "")]
    for name in names:
        if name in own:
            return name
    raise ValueError(f"cell {cell!r} has no gate {gate!r}: its gates are {', '.join(own)}")


def gates_named(cell: str, order: str | Iterable[str]) -> tuple[str, ...]:
    """All gates of a cell by fastgru's names, for names that other libraries use.

    Raises
    ------
    ValueError
        If these are not the gates of the cell, each once.
    """
    found = tuple(gate_named(cell, gate) for gate in order)
    own = CELLS[cell].gates
    if sorted(found) != sorted(own):
        raise ValueError(
            f"gate_order: expected the gates of cell {cell!r}, {', '.join(own)}, each once, got "
            f"{order!r}"
        )
    return found


def negated_for(cell: str, update: str | None) -> frozenset[str]:
    """Gates whose sign changes, if a library's update gate multiplies "new" or "old".

    Raises
    ------
    ValueError
        If it is neither, or the cell has no update gate, or its gate has one sense alone.
    """
    if update is None:
        return frozenset()
    if update not in ("new", "old"):
        raise ValueError(f"update: expected 'new' or 'old', got {update!r}")
    if cell not in UPDATE_GATES:
        raise ValueError(f"update: cell {cell!r} has no update gate; leave it out")
    gate, own = UPDATE_GATES[cell]
    if update != own and cell in _ONE_SENSE:
        raise ValueError(
            f"update: cell {cell!r} has {own!r} alone, got {update!r}: its update gate does more "
            "than mix, so a cell of the other sense is another cell"
        )
    return frozenset() if update == own else frozenset([gate])


def floating(name: str, array: Any, dtype: Any) -> Any:
    """An array of float32 or float64; of `dtype`, if one is asked for.

    bfloat16 is a dtype of the package ml_dtypes, or comes as `bfloat16_to_float32` makes it.

    Raises
    ------
    TypeError
        If the array has another dtype, and none is asked for.
    ValueError
        If a finite number would become infinite.
    """
    array = np.asarray(array)
    if dtype is not None:
        # Types of ml_dtypes are of the kind V, as are bytes of no type, which are np.void.
        if array.dtype.kind not in "fV" or array.dtype.type is np.void:
            raise TypeError(f"{name}: expected floating-point numbers, got {array.dtype}")
        try:
            with np.errstate(over="raise"):
                return array.astype(dtype, copy=False)
        except FloatingPointError as error:
            raise ValueError(
                f"{name}: expected numbers that {np.dtype(dtype)} has, got larger ones"
            ) from error
    if array.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise TypeError(
            f"{name}: expected float32 or float64, got {array.dtype}; dtype='float32' converts it"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def bfloat16_to_float32(bits: Any) -> Any:
    """Numbers whose bfloat16 are these 16-bit patterns, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
