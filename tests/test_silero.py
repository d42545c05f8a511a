"""A published speech detector, silero-vad: its LSTM read from ONNX and run frame by frame.

What stands around the LSTM (short-time Fourier transform, encoder, read-out) is a few convolutions,
which are written out here in NumPy with the file's own weights. The result has to be onnxruntime's.
"""

import functools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper
from problems import assert_same_bits
from published import published

import fastgru
from fastgru.io.onnx import from_onnx

RATE, FRAME, CONTEXT = 16_000, 512, 64  # samples a second, a frame, and before each frame
SECONDS = 150


def content(name: str) -> bytes:
    return published("silero-vad", f"silero_vad/data/{name}.onnx")


@functools.cache
def sequence_model() -> tuple[Any, dict[str, Any]]:
    """onnxruntime's session of the model of whole sequences, and the model's arrays."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        content("silero_vad_16k_sequence"), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load_from_string(content("silero_vad_16k_sequence")).graph
    return session, {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


# The three lowest resonances of some vowels, in Hz.
VOWELS = np.array([[700, 1200, 2500], [300, 2300, 3000], [350, 800, 2300], [500, 1800, 2500]])


@functools.cache
def signal() -> tuple[Any, Any]:
    """Something like speech, two seconds of it and two of a pause; where it is.

    A sawtooth of a wandering pitch, filtered by the resonances of vowels, in four syllables a
    second, and noise.
    """
    rng = np.random.default_rng(0)
    t = np.arange(SECONDS * RATE) / RATE
    knots = np.arange(4 * SECONDS + 1) / 4
    pitch = 110 * 2 ** (0.2 * np.interp(t, knots, rng.standard_normal(len(knots))))
    source = 1 - 2 * (np.cumsum(pitch) / RATE % 1)
    size, hop = 1024, 512
    pieces = sliding_window_view(source, size)[::hop] * np.hanning(size + 1)[:-1]
    places = np.arange(len(pieces)) * hop / RATE
    columns = VOWELS[rng.integers(0, len(VOWELS), len(knots))].T
    f = np.fft.rfftfreq(size, 1 / RATE)
    gains = sum(
        1 / (1 + ((f - np.interp(places, knots, column)[:, None]) / width) ** 2)
        for column, width in zip(columns, (100, 130, 180), strict=True)
    )
    pieces = np.fft.irfft(np.fft.rfft(pieces) * gains, size)
    voice = np.zeros(len(t))
    voice[: len(pieces) * hop] += pieces[:, :hop].ravel()
    voice[hop : hop + len(pieces) * hop] += pieces[:, hop:].ravel()
    speaks = np.floor(t / 2) % 2 == 0
    voice *= np.sin(np.pi * (4 * t % 1)) ** 0.7 * speaks
    x = 0.1 * voice / voice.std() + 0.001 * rng.standard_normal(len(t))
    return x.astype(np.float32), speaks


def frames() -> Any:
    """The frames of the signal, each with the samples before it, (F, 576)."""
    x = np.concatenate([np.zeros(CONTEXT, np.float32), signal()[0]])
    return sliding_window_view(x, FRAME + CONTEXT)[::FRAME]


def convolved(x: Any, weight: Any, bias: Any = None, *, stride: int = 1, pad: int = 0) -> Any:
    """x (F, C, T) convolved with weight (O, C, K)."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad)))
    windows = sliding_window_view(x, weight.shape[2], axis=2)[:, :, ::stride]  # (F, C, T', K)
    F, C, T, K = windows.shape
    rows = windows.transpose(0, 2, 1, 3).reshape(F * T, C * K)
    out = rows @ weight.reshape(len(weight), -1).T
    out = out if bias is None else out + bias
    return out.reshape(F, T, -1).transpose(0, 2, 1)


def encoded(x: Any, arrays: dict[str, Any], pads: tuple[int, int]) -> Any:
    """What the LSTM reads of each frame, (F, 128, T)."""
    x = np.pad(x, ((0, 0), pads), mode="reflect")[:, None]
    spectrum = convolved(x, arrays["stft.forward_basis_buffer"], stride=128)
    half = spectrum.shape[1] // 2
    x = np.sqrt(spectrum[:, :half, 1:] ** 2 + spectrum[:, half:, 1:] ** 2)
    for number, stride in enumerate((1, 2, 2, 1)):
        weight, bias = (arrays[f"encoder.{number}.{part}"] for part in ("weight", "bias"))
        x = np.maximum(convolved(x, weight, bias, stride=stride, pad=1), 0)
    return x


def read_out(h: Any, arrays: dict[str, Any]) -> Any:
    """The probability of speech from h, (F, 128)."""
    logits = np.maximum(h, 0) @ arrays["output.weight"][0, :, 0] + arrays["output.bias"][0]
    return 1 / (1 + np.exp(-logits))


@functools.cache
def features() -> Any:
    """What the LSTM reads, (F, 128), by the convolutions above."""
    _, arrays = sequence_model()
    parts = [encoded(x, arrays, (128, 128)) for x in np.array_split(frames(), 32)]
    x = np.concatenate(parts)
    assert x.shape[2] == 1
    return x[:, :, 0]


def test_the_stream_is_the_model() -> None:
    """Minutes, frame by frame, against onnxruntime over the whole."""
    session, arrays = sequence_model()
    found = from_onnx(content("silero_vad_16k_sequence"))
    params = found["/recurrent/LSTM"].params
    assert (params.cell, params.input_size, params.hidden_size) == ("lstm", 128, 128)
    assert set(found.left_out) == {name for name in arrays if not name.startswith("onnx::LSTM")}
    zeros = np.zeros((1, 1, 128), np.float32)
    want, want_h, want_c = session.run(None, {"input": frames(), "h": zeros, "c": zeros})

    stream = fastgru.Stream(params)
    h = np.stack([stream.push(x_t) for x_t in features()])
    got = read_out(h, arrays)
    assert got.shape == want.shape == (SECONDS * RATE // FRAME,)
    speaks = signal()[1][: len(want) * FRAME].reshape(-1, FRAME)
    # It does find this to be speech, and pauses to be none, so all parts of the network are used.
    assert want[speaks.all(axis=1)].mean() > 0.9
    assert want[~speaks.any(axis=1)].mean() < 0.1
    assert np.abs(got - want).max() <= 1e-5
    # eps (sqrt(I + H) + max |a|) is what a step rounds: its sums reach 30 here, and c 52. Found was
    # 0.3 times that.
    largest = np.abs(features() @ params.to_dict()["weight_ih_l0"].T).max()
    bound = 2 * np.finfo(np.float32).eps * (np.sqrt(256) + largest)
    for member, wanted in zip(stream.state, (want_h, want_c), strict=True):
        assert np.abs(member - wanted[0]).max() <= bound * max(1, np.abs(wanted).max())


# Of each file: layers, by their number, and the tensor that their W is made from.
FILES = {
    "silero_vad": (4, "decoder.rnn.weight_ih"),
    "silero_vad_16k_op15": (2, "model.decoder.rnn.weight_ih"),
    "silero_vad_16k_sequence": (1, "onnx::LSTM_209"),
    "silero_vad_half": (2, "decoder.rnn.weight_ih"),
    "silero_vad_openvino_16k": (1, "decoder.rnn.weight_ih"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_package(name: str) -> None:
    layers, source = FILES[name]
    found = from_onnx(content(name))
    assert len(found) == layers
    for layer in found.values():
        assert repr(layer.params) == (
            "Params(cell='lstm', input_size=128, hidden_size=128, num_layers=1, "
            "bidirectional=False, bias=True, dtype=float32, library='numpy')"
        )
        assert layer.sources["weight_ih_l0"].endswith(source)
    assert found.left_out


def test_branches_share_weights() -> None:
    """Both branches of an If, one for a given state and one for none, have the same LSTM."""
    given, none = from_onnx(content("silero_vad_16k_op15")).values()
    ours, theirs = given.params.to_dict(), none.params.to_dict()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_weights_in_bodies_are_those_of_pytorch() -> None:
    """Tensors by PyTorch's names, which exporters cut and join again."""
    graph = onnx.load_from_string(content("silero_vad_16k_op15")).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    params = next(iter(from_onnx(content("silero_vad_16k_op15")).values())).params
    for key, array in params.to_dict().items():
        name = f"model.decoder.rnn.{key.removesuffix('_l0')}"
        assert np.array_equal(array, arrays[name])


def test_a_layer_without_a_node() -> None:
    """One file has its LSTM as products and sigmoids, and is refused; from_arrays takes these."""
    with pytest.raises(ValueError, match=r"expected a node GRU, LSTM or RNN, .*from_arrays"):
        from_onnx(content("silero_vad_op18_ifless"))
    graph = onnx.load_from_string(content("silero_vad_op18_ifless")).graph
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    arrays = {
        name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        for name in names
        if tensor.name == f"model.decoder.rnn.{name}"
    }
    params = fastgru.io.from_arrays(cell="lstm", **arrays)
    assert_same_bits(params, from_onnx(content("silero_vad_16k_sequence")).only)
