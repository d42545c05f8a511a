"""
Gradients by hand, for a loss of one's own
==========================================

``backward`` wants one thing: the gradient of the loss with respect to the outputs. So any loss can
be trained that you can differentiate. This one, the pinball loss, makes a network forecast
quantiles: the range in which the next number will lie four times out of five.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastgru

QUANTILES = np.array([0.1, 0.5, 0.9])


def pinball(forecast, target):
    """Mean loss, and its gradient with respect to the forecast; the last axis has the quantiles."""
    over = target[..., None] - forecast
    loss = np.maximum(QUANTILES * over, (QUANTILES - 1) * over).mean()
    gradient = np.where(over > 0, -QUANTILES, 1 - QUANTILES) / over.size
    return loss, gradient.astype(forecast.dtype)


# %%
# A series whose noise comes and goes
# -----------------------------------

rng = np.random.default_rng(0)


def series(rows, steps):
    t = np.arange(steps) + rng.uniform(0, 100, (rows, 1))
    noise = 0.03 + 0.3 * (np.sin(t / 25) > 0)  # 79 steps with little, 79 with much
    return (np.sin(t / 5) + noise * rng.normal(size=t.shape)).astype("float32")


train, test = series(16, 200), series(1, 400)

# %%
# From the loss back to the weights
# ---------------------------------
# The forecast is ``y @ W + b``. Its gradient gives those of W, b and y by the chain rule; fastgru
# does the rest.


def gradients_of(params, W, b, rows):
    """Loss of a batch, and the gradients of all that is trained."""
    x, target = rows[:, :-1, None], rows[:, 1:]
    y, h_n, saved = fastgru.forward_train(x, params)
    loss, d_forecast = pinball(y @ W + b, target)
    dW = np.einsum("nth,ntq->hq", y, d_forecast)
    db = d_forecast.sum(axis=(0, 1))
    gradients = fastgru.backward(saved, dy=d_forecast @ W.T)
    return loss, gradients.params, dW, db


# %%
# Is it right? A step along the gradient must change the loss by what the gradient says. In float64
# the two agree to many digits.

params = fastgru.init_params(1, 24, dtype="float64", rng=0)
W, b = rng.normal(size=(24, 3)) / 5, np.zeros(3)
rows = train[:4].astype("float64")


def loss_of(params):
    y, _ = fastgru.forward(rows[:, :-1, None], params)
    return pinball(y @ W + b, rows[:, 1:])[0]


_, direction, _, _ = gradients_of(params, W, b, rows)
squares = sum(float((g**2).sum()) for g in direction.to_dict().values())
ahead, behind = (loss_of(params.map(lambda w, g, s=s: w + s * g, direction)) for s in (1e-6, -1e-6))
print(f"by gradients {squares:.8f}, by differences {(ahead - behind) / 2e-6:.8f}")

# %%
# Training
# --------
# Adam, in five lines, for the network and its read-out.


class Adam:
    def __init__(self):
        self.m, self.v, self.steps = {}, {}, 0

    def step(self, arrays, gradients, rate):
        self.steps += 1
        rate *= (1 - 0.999**self.steps) ** 0.5 / (1 - 0.9**self.steps)
        for key, g in gradients.items():
            self.m[key] = 0.9 * self.m.get(key, 0) + 0.1 * g
            self.v[key] = 0.999 * self.v.get(key, 0) + 0.001 * g * g
        return {k: w - rate * self.m[k] / (np.sqrt(self.v[k]) + 1e-8) for k, w in arrays.items()}


params = fastgru.init_params(1, 24, rng=0)
W, b = W.astype("float32"), np.zeros(3, "float32")
adam, losses = Adam(), []
for _ in range(400):
    loss, d_params, dW, db = gradients_of(params, W, b, train)
    losses.append(loss)
    arrays = params.to_dict() | {"W": W, "b": b}
    arrays = adam.step(arrays, d_params.to_dict() | {"W": dW, "b": db}, 1e-2)
    W, b = arrays.pop("W"), arrays.pop("b")
    params = fastgru.Params.from_dict(arrays, cell="gru")
print(f"loss before and after: {losses[0]:.3f} {losses[-1]:.3f}")

# %%
# The forecast band
# -----------------
# It is wide where the series is noisy: the network has found out from the series alone.

y, _ = fastgru.forward(test[:, :-1, None], params)
low, middle, high = np.moveaxis((y @ W + b)[0], -1, 0)
target = test[0, 1:]
inside = np.mean((target > low) & (target < high))
print(f"{inside:.0%} of the unseen numbers lie in the band; 80 % should")

figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
steps = np.arange(1, 400)
axis.fill_between(steps, low, high, alpha=0.3, label="10 to 90 %, one step ahead")
axis.plot(steps, middle, lw=1, label="median")
axis.plot(steps, target, "k.", ms=3, label="series")
axis.set(xlabel="step", ylabel="value")
axis.legend(loc="upper right", ncols=3)
plt.show()
