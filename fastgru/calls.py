"""How a call runs: its arguments checked, its layout, the kernels prepared.

For a small call this takes longer than the kernels. Everything that follows from the types, dtypes
and shapes of the arguments is therefore made once, as a `Call`, which the architecture of the
weights keeps for the next arguments of the same kinds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .check import check_dtype, check_flag, check_shape, common_library, whole_number
from .packed import Architecture, Packed
from .params import Params

State = Any  # an array, or for cells with more than one state a tuple of arrays

# Calls that an architecture keeps, and rows and steps of those worth it: each has an index.
_KEPT_CALLS = 64
_LARGEST_KEPT = 4096


class Layout(NamedTuple):
    """How the user's arrays relate to (N, T, features) and (layers * directions, N, H)."""

    batched: bool
    time_major: bool

    def inner(self, sequence: Any) -> Any:
        """A user's sequence as a view of shape (N, T, features)."""
        if not self.batched:
            return sequence[None]
        return sequence.transpose(1, 0, 2) if self.time_major else sequence

    def outer(self, sequence: Any) -> Any:
        """The user's view of a sequence of shape (N, T, features)."""
        if not self.batched:
            return sequence[0]
        return sequence.transpose(1, 0, 2) if self.time_major else sequence

    def inner_state(self, members: tuple[Any, ...]) -> tuple[Any, ...]:
        """Members of a user's state as views of shape (layers * directions, N, H)."""
        return members if self.batched else tuple(m[:, None] for m in members)

    def outer_state(self, members: tuple[Any, ...]) -> State:
        """The user's view of a state: an array, or a tuple if there are several members."""
        shown = members if self.batched else tuple(m[:, 0] for m in members)
        return shown if len(shown) > 1 else shown[0]

    def new_sequence(self, make: Any, N: int, T: int, features: int, dtype: Any) -> Any:
        """A new sequence, contiguous as the user sees it, seen as (N, T, features)."""
        if self.time_major and self.batched:
            return make((T, N, features), dtype).transpose(1, 0, 2)
        return make((N, T, features), dtype)


class Call:
    """Everything about a forward pass that the kinds of its arguments decide.

    Parameters
    ----------
    architecture : Architecture
    layout : Layout
    N, T : int
        Samples and time steps.
    precision : str, optional
        Of the products, if it is not that of the dtype.

    Attributes
    ----------
    lengths : (N,) array or None
        Valid steps of each sample, where they are not all.
    recurrences : list
        The prepared kernels of each layer.
    elsewhere : callable or None
        Finds the device that must be made current for these arrays, where there are devices.
    as_sequence : index
        That gives one step of each sample, (N, I), as sequences, (N, 1, I); or of one, (I,).
    seen_gradients : set
        Kinds of the gradients for which `backward` was called, and which need no check.
    """

    def __init__(
        self,
        architecture: Architecture,
        layout: Layout,
        N: int,
        T: int,
        precision: str | None = None,
    ) -> None:
        kernels = architecture.backend.kernels
        cell, H, D = architecture.cell, architecture.hidden_size, architecture.num_directions
        self.architecture, self.layout, self.N, self.T = architecture, layout, N, T
        self.precision = precision
        self.lengths: Any = None
        self.recurrences = self._recurrences_for(None)
        self.xp, self.dtype = architecture.backend.xp, architecture.dtype
        self.H, self.D = H, D
        self._device_of = kernels.device_of
        self.elsewhere = None if kernels.device_of is None else self._elsewhere
        y = (N, T, D * H)
        self._new_y = self._new_y_by(self.xp.empty)
        self._num_states = len(cell.states)
        self.seen_gradients: set[Any] = set()
        self._state_shape = (architecture.num_layers * D, N, H)
        # A step of one row and layer: y and the new state are the same numbers in the same shape,
        # and memory for one of them is enough.
        self._final_is_y = layout.batched and T == 1 and self._state_shape == y
        # Made once, and None for one row, whose axes may change places: 0.06 µs less a step than a
        # slice made each time.
        self.as_sequence: Any = None if N == 1 else (slice(None), None)
        if not layout.batched:
            self.as_sequence = None, None

    def _recurrences_for(self, lengths: Any) -> list[Any]:
        """The prepared kernels of each layer, for these numbers of valid steps."""
        kernels, of = self.architecture.backend.kernels, self.architecture
        ragged = kernels.ragged_rows(lengths, self.N, self.T)
        own, sizes = (of.hidden_size, of.dtype, ragged), of.input_sizes
        options = {} if self.precision is None else {"precision": self.precision}
        prepared = {I: kernels.Recurrence(of.cell, I, *own, **options) for I in set(sizes)}
        return [prepared[I] for I in sizes]

    def _new_y_by(self, make: Any) -> Callable[[], Any]:
        """What makes a new y, by the library's `empty` or `zeros`."""
        shape = (self.N, self.T, self.D * self.H)
        if self.layout.time_major:
            return functools.partial(self.layout.new_sequence, make, *shape, self.dtype)
        return functools.partial(make, shape, self.dtype)  # the same with fewer calls

    def with_lengths(self, lengths: Any) -> "Call":
        """This call for samples with so many valid steps.

        Raises
        ------
        TypeError, ValueError
            If they do not fit.
        """
        if not self.layout.batched:
            raise ValueError(f"lengths: expected None for x without samples, got {lengths!r}")
        call = object.__new__(Call)
        vars(call).update(vars(self))
        call.lengths = _check_lengths(lengths, self.N, self.T)
        call.recurrences = call._recurrences_for(call.lengths)
        call._new_y = call._new_y_by(call.xp.zeros)  # padded outputs are 0
        return call

    def _elsewhere(self, packed: Packed, **arrays: Any) -> Any:
        """The arrays' device, unless it is the current one.

        Raises
        ------
        ValueError
            If they are on several.
        """
        home = packed.device
        for name, value in arrays.items():
            for array in value if isinstance(value, tuple | list) else (value,):
                if array is not None and self._device_of(array) != home:
                    raise ValueError(
                        f"{name}: expected an array on {home!r}, as params, "
                        f"got one on {self._device_of(array)!r}"
                    )
        return None if home == self.xp.cuda.Device() else home

    def new_state(self, make: Callable[..., Any]) -> tuple[Any, ...]:
        """A new state, of (layers * directions, N, H) arrays."""
        shape, dtype = self._state_shape, self.dtype
        if self._num_states == 1:
            return (make(shape, dtype),)
        if self._num_states == 2:  # a loop takes 0.2 µs
            return make(shape, dtype), make(shape, dtype)
        return tuple([make(shape, dtype) for _ in range(self._num_states)])

    def inner_state(self, state: State) -> tuple[Any, ...]:
        """A user's state, checked, as the kernels take it; zeros for None."""
        if state is None:
            return self.new_state(self.xp.zeros)
        members = (state,) if self._num_states == 1 else tuple(state)
        return members if self.layout.batched else self.layout.inner_state(members)

    def inner_gradient(self, dh_n: State) -> tuple[Any, ...] | None:
        """A user's gradient of h_n, checked, as the kernels take it.

        None if there is none; zeros for a member that is None among others.
        """
        if dh_n is None:
            return None
        if dh_n.__class__ in (tuple, list) and any(member is None for member in dh_n):
            zeros = self.layout.outer_state(self.new_state(self.xp.zeros))
            dh_n = tuple(z if m is None else m for m, z in zip(dh_n, zeros, strict=True))
        return self.inner_state(dh_n)

    def run(
        self, x: Any, layouts: Any, initial: tuple[Any, ...], keep: bool
    ) -> tuple[tuple[Any, ...], list[Any], list[list[Any]]]:
        """Run all layers and directions.

        Parameters
        ----------
        x : (N, T, I) array
        layouts : sequence of sequence
            Packed weights of every layer and direction.
        initial : tuple of (layers * directions, N, H) arrays
        keep : bool
            Keep what backward needs.

        Returns
        -------
        final : tuple of (layers * directions, N, H) arrays
        sequences : list of (N, T, features) arrays
            x, then the outputs of every layer.
        kept : list of list
            What the kernels kept of every layer and direction.
        """
        sequences, kept = [x], []
        final = self.new_state(self.xp.empty)
        for number, recurrence in enumerate(self.recurrences):
            y = self._new_y()
            of_layer = []
            for d, weights in enumerate(layouts[number]):
                index, y_out = number * self.D + d, y
                if self.D > 1:
                    y_out = y[:, :, d * self.H : (d + 1) * self.H]
                of_layer.append(
                    recurrence.forward(weights, x, initial, index, d == 1, y_out, final, keep)
                )
            x = y
            sequences.append(y)
            kept.append(of_layer)
        return final, sequences, kept

    def run_plain(
        self, x: Any, layouts: Any, initial: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], Any]:
        """Run all layers of one direction and keep nothing: `run` for calls that must be short.

        Gives the final state and the outputs of the last layer.
        """
        final = self.new_state(self.xp.empty)
        for number, recurrence in enumerate(self.recurrences):
            y = self._new_y()
            recurrence.forward(layouts[number][0], x, initial, number, False, y, final, False)
            x = y
        return final, x

    def run_step(self, x: Any, layouts: Any, state: State) -> tuple[Any, ...]:
        """The new state of a stream: `run_plain`, shorter still, from a user's state."""
        if not self._final_is_y:
            return self.run_plain(x, layouts, self.inner_state(state))[0]
        initial: tuple[Any, ...]
        if self._num_states == 1 and state is not None:  # two calls take 0.1 µs
            initial, final = (state,), (self.xp.empty(self._state_shape, self.dtype),)
        else:
            initial, final = self.inner_state(state), self.new_state(self.xp.empty)
        self.recurrences[0].forward(layouts[0][0], x, initial, 0, False, final[0], final, False)
        return final


def call_for(
    check: Callable[..., Call],
    packed: Packed,
    x: Any,
    state: State,
    time_major: bool,
    precision: Any,
) -> Call:
    """The kept call for arguments of these kinds.

    ``check(packed, x, state, time_major, precision)`` makes it, or raises; it may look at nothing
    but the types, dtypes and shapes of arrays.
    """
    calls = packed.architecture.calls
    try:
        key: Any  # of different lengths where states differ in kind
        if state is None:
            key = check, time_major, precision, x.__class__, x.dtype, x.shape
        elif state.__class__ is tuple and len(state) == 2:  # the loop takes 0.4 µs
            h, c = state
            key = (
                check, time_major, precision, x.__class__, x.dtype, x.shape,
                h.__class__, h.dtype, h.shape, c.__class__, c.dtype, c.shape,
            )  # fmt: skip
        elif state.__class__ is tuple:
            members = [part for m in state for part in (m.__class__, m.dtype, m.shape)]
            key = check, time_major, precision, x.__class__, x.dtype, x.shape, tuple, *members
        else:
            key = (
                check, time_major, precision, x.__class__, x.dtype, x.shape,
                state.__class__, state.dtype, state.shape,
            )  # fmt: skip
        call: Call | None = calls.get(key)
    except (AttributeError, TypeError):  # no arrays: the check will say so, or accept a list
        return check(packed, x, state, time_major, precision)
    if call is None:
        call = check(packed, x, state, time_major, precision)
        if call.N + call.T <= _LARGEST_KEPT:
            if len(calls) >= _KEPT_CALLS:  # the older half of them goes
                for old in list(calls)[: _KEPT_CALLS // 2]:
                    calls.pop(old, None)
            calls[key] = call
    return call


def check_sequence(
    packed: Packed,
    x: Any,
    h0: State,
    time_major: Any,
    precision: Any,
) -> Call:
    """The call of `forward` for arguments that were not seen before."""
    params = packed.params
    common_library({"x": x, "params": params.layers[0][0].weight_ih})
    _check_same_dtype("x", x, params)
    if x.ndim not in (2, 3):
        raise ValueError(
            f"x: expected shape (N, T, {params.input_size}) or (T, {params.input_size}), "
            f"got {x.shape}"
        )
    layout = Layout(x.ndim == 3, check_flag("time_major", time_major))
    if x.shape[-1] != params.input_size:
        raise ValueError(
            f"x: expected {params.input_size} features on the last axis (params.input_size), "
            f"got shape {x.shape}"
        )
    N, T, _ = layout.inner(x).shape
    _check_state("h0", h0, packed, N, layout.batched)
    _check_precision(precision, params.dtype, packed.architecture)
    return Call(packed.architecture, layout, N, T, precision)


def check_step(packed: Packed, x_t: Any, h: State, time_major: bool, precision: Any) -> Call:
    """The call of `step`, which has no order of axes, for arguments that were not seen before."""
    params = packed.params
    if params.bidirectional:
        raise ValueError("params: expected one direction, got bidirectional params")
    common_library({"x_t": x_t, "params": params.layers[0][0].weight_ih})
    _check_same_dtype("x_t", x_t, params)
    if x_t.ndim not in (1, 2) or x_t.shape[-1] != params.input_size:
        I = params.input_size
        raise ValueError(f"x_t: expected shape (N, {I}) or ({I},), got {x_t.shape}")
    layout = Layout(batched=x_t.ndim == 2, time_major=False)
    N = x_t.shape[0] if layout.batched else 1
    _check_state("h", h, packed, N, layout.batched)
    _check_precision(precision, params.dtype, packed.architecture)
    return Call(packed.architecture, layout, N, 1, precision)


def _check_precision(precision: Any, dtype: Any, architecture: Architecture) -> None:
    """Refuse a precision that the kernels do not have."""
    known = architecture.backend.kernels.precisions(dtype)
    if precision not in known:
        library = architecture.backend.name
        raise ValueError(
            f"precision: expected {' or '.join(map(repr, known))} for {library} arrays of "
            f"{dtype}, got {precision!r}"
        )


def _kind(value: Any) -> Any:
    """What checks look at: None, or the type, dtype and shape of an array, or those of several."""
    if value is None:
        return None
    if value.__class__ is tuple:
        return tuple([_kind(member) for member in value])
    return value.__class__, value.dtype, value.shape


def check_gradients(call: Call, packed: Packed, y: Any, dy: Any, dh_n: State) -> None:
    """Refuse gradients of y and h_n that do not fit."""
    try:
        kinds = _kind(dy), _kind(dh_n)
        seen = kinds in call.seen_gradients
    except (AttributeError, TypeError):  # no arrays: the checks will say so, or accept a list
        kinds, seen = None, False
    if not seen:
        _check_gradients(call, packed, y, dy, dh_n)
        if kinds is not None and len(call.seen_gradients) < _KEPT_CALLS:
            call.seen_gradients.add(kinds)


def _check_gradients(call: Call, packed: Packed, y: Any, dy: Any, dh_n: State) -> None:
    params = packed.params
    members = _state_members("dh_n", dh_n, packed, optional=True)
    if dy is None and all(member is None for member in members):
        raise ValueError("dy, dh_n: expected at least one gradient, got None for both")
    if dy is not None:
        common_library({"dy": dy, "params": params.layers[0][0].weight_ih})
        _check_same_dtype("dy", dy, params)
        check_shape("dy", dy, call.layout.outer(y).shape, "(that of y)")
    _check_members("dh_n", members, packed, call.N, call.layout.batched)


def _check_same_dtype(name: str, array: Any, params: Params) -> None:
    """Refuse an array whose dtype is not that of the params."""
    if array.dtype != params.dtype:
        check_dtype(name, array.dtype)
        if params.dtype == np.float32:
            other = 'give init_params dtype="float64"'
        else:  # w - rate * g does that to params where the rate is a numpy.float64
            other = 'make params float32 by params.map(lambda w: w.astype("float32"))'
        raise TypeError(
            f"{name}: expected dtype {params.dtype}, as params, got {array.dtype}: nothing is "
            f"promoted; convert it by .astype(params.dtype), or {other}"
        )


def _check_lengths(lengths: Any, N: int, T: int) -> Any:
    """`lengths` as an array, if they are N whole numbers from 0 to T."""
    if hasattr(lengths, "to_numpy"):  # a Series of pandas or polars
        lengths = lengths.to_numpy()
    if type(lengths) in (np.ndarray, np.memmap):
        if lengths.dtype.kind not in "iu":
            raise TypeError(_refused_lengths(lengths, N))
        check_shape("lengths", lengths, (N,), "(one for each sample)")
        numbers, values = lengths, lengths.tolist()  # whose extremes are found sooner
    else:
        if not isinstance(lengths, Sequence) or isinstance(lengths, str | bytes | bytearray):
            kind = type(lengths)  # CuPy's arrays look like NumPy's
            refusal = _refused_lengths(lengths, N)
            raise TypeError(f"{refusal} ({kind.__module__}.{kind.__qualname__})")
        values = [whole_number(f"lengths[{i}]", length) for i, length in enumerate(lengths)]
        if len(values) != N:
            raise ValueError(_refused_lengths(lengths, N))
        numbers = values
    if values and not 0 <= min(values) <= max(values) <= T:
        raise ValueError(
            f"lengths: expected values from 0 to {T}, got {min(values)} to {max(values)}"
        )
    return np.array(numbers, np.intp)  # of 64, an array in 0.5 µs, a list in 3


def _refused_lengths(lengths: Any, N: int) -> str:
    """Why; made only when asked for, as showing an array takes longer than a small call."""
    return f"lengths: expected a sequence of {N} whole numbers, got {lengths!r}"


def _state_members(name: str, state: State, packed: Packed, optional: bool) -> tuple[Any, ...]:
    """The members of a state argument; None for each if it is None."""
    names = packed.architecture.cell.states
    if state is None:
        return (None,) * len(names)
    if len(names) == 1:
        return (state,)
    if not isinstance(state, tuple | list) or len(state) != len(names):
        raise TypeError(
            f"{name}: expected {len(names)} arrays ({', '.join(names)}) for cell "
            f"{packed.architecture.cell.name!r}, got {type(state).__qualname__}"
            + (f" of {len(state)}" if isinstance(state, tuple | list) else "")
            + _unstacking(name, state, len(names))
        )
    if not optional and any(member is None for member in state):
        raise TypeError(f"{name}: expected {len(names)} arrays, got None among them")
    return tuple(state)


def _unstacking(name: str, state: Any, members: int) -> str:
    """How to make a tuple of members that are stacked in one array."""
    shape = getattr(state, "shape", ())
    return f"; tuple({name}) makes a tuple of them" if shape[:1] == (members,) else ""


def _check_members(
    name: str, members: tuple[Any, ...], packed: Packed, N: int, batched: bool
) -> None:
    """Refuse a member of a state, if it is not None, that does not fit."""
    params = packed.params
    rows = params.num_layers * params.num_directions
    shape = (rows, N, params.hidden_size) if batched else (rows, params.hidden_size)
    meaning = "(layers * directions, N, H)" if batched else "(layers * directions, H)"
    for label, member in zip(packed.architecture.cell.states, members, strict=True):
        label = name if len(members) == 1 else f"{name} ({label})"
        if member is not None:
            common_library({label: member, "params": params.layers[0][0].weight_ih})
            _check_same_dtype(label, member, params)
            check_shape(label, member, shape, meaning)


def _check_state(name: str, state: State, packed: Packed, N: int, batched: bool) -> None:
    """Refuse a state argument that does not fit."""
    _check_members(name, _state_members(name, state, packed, optional=False), packed, N, batched)
