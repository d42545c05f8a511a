"""A network that takes its sequence in pieces, as they come, and keeps the state between them."""

import contextlib
import functools
from typing import Any

from .calls import Call, State, call_for, prepare_sequence, prepare_step, run_on
from .check import check_size, check_type
from .check_calls import check_one_direction, check_out, check_pushed, check_rows, check_state
from .packed import Packed, operands_of, pack
from .params import Params
from .stack import States

_KEPT_CALLS = 16  # of chunks, which are of few lengths


class _Turn:
    """One of the two ways between two states: a push reads the one and writes the other.

    Attributes
    ----------
    reads, writes : tuple of (L, N, H) arrays
    lower : list of tuple
        What takes a step of each layer but the last, and where it writes outputs.
    top : callable or None
        What takes a step of the last layer. None where steps go through `Stack.forward_into`.
    """

    __slots__ = "lower", "reads", "top", "writes"

    def __init__(self, call: Call, layouts: Any, reads: States, writes: States) -> None:
        self.reads, self.writes = reads, writes
        self.lower: list[tuple[Any, Any]] = []
        self.top: Any = None
        steps = call.stack.steps_into(layouts, reads, writes)
        if steps is not None:
            # Outputs of a layer are its new h: both are written to the same memory.
            outputs = [h[:, None] for h in writes[0][:-1]]
            *lower, self.top = steps
            self.lower = list(zip(lower, outputs, strict=True))


class Stream:
    """A recurrent network over a sequence that comes in pieces: steps, or chunks of steps.

    It keeps the state and the memory that steps need, so a step takes less time than by `step`.

    Parameters
    ----------
    params : Params or Packed
        The weights, not bidirectional. Packed weights are used as they are, params are packed once.
    batch_size : int, optional
        Samples that go on side by side, N. None for one sequence, whose arrays have no axis of
        samples.

    Attributes
    ----------
    packed : Packed
        The weights. Other streams may use them at the same time.
    batch_size : int or None

    Raises
    ------
    TypeError
        If `params` is neither, or `batch_size` is no whole number.
    ValueError
        If `params` are bidirectional, or `batch_size` is less than 1.
    ModuleNotFoundError
        If what the kernels for the weights' array library need is not installed.

    Notes
    -----
    Outputs and states are those of `forward` over the whole sequence, to the last bit for NumPy
    arrays, wherever it is cut.

    A stream serves one thread at a time. Streams are independent of each other: threads may run one
    each, over the same packed weights. A push that is interrupted leaves the state as it was.

    A pickle holds the weights and the state.

    Examples
    --------
    >>> import numpy as np, fastgru
    >>> params = fastgru.init_params(input_size=3, hidden_size=16, rng=0)
    >>> stream = fastgru.Stream(params)
    >>> x = np.ones((50, 3), np.float32)
    >>> stream.push(x[:49]).shape  # a chunk
    (49, 16)
    >>> y_t = stream.push(x[49])  # a step
    >>> y, h_n = fastgru.forward(x, params)
    >>> bool((y_t == y[-1]).all()), bool((stream.state == h_n).all())
    (True, True)
    """

    __slots__ = (
        "__weakref__",
        "_array",
        "_batch_size",
        "_call",
        "_calls",
        "_kind",
        "_kind_of_out",
        "_layouts",
        "_new_out",
        "_next",
        "_operands",
        "_out_shape",
        "_packed",
        "_shares_memory",
        "_turns",
    )

    def __init__(self, params: Params | Packed, batch_size: int | None = None) -> None:
        check_type("params", params, Params, Packed)
        check_one_direction(params.params if isinstance(params, Packed) else params)
        self._batch_size = None if batch_size is None else check_size("batch_size", batch_size)
        self._packed = pack(params)
        self._operands = operands_of(self._packed)
        has_devices = self._operands.architecture.backend.kernels.device_of is not None
        with self._operands.device if has_devices else contextlib.nullcontext():
            self._prepare()

    def _prepare(self) -> None:
        """Make the call of a step, the two states, and what steps between them."""
        operands = self._operands
        of, xp = operands.architecture, operands.architecture.backend.xp
        samples = () if self._batch_size is None else (self._batch_size,)
        x = xp.zeros((*samples, of.input_size), of.dtype)  # any step will do
        self._call = call = call_for(prepare_step, operands, x, None, False, None)
        self._calls: dict[Any, Call] = {}  # of chunks, by kind
        # Packed weights keep their layouts.
        self._layouts: Any = operands.layouts
        first, second = call.stack.zero_state(), call.stack.zero_state()
        self._turns = tuple(
            _Turn(call, self._layouts, *states) for states in ((first, second), (second, first))
        )
        self._next = 0  # whose turn it is

        self._out_shape = *samples, of.hidden_size
        self._new_out = functools.partial(xp.empty, self._out_shape, of.dtype)
        # Of steps that go the short way, which need no other check; None if none do.
        self._array: Any = None if self._turns[0].top is None else x.__class__
        self._kind = x.dtype, x.shape
        self._kind_of_out = x.dtype, self._out_shape
        # Of one row, a short step reads all before it writes.
        self._shares_memory: Any = None if call.N == 1 else xp.shares_memory

    @property
    def packed(self) -> Packed:
        return self._packed

    @property
    def batch_size(self) -> int | None:
        return self._batch_size

    @property
    def state(self) -> State:
        """The state after the last step, as `forward` gives h_n: a copy.

        (L, N, H), (L, H) without samples; a pair (h, c) for the LSTM. It can be set to arrays of
        these shapes, which are copied.
        """
        copy = self._operands.architecture.backend.kernels.copy
        return self._call.layout.outer_state(tuple(map(copy, self._turns[self._next].reads)))

    @state.setter
    def state(self, state: State) -> None:
        params, call = self._packed.params, self._call
        if state is None:
            raise TypeError("state: expected arrays, got None; Stream.reset() sets zeros")
        check_state("state", state, params, call.N, call.layout.batched)
        if call.elsewhere and (device := call.elsewhere(self._operands, state=state)):
            return run_on(device, self._set_state, state)
        self._set_state(state)

    def _set_state(self, state: State) -> None:
        for member, given in zip(
            self._turns[self._next].reads, self._call.inner_state(state), strict=True
        ):
            member[...] = given

    def reset(self, rows: Any = None) -> None:
        """Set the state to zeros.

        Parameters
        ----------
        rows : int, sequence of int, or (N,) array of bool, optional
            The samples whose sequences start again; all by default.

        Returns
        -------
        None

        Raises
        ------
        TypeError, ValueError
            If `rows` are not samples of this stream.
        """
        which: Any = slice(None) if rows is None else check_rows(rows, self._batch_size)
        if self._call.elsewhere and (device := self._call.elsewhere(self._operands)):
            return run_on(device, self._reset, which)
        self._reset(which)

    def _reset(self, rows: Any) -> None:
        for member in self._turns[self._next].reads:
            member[:, rows] = 0

    def push(self, x: Any, *, attention: Any = None, out: Any = None) -> Any:
        """Go on by one step, or by a chunk of steps.

        Parameters
        ----------
        x : array
            A step, (N, I), or a chunk, (N, T, I). Of a stream of one sequence (`batch_size` is
            None): (I,) or (T, I). Any strides.
        attention : array, optional
            Only for cells that take a number for each sample and step: (N,) for a step, (N, T) for
            a chunk. Of a stream of one sequence: (1,) or (T,).
        out : array, optional
            Where the outputs are written, C-contiguous, apart from the memory of `x`.

        Returns
        -------
        y : array
            Outputs of the last layer, shaped like `x` with H features: `out` if it was given, else
            a new array.

        Raises
        ------
        TypeError
            If an array is not of the weights' library and dtype.
        ValueError
            If a shape does not fit, `out` cannot be written into, or CuPy arrays are on several
            devices.
        """
        call, turn = self._call, self._turns[self._next]
        if x.__class__ is self._array and (x.dtype, x.shape) == self._kind:
            if attention is not None or call.takes_attention:
                attention = call.inner_attention_of_step(attention, self._packed.params)
            if out is None:
                out = self._new_out()
            elif (
                out.__class__ is not self._array
                or (out.dtype, out.shape) != self._kind_of_out
                or not out.flags.carray
                or (self._shares_memory and self._shares_memory(out, x))
                or attention is not None
            ):
                self._check_out(out, self._out_shape, x, attention)
            features = x[call.as_sequence]
            for run, y in turn.lower:
                run(features, y, attention)
                features = y
            turn.top(features, out[call.as_sequence], attention)
        else:
            call = self._call_for(x)
            if call.elsewhere and (device := call.elsewhere(self._operands, x=x)):
                return run_on(device, self.push, x, attention=attention, out=out)
            out = self._push_any(call, x, attention, out)
        self._next = 1 - self._next
        if call.may_overflow:
            call.warn_of_overflow(x, turn.writes)
        return out

    def _call_for(self, x: Any) -> Call:
        """The call for an x, which is checked when the first one of its kind comes."""
        kind: Any = None
        call: Call | None = None
        try:
            kind = x.__class__, x.dtype, x.shape
            call = self._calls.get(kind)
        except (AttributeError, TypeError):  # no array: the check will say so
            pass
        if call is None:
            check_pushed(self._packed.params, x, self._batch_size)
            prepare = prepare_step if x.ndim == len(self._out_shape) else prepare_sequence
            call = call_for(prepare, self._operands, x, None, False, None)
            if len(self._calls) >= _KEPT_CALLS:
                self._calls.clear()
            self._calls[kind] = call
        return call

    def _push_any(self, call: Call, x: Any, attention: Any, out: Any) -> Any:
        """A chunk, or a step that has no short way: outputs, and the new state where it belongs."""
        operands, params = self._operands, self._packed.params
        turn = self._turns[self._next]
        is_step = x.ndim == len(self._out_shape)
        if attention is not None or call.takes_attention:
            inner = call.inner_attention_of_step if is_step else call.inner_attention
            attention = inner(attention, params)
        shape = *x.shape[:-1], self._out_shape[-1]
        if out is None:
            out = operands.architecture.backend.xp.empty(shape, params.dtype)
        else:
            self._check_out(out, shape, x, attention)
        if is_step:
            features, y = x[call.as_sequence], out[call.as_sequence]
        else:
            features, y = call.layout.inner(x), call.layout.inner(out)
        call.stack.forward_into(features, self._layouts, turn.reads, attention, y, turn.writes)
        return out

    def _check_out(self, out: Any, shape: tuple[int, ...], x: Any, attention: Any) -> None:
        """Refuse what cannot be written into."""
        xp = self._operands.architecture.backend.xp
        check_out(self._packed.params, out, shape, {"x": x, "attention": attention}, xp)
        if self._call.elsewhere:
            self._call.elsewhere(self._operands, out=out)

    def copy(self) -> "Stream":
        """A stream over the same packed weights that goes on from the same state by itself.

        Returns
        -------
        Stream
        """
        made = Stream(self._packed, self._batch_size)
        made.state = self.state
        return made

    def __reduce__(self) -> Any:
        """Pickled as params and state: packed weights depend on the machine."""
        return _restored, (self._packed, self._batch_size, self.state)

    def __repr__(self) -> str:
        return f"Stream({self._packed.params!r}, batch_size={self._batch_size})"


def _restored(packed: Packed, batch_size: int | None, state: State) -> Stream:
    """A stream out of a pickle."""
    stream = Stream(packed, batch_size)
    stream.state = state
    return stream
