"""forward, forward_train, backward and step.

Written once for all array libraries: `backends` finds the kernels, `calls` keeps what was prepared
for arguments of a kind, once `check_calls` has accepted them, and `stack` runs layers and
directions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from .calls import State, call_for, call_of_sequence, prepare_step, run_on
from .check import check_flag
from .packed import Packed, operands_of
from .params import Params
from .saved import Saved, kept_by


class _Gradients(NamedTuple):
    x: Any
    h0: State
    params: Params


class Gradients(_Gradients):
    """Gradients of a loss, each shaped like the argument it belongs to: a tuple of three.

    Attributes
    ----------
    x : array
    h0 : array, or tuple of arrays for cells with more than one state
        Also when h0 was None.
    params : Params
        Of the trainable weights.
    attention : array or None
        For cells that take one; no member of the tuple.
    """

    attention: Any = None

    def __new__(cls, x: Any, h0: State, params: Params, attention: Any = None) -> Self:
        gradients = super().__new__(cls, x, h0, params)
        gradients.attention = attention
        return gradients

    def __getnewargs__(self) -> Any:
        return *self, self.attention


def forward(
    x: Any,
    params: Params | Packed,
    h0: State = None,
    *,
    lengths: Sequence[int] | Any = None,
    attention: Any = None,
    time_major: bool = False,
    precision: str | None = None,
    all_layers: bool = False,
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
    attention : (N, T) array, optional
        Only for cells that take a number for each sample and step, which need it. (T, N) where
        `time_major`, (T,) without samples.
    time_major : bool
        `x` and `y` are (T, N, …). No effect without samples.
    precision : {None, "tf32", "bf16"}
        How products of float32 CuPy arrays are computed: in float32, or on tensor cores from
        operands rounded to 11 or 8 significant bits, summed in float32; the state stays float32.
        That rounding alone moves y by at most 5e-4 ("tf32") or 5e-3 ("bf16") over 256 steps, with
        normal `x` and the weights of `init_params`. NumPy arrays and float64 take None only.
    all_layers : bool
        Give the outputs of every layer, not of the last one alone.

    Returns
    -------
    y : (N, T, D*H) array
        Outputs of the last layer, the directions side by side; 0 where a step is not valid. With
        `all_layers` a tuple of L such arrays, the last layer's last.
    h_n : (L*D, N, H) array, or a pair for the LSTM
        State after the last valid step; in the backward direction after step 0.

    Raises
    ------
    TypeError
        If the arrays are not all of one library and of one dtype, float32 or float64.
    ValueError
        If a shape or a length does not fit, these arrays do not support the precision, or CuPy
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
    - Of all other cells: `fastgru.kernels.cells`, where each names its source.
    - ``lstm`` (Hochreiter & Schmidhuber 1997, with a forget gate): i, f, o are sigmoids and g is a
      tanh of such sums, ``c' = f * c + i * g``, ``h' = o * tanh(c')``.

    Results for NumPy arrays do not depend, to the last bit, on the number of threads nor on the
    other samples of the batch. For CuPy arrays the products are cuBLAS's, which sums in an order
    that depends on their sizes.

    Examples
    --------
    >>> import numpy as np, fastgru
    >>> params = fastgru.init_params(3, 16, rng=0)
    >>> x = np.ones((8, 50, 3), np.float32)
    >>> y, h_n = fastgru.forward(x, params, lengths=[50, 7, 0, 50, 50, 50, 50, 1])
    >>> y.shape, h_n.shape
    ((8, 50, 16), (1, 8, 16))
    """
    operands = operands_of(params)
    call = call_of_sequence(operands, x, h0, time_major, precision)
    stack = call.stack if lengths is None else call.stack_with(lengths)
    if all_layers is not False:
        all_layers = check_flag("all_layers", all_layers)
    if call.elsewhere and (device := call.elsewhere(operands, x=x, h0=h0)):
        options: dict[str, Any] = {"time_major": time_major, "precision": precision}
        options |= {"lengths": lengths, "attention": attention, "all_layers": all_layers}
        return run_on(device, forward, x, params, h0, **options)
    layout, initial = call.layout, call.inner_state(h0)
    if attention is not None or call.takes_attention:
        attention = call.inner_attention(attention, operands.params)
    layouts = operands.layouts or operands.lay_out()
    if all_layers:
        final, sequences = stack.forward_of_all_layers(layout.inner(x), layouts, initial, attention)
        y: Any = tuple([layout.outer(sequence) for sequence in sequences])
    else:
        final, y = stack.forward(layout.inner(x), layouts, initial, attention)
        y = layout.outer(y)
    if layouts is not operands.layouts:
        operands.give_back(layouts)
    if call.may_overflow:
        call.warn_of_overflow(x, final)
    return y, layout.outer_state(final)


def forward_train(
    x: Any,
    params: Params | Packed,
    h0: State = None,
    *,
    lengths: Sequence[int] | Any = None,
    attention: Any = None,
    time_major: bool = False,
    precision: str | None = None,
) -> tuple[Any, State, Saved]:
    """Run a recurrent network and keep what `backward` needs.

    Parameters, results and errors are those of `forward`, to the last bit, and there is one more
    result; it has no `all_layers`.

    Parameters
    ----------
    x, params, h0, lengths, attention, time_major, precision : as in `forward`

    Returns
    -------
    y, h_n : as in `forward`
    saved : Saved
        For `backward`. It refers to `x`, `y` and `params` without copying: change none of them
        before `backward`.

    Examples
    --------
    >>> import numpy as np, fastgru
    >>> params = fastgru.init_params(3, 16, rng=0)
    >>> y, h_n, saved = fastgru.forward_train(np.ones((8, 50, 3), np.float32), params)
    >>> gradients = fastgru.backward(saved, dy=2 * y)  # of the loss sum(y ** 2)
    """
    operands = operands_of(params)
    call = call_of_sequence(operands, x, h0, time_major, precision)
    stack = call.stack if lengths is None else call.stack_with(lengths)
    if call.elsewhere and (device := call.elsewhere(operands, x=x, h0=h0)):
        options: dict[str, Any] = {"time_major": time_major, "precision": precision}
        options |= {"lengths": lengths, "attention": attention}
        return run_on(device, forward_train, x, params, h0, **options)
    layout, initial = call.layout, call.inner_state(h0)
    if h0 is not None:  # callers carry the state on in place: backward must see what forward saw
        initial = tuple([member.copy() for member in initial])
    if attention is not None or call.takes_attention:
        attention = call.inner_attention(attention, operands.params)
    if stack.normalises:
        final, sequences, values, trained = stack.forward_normalised(
            layout.inner(x), operands, initial, attention
        )
        operands = operands_of(trained)
    else:
        layouts = operands.layouts or operands.lay_out()
        final, sequences, values = stack.forward_train(layout.inner(x), layouts, initial, attention)
        if layouts is not operands.layouts:
            operands.give_back(layouts)
    y = layout.outer(sequences[-1])
    # Views of our own: a shape changed in place must not change what backward reads.
    sequences[0], sequences[-1] = sequences[0][:], sequences[-1][:]
    if call.may_overflow:
        call.warn_of_overflow(x, final)
    saved = Saved((operands, call, stack, initial, sequences, values, attention))
    return y, layout.outer_state(final), saved


def backward(saved: Saved, dy: Any = None, dh_n: State = None) -> Gradients:
    """Exact gradients of a loss, from its gradients with respect to y and h_n.

    Parameters
    ----------
    saved : Saved
        Of `forward_train`. It can be used again.
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

    Examples
    --------
    >>> import numpy as np, fastgru
    >>> params = fastgru.init_params(3, 16, rng=0)
    >>> y, h_n, saved = fastgru.forward_train(np.ones((8, 50, 3), np.float32), params)
    >>> gradients = fastgru.backward(saved, dy=2 * y)  # of the loss sum(y ** 2)
    >>> gradients.x.shape, gradients.h0.shape
    ((8, 50, 3), (1, 8, 16))
    """
    operands, call, stack, initial, sequences, values, attention = kept_by(saved)
    params, layout = operands.params, call.layout
    call.check_gradients(params, sequences[-1], dy, dh_n)
    if call.elsewhere and (device := call.elsewhere(operands, dy=dy, dh_n=dh_n)):
        return run_on(device, backward, saved, dy, dh_n)
    dx, dinitial, dparams, dattention = stack.backward(
        params,
        initial,
        sequences,
        values,
        None if dy is None else layout.inner(dy),
        call.inner_gradient(dh_n),
        attention,
    )
    if dattention is not None:
        dattention = layout.outer(dattention)[..., 0]
    return Gradients(layout.outer(dx), layout.outer_state(dinitial), dparams, dattention)


def step(
    x_t: Any,
    params: Params | Packed,
    h: State = None,
    *,
    attention: Any = None,
    precision: str | None = None,
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
    attention : (N,) array, optional
        As for `forward`, of this step; (1,) without samples.
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

    Examples
    --------
    >>> import numpy as np, fastgru
    >>> weights, h = fastgru.pack(fastgru.init_params(3, 16, rng=0)), None
    >>> for x_t in np.ones((50, 3), np.float32):
    ...     y_t, h = fastgru.step(x_t, weights, h)
    >>> y_t.shape, h.shape
    ((16,), (1, 16))
    """
    operands = operands_of(params)
    call = call_for(prepare_step, operands, x_t, h, False, precision)
    if call.elsewhere and (device := call.elsewhere(operands, x_t=x_t, h=h)):
        return run_on(device, step, x_t, params, h, attention=attention, precision=precision)
    layouts = operands.layouts or operands.lay_out()
    # A user's state as the stack takes it: `inner_state`, or the same without its 0.1 µs.
    initial = (h,) if call.takes_member and h is not None else call.inner_state(h)
    if attention is not None or call.takes_attention:
        attention = call.inner_attention_of_step(attention, operands.params)
    final = call.stack.step(x_t[call.as_sequence], layouts, initial, attention)
    if layouts is not operands.layouts:
        operands.give_back(layouts)
    if call.may_overflow:
        call.warn_of_overflow(x_t, final)
    if not call.layout.batched:
        final = tuple([member[:, 0] for member in final])
    return final[0][-1], final if len(final) > 1 else final[0]
