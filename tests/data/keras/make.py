"""Makes the files beside this one, which hold models of Keras and what Keras computes with them.

Tests read the files and do not run this. It needs Keras 3 with the backend PyTorch for one half of
the files, and TensorFlow 2.13 for the other, each in an environment of its own:

    KERAS_BACKEND=torch python make.py
    python make.py tensorflow

Files are compressed by gzip, as HDF5 is mostly zeros. For a layer that is called NAME, its inputs
and outputs are ``NAME.x`` and ``NAME.y`` in the archive ``.npz`` of the same model.
"""

import gzip
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
OLD = "tensorflow" in sys.argv
if OLD:
    import tensorflow as tf
    from tensorflow import keras
else:
    import keras
L = keras.layers

rng = np.random.default_rng(0)
numbers = np.asarray if OLD else keras.ops.convert_to_numpy


def drawn(layer):
    """A model or layer with random weights, biases too."""
    layer.set_weights([rng.uniform(-1, 1, w.shape).astype(w.dtype) for w in layer.get_weights()])
    return layer


def answers(layers):
    """Inputs and outputs of layers by name."""
    made = {}
    for name, layer, size in layers:
        x = rng.uniform(-1, 1, (2, 5, size)).astype("float32")
        made |= {f"{name}.x": x, f"{name}.y": numbers(layer(x))}
    return made


def write(name, model, suffixes, made):
    """A model in files of several kinds, and its answers."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in suffixes:
            path = Path(folder) / (name + suffix)
            (model.save_weights if suffix == ".weights.h5" else model.save)(path)
            (HERE / (path.name + ".gz")).write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
    np.savez_compressed(HERE / f"{name}.npz", **made)


def many():
    """A model with all kinds of layers, another model within it, and what is not recurrent."""
    inner = keras.Sequential(
        [
            L.Input((None, 4)),
            L.Dense(4, name="mix"),
            L.GRU(3, return_sequences=True, dropout=0.1, name="gru", trainable=False),
            L.LSTM(3, return_sequences=True, name="lstm"),
        ],
        name="inner",
    )
    first = x = L.Input((None, 3))
    x = L.Masking(name="masking")(x)
    layers = [
        L.Bidirectional(L.GRU(4, return_sequences=True), name="both"),
        L.RNN(L.LSTMCell(5), return_sequences=True, name="wrapped"),
        L.RNN([L.GRUCell(4), L.GRUCell(4)], return_sequences=True, name="stack"),
        inner,
        L.GRU(2, reset_after=False, return_sequences=True, name="before"),
        L.GRU(4, return_sequences=True, use_bias=False, stateful=False, name="bare"),
        L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode="sum", name="sum"),
        L.TimeDistributed(L.Dense(2), name="steps"),
        L.SimpleRNN(2, return_sequences=True, name="tanh"),
        L.SimpleRNN(2, return_sequences=True, activation="relu", name="relu"),
        L.GRU(3, go_backwards=True, return_sequences=True, name="reversed"),
        L.Bidirectional(L.GRU(2), name="last"),
    ]
    for layer in layers:
        x = layer(x)
    model = drawn(keras.Model(first, x))
    model.compile("adam", "mse")
    sizes = {"both": 3, "wrapped": 8, "stack": 5, "before": 3, "bare": 2, "sum": 4}
    sizes |= {"tanh": 2, "relu": 2, "reversed": 2, "last": 3}
    asked = [(name, model.get_layer(name), size) for name, size in sizes.items()]
    asked += [("inner/gru", inner.get_layer("gru"), 4), ("inner/lstm", inner.get_layer("lstm"), 3)]
    return model, answers(asked)


def lists():
    """Weights of single layers, as ``get_weights`` gives them."""
    made = {}
    for name, layer in {
        "gru": L.GRU(4, return_sequences=True),
        "gru_reset_before": L.GRU(4, return_sequences=True, reset_after=False),
        "lstm": L.LSTM(4, return_sequences=True),
        "rnn_tanh": L.SimpleRNN(4, return_sequences=True),
        "rnn_relu": L.SimpleRNN(4, return_sequences=True, activation="relu"),
    }.items():
        config = layer.get_config()
        for bias in (True, False):
            for both in (False, True):
                one = type(layer).from_config(config | {"use_bias": bias})
                one = L.Bidirectional(one) if both else one
                one.build((None, None, 3))
                drawn(one)
                key = f"{name}.{'bias' if bias else 'bare'}.{'both' if both else 'one'}"
                weights = {f"{key}.{n}": w for n, w in enumerate(one.get_weights())}
                made |= answers([(key, one, 3)]) | weights
    np.savez_compressed(HERE / "lists.npz", **made)


def half():
    """Models whose weights have other dtypes."""
    for dtype in ("float16", "bfloat16", "mixed_bfloat16"):
        options = {"recurrent_initializer": "glorot_uniform", "dtype": dtype, "name": "gru"}
        model = keras.Sequential([L.Input((None, 2)), L.GRU(3, **options)])
        exact = [np.asarray(numbers(v), "float32") for v in model.weights]
        made = {f"gru.{n}": array for n, array in enumerate(exact)}
        write(dtype, model, [".keras", ".weights.h5", ".h5"], made)


def cudnn():
    """CuDNN layers, which need a GPU to run: the answers are those of the layers that replace them.

    TensorFlow converts the weights when it loads them into those.
    """
    old = tf.compat.v1.keras.layers

    def model(gru, lstm):
        return keras.Sequential(
            [
                L.Input((None, 3)),
                gru(4, return_sequences=True, name="gru"),
                lstm(3, return_sequences=True, name="lstm"),
                L.Bidirectional(gru(5, return_sequences=True), name="both"),
            ]
        )

    there = drawn(model(old.CuDNNGRU, old.CuDNNLSTM))
    here = model(L.GRU, L.LSTM)
    with tempfile.TemporaryDirectory() as folder:
        there.save_weights(Path(folder) / "weights.hdf5", save_format="h5")
        here.load_weights(Path(folder) / "weights.hdf5")
    sizes = {"gru": 3, "lstm": 4, "both": 3}
    made = answers([(name, here.get_layer(name), size) for name, size in sizes.items()])
    write("cudnn", there, [".h5", ".weights.h5"], made)


if OLD:
    write("old", *(lambda m, a: (m, [".keras", ".h5"], a))(*many()))
    cudnn()
else:
    write("many", *(lambda m, a: (m, [".keras", ".h5", ".weights.h5"], a))(*many()))
    lists()
    half()
