"""Published models of walking, in files of Keras, run over a published recording.

The models estimate the phase of a gait from the angle and angular velocity of a hip, by windows of
200 steps: Conv1D, BatchNormalization, AveragePooling1D, GRU, Dense, UnitNormalization. fastgru runs
the GRU; the layers around it are a few lines of NumPy.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from published import published

import fastgru
from fastgru.io.keras import from_keras

PACKAGE = "ao-compensation-model"
# The first, the largest, and the last, whose GRU gives the output of each step to its Dense layer.
MODELS = {
    "2026_03_24_18_43_0.1902": 8,
    "BEST_0.1753_gru_32_bs_128_k_20_f_16_p_5": 32,
    "2026_04_21_17_02_0.0713": 16,
}
STEPS, EVERY = 200, 25


class Around(NamedTuple):
    """Weights of the layers around the GRU."""

    kernel: Any  # (K, 2, F) of Conv1D
    bias: Any
    norm: Any  # gamma, beta, moving mean, moving variance
    epsilon: float
    pool: int
    dense: Any
    dense_bias: Any


def recording() -> Any:
    """Angle and angular velocity, (T, 2), standardised by the median and the quartiles.

    The models come with a scaler that does this with the numbers of the training data, in a pickle,
    which nobody should load for a test.
    """
    text = published(PACKAGE, "ao_compensation_model/dataset/test/test.csv").decode()
    x = np.loadtxt(io.StringIO(text), delimiter=";", skiprows=1, usecols=(1, 2))
    low, middle, high = np.percentile(x, [25, 50, 75], axis=0)
    return (x - middle) / (high - low)


def windows(x: Any) -> Any:
    starts = range(0, len(x) - STEPS, EVERY)
    return np.stack([x[start : start + STEPS] for start in starts])


def around(content: bytes) -> Around:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config = json.loads(archive.read("config.json"))
        weights = io.BytesIO(archive.read("model.weights.h5"))
    settings = {layer["class_name"]: layer["config"] for layer in config["config"]["layers"]}
    assert settings["Conv1D"]["padding"] == "causal"
    with h5py.File(weights) as file:

        def arrays(name: str) -> list[Any]:
            group = file[f"layers/{name}/vars"]
            return [group[str(n)][...].astype(np.float64) for n in range(len(group))]

        kernel, bias = arrays("conv1d")
        dense, dense_bias = arrays("dense")
        norm = arrays("batch_normalization")
    (pool,) = settings["AveragePooling1D"]["pool_size"]
    epsilon = settings["BatchNormalization"]["epsilon"]
    return Around(kernel, bias, norm, epsilon, pool, dense, dense_bias)


def before_the_gru(x: Any, w: Around) -> Any:
    """x (N, T, 2) -> (N, T, F)."""
    size, steps = len(w.kernel), x.shape[1]
    padded = np.pad(x, ((0, 0), (size - 1, 0), (0, 0)))
    a = sum(padded[:, k : k + steps] @ w.kernel[k] for k in range(size)) + w.bias
    gamma, beta, mean, variance = w.norm
    a = gamma * (a - mean) / np.sqrt(variance + w.epsilon) + beta
    padded = np.pad(a, ((0, 0), (w.pool - 1, 0), (0, 0)))
    return sum(padded[:, k : k + steps] for k in range(w.pool)) / w.pool


def after_the_gru(h: Any, w: Around) -> Any:
    """h (..., H) -> cosine and sine of the phase, or the reverse."""
    a = h @ w.dense + w.dense_bias
    return a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-12)


def keras_gru(x: Any, kernel: Any, recurrent: Any, bias: Any) -> Any:
    """Keras's equations: gates z, r, h in columns, the reset gate after the recurrent product."""
    h, y = np.zeros((len(x), len(recurrent))), []
    for t in range(x.shape[1]):
        x_z, x_r, x_h = np.split(x[:, t] @ kernel + bias[0], 3, axis=1)
        u_z, u_r, u_h = np.split(h @ recurrent + bias[1], 3, axis=1)
        z, r = 1 / (1 + np.exp(-x_z - u_z)), 1 / (1 + np.exp(-x_r - u_r))
        h = z * h + (1 - z) * np.tanh(x_h + r * u_h)
        y.append(h)
    return np.stack(y, axis=1)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_of_walking(model: str, tmp_path: Path) -> None:
    content = published(PACKAGE, f"ao_compensation_model/model/{model}/gru_model.keras")
    path = tmp_path / "gru_model.keras"
    path.write_bytes(content)
    found = from_keras(path)
    assert [*found] == ["gru"]
    assert found.only.hidden_size == MODELS[model]
    assert found.only.cell == "gru"
    assert [left.split(" ")[1] for left in found.left_out[:6]] == [
        *("InputLayer", "Conv1D", "BatchNormalization", "ZeroPadding1D", "AveragePooling1D"),
        "Dense",
    ]
    with (
        zipfile.ZipFile(path) as archive,
        h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file,
    ):
        weights = [file[f"layers/gru/cell/vars/{n}"][...].astype(np.float64) for n in range(3)]
    w = around(content)
    x = before_the_gru(windows(recording()), w)
    expected = keras_gru(x, *weights)

    y, h_n = fastgru.forward(x, from_keras(path, dtype="float64").only)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)
    phase, right = after_the_gru(h_n[0], w), after_the_gru(expected[:, -1], w)
    np.testing.assert_allclose(phase, right, rtol=0, atol=1e-12)
    # It is a model of something: the phase goes round, and does not stand still.
    turns = np.unwrap(np.arctan2(right[:, 0], right[:, 1]))
    assert np.ptp(turns) > 1

    y, _ = fastgru.forward(x.astype(np.float32), found.only)
    scale = np.abs(x).max() * np.abs(weights[0]).sum(axis=0).max()  # of what is added up
    np.testing.assert_allclose(y, expected, rtol=0, atol=4 * scale * np.finfo(np.float32).eps)


def test_a_stream_of_walking(tmp_path: Path) -> None:
    """Step by step, as the device that wears the model gets its samples."""
    model = "2026_04_21_17_02_0.0713"
    content = published(PACKAGE, f"ao_compensation_model/model/{model}/gru_model.keras")
    path = tmp_path / "gru_model.keras"
    path.write_bytes(content)
    params = from_keras(path, dtype="float64").only
    x = before_the_gru(recording()[None, :1000], around(content))
    y, _ = fastgru.forward(x, params)
    state, stream = None, []
    for t in range(x.shape[1]):
        h, state = fastgru.step(x[:, t], params, state)
        stream.append(h)
    np.testing.assert_allclose(np.stack(stream, axis=1), y, rtol=0, atol=1e-13)
