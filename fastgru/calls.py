"""How a call runs: its layout, the stack prepared, both kept for the next call of the kind.

For a small call, checking and preparing takes longer than the kernels. Everything that follows from
the types, dtypes and shapes of the arguments is therefore made once, as a `Call`, which the
architecture of the weights keeps for the next arguments of the same kinds.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from .check_calls import (
    check_attention,
    check_devices,
    check_gradients,
    check_lengths,
    check_one_step,
    check_precision,
    check_sequence,
    check_state,
)
from .packed import Architecture, Operands
from .params import Params
from .stack import Stack, States

Result = TypeVar("Result")
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

    def inner_state(self, members: States) -> States:
        """Members of a user's state as views of shape (layers * directions, N, H)."""
        return members if self.batched else tuple(m[:, None] for m in members)

    def outer_state(self, members: States) -> State:
        """The user's view of a state: an array, or a tuple if there are several members."""
        shown = members if self.batched else tuple(m[:, 0] for m in members)
        return shown if len(shown) > 1 else shown[0]


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
    stack : Stack
        What runs it, if all steps are valid.
    elsewhere : callable or None
        Where there are devices: finds that of the arrays, unless it is current.
    as_sequence : index
        That gives one step of each sample, (N, I), as sequences, (N, 1, I); or of one, (I,).
    takes_attention : bool
        Whether the cell takes a number for each sample and step.
    may_overflow : bool
        Whether states of the cell can grow without bound: then `warn_of_overflow` looks.
    takes_member : bool
        Whether a user's state is the only member of the one that the stack takes.
    """

    def __init__(
        self,
        architecture: Architecture,
        layout: Layout,
        N: int,
        T: int,
        precision: str | None = None,
    ) -> None:
        self.layout, self.N, self.T, self.precision = layout, N, T, precision
        self.may_overflow = bool(architecture.cell.bounded)
        time_major = layout.batched and layout.time_major
        self.stack = Stack(architecture, N, T, precision, time_major)
        self._xp = architecture.backend.xp
        self._device_of = architecture.backend.kernels.device_of
        self.elsewhere = None if self._device_of is None else self._elsewhere
        self._num_states = len(architecture.cell.states)
        self._cell = architecture.cell
        self.takes_attention = bool(architecture.cell.step_inputs)
        self.takes_member = layout.batched and self._num_states == 1
        # Kinds of the gradients for which `backward` was called, and which need no check.
        self._seen_gradients: set[Any] = set()
        # Made once, and None for one row, whose axes may change places: 0.06 µs less a step than a
        # slice made each time.
        self.as_sequence: Any = None if N == 1 else (slice(None), None)
        if not layout.batched:
            self.as_sequence = None, None

    def stack_with(self, lengths: Any) -> Stack:
        """What runs this call for samples with so many valid steps.

        Raises
        ------
        TypeError, ValueError
            If they do not fit.
        """
        steps = check_lengths(lengths, self.layout.batched, self.N, self.T)
        return self.stack.with_lengths(steps)

    def _elsewhere(self, operands: Operands, **arrays: Any) -> Any:
        """The arrays' device; None if it is the current one.

        Raises
        ------
        ValueError
            If they are on several.
        """
        home = operands.device
        check_devices(home, self._device_of, arrays)
        return None if home == self._xp.cuda.Device() else home

    def inner_state(self, state: State) -> States:
        """A user's state, checked, as the stack takes it; zeros for None."""
        if state is None:
            return self.stack.zero_state()
        members = (state,) if self._num_states == 1 else tuple(state)
        return members if self.layout.batched else self.layout.inner_state(members)

    def warn_of_overflow(self, x: Any, final: States) -> None:
        """Warn where the state has left the range of its dtype, though x is finite."""
        isfinite = self._xp.isfinite
        if not bool(isfinite(final[0]).all()) and bool(isfinite(x).all()):
            warnings.warn(
                f"the state of cell {self._cell.name!r} is not finite: it can grow without bound; "
                f"that of {self._cell.bounded!r} cannot",
                RuntimeWarning,
                stacklevel=3,
            )

    def inner_attention(self, attention: Any, params: Params) -> Any:
        """A user's number for each sample and step as (N, T, 1), if it fits; None for None."""
        layout = self.layout
        shape: tuple[int, ...] = (self.T,)
        if layout.batched:
            shape = (self.T, self.N) if layout.time_major else (self.N, self.T)
        check_attention(attention, params, shape, self._device_of)
        return None if attention is None else layout.inner(attention[..., None])

    def inner_attention_of_step(self, attention: Any, params: Params) -> Any:
        """A user's number for each sample as (N, 1, 1), if it fits; None for None."""
        check_attention(attention, params, (self.N,), self._device_of)
        return None if attention is None else attention[:, None, None]

    def inner_gradient(self, dh_n: State) -> States | None:
        """A user's gradient of h_n, checked, as the stack takes it.

        None if there is none; zeros for a member that is None among others.
        """
        if dh_n is None:
            return None
        if dh_n.__class__ in (tuple, list) and any(member is None for member in dh_n):
            zeros = self.layout.outer_state(self.stack.zero_state())
            dh_n = tuple(z if m is None else m for m, z in zip(dh_n, zeros, strict=True))
        return self.inner_state(dh_n)

    def check_gradients(self, params: Params, y: Any, dy: Any, dh_n: State) -> None:
        """Refuse gradients of y and h_n that do not fit."""
        try:
            kinds = _kind(dy), _kind(dh_n)
            seen = kinds in self._seen_gradients
        except (AttributeError, TypeError):  # no arrays: the checks will say so, or accept a list
            kinds, seen = None, False
        if not seen:
            shape = self.layout.outer(y).shape
            check_gradients(dy, dh_n, params, shape, self.N, self.layout.batched)
            if kinds is not None and len(self._seen_gradients) < _KEPT_CALLS:
                self._seen_gradients.add(kinds)


def run_on(device: Any, function: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """What a function gives while a device is the current one."""
    with device:
        return function(*args, **options)


def _kind(value: Any) -> Any:
    """What checks look at: None, or the type, dtype and shape of an array, or those of several."""
    if value is None:
        return None
    if value.__class__ is tuple:
        return tuple([_kind(member) for member in value])
    return value.__class__, value.dtype, value.shape


def call_of_sequence(
    operands: Operands, x: Any, h0: State, time_major: Any, precision: Any
) -> Call:
    """The call for the arguments of `forward`."""
    if time_major is False or time_major is True:
        return call_for(prepare_sequence, operands, x, h0, time_major, precision)
    return prepare_sequence(operands, x, h0, time_major, precision)


def call_for(
    prepare: Callable[..., Call],
    operands: Operands,
    x: Any,
    state: State,
    time_major: bool,
    precision: Any,
) -> Call:
    """The kept call for arguments of these kinds.

    ``prepare(operands, x, state, time_major, precision)`` makes it, or raises; it may look at
    nothing but the types, dtypes and shapes of arrays.
    """
    calls = operands.architecture.calls
    try:
        key: Any  # of different lengths where states differ in kind
        if state is None:
            key = prepare, time_major, precision, x.__class__, x.dtype, x.shape
        elif state.__class__ is tuple and len(state) == 2:  # the loop takes 0.4 µs
            h, c = state
            key = (
                prepare, time_major, precision, x.__class__, x.dtype, x.shape,
                h.__class__, h.dtype, h.shape, c.__class__, c.dtype, c.shape,
            )  # fmt: skip
        elif state.__class__ is tuple:
            members = [part for m in state for part in (m.__class__, m.dtype, m.shape)]
            key = prepare, time_major, precision, x.__class__, x.dtype, x.shape, tuple, *members
        else:
            key = (
                prepare, time_major, precision, x.__class__, x.dtype, x.shape,
                state.__class__, state.dtype, state.shape,
            )  # fmt: skip
        call: Call | None = calls.get(key)
    except (AttributeError, TypeError):  # no arrays: the check will say so, or accept a list
        return prepare(operands, x, state, time_major, precision)
    if call is None:
        call = prepare(operands, x, state, time_major, precision)
        if call.N + call.T <= _LARGEST_KEPT:
            if len(calls) >= _KEPT_CALLS:  # the older half of them goes
                for old in list(calls)[: _KEPT_CALLS // 2]:
                    calls.pop(old, None)
            calls[key] = call
    return call


def prepare_sequence(
    operands: Operands, x: Any, h0: State, time_major: Any, precision: Any
) -> Call:
    """The call of `forward` for arguments that were not seen before."""
    check_sequence(operands.params, x, time_major)
    layout = Layout(x.ndim == 3, bool(time_major))
    N, T, _ = layout.inner(x).shape
    return _prepared("h0", operands, h0, layout, N, T, precision)


def prepare_step(operands: Operands, x_t: Any, h: State, time_major: bool, precision: Any) -> Call:
    """The call of `step`, which has no order of axes, for arguments that were not seen before."""
    check_one_step(operands.params, x_t)
    layout = Layout(batched=x_t.ndim == 2, time_major=False)
    N = x_t.shape[0] if layout.batched else 1
    return _prepared("h", operands, h, layout, N, 1, precision)


def _prepared(
    name: str, operands: Operands, state: State, layout: Layout, N: int, T: int, precision: Any
) -> Call:
    """The call for an x that fits, if the state, by this name, and the precision do too."""
    params, architecture = operands.params, operands.architecture
    check_state(name, state, params, N, layout.batched)
    known = architecture.backend.kernels.precisions(params.dtype)
    check_precision(precision, known, params)
    return Call(architecture, layout, N, T, precision)
