"""Weights of a stack of recurrent layers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Self

from .backends import backend
from .check import (
    cell_named,
    check_arrays,
    check_bias,
    check_callable,
    check_flag,
    check_key,
    check_kind,
    check_mapping,
    check_members,
    check_places,
    check_rng,
    check_shape,
    check_size,
    check_structure,
    check_type,
    check_weights,
    has_biases,
    library_of,
)
from .kernels.cells import CELLS, Cell, Weight
from .names import named_arrays, weight_names


def cells() -> tuple[str, ...]:
    """Names of the cells available.

    Returns
    -------
    tuple of str
        Those that come with fastgru, and those that were registered.

    Examples
    --------
    >>> import fastgru
    >>> fastgru.cells()[:3]
    ('gru', 'gru_reset_before', 'lstm')
    """
    return tuple(CELLS)


class Weights:
    """The arrays of one layer and direction, as attributes; what the cell lacks is None.

    For the cells ``gru``, ``gru_reset_before`` and ``lstm``, with G gates, H hidden units and I
    inputs (in upper layers: the outputs of the layer below):

    Parameters
    ----------
    **arrays : array
        By name.

    Attributes
    ----------
    weight_ih : (G*H, I) array
    weight_hh : (G*H, H) array
    bias_ih, bias_hh : (G*H,) array or None
        None without bias.
    """

    _named: dict[str, Any]  # the arrays that are there, by name, which nobody changes

    def __init__(self, **arrays: Any) -> None:
        names = weight_names()
        check_arrays(arrays, names)
        self.__setstate__(dict.fromkeys(names) | arrays)

    def __getstate__(self) -> dict[str, Any]:
        """The arrays by name: each once, as not every pickler sees that two are the same."""
        return {name: array for name, array in vars(self).items() if name != "_named"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        present = {name: array for name, array in state.items() if array is not None}
        vars(self).update(state, _named=present)

    def __getattr__(self, name: str) -> Any:
        if name in weight_names():  # of a cell that was registered later
            return None
        raise AttributeError(f"Weights have no {name!r}, only {', '.join(weight_names())}")

    def _refuse(self, *args: Any) -> NoReturn:
        raise AttributeError("Weights are immutable; Params.map makes new ones")

    __setattr__ = _refuse
    __delattr__ = _refuse

    def items(self) -> list[tuple[str, Any]]:
        """Names and arrays of the weights that are there.

        Returns
        -------
        list of tuple of str and array
        """
        return [*self._named.items()]

    def __repr__(self) -> str:
        return f"Weights({', '.join(f'{name}={array.shape}' for name, array in self.items())})"


def arrays_of(weights: Weights) -> dict[str, Any]:
    """The arrays that are there, by name: not a copy, and not to be changed."""
    return weights._named


def first_array(params: "Params") -> Any:
    """One of the arrays, which are all of one library, dtype and device."""
    return next(iter(arrays_of(params.layers[0][0]).values()))


def weights_like(weights: Weights, arrays: dict[str, Any]) -> Weights:
    """Weights of these arrays by name, of those which are there; unchecked, kept."""
    like = object.__new__(type(weights))
    fields = vars(like)  # in one call with keywords it takes 0.2 µs more
    fields.update(vars(weights))
    if len(arrays) != len(weights._named):  # gradients, of trainable weights alone
        fields.update(dict.fromkeys(weights._named))
    fields.update(arrays)
    fields["_named"] = arrays
    return like


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
            for number, layer in enumerate(check_members("layers", layers, "sequences of Weights"))
        )
        self._fill(table, stack, table.weights)

    def _fill(
        self, table: Cell, stack: tuple[tuple[Weights, ...], ...], expected: Sequence[Weight]
    ) -> None:
        """Set all attributes, if these weights are the ones expected."""
        library = check_weights(table, _by_name(stack), expected)
        first = arrays_of(stack[0][0])
        matrix = first[table.input_weight.name]
        rows, input_size = matrix.shape
        vars(self).update(
            cell=table.name,
            layers=stack,
            input_size=input_size,
            hidden_size=rows // len(table.input_gates),
            bias=has_biases(table, first),
            dtype=matrix.dtype,
            library=library,
        )

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

    @property
    def num_parameters(self) -> int:
        """How many trainable numbers there are."""
        trainable = [w.name for w in cell_named(self.cell).weights if w.is_trainable]
        arrays = [arrays_of(weights) for layer in self.layers for weights in layer]
        return sum(of[name].size for of in arrays for name in trainable if name in of)

    def __repr__(self) -> str:
        return (
            f"Params(cell={self.cell!r}, input_size={self.input_size}, "
            f"hidden_size={self.hidden_size}, num_layers={self.num_layers}, "
            f"bidirectional={self.bidirectional}, bias={self.bias}, dtype={self.dtype.name}, "
            f"library={self.library!r})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The arrays by PyTorch's names (``weight_ih_l0``, ``bias_hh_l1_reverse``, …), uncopied.

        Returns
        -------
        dict of str to array

        Examples
        --------
        >>> import fastgru
        >>> list(fastgru.init_params(3, 16, cell="mgu", rng=0).to_dict())
        ['weight_ih_l0', 'weight_hh_l0', 'bias_l0']
        """
        return named_arrays(_by_name(self.layers))

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

        Examples
        --------
        >>> import fastgru
        >>> params = fastgru.init_params(3, 16, num_layers=2, rng=0)
        >>> fastgru.Params.from_dict(params.to_dict()).num_layers
        2
        """
        check_mapping(mapping)
        names = [weight.name for weight in cell_named(cell).weights]
        return cls(cell, _layers_of(mapping, names))

    def map(self, function: Callable[..., Any], *others: "Params") -> "Params":
        """Apply a function array by array.

        Parameters
        ----------
        function : callable
            Takes an array of each params and returns an array of the same shape, in any library
            and dtype that params may have.
        *others : Params
            Params of the same structure: cell, layers, directions, bias. Where one has no running
            statistics, as gradients have none, those of `self` are kept as they are.

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

        >>> import numpy as np, fastgru
        >>> params = fastgru.init_params(3, 16, rng=0)
        >>> y, h_n, saved = fastgru.forward_train(np.ones((8, 50, 3), np.float32), params)
        >>> gradients = fastgru.backward(saved, dy=y)
        >>> params = params.map(lambda w, g: w - 0.1 * g, gradients.params)
        """
        check_callable("function", function)
        stacks = [self.to_dict()]
        for other in others:
            check_type("others", other, Params)
            stacks.append(other.to_dict())
            check_structure(other, stacks[-1], self, stacks[0])
        mapped = {
            key: function(*(stack[key] for stack in stacks))
            if all(key in stack for stack in stacks)
            else stacks[0][key]
            for key in stacks[0]
        }
        if all(
            type(array) is type(stacks[0][key])
            and array.dtype == self.dtype
            and array.shape == stacks[0][key].shape
            for key, array in mapped.items()
        ):
            return params_like(self, _like(self.layers, iter(mapped.values())))
        for key, array in mapped.items():
            library_of(f"result of function for {key}", array)
            check_shape(f"result of function for {key}", array, stacks[0][key].shape, "as before")
        of_layer = arrays_of(self.layers[0][0])
        own = [w for w in cell_named(self.cell).weights if w.is_trainable or w.name in of_layer]
        made = object.__new__(Params)
        made._fill(cell_named(self.cell), _layers_of(mapped, [w.name for w in own]), own)
        return made


def _like(
    layers: tuple[tuple[Weights, ...], ...], arrays: Iterator[Any]
) -> tuple[tuple[Weights, ...], ...]:
    """Layers of these arrays, which are like theirs and come in their order."""
    return tuple(
        tuple(
            weights_like(weights, {name: next(arrays) for name in arrays_of(weights)})
            for weights in layer
        )
        for layer in layers
    )


def _layers_of(mapping: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[Weights, ...], ...]:
    """Arrays by their full names, which are made of these, as ``layers[layer][direction]``."""
    stack: dict[tuple[int, int], dict[str, Any]] = {}
    for key, array in mapping.items():
        name, layer, direction = check_key(key, names)
        library_of(key, array)
        stack.setdefault((layer, direction), {})[name] = array
    directions = 1 + max((direction for _, direction in stack), default=0)
    layers = -(-len(stack) // directions)
    check_places(stack, [(n, d) for n in range(layers) for d in range(directions)])
    return tuple(
        tuple(Weights(**stack[number, direction]) for direction in range(directions))
        for number in range(layers)
    )


def params_like(params: Params, layers: tuple[tuple[Weights, ...], ...]) -> Params:
    """Params of these layers, which have the same arrays but for the values; unchecked."""
    like = object.__new__(type(params))
    fields = vars(like)
    fields.update(vars(params))
    fields["layers"] = layers
    return like


def _by_name(layers: tuple[tuple[Weights, ...], ...]) -> list[list[dict[str, Any]]]:
    """The arrays, ``[layer][direction][name]``."""
    return [[arrays_of(weights) for weights in layer] for layer in layers]


def _directions(name: str, layer: Any) -> tuple[Weights, ...]:
    """The directions of a layer."""
    directions = check_members(name, layer, "Weights")
    for weights in directions:
        check_type(name, weights, Weights)
    return directions


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

    Examples
    --------
    >>> import fastgru
    >>> params = fastgru.init_params(3, 16, cell="lstm", num_layers=2, rng=0)
    >>> params.num_parameters
    3520
    """
    table = cell_named(cell)
    size = check_size("input_size", input_size)
    hidden = check_size("hidden_size", hidden_size)
    layers = check_size("num_layers", num_layers)
    directions = 1 + check_flag("bidirectional", bidirectional)
    with_bias = check_flag("bias", bias)
    kind = check_kind(dtype)
    library = "numpy" if like is None else library_of("like", like)
    kernels = None if library == "numpy" else backend(library).kernels
    generator = check_rng(rng)
    check_bias(table, with_bias)

    def draw(weight: Weight, input_size: int) -> Any:
        drawn = weight.initial(generator, weight.shape(input_size, hidden), hidden).astype(kind)
        return drawn if kernels is None else kernels.place(drawn, like)

    stack = []
    for _ in range(layers):
        own = table.weights_with(with_bias)
        stack.append([Weights(**{w.name: draw(w, size) for w in own}) for _ in range(directions)])
        size = hidden * directions
    return Params(cell, stack)
