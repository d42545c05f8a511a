"""
Write text, symbol by symbol
============================

A GRU reads a text and learns which symbol comes next. Then it writes: a symbol is drawn from its
forecast, and given back to it as the next input. The text is a counting rhyme, so one can see
whether it has learnt to spell and to count.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np

import fastgru

NUMBERS = ["ten", "nine", "eight", "seven", "six", "five", "four", "three", "two", "one", "no"]
TEXT = "".join(
    f"{before} green bottles on the wall, one falls down, {after} green bottles on the wall. "
    for before, after in itertools.pairwise(NUMBERS)
)
SYMBOLS = sorted(set(TEXT))
codes = np.array([SYMBOLS.index(symbol) for symbol in TEXT])
one_hot = np.eye(len(SYMBOLS), dtype="float32")
print(len(TEXT), "symbols,", len(SYMBOLS), "different ones")

# %%
# Training
# --------
# Batches are pieces of the text from random places. The loss is the cross-entropy; its gradient
# with respect to the scores is the forecast minus what came.

rng = np.random.default_rng(0)
H, V = 96, len(SYMBOLS)
params = fastgru.init_params(V, H, rng=0)
W = (rng.normal(size=(H, V)) / H**0.5).astype("float32")


def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def batch(rows=16, steps=64):
    starts = rng.integers(0, len(codes) - steps - 1, rows)
    places = starts[:, None] + np.arange(steps + 1)
    return codes[places[:, :-1]], codes[places[:, 1:]]


moments = {}


def adam(key, w, g, number, rate=5e-3):
    m, v = moments.get(key, (0, 0))
    m, v = moments[key] = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    rate *= (1 - 0.99**number) ** 0.5 / (1 - 0.9**number)
    return w - rate * m / (np.sqrt(v) + 1e-8)


losses = []
for number in range(1, 401):
    came, comes = batch()
    y, _, saved = fastgru.forward_train(one_hot[came], params)
    p = softmax(y @ W)
    losses.append(-np.log(np.take_along_axis(p, comes[..., None], -1)).mean())
    d_scores = (p - one_hot[comes]) / comes.size
    gradients = fastgru.backward(saved, dy=d_scores @ W.T).params.to_dict()
    dW = np.einsum("nth,ntv->hv", y, d_scores)
    arrays = {k: adam(k, w, gradients[k], number) for k, w in params.to_dict().items()}
    params, W = fastgru.Params.from_dict(arrays), adam("W", W, dW, number)
print(f"cross-entropy before and after: {losses[0]:.2f} {losses[-1]:.2f}")

# %%
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(losses)
axis.set(xlabel="batch", ylabel="cross-entropy", yscale="log")
plt.show()

# %%
# Writing
# -------
# ``step`` takes the symbol that was drawn last. A low temperature takes the likeliest symbol nearly
# always, a high one plays.


def write(begin, length, temperature):
    weights, h, text = fastgru.pack(params), None, begin
    for symbol in begin:
        y_t, h = fastgru.step(one_hot[SYMBOLS.index(symbol)], weights, h)
    for _ in range(length):
        p = softmax((y_t @ W).astype("float64") / temperature)
        code = rng.choice(V, p=p)
        text += SYMBOLS[code]
        y_t, h = fastgru.step(one_hot[code], weights, h)
    return text


for temperature in (0.2, 1.0, 2.0):
    print(f"temperature {temperature}:\n{write('five green', 160, temperature)}\n")
