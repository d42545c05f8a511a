"""The executable specification: what every backend has to compute, as plainly as possible.

NumPy only; nothing of fastgru is imported. Whatever dtype goes in, the work is done in float64, or
in complex128 when an argument is complex. So gradients need no second, hand-derived set of formulas
that could share a mistake with the library: a cell is an analytic function, hence

    imag(loss(x + i·s·v)) / s  =  derivative of the loss along v, exact to rounding for a tiny s,

because unlike a difference quotient it subtracts nothing.

Letters: N samples, T time steps, I inputs, H hidden units, G gates, L layers, D directions.
Cells use only what is analytic: no abs, no comparison, no conjugate of a value.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = tuple[Array, ...]  # (h,) or (h, c)
# weight_ih (G*H, I), weight_hh (G*H, H), bias_ih and bias_hh (G*H,); a bias missing or None is zero
Weights = Mapping[str, Any]
Layers = Sequence[Sequence[Weights]]  # layers[layer][direction]
MaybeState = Sequence[Array | None] | None

STEP = 2.0**-100  # of the complex step: its square vanishes beside 1, and dividing by it is exact


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def affine(v: Array, weight: Array, bias: Array | None) -> Array:
    """v (N, K), weight (M, K), bias (M,) or None, which stands for zero -> (N, M)."""
    product: Array = v @ weight.T
    return product if bias is None else product + bias


def gru(x: Array, state: State, w: Weights) -> State:
    """GRU, reset gate after the recurrent product; gates r, z, n.

    PyTorch `GRU`, cuDNN, Keras `reset_after=True`, ONNX `linear_before_reset=1`.
    """
    (h,) = state
    x_r, x_z, x_n = np.split(affine(x, w["weight_ih"], w.get("bias_ih")), 3, axis=1)
    u_r, u_z, u_n = np.split(affine(h, w["weight_hh"], w.get("bias_hh")), 3, axis=1)
    r = sigmoid(x_r + u_r)
    z = sigmoid(x_z + u_z)
    n = np.tanh(x_n + r * u_n)
    return ((1 - z) * n + z * h,)


def gru_reset_before(x: Array, state: State, w: Weights) -> State:
    """GRU, reset gate before the recurrent product; gates r, z, n.

    Cho et al. 2014, arXiv 1406.1078; ONNX `linear_before_reset=0`, its default.
    """
    (h,) = state
    U_r, U_z, U_n = np.split(w["weight_hh"], 3)
    bias_hh = w.get("bias_hh")
    b_r, b_z, b_n = (None, None, None) if bias_hh is None else np.split(bias_hh, 3)
    x_r, x_z, x_n = np.split(affine(x, w["weight_ih"], w.get("bias_ih")), 3, axis=1)
    r = sigmoid(x_r + affine(h, U_r, b_r))
    z = sigmoid(x_z + affine(h, U_z, b_z))
    n = np.tanh(x_n + affine(r * h, U_n, b_n))
    return ((1 - z) * n + z * h,)


def lstm(x: Array, state: State, w: Weights) -> State:
    """LSTM with a forget gate and no peepholes; gates i, f, g, o.

    Hochreiter & Schmidhuber 1997, forget gate by Gers et al. 2000; PyTorch `LSTM`.
    """
    h, c = state
    a = affine(x, w["weight_ih"], w.get("bias_ih")) + affine(h, w["weight_hh"], w.get("bias_hh"))
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
    c = sigmoid(a_f) * c + sigmoid(a_i) * np.tanh(a_g)
    return sigmoid(a_o) * np.tanh(c), c


def as_they_are(x: Array, valid: NDArray[np.bool_], w: Weights) -> Array:
    """What steps read of x: x."""
    return x


def batch_norm(a: Array, valid: NDArray[np.bool_], w: Weights, eps: float = 1e-5) -> Array:
    """a (N, T, F), normalised over its valid steps (N, T), scaled and shifted; 0 elsewhere.

    Ioffe & Szegedy 2015, arXiv 1502.03167. Statistics given in `w` (running_mean, running_var)
    count where its entry ``"training"`` is False.
    """
    rows = a[valid]
    mean, centred = rows.mean(axis=0), rows - rows.mean(axis=0)
    variance = (centred * centred).mean(axis=0)
    if w.get("training") is False:
        mean, variance = w["running_mean"], w["running_var"]
    out = np.zeros_like(a)
    shift = 0 if w.get("norm_bias") is None else w["norm_bias"]
    out[valid] = w["norm_weight"] * (rows - mean) / np.sqrt(variance + eps) + shift
    return out


def layer_norm(u: Array, eps: float = 1e-5) -> Array:
    """u (N, F) normalised over F. Ba et al. 2016, arXiv 1607.06450."""
    centred = u - u.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + eps)


class Spec(NamedTuple):
    # x (N, F), state of (N, H) arrays, weights -> state. Among the weights is "attention" (N, 1),
    # the step's number, where one is given.
    step: Callable[[Array, State, Weights], State]
    states: int  # how many arrays the state has; the first is the output
    # x (N, T, I), valid steps, weights -> (N, T, F): what the steps of a layer read of its input
    prepare: Callable[[Array, NDArray[np.bool_], Weights], Array] = as_they_are


CELLS = {
    "gru": Spec(step=gru, states=1),
    "gru_reset_before": Spec(step=gru_reset_before, states=1),
    "lstm": Spec(step=lstm, states=2),
}


def zero_state(x: Array, layers: Layers, cell: str) -> State:
    """What h0=None stands for: zeros (L*D, N, H), one array a state."""
    H = layers[0][0]["weight_hh"].shape[1]
    shape = (len(layers) * len(layers[0]), x.shape[0], H)
    return tuple(np.zeros(shape) for _ in range(CELLS[cell].states))


def valid_steps(x: Array, lengths: Sequence[int] | Array | None) -> NDArray[np.bool_]:
    """(N, T): True where a step of a row counts; the valid steps of a row come first."""
    N, T = x.shape[:2]
    ends = np.full(N, T) if lengths is None else np.asarray(lengths, dtype=np.int64)
    return np.arange(T) < ends[:, None]


def forward(
    x: Array,
    layers: Layers,
    cell: str,
    h0: State | None = None,
    lengths: Sequence[int] | Array | None = None,
    attention: Array | None = None,
    training: bool = True,
) -> tuple[Array, State]:
    """x (N, T, I), h0 of (L*D, N, H) arrays -> y (N, T, D*H), h_n of (L*D, N, H) arrays.

    attention (N, T): for cells that take a number for each sample and step. Normalisers over a
    batch take its statistics in training, else the running ones.

    Both directions of layer l, index l*D + d, read the layer below. A row takes part only in its
    valid steps: its state rests at h0 until the reverse direction comes down to the last of them,
    and rests after it in the forward direction. So a row without valid steps keeps h0, padding is
    never read, and padded y is 0.
    """
    h0 = zero_state(x, layers, cell) if h0 is None else h0
    weights = [a for layer in layers for w in layer for a in w.values() if a is not None]
    given = () if attention is None else (attention,)
    dtype = np.result_type(np.float64, x, *h0, *weights, *given)
    N, T, _ = x.shape
    L_D, _, H = h0[0].shape
    D = L_D // len(layers)
    valid = valid_steps(x, lengths)
    h_n = tuple(np.array(a, dtype) for a in h0)
    y = np.array(x, dtype)
    for depth, layer in enumerate(layers):
        inputs, y = y, np.zeros((N, T, D * H), dtype)
        for d, own in enumerate(layer):
            w = dict(own, training=training)
            read = CELLS[cell].prepare(inputs, valid, w)
            for t in range(T) if d == 0 else reversed(range(T)):
                rows = np.flatnonzero(valid[:, t])
                state = tuple(a[depth * D + d, rows] for a in h_n)
                if attention is not None:
                    w["attention"] = attention[rows, t, None]
                state = CELLS[cell].step(read[rows, t], state, w)
                for a, new in zip(h_n, state, strict=True):
                    a[depth * D + d, rows] = new
                y[rows, t, d * H : (d + 1) * H] = state[0]
    return y, h_n


def loss(y: Array, h_n: State, dy: Array | None, dh_n: MaybeState) -> Any:
    """The scalar whose gradient is meant; None, also for one state of several, stands for zero."""
    total: Any = 0.0 if dy is None else np.sum(dy * y)
    for a, da in zip(h_n, dh_n or [None] * len(h_n), strict=True):
        total = total + (0.0 if da is None else np.sum(da * a))
    return total


def loss_moved(
    x: Array,
    layers: Layers,
    cell: str,
    h0: State,
    lengths: Sequence[int] | Array | None,
    dy: Array | None,
    dh_n: MaybeState,
    attention: Array | None = None,
) -> float:
    """Derivative of the loss along v, the arguments having been moved by i·STEP·v.

    Padded dy is never read.
    """
    if dy is not None:
        dy = np.where(valid_steps(x, lengths)[:, :, None], dy, 0.0)
    y, h_n = forward(x, layers, cell, h0, lengths, attention)
    return float(np.imag(loss(y, h_n, dy, dh_n)) / STEP)


def directional(
    x: Array,
    layers: Layers,
    cell: str,
    h0: State | None,
    lengths: Sequence[int] | Array | None,
    dy: Array | None,
    dh_n: MaybeState,
    directions: tuple[Array | None, MaybeState, Layers | None],
    attention: Array | None = None,
) -> float:
    """Derivative of the loss along `directions`, which is shaped as (x, h0, layers).

    What is None or missing in it is held fixed. h0=None is differentiated at zeros.
    """
    h0 = zero_state(x, layers, cell) if h0 is None else h0
    along_x, along_h0, along_layers = directions

    def moved(a: Any, v: Any) -> Any:
        return a if a is None or v is None else a + 1j * (STEP * np.asarray(v, np.float64))

    h0_moved = tuple(map(moved, h0, along_h0 or [None] * len(h0)))
    layers_moved = [
        [{k: moved(a, v.get(k)) for k, a in w.items()} for w, v in zip(layer, along, strict=True)]
        for layer, along in zip(
            layers, along_layers or [[{} for _ in layer] for layer in layers], strict=True
        )
    ]
    return loss_moved(moved(x, along_x), layers_moved, cell, h0_moved, lengths, dy, dh_n, attention)


def gradients(
    x: Array,
    layers: Layers,
    cell: str,
    h0: State | None,
    lengths: Sequence[int] | Array | None,
    dy: Array | None,
    dh_n: MaybeState,
    attention: Array | None = None,
) -> tuple[Array, State, list[list[dict[str, Any]]], Any]:
    """Gradient of the loss by x, h0, layers and attention, each shaped as its argument.

    One forward for each element: for tiny sizes. h0=None is differentiated at zeros.
    """
    h0 = zero_state(x, layers, cell) if h0 is None else h0
    # Complex copies, so that each element can be moved in place and put back.
    x = np.array(x, np.complex128)
    attention = None if attention is None else np.array(attention, np.complex128)
    h0 = tuple(np.array(a, np.complex128) for a in h0)
    layers = [
        [
            {k: None if a is None else np.array(a, np.complex128) for k, a in w.items()}
            for w in layer
        ]
        for layer in layers
    ]

    def by(array: Array) -> Array:
        gradient = np.zeros(array.shape)
        for i in np.ndindex(array.shape):
            here = array[i]
            array[i] = here + 1j * STEP
            gradient[i] = loss_moved(x, layers, cell, h0, lengths, dy, dh_n, attention)
            array[i] = here
        return gradient

    dlayers = [
        [{k: None if a is None else by(a) for k, a in w.items()} for w in layer] for layer in layers
    ]
    dattention = None if attention is None else by(attention)
    return by(x), tuple(by(a) for a in h0), dlayers, dattention
