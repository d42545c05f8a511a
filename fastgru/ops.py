"""forward, forward_train, backward and step.

Written once for all array libraries: `backends` finds the kernels, which know one layer and
direction; `calls` checks arguments and runs layers and directions. Inside, every batch is
(N, T, features); other layouts are views of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .calls import Call, State, call_for, check_gradients, check_sequence, check_step
from .packed import Packed, as_packed
from .params import Params, Weights, arrays_of, params_like, weights_like


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


class Saved:
    """What `backward` needs of a `forward_train`; refers to x, y and params without copying them.

    Attributes
    ----------
    params : Params
        The weights used.
    """

    __slots__ = "__weakref__", "_call", "_initial", "_packed", "_sequences", "_values"

    def __init__(
        self,
        packed: Packed,
        call: Call,
        initial: tuple[Any, ...],
        sequences: list[Any],  # x, then the outputs of every layer: (N, T, features)
        values: list[list[Any]],  # [layer][direction], in the kernels' form
    ) -> None:
        self._packed, self._call, self._initial = packed, call, initial
        self._sequences, self._values = sequences, values

    @property
    def params(self) -> Params:
        return self._packed.params

    def __reduce__(self) -> Any:
        """Pickled with x, y, the weights and all values kept."""
        call = self._call
        if call.elsewhere is not None:
            raise TypeError(
                f"Saved of {call.architecture.backend.name} arrays cannot be pickled, as it holds "
                "memory of their device: call backward in this process"
            )
        kinds = call.layout, call.N, call.T, call.precision, call.lengths
        values = self._initial, self._sequences, self._values
        return _restored, (self.params, kinds, _forms(call), values)

    def __repr__(self) -> str:
        return f"Saved({self.params!r})"


def _forms(call: Call) -> list[Any]:
    """What decides how the kernels lay out the values that they keep, for each layer."""
    return [recurrence.form for recurrence in call.recurrences]


def _restored(params: Params, kinds: Any, forms: list[Any], values: Any) -> Saved:
    """`Saved` out of a pickle."""
    layout, N, T, precision, lengths = kinds
    packed = as_packed(params)
    call = Call(packed.architecture, layout, N, T, precision)
    if lengths is not None:
        call = call.with_lengths(lengths)
    if _forms(call) != forms:
        raise ValueError(
            "Saved was pickled on a CPU with vectors of another width, by which the values kept "
            "are laid out: call backward on a machine of that kind"
        )
    return Saved(packed, call, *values)


def forward(
    x: Any,
    params: Params | Packed,
    h0: State = None,
    *,
    lengths: Sequence[int] | Any = None,
    time_major: bool = False,
    precision: str | None = None,
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
    precision : {None, "tf32", "bf16"}
        How products of float32 CuPy arrays are computed: in float32, or on tensor cores from
        operands rounded to 11 or 8 significant bits, summed in float32; the state stays float32.
        That rounding alone moves y by at most 5e-4 ("tf32") or 5e-3 ("bf16") over 256 steps, with
        normal `x` and the weights of `init_params`. NumPy arrays and float64 know None alone.

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
        If a shape or a length does not fit, the precision is not known for these arrays, or CuPy
        arrays are on several devices.
    ModuleNotFoundError
        If `x` is a CuPy array and what its kernels need is not installed.

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

    Results for NumPy arrays do not depend, to the last bit, on the number of threads nor on the
    other samples of the batch. For CuPy arrays the products are cuBLAS's, which sums in an order
    that depends on their sizes.
    """
    packed = as_packed(params)
    call = _call(packed, x, h0, lengths, time_major, precision)
    if call.elsewhere and (device := call.elsewhere(packed, x=x, h0=h0)):
        with device:
            return forward(
                x, params, h0, lengths=lengths, time_major=time_major, precision=precision
            )
    layout = call.layout
    initial, layouts = call.inner_state(h0), packed.layouts
    if call.D == 1:
        final, y = call.run_plain(layout.inner(x), layouts, initial)
    else:
        final, (*_, y), _ = call.run(layout.inner(x), layouts, initial, keep=False)
    if packed is not params:
        packed.give_back()
    return layout.outer(y), layout.outer_state(final)


def forward_train(
    x: Any,
    params: Params | Packed,
    h0: State = None,
    *,
    lengths: Sequence[int] | Any = None,
    time_major: bool = False,
    precision: str | None = None,
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
    packed = as_packed(params)
    call = _call(packed, x, h0, lengths, time_major, precision)
    if call.elsewhere and (device := call.elsewhere(packed, x=x, h0=h0)):
        with device:
            return forward_train(
                x, params, h0, lengths=lengths, time_major=time_major, precision=precision
            )
    layout = call.layout
    initial = call.inner_state(h0)
    if h0 is not None:  # callers carry the state on in place: backward must see what forward saw
        initial = tuple([member.copy() for member in initial])
    final, sequences, kept = call.run(layout.inner(x), packed.layouts, initial, keep=True)
    if packed is not params:
        packed.give_back()
    y = layout.outer(sequences[-1])
    # Views of our own: a shape changed in place must not change what backward reads.
    sequences[0], sequences[-1] = sequences[0][:], sequences[-1][:]
    saved = Saved(packed, call, initial, sequences, kept)
    return y, layout.outer_state(final), saved


def _call(packed: Packed, x: Any, h0: State, lengths: Any, time_major: Any, precision: Any) -> Call:
    """The call for the arguments of `forward`."""
    if time_major is False or time_major is True:
        call = call_for(check_sequence, packed, x, h0, time_major, precision)
    else:
        call = check_sequence(packed, x, h0, time_major, precision)
    return call if lengths is None else call.with_lengths(lengths)


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
    packed, call, sequences = saved._packed, saved._call, saved._sequences
    params, layout, xp, H, D = packed.params, call.layout, call.xp, call.H, call.D
    check_gradients(call, packed, sequences[-1], dy, dh_n)
    if call.elsewhere and (device := call.elsewhere(packed, dy=dy, dh_n=dh_n)):
        with device:
            return backward(saved, dy, dh_n)
    dfinal = call.inner_gradient(dh_n)
    if dy is not None:
        dy = layout.inner(dy)
    dinitial = call.new_state(xp.empty)
    dlayers: list[tuple[Weights, ...]] = []
    for number in reversed(range(params.num_layers)):
        x, y = sequences[number : number + 2]
        dx = layout.new_sequence(xp.zeros, call.N, call.T, x.shape[2], params.dtype)
        directions = []
        for d, weights in enumerate(params.layers[number]):
            own_y, own_dy = y, dy
            if D > 1:
                units = slice(d * H, (d + 1) * H)
                own_y, own_dy = y[:, :, units], None if dy is None else dy[:, :, units]
            gradients = call.recurrences[number].backward(
                arrays_of(weights), x, saved._initial, number * D + d, d == 1, own_y,
                saved._values[number][d], own_dy, dfinal, dx, dinitial,
            )  # fmt: skip
            directions.append(weights_like(weights, gradients))
        dlayers.append(tuple(directions))
        dy = dx
    dparams = params_like(params, tuple(reversed(dlayers)))
    return Gradients(layout.outer(dy), layout.outer_state(dinitial), dparams)


def step(
    x_t: Any, params: Params | Packed, h: State = None, *, precision: str | None = None
) -> tuple[Any, State]:
    """Advance a recurrent network by one time step, for streams.

    Parameters
    ----------
    x_t : (N, I) or (I,) array
        One time step of each sample; without samples, of one sequence.
    params : Params or Packed
        The weights, not bidirectional. `pack` them once for many steps.
    h : (L, N, H) array, optional
        State before the step, a pair (h, c) for the LSTM; zeros by default. (L, H) without
        samples.
    precision : {None, "tf32", "bf16"}
        As for `forward`.

    Returns
    -------
    y_t : (N, H) or (H,) array
        Output of the last layer; a view of the new state.
    h : (L, N, H) or (L, H) array, or a pair for the LSTM
        State after the step.

    Raises
    ------
    TypeError, ValueError
        As for `forward`; ValueError also if `params` are bidirectional.
    """
    packed = as_packed(params)
    call = call_for(check_step, packed, x_t, h, False, precision)
    if call.elsewhere and (device := call.elsewhere(packed, x_t=x_t, h=h)):
        with device:
            return step(x_t, params, h, precision=precision)
    layouts = packed._layouts or packed.layouts  # the property takes 0.1 µs
    final = call.run_step(x_t[call.as_sequence], layouts, h)
    if packed is not params:
        packed.give_back()
    if not call.layout.batched:
        final = tuple([member[:, 0] for member in final])
    return final[0][-1], final if len(final) > 1 else final[0]
