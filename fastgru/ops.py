"""forward, forward_train, backward and step: arguments checked, layers and directions run.

Written once for all array libraries: `backends` finds the kernels, which know one layer and
direction. Inside, every batch is (N, T, features); other layouts are views of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .backends import check_dtype, check_shape, common_library
from .packed import Packed, as_packed
from .params import Params, Weights, check_flag, whole_number

State = Any  # an array, or for cells with more than one state a tuple of arrays


class Gradients(NamedTuple):
    """Gradients of a loss, each shaped like the argument it belongs to.

    Attributes
    ----------
    x : array
    h0 : array, or tuple of arrays for cells with more than one state
        Also when h0 was None.
    params : Params
    """

    x: Any
    h0: State
    params: Params


class _Layout(NamedTuple):
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


@dataclass(frozen=True, eq=False)
class Saved:
    """What `backward` needs of a `forward_train`; refers to its arguments without copying them.

    Attributes
    ----------
    params : Params
        The weights used.
    """

    params: Params
    _packed: Packed
    _layout: _Layout
    _ragged: Any
    _initial: tuple[Any, ...]
    _inputs: tuple[Any, ...]  # x, then the outputs of every layer: (N, T, features)
    _values: tuple[tuple[Any, ...], ...]  # [layer][direction], in the kernels' form

    def __repr__(self) -> str:
        return f"Saved({self.params!r})"


def forward(
    x: Any,
    params: Params | Packed,
    h0: State = None,
    *,
    lengths: Sequence[int] | Any = None,
    time_major: bool = False,
) -> tuple[Any, State]:
    """Run a recurrent network over a batch of sequences.

    Parameters
    ----------
    x : (N, T, I) or (T, I) array
        Samples, time steps, features; without samples, one sequence. Any strides.
    params : Params or Packed
        The weights, of the same library and dtype as `x`.
    h0 : (L*D, N, H) array, optional
        Initial state of each layer and direction, index layer * D + direction; a pair (h, c) for
        the LSTM. Zeros by default. (L*D, H) without samples.
    lengths : (N,) sequence of int, optional
        How many leading steps of each sample are valid, 0 to T; all by default. Steps after them
        are never read. Not for an `x` without samples.
    time_major : bool
        `x` and `y` are (T, N, …). No effect without samples.

    Returns
    -------
    y : (N, T, D*H) array
        Outputs of the last layer, the directions side by side; 0 where a step is not valid.
    h_n : (L*D, N, H) array, or a pair for the LSTM
        State after the last valid step; in the backward direction after step 0.

    Raises
    ------
    TypeError
        If the arrays are not all of one library and of one dtype, float32 or float64.
    ValueError
        If a shape or a length does not fit.

    Notes
    -----
    The equations and their source are those of the cell, `params.cell`:

    - ``gru`` (Cho et al. 2014; the reset gate after the product, as in cuDNN and PyTorch)::

          r = sigmoid(W_r x + b_ir + U_r h + b_hr)
          z = sigmoid(W_z x + b_iz + U_z h + b_hz)
          n = tanh(W_n x + b_in + r * (U_n h + b_hn))
          h' = (1 - z) * n + z * h

    - ``gru_reset_before``: as `gru` with ``n = tanh(W_n x + b_in + U_n (r * h) + b_hn)``.
    - ``lstm`` (Hochreiter & Schmidhuber 1997, with a forget gate): i, f, o are sigmoids and g is a
      tanh of such sums, ``c' = f * c + i * g``, ``h' = o * tanh(c')``.

    Results do not depend, to the last bit, on the number of threads nor on the other samples of the
    batch.
    """
    y, h_n, _ = _run(x, params, h0, lengths, time_major, keep=False)
    return y, h_n


def forward_train(
    x: Any,
    params: Params | Packed,
    h0: State = None,
    *,
    lengths: Sequence[int] | Any = None,
    time_major: bool = False,
) -> tuple[Any, State, Saved]:
    """Run a recurrent network and keep what `backward` needs.

    Parameters, results and errors are those of `forward`, to the last bit, and

    Returns
    -------
    y, h_n : as in `forward`
    saved : Saved
        For `backward`. It refers to `x`, `y` and `params` without copying: change none of them
        before `backward`.
    """
    return _run(x, params, h0, lengths, time_major, keep=True)


def _run(
    x: Any, params: Params | Packed, h0: State, lengths: Any, time_major: bool, keep: bool
) -> tuple[Any, State, Saved]:
    """`forward_train`; without `keep` the last result cannot serve `backward`."""
    packed = as_packed(params)
    params = packed.params
    common_library({"x": x, "params": params.layers[0][0].weight_ih})
    _check_same_dtype("x", x, params)
    if x.ndim not in (2, 3):
        raise ValueError(
            f"x: expected shape (N, T, {params.input_size}) or (T, {params.input_size}), "
            f"got {x.shape}"
        )
    layout = _Layout(x.ndim == 3, check_flag("time_major", time_major))
    if x.shape[-1] != params.input_size:
        raise ValueError(
            f"x: expected {params.input_size} features on the last axis (params.input_size), "
            f"got shape {x.shape}"
        )
    inner = layout.inner(x)
    N, T, _ = inner.shape
    if lengths is not None:
        if not layout.batched:
            raise ValueError(f"lengths: expected None for x without samples, got {lengths!r}")
        lengths = _check_lengths(lengths, N, T)
    initial = layout.inner_state(_check_state("h0", h0, packed, N, layout.batched))
    if keep:
        # Callers carry the state on in place: backward must see what forward saw.
        initial = tuple(member.copy() for member in initial)
    ragged = packed.backend.kernels.ragged_rows(lengths, N, T)
    y, final, inputs, values = _layers(inner, packed, initial, ragged, layout, keep)
    saved = Saved(params, packed, layout, ragged, initial, inputs, values)
    return layout.outer(y), layout.outer_state(final), saved


def _layers(
    x: Any, packed: Packed, initial: tuple[Any, ...], ragged: Any, layout: _Layout, keep: bool
) -> tuple[Any, tuple[Any, ...], tuple[Any, ...], tuple[tuple[Any, ...], ...]]:
    """All layers and directions: y, the final state, every layer's input and y, saved values."""
    params, xp, kernels = packed.params, packed.backend.xp, packed.backend.kernels
    (N, T, _), H, D = x.shape, params.hidden_size, params.num_directions
    make = xp.empty if ragged.total == N * T else xp.zeros  # padded outputs are 0
    final = tuple(xp.empty(member.shape, x.dtype) for member in initial)
    inputs, values = [x], []
    for number, layer in enumerate(packed.layouts):
        y = layout.new_sequence(make, N, T, D * H, x.dtype)
        values.append(
            tuple(
                kernels.forward(
                    packed.cell, weights, inputs[-1], initial, number * D + d, ragged, d == 1,
                    y[:, :, d * H : (d + 1) * H], final, keep,
                )
                for d, weights in enumerate(layer)
            )
        )  # fmt: skip
        inputs.append(y)
    return inputs[-1], final, tuple(inputs), tuple(values)


def backward(saved: Saved, dy: Any = None, dh_n: State = None) -> Gradients:
    """Exact gradients of a loss, from its gradients with respect to y and h_n.

    Parameters
    ----------
    saved : Saved
        Of `forward_train`. It is not used up.
    dy : array, optional
        Gradient of the loss with respect to `y`, shaped like it; not read where a step is not
        valid. Zeros by default.
    dh_n : array, optional
        Gradient with respect to `h_n`, shaped like it; a pair for the LSTM, of which either member
        may be None. Zeros by default. One of `dy` and `dh_n` is required.

    Returns
    -------
    Gradients
        Of x, of h0 (also when it was None) and of params.

    Raises
    ------
    TypeError, ValueError
        If a gradient is not of the library, dtype and shape of its array, or both are missing.
    """
    if not isinstance(saved, Saved):
        raise TypeError(f"saved: expected Saved, got {type(saved).__qualname__}")
    packed, layout, inputs = saved._packed, saved._layout, saved._inputs
    params, xp, kernels = packed.params, packed.backend.xp, packed.backend.kernels
    (N, T, _), H, D = inputs[0].shape, params.hidden_size, params.num_directions
    members = _state_members("dh_n", dh_n, packed, optional=True)
    if dy is None and all(member is None for member in members):
        raise ValueError("dy, dh_n: expected at least one gradient, got None for both")
    if dy is not None:
        common_library({"dy": dy, "params": params.layers[0][0].weight_ih})
        _check_same_dtype("dy", dy, params)
        check_shape("dy", dy, layout.outer(inputs[-1]).shape, "(that of y)")
        dy = layout.inner(dy)
    dfinal = layout.inner_state(_check_members("dh_n", members, packed, N, layout.batched))

    dinitial = tuple(xp.empty(member.shape, params.dtype) for member in dfinal)
    dlayers = []
    for number in reversed(range(params.num_layers)):
        x, y = inputs[number : number + 2]
        dx = layout.new_sequence(xp.zeros, N, T, x.shape[2], params.dtype)
        directions = []
        for d, weights in enumerate(params.layers[number]):
            units = slice(d * H, (d + 1) * H)
            gradients = kernels.backward(
                packed.cell, dict(weights.items()), x, saved._initial, number * D + d,
                saved._ragged, d == 1, y[:, :, units], saved._values[number][d],
                None if dy is None else dy[:, :, units], dfinal, dx, dinitial,
            )  # fmt: skip
            directions.append(Weights(**gradients))
        dlayers.append(directions)
        dy = dx
    return Gradients(
        layout.outer(dy), layout.outer_state(dinitial), Params(params.cell, reversed(dlayers))
    )


def step(x_t: Any, params: Params | Packed, h: State = None) -> tuple[Any, State]:
    """Advance a recurrent network by one time step, for streams.

    Parameters
    ----------
    x_t : (N, I) array
        One time step of each sample.
    params : Params or Packed
        The weights, not bidirectional. `pack` them once for many steps.
    h : (L, N, H) array, optional
        State before the step, a pair (h, c) for the LSTM; zeros by default.

    Returns
    -------
    y_t : (N, H) array
        Output of the last layer; a view of the new state.
    h : (L, N, H) array, or a pair for the LSTM
        State after the step.

    Raises
    ------
    TypeError, ValueError
        As for `forward`; ValueError also if `params` are bidirectional.
    """
    packed = as_packed(params)
    params = packed.params
    if params.bidirectional:
        raise ValueError("params: expected one direction, got bidirectional params")
    common_library({"x_t": x_t, "params": params.layers[0][0].weight_ih})
    _check_same_dtype("x_t", x_t, params)
    if x_t.ndim != 2 or x_t.shape[1] != params.input_size:
        raise ValueError(f"x_t: expected shape (N, {params.input_size}), got {x_t.shape}")
    N = x_t.shape[0]
    layout = _Layout(batched=True, time_major=False)
    initial = _check_state("h", h, packed, N, batched=True)
    ragged = packed.backend.kernels.ragged_rows(None, N, 1)
    _, final, _, _ = _layers(x_t[:, None], packed, initial, ragged, layout, keep=False)
    return final[0][-1], layout.outer_state(final)


def _check_same_dtype(name: str, array: Any, params: Params) -> None:
    """Refuse an array whose dtype is not that of the params."""
    if array.dtype != params.dtype:
        check_dtype(name, array.dtype)
        raise TypeError(
            f"{name}: expected dtype {params.dtype}, as params, got {array.dtype}: nothing is "
            f"promoted"
        )


def _check_lengths(lengths: Any, N: int, T: int) -> Any:
    """`lengths` as an array, if they are N whole numbers from 0 to T."""
    refusal = f"lengths: expected a sequence of {N} whole numbers, got {lengths!r}"
    if type(lengths) is np.ndarray:
        if lengths.dtype.kind not in "iu":
            raise TypeError(refusal)
        check_shape("lengths", lengths, (N,), "(one for each sample)")
        values = lengths.tolist()
    else:
        if not isinstance(lengths, Sequence) or isinstance(lengths, str | bytes | bytearray):
            raise TypeError(refusal)
        values = [whole_number(f"lengths[{i}]", length) for i, length in enumerate(lengths)]
        if len(values) != N:
            raise ValueError(refusal)
    if values and not 0 <= min(values) <= max(values) <= T:
        raise ValueError(
            f"lengths: expected values from 0 to {T}, got {min(values)} to {max(values)}"
        )
    return np.array(values, np.intp)


def _state_members(name: str, state: State, packed: Packed, optional: bool) -> tuple[Any, ...]:
    """The members of a state argument; None for each if it is None."""
    names = packed.cell.states
    if state is None:
        return (None,) * len(names)
    if len(names) == 1:
        return (state,)
    if not isinstance(state, tuple | list) or len(state) != len(names):
        raise TypeError(
            f"{name}: expected {len(names)} arrays ({', '.join(names)}) for cell "
            f"{packed.cell.name!r}, got {type(state).__qualname__}"
            + (f" of {len(state)}" if isinstance(state, tuple | list) else "")
        )
    if not optional and any(member is None for member in state):
        raise TypeError(f"{name}: expected {len(names)} arrays, got None among them")
    return tuple(state)


def _check_members(
    name: str, members: tuple[Any, ...], packed: Packed, N: int, batched: bool
) -> tuple[Any, ...]:
    """The members of a state, checked; zeros for those that are None."""
    params = packed.params
    rows = params.num_layers * params.num_directions
    shape = (rows, N, params.hidden_size) if batched else (rows, params.hidden_size)
    meaning = "(layers * directions, N, H)" if batched else "(layers * directions, H)"
    checked = []
    for label, member in zip(packed.cell.states, members, strict=True):
        label = name if len(members) == 1 else f"{name} ({label})"
        if member is None:
            member = packed.backend.xp.zeros(shape, params.dtype)
        common_library({label: member, "params": params.layers[0][0].weight_ih})
        _check_same_dtype(label, member, params)
        check_shape(label, member, shape, meaning)
        checked.append(member)
    return tuple(checked)


def _check_state(name: str, state: State, packed: Packed, N: int, batched: bool) -> tuple[Any, ...]:
    """A state argument as a tuple of its members, checked; zeros if it is None."""
    members = _state_members(name, state, packed, optional=False)
    return _check_members(name, members, packed, N, batched)
