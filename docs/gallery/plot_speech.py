"""
Detect speech, frame by frame
=============================

silero-vad is a published detector of speech (MIT licence): a short-time Fourier transform, four
convolutions, an LSTM, and a read-out. Its weights come as an ONNX file. Here the file is read, and
its LSTM runs as a ``fastgru.Stream``: a frame of sound goes in, a probability comes out.

The file is not part of fastgru. The example takes it from the folder that ``FASTGRU_PUBLISHED``
names, or from the package ``silero-vad`` where that is installed, whose code is not run.
"""

import importlib.util
import os
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import fastgru

FILE = "silero_vad/data/silero_vad_16k_sequence.onnx"
RATE, FRAME, CONTEXT = 16_000, 512, 64


def published_model():
    """The content of the file; None where it is not at hand."""
    folder = os.environ.get("FASTGRU_PUBLISHED")
    for wheel in Path(folder).glob("silero_vad-*.whl") if folder else ():
        return zipfile.ZipFile(wheel).read(FILE)
    package = importlib.util.find_spec("silero_vad")
    if package and package.submodule_search_locations:
        path = Path(package.submodule_search_locations[0]).parent / FILE
        return path.read_bytes() if path.exists() else None
    return None


model = published_model()
has_onnx = importlib.util.find_spec("onnx") is not None
if model is None or not has_onnx:
    print("The model, or the package onnx, is not at hand: pip download --no-deps silero-vad,")
    print("set FASTGRU_PUBLISHED to the folder, and pip install onnx. What follows is left out.")

# %%
# A signal
# --------
# Two seconds of something like speech, two of a pause: a sawtooth of a wandering pitch, filtered by
# the resonances of vowels, in four syllables a second, and noise.

VOWELS = np.array([[700, 1200, 2500], [300, 2300, 3000], [350, 800, 2300], [500, 1800, 2500]])


def speech(seconds, rng):
    t = np.arange(seconds * RATE) / RATE
    knots = np.arange(4 * seconds + 1) / 4
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
    voice *= np.sin(np.pi * (4 * t % 1)) ** 0.7 * (np.floor(t / 2) % 2 == 0)
    noise = 0.001 * rng.standard_normal(len(t))
    return (0.1 * voice / voice.std() + noise).astype(np.float32)


sound = speech(16, np.random.default_rng(0))
print(f"{len(sound) / RATE:.0f} seconds, {len(sound) // FRAME} frames")

# %%
# The network
# -----------
# ``from_onnx`` gives the LSTM as params, and says which tensors it has left out: the others are
# taken from the file as arrays. The convolutions are products of windows with their weights.

if model is not None and has_onnx:
    import onnx

    from fastgru.io import from_onnx

    found = from_onnx(model)
    print(found)
    graph = onnx.load_from_string(model).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}


def convolved(x, weight, stride):
    """x (C, T) convolved with weight (O, C, K)."""
    windows = sliding_window_view(x, weight.shape[2], axis=1)[:, ::stride]  # (C, T', K)
    return np.tensordot(weight, windows, axes=([1, 2], [0, 2]))


def features(frame, arrays):
    """What the LSTM reads of a frame and the samples before it."""
    padded = np.pad(frame, FRAME // 4, mode="reflect")[None]
    spectrum = convolved(padded, arrays["stft.forward_basis_buffer"], FRAME // 4)[:, 1:]
    x = np.hypot(*np.split(spectrum, 2))
    for number, stride in enumerate((1, 2, 2, 1)):
        weight, bias = arrays[f"encoder.{number}.weight"], arrays[f"encoder.{number}.bias"]
        x = convolved(np.pad(x, ((0, 0), (1, 1))), weight, stride) + bias[:, None]
        x = np.maximum(x, 0)
    return x[:, 0]


# %%
# The stream
# ----------
# Each frame of 512 samples comes with the 64 before it. The stream keeps the state of the LSTM.

if model is not None and has_onnx:
    stream = fastgru.Stream(found.only)
    weight, bias = arrays["output.weight"][0, :, 0], arrays["output.bias"][0]
    heard = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    probabilities = []
    for start in range(0, len(sound) - FRAME + 1, FRAME):
        frame = heard[start : start + CONTEXT + FRAME]
        h = stream.push(features(frame, arrays))
        probabilities.append(1 / (1 + np.exp(-(np.maximum(h, 0) @ weight + bias))))

    times = np.arange(len(sound)) / RATE
    figure, (top, bottom) = plt.subplots(2, figsize=(9, 5), sharex=True, layout="constrained")
    top.plot(times, sound, lw=0.3)
    top.set(ylabel="sound")
    bottom.plot(np.arange(len(probabilities)) * FRAME / RATE, probabilities)
    bottom.axhline(0.5, color="r", ls=":")
    bottom.set(xlabel="seconds", ylabel="probability of speech", ylim=(0, 1), xlim=(0, 16))
    plt.show()
