"""Keras's recurrent cells as fastgru's: which cell it is, and how its weights lie."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..check import cell_named
from ..kernels.cells import Cell
from ..names import named_arrays, suffix
from ..params import Params
from .convention import Convention, floating, fused_biases, gates_named
from .found import Layer


class Kind(NamedTuple):
    """A recurrent cell of Keras."""

    name: str  # of its layer
    order: str  # of the gates, which are blocks of columns
    cells: Mapping[str, Mapping[str, Any]]  # fastgru's cells, and the settings that make them


_GATED = {"activation": "tanh", "recurrent_activation": "sigmoid"}
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "GRU",
            "zrh",
            {
                "gru": _GATED | {"reset_after": True},
                "gru_reset_before": _GATED | {"reset_after": False},
            },
        ),
        Kind("LSTM", "ifco", {"lstm": _GATED}),
        Kind(
            "SimpleRNN",
            "h",
            {"rnn_tanh": {"activation": "tanh"}, "rnn_relu": {"activation": "relu"}},
        ),
    )
}
OF_CELL = {cell: kind for kind in KINDS.values() for cell in kind.cells}
_BY_GATES = {len(kind.order): kind for kind in KINDS.values()}
_WEIGHTS = ("kernel", "recurrent_kernel", "bias")


class Stored(Protocol):
    """An array that has not been read yet."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """Its dtype's name."""

    def read(self) -> Any:
        """Its numbers; bfloat16 of a file as float32."""


@dataclass(frozen=True)
class Direction:
    """The weights of one layer and direction.

    Attributes
    ----------
    arrays : sequence of Stored
        Kernel, recurrent kernel, and bias, if there is one.
    kind : str, optional
        Key of `KINDS`; None where only shapes tell.
    settings : mapping, optional
        Of Keras's cell; None where they are not known.
    is_cudnn : bool
        Whether the class is CuDNNGRU or CuDNNLSTM, which have no settings.
    """

    arrays: Sequence[Stored]
    kind: str | None = None
    settings: Mapping[str, Any] | None = None
    is_cudnn: bool = False


@dataclass(frozen=True)
class _Sizes:
    """What the shapes of a direction's arrays say."""

    kind: Kind
    hidden_size: int
    bias: tuple[int, ...] | None
    reset_after: bool | None = field(default=None)
    is_cudnn: bool = False


def is_recurrent(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether arrays of these shapes can be kernel, recurrent kernel, and bias of a cell."""
    if len(shapes) not in (2, 3) or [*map(len, shapes[:2])] != [2, 2] or 0 in shapes[0]:
        return False
    (_, columns), (hidden_size, recurrent) = shapes[:2]
    if columns != recurrent or not hidden_size or columns % hidden_size:
        return False
    gates = columns // hidden_size
    return gates in _BY_GATES and (
        len(shapes) == 2 or shapes[2] in ((columns,), (2 * columns,), (2, columns))
    )


def is_cudnn(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether they are of a CuDNN layer, which has two biases one after the other."""
    return len(shapes) == 3 and shapes[2] == (2 * shapes[1][1],)


def layer_of(
    name: str,
    directions: Sequence[Direction],
    *,
    cell: str | None = None,
    dtype: Any = None,
    notes: Iterable[str] = (),
) -> Layer:
    """A layer out of its directions' weights.

    Raises
    ------
    TypeError, ValueError
        If they are not those of a cell that fastgru has.
    """
    table, said = [], dict.fromkeys(notes)
    sources: dict[str, str] = {}
    chosen = cell
    for number, direction in enumerate(directions):
        sizes = _sizes_of(name, direction)
        own, note = _cell_for(name, direction, sizes, cell)
        if number and own != chosen:
            raise ValueError(
                f"{name}: expected one cell in both directions, got {chosen!r} and {own!r}"
            )
        chosen = own
        said |= dict.fromkeys(note)
        arrays, origins = _arrays_of(direction, sizes, own, dtype)
        table.append(arrays)
        sources |= {key + suffix(0, number): origin for key, origin in origins.items()}
    if len({len(arrays) for arrays in table}) > 1:  # in both directions or in none
        table = [_with_biases(cell_named(chosen), arrays) for arrays in table]
    params = Params.from_dict(named_arrays([table]), cell=cell_named(chosen).name)
    sources = {key: sources.get(key, "zeros") for key in params.to_dict()}
    return Layer(name, params, sources, notes=tuple(said))


def _with_biases(cell: Cell, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a direction; biases of zeros, where it has none."""
    H, dtype = arrays["weight_hh"].shape[1], arrays["weight_hh"].dtype
    zeros = {w.name: np.zeros(w.shape(0, H), dtype) for w in cell.weights if w.is_optional}
    return zeros | dict(arrays)


def _sizes_of(name: str, direction: Direction) -> _Sizes:
    """What the shapes say, if they are those of a cell, and of its settings."""
    shapes = [array.shape for array in direction.arrays]
    if not is_recurrent(shapes):
        old = (
            "; as many arrays as gates times 3 are Keras 1's: load the file in Keras 2 and save it"
            if len(shapes) in (9, 12)
            else ""
        )
        raise ValueError(
            f"{name}: expected {', '.join(_WEIGHTS)} of shapes (I, G * H), (H, G * H) and "
            f"(G * H,), (2, G * H) or none, G = 1, 3 or 4 gates, got {shapes}{old}"
        )
    hidden_size, columns = shapes[1]
    bias = shapes[2] if len(shapes) == 3 else None
    kind = _BY_GATES[columns // hidden_size]
    from_cudnn = is_cudnn(shapes)
    if direction.kind not in (None, kind.name) or (direction.is_cudnn and not from_cudnn):
        prefix = "CuDNN" if direction.is_cudnn else ""
        raise ValueError(f"{name}: these are no weights of {prefix}{direction.kind}: {shapes}")
    allowed = {
        "GRU": ((columns,), (2 * columns,), (2, columns)),
        "LSTM": ((columns,), (2 * columns,)),
    }
    if bias is not None and bias not in allowed.get(kind.name, ((columns,),)):
        raise ValueError(f"{name}: expected a bias of {kind.name}, got shape {bias}")
    settings = direction.settings or {}
    for key, expected in (("units", hidden_size), ("use_bias", bias is not None)):
        if not direction.is_cudnn and settings.get(key, expected) != expected:
            raise ValueError(
                f"{name}: expected {key}={expected}, as its weights have, got {settings[key]!r}"
            )
    reset_after = None if bias is None or kind.name != "GRU" else bias != (columns,)
    return _Sizes(kind, hidden_size, bias, reset_after, from_cudnn)


def _cell_for(
    name: str, direction: Direction, sizes: _Sizes, wanted: str | None
) -> tuple[str, list[str]]:
    """fastgru's cell, and what a user should know about the choice."""
    kind, settings, notes = sizes.kind, direction.settings, []
    if sizes.is_cudnn:
        notes.append(f"weights of CuDNN{kind.name}, whose matrices lie otherwise: converted")
    if wanted is not None and cell_named(wanted).name not in OF_CELL:
        return wanted, notes  # a cell of the user's own
    if settings is None and not sizes.is_cudnn:
        fitting = [
            cell
            for cell, needed in kind.cells.items()
            if wanted in (None, cell)
            and sizes.reset_after in (None, needed.get("reset_after", sizes.reset_after))
        ]
        if wanted is None and kind.name == "GRU" and sizes.reset_after is None:
            raise ValueError(
                f"{name}: without biases only cell= can tell whether the reset gate comes after "
                "the recurrent product, 'gru', Keras's default, or before, 'gru_reset_before'"
            )
        if not fitting:
            raise ValueError(
                f"{name}: expected a cell for weights of {kind.name} with a bias of shape "
                f"{sizes.bias}, got cell={wanted!r}"
            )
        if wanted is None:
            assumed = ", ".join(f"{k}={v!r}" for k, v in kind.cells[fitting[0]].items())
            notes.append(f"only shapes are known: taken as {kind.name}({assumed})")
        return fitting[0], notes
    known = dict(settings or {})
    if settings is None or direction.is_cudnn:
        known = _GATED | {"reset_after": True}
    if sizes.reset_after is not None and known.setdefault("reset_after", sizes.reset_after) != (
        sizes.reset_after
    ):
        raise ValueError(
            f"{name}: expected reset_after={sizes.reset_after}, as a bias of shape {sizes.bias} "
            f"has it, got {known['reset_after']!r}"
        )
    for cell, needed in kind.cells.items():
        if all(_setting(known, key) == value for key, value in needed.items()):
            if wanted not in (None, cell):
                raise ValueError(
                    f"{name}: is a {kind.name} that is fastgru's {cell!r}, got cell={wanted!r}"
                )
            return cell, notes
    raise ValueError(_another_cell(name, kind, known))


def _setting(settings: Mapping[str, Any], key: str) -> Any:
    """A setting; of an activation, its name."""
    value = settings.get(key, "(missing)")
    return "linear" if value is None else value


def _another_cell(name: str, kind: Kind, settings: Mapping[str, Any]) -> str:
    expected = " or ".join(
        ", ".join(f"{k}={v!r}" for k, v in needed.items()) for needed in kind.cells.values()
    )
    got = ", ".join(f"{k}={_setting(settings, k)!r}" for k in next(iter(kind.cells.values())))
    return (
        f"{name}: expected {kind.name} with {expected}, got {got}: that is another cell; write it, "
        "as the example 'A cell of your own' does one with hard sigmoids, register it, and give "
        f"cell={{{name!r}: its name}}; layers= reads other layers without this one"
    )


def _arrays_of(
    direction: Direction, sizes: _Sizes, cell: str, dtype: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """fastgru's arrays of a layer and direction, and what each was made from."""
    table = cell_named(cell)
    gates = gates_named(cell, sizes.kind.order)
    for array in direction.arrays:
        if dtype is None and array.dtype == "bfloat16":
            raise TypeError(
                f"{array.path}: expected float32 or float64, got bfloat16; dtype='float32' "
                "converts it"
            )
    read = {
        key: floating(array.path, array.read(), dtype)
        for key, array in zip(_WEIGHTS, direction.arrays, strict=False)
    }
    kernel, recurrent = read["kernel"], read["recurrent_kernel"]
    if sizes.is_cudnn:  # each gate's block holds an (H, I) matrix, whatever its shape says
        kernel, recurrent = (
            np.concatenate([b.reshape(sizes.hidden_size, -1) for b in np.hsplit(w, len(gates))])
            for w in (kernel, recurrent)
        )
    arrays = {"weight_ih": kernel, "weight_hh": recurrent}
    if "bias" in read:
        arrays |= fused_biases(direction.arrays[2].path, table, read["bias"], sizes.hidden_size)
    made = Convention(gates, transposed=not sizes.is_cudnn).read(cell, arrays)
    paths = dict(zip(_WEIGHTS, (array.path for array in direction.arrays), strict=False))
    origins = {"weight_ih": paths["kernel"], "weight_hh": paths["recurrent_kernel"]}
    for key in made:
        if key not in origins:
            origins[key] = paths["bias"] if key in arrays else "zeros, as Keras has one bias"
    return made, origins
