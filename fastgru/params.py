"""Weights of a stack of recurrent layers."""

import contextlib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Self

import numpy as np

from .backends import backend, check_dtype, check_shape, common_library, library_of
from .kernels.cells import CELLS, Cell


def cells() -> tuple[str, ...]:
    """Names of the cells available."""
    return tuple(CELLS)


def cell_named(name: Any) -> Cell:
    """The cell of that name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not isinstance(name, str) or name not in CELLS:
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {name!r}")
    return CELLS[name]


def check_flag(name: str, value: Any) -> bool:
    """`value`, if it is a bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def whole_number(name: str, value: Any, expected: str = "a whole number") -> int:
    """`value` as an int, if it is a whole number and no bool."""
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name}: expected {expected}, got {value!r}")


def _check_size(name: str, value: Any) -> int:
    """`value` as an int, if it is a whole number that a size can be."""
    size = whole_number(name, value)
    if size < 1:
        raise ValueError(f"{name}: expected at least 1, got {size}")
    if size >= 2**31:
        raise ValueError(f"{name}: expected less than 2**31, got {size}")
    return size


def _weight_names() -> list[str]:
    """Names of the weights that any cell has, in the order of the tables."""
    shapes = (cell.weight_shapes(1, 1, bias=True) for cell in CELLS.values())
    return list(dict.fromkeys(name for names in shapes for name in names))


class Weights:
    """The arrays of one layer and direction, as attributes; what the cell lacks is None.

    For the cells ``gru``, ``gru_reset_before`` and ``lstm``, with G gates, H hidden units and I
    inputs (in upper layers: the outputs of the layer below):

    Attributes
    ----------
    weight_ih : (G*H, I) array
    weight_hh : (G*H, H) array
    bias_ih, bias_hh : (G*H,) array or None
        None without bias.
    """

    _named: dict[str, Any]  # the arrays that are there, by name, which nobody changes

    def __init__(self, **arrays: Any) -> None:
        names = _weight_names()
        for name, array in arrays.items():
            if name not in names:
                raise TypeError(f"{name}: expected a weight's name ({', '.join(names)})")
            if array is not None:
                library_of(name, array)
        self.__setstate__(dict.fromkeys(names) | arrays)

    def __getstate__(self) -> dict[str, Any]:
        """The arrays by name: each once, as not every pickler sees that two are the same."""
        return {name: array for name, array in vars(self).items() if name != "_named"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        present = {name: array for name, array in state.items() if array is not None}
        vars(self).update(state, _named=present)

    def _like(self, arrays: dict[str, Any]) -> "Weights":
        """Weights of these arrays by name, which are there where these are; unchecked, kept."""
        weights = object.__new__(type(self))
        fields = vars(weights)  # in one call with keywords it takes 0.2 µs more
        fields.update(vars(self))
        fields.update(arrays)
        fields["_named"] = arrays
        return weights

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"Weights have no {name!r}, only {', '.join(_weight_names())}")

    def _refuse(self, *args: Any) -> NoReturn:
        raise AttributeError("Weights are immutable; Params.map makes new ones")

    __setattr__ = _refuse
    __delattr__ = _refuse

    def items(self) -> list[tuple[str, Any]]:
        """Names and arrays of the weights that are there."""
        return [*self._named.items()]

    def __repr__(self) -> str:
        return f"Weights({', '.join(f'{name}={array.shape}' for name, array in self.items())})"


class Params:
    """Weights of a stack of recurrent layers; immutable.

    Parameters
    ----------
    cell : str
        Name of the cell, one of `cells()`.
    layers : sequence of sequence of Weights
        ``layers[layer][direction]``; the second direction, if any, runs backward in time.

    Attributes
    ----------
    cell : str
    layers : tuple of tuple of Weights
    input_size, hidden_size, num_layers, num_directions : int
    bidirectional, bias : bool
    dtype : numpy.dtype
        Of all arrays: float32 or float64.
    library : str
        Name of the library of all arrays, ``"numpy"`` or ``"cupy"``.

    Raises
    ------
    TypeError
        If the arrays are not of one library and one dtype, float32 or float64.
    ValueError
        If the cell is unknown, a weight is missing, unknown, or has the wrong shape.

    Notes
    -----
    Arrays are kept, not copied, and are read at every call: values changed in place are seen.
    """

    cell: str
    layers: tuple[tuple[Weights, ...], ...]
    input_size: int
    hidden_size: int
    bias: bool
    dtype: Any
    library: str

    def __init__(self, cell: str, layers: Iterable[Iterable[Weights]]) -> None:
        table = cell_named(cell)
        stack = tuple(
            _directions(f"layers[{number}]", layer)
            for number, layer in enumerate(_members("layers", layers, "sequences of Weights"))
        )
        if not stack:
            raise ValueError("layers: expected at least one, got none")
        if {len(layer) for layer in stack} not in ({1}, {2}):
            found = [len(layer) for layer in stack]
            raise ValueError(f"layers: expected 1 or 2 directions, alike in all, got {found}")
        named = dict(_named(stack))
        if "weight_ih_l0" not in named:
            raise ValueError(f"weight_ih_l0: missing (cell {cell!r})")
        library = common_library(named)
        first = named["weight_ih_l0"]
        check_dtype("weight_ih_l0", first.dtype)
        for key, array in named.items():
            if array.dtype != first.dtype:
                raise TypeError(
                    f"{key}: expected dtype {first.dtype}, as weight_ih_l0, got {array.dtype}"
                )
        gates = len(table.input_gates)
        if first.ndim != 2 or 0 in first.shape or first.shape[0] % gates:
            raise ValueError(
                f"weight_ih_l0: expected shape ({gates}*H, I) for cell {cell!r}, got {first.shape}"
                f"{_other_cells(cell, stack)}"
            )
        hidden_size, bias = first.shape[0] // gates, "bias_ih_l0" in named
        size = first.shape[1]
        for number, layer in enumerate(stack):
            expected = table.weight_shapes(size, hidden_size, bias)
            for direction, weights in enumerate(layer):
                suffix = _suffix(number, direction)
                try:
                    _check_weights(weights, expected, suffix, cell)
                except ValueError as error:
                    raise ValueError(f"{error}{_other_cells(cell, stack)}") from None
            size = hidden_size * len(layer)
        vars(self).update(
            cell=cell,
            layers=stack,
            input_size=first.shape[1],
            hidden_size=hidden_size,
            bias=bias,
            dtype=first.dtype,
            library=library,
        )

    def _like(self, layers: tuple[tuple[Weights, ...], ...]) -> Self:
        """Params of these layers, which have the same arrays but for the values; unchecked."""
        params = object.__new__(type(self))
        fields = vars(params)
        fields.update(vars(self))
        fields["layers"] = layers
        return params

    def _refuse(self, *args: Any) -> NoReturn:
        raise AttributeError("Params are immutable; Params.map makes new ones")

    __setattr__ = _refuse
    __delattr__ = _refuse

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def num_directions(self) -> int:
        """1, or 2 if bidirectional."""
        return len(self.layers[0])

    @property
    def bidirectional(self) -> bool:
        """Whether there is a direction that runs backward in time."""
        return self.num_directions == 2

    def __repr__(self) -> str:
        return (
            f"Params(cell={self.cell!r}, input_size={self.input_size}, "
            f"hidden_size={self.hidden_size}, num_layers={self.num_layers}, "
            f"bidirectional={self.bidirectional}, bias={self.bias}, dtype={self.dtype.name}, "
            f"library={self.library!r})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The arrays by PyTorch's names (``weight_ih_l0``, ``bias_hh_l1_reverse``, …), uncopied."""
        return dict(_named(self.layers))

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], *, cell: str = "gru") -> Self:
        """Make params from arrays by PyTorch's names, as in ``torch.nn.GRU(...).state_dict()``.

        Parameters
        ----------
        mapping : mapping of str to array
            Every weight of every layer and direction, and nothing else; layers, directions, sizes
            and bias are inferred. Arrays are kept, not copied.
        cell : str
            The cell that the weights are for. Gates are ordered as in PyTorch: r, z, n for a GRU,
            i, f, g, o for the LSTM.

        Raises
        ------
        TypeError, ValueError
            As for `Params`; ValueError also for a key that is not a weight's name.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping: expected a mapping of names to arrays, got {mapping!r}")
        names = list(cell_named(cell).weight_shapes(1, 1, bias=True))
        stack: dict[tuple[int, int], dict[str, Any]] = {}
        for key, array in mapping.items():
            match = _KEY.fullmatch(key) if isinstance(key, str) else None
            if match is None or match["name"] not in names:
                expected = ", ".join(f"{name}_l0" for name in names)
                raise ValueError(
                    f"mapping: expected keys like {expected} (l0, l1, …; with _reverse for the "
                    f"second direction), got {key!r}"
                )
            library_of(key, array)
            place = int(match["layer"]), int(match["reverse"] is not None)
            stack.setdefault(place, {})[match["name"]] = array
        directions = 1 + max((direction for _, direction in stack), default=0)
        places = [(n, d) for n in range(-(-len(stack) // directions)) for d in range(directions)]
        missing = [_suffix(*place) for place in places if place not in stack]
        if missing or not stack:
            raise ValueError(f"mapping: weights are missing for {', '.join(missing) or '_l0'}")
        return cls(
            cell,
            [
                [Weights(**stack[number, direction]) for direction in range(directions)]
                for number in range(len(stack) // directions)
            ],
        )

    def map(self, function: Callable[..., Any], *others: "Params") -> "Params":
        """Apply a function array by array.

        Parameters
        ----------
        function : callable
            Takes an array of each params and returns an array of the same shape, in any library
            and dtype that params may have.
        *others : Params
            Params of the same structure: cell, layers, directions, bias.

        Returns
        -------
        Params

        Raises
        ------
        TypeError, ValueError
            If `others` differ in structure, or as for `Params`.

        Examples
        --------
        A step of gradient descent:

        >>> params = params.map(lambda w, g: w - 0.1 * g, gradients.params)  # doctest: +SKIP
        """
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {function!r}")
        stacks = [self.to_dict()]
        for other in others:
            if not isinstance(other, Params):
                raise TypeError(f"others: expected Params, got {type(other).__qualname__}")
            stacks.append(other.to_dict())
            if other.cell != self.cell or list(stacks[-1]) != list(stacks[0]):
                raise ValueError(f"others: expected the structure of {self!r}, got {other!r}")
        mapped = {key: function(*(stack[key] for stack in stacks)) for key in stacks[0]}
        for key, array in mapped.items():
            library_of(f"result of function for {key}", array)
            check_shape(f"result of function for {key}", array, stacks[0][key].shape, "as before")
        return Params.from_dict(mapped, cell=self.cell)


_KEY = re.compile(r"(?P<name>[a-z_]+)_l(?P<layer>0|[1-9][0-9]{0,8})(?P<reverse>_reverse)?")


def _suffix(layer: int, direction: int) -> str:
    """End of the names of a layer's and direction's weights."""
    return f"_l{layer}{'_reverse' if direction else ''}"


def _named(layers: tuple[tuple[Weights, ...], ...]) -> list[tuple[str, Any]]:
    """All arrays with their full names."""
    return [
        (name + _suffix(number, direction), array)
        for number, layer in enumerate(layers)
        for direction, weights in enumerate(layer)
        for name, array in weights.items()
    ]


def _members(name: str, value: Any, of: str) -> tuple[Any, ...]:
    """The members of an argument that is a sequence of something."""
    if not isinstance(value, str | bytes | Mapping):
        with contextlib.suppress(TypeError):
            return tuple(value)
    raise TypeError(f"{name}: expected a sequence of {of}, got {value!r}")


def _directions(name: str, layer: Any) -> tuple[Weights, ...]:
    """The directions of a layer."""
    directions = _members(name, layer, "Weights")
    for weights in directions:
        if not isinstance(weights, Weights):
            raise TypeError(f"{name}: expected Weights, got {type(weights).__qualname__}")
    return directions


def _check_kind(dtype: Any) -> np.dtype[Any]:
    """`dtype` as a NumPy dtype, if it is native float32 or float64."""
    kind: np.dtype[Any] | None = None
    if dtype is not None:  # which NumPy would take for float64
        with contextlib.suppress(TypeError, ValueError, SyntaxError):
            kind = np.dtype(dtype)
    if kind is None:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")
    check_dtype("dtype", kind)
    return kind


def _check_rng(rng: Any) -> "np.random.Generator":
    """`rng` as a generator, if it is None, one, or the seed of one."""
    if rng is not None and not isinstance(rng, np.random.Generator):
        rng = whole_number("rng", rng, "None, a seed or a Generator")
        if rng < 0:
            raise ValueError(f"rng: expected a seed from 0 up, got {rng}")
    return np.random.default_rng(rng)


def _other_cells(cell: str, stack: tuple[tuple[Weights, ...], ...]) -> str:
    """Which cells the first layer's weights are shaped for, if not for this one."""
    shapes = {name: array.shape for name, array in stack[0][0].items()}
    if len(shapes["weight_ih"]) != 2:
        return ""
    rows, columns = shapes["weight_ih"]
    fitting = []
    for name, table in CELLS.items():
        hidden_size, left = divmod(rows, len(table.input_gates))
        expected = table.weight_shapes(columns, hidden_size, "bias_ih" in shapes)
        if name != cell and left == 0 and shapes == expected:
            fitting.append(name)
    return f"; these are shapes of cell {' or '.join(map(repr, fitting))}" if fitting else ""


def _check_weights(
    weights: Weights, expected: Mapping[str, tuple[int, ...]], suffix: str, cell: str
) -> None:
    """Refuse weights of one layer and direction that are not the cell's."""
    arrays = dict(weights.items())
    for name, shape in expected.items():
        if name not in arrays:
            zeros = f"; zeros of shape {shape} stand for none" if name.startswith("bias") else ""
            raise ValueError(f"{name}{suffix}: missing (cell {cell!r}){zeros}")
        check_shape(name + suffix, arrays[name], shape, f"for cell {cell!r}")
    unknown = [name for name in arrays if name not in expected]
    if unknown:
        raise ValueError(
            f"{unknown[0]}{suffix}: expected only {', '.join(expected)} (cell {cell!r}; biases in "
            f"all layers or in none)"
        )


def init_params(
    input_size: int,
    hidden_size: int,
    *,
    cell: str = "gru",
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dtype: Any = "float32",
    rng: Any = None,
    like: Any = None,
) -> Params:
    """Draw initial weights, uniform between -1/sqrt(H) and 1/sqrt(H), as PyTorch does.

    Parameters
    ----------
    input_size : int
        Features of the input, I.
    hidden_size : int
        Hidden units of each layer and direction, H.
    cell : str
        One of `cells()`.
    num_layers : int
        Layers; each reads the outputs of the one below.
    bidirectional : bool
        Add a second direction, which runs backward in time, to every layer.
    bias : bool
        Whether there are biases.
    dtype : dtype
        float32 or float64.
    rng : None, int or numpy.random.Generator
        Source of randomness, or the seed of one; see `numpy.random.default_rng`.
    like : array, optional
        Make the arrays with the library of this one, on its device; NumPy by default.

    Returns
    -------
    Params

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """
    table = cell_named(cell)
    size = _check_size("input_size", input_size)
    hidden = _check_size("hidden_size", hidden_size)
    layers = _check_size("num_layers", num_layers)
    directions = 1 + check_flag("bidirectional", bidirectional)
    with_bias = check_flag("bias", bias)
    kind = _check_kind(dtype)
    library = "numpy" if like is None else library_of("like", like)
    kernels = None if library == "numpy" else backend(library).kernels
    generator = _check_rng(rng)
    limit = hidden**-0.5

    def draw(shape: tuple[int, ...]) -> Any:
        drawn = generator.uniform(-limit, limit, shape).astype(kind)
        return drawn if kernels is None else kernels.place(drawn, like)

    stack = []
    for _ in range(layers):
        shapes = table.weight_shapes(size, hidden, with_bias)
        stack.append(
            [
                Weights(**{name: draw(shape) for name, shape in shapes.items()})
                for _ in range(directions)
            ]
        )
        size = hidden * directions
    return Params(cell, stack)
