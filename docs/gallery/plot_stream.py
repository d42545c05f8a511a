"""
Watch a stream, step by step
============================

A network that has learnt what comes next notices what it did not expect. Here nothing but a
read-out is learnt: the GRU keeps its random weights, and least squares finds the rest. Then a
stream comes in, one number at a time, with two faults in it.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastgru


def signal(steps, rng):
    """Two tones and some noise."""
    t = np.arange(steps)
    clean = np.sin(t / 6) + 0.5 * np.sin(t / 2.3)
    return (clean + 0.05 * rng.normal(size=steps)).astype("float32")


# %%
# Learn what comes next
# ---------------------
# States of all steps come from one call; the read-out maps each to the next number.

everything = signal(2600, np.random.default_rng(0))
past, stream = everything[:2000], everything[2000:].copy()
params = fastgru.init_params(input_size=1, hidden_size=48, rng=0)
states, h = fastgru.forward(past[:-1, None], params)  # one sequence, without an axis of samples
known = slice(100, None)  # the first steps begin from nothing
design = np.column_stack([states[known], np.ones(len(states[known]))]).astype("float64")
ridge = 1e-7 * np.eye(design.shape[1])
readout = np.linalg.solve(design.T @ design + ridge, design.T @ past[1:][known])
residual = past[1:][known] - design @ readout
limit = 4.5 * residual.std()
print(f"usual error {residual.std():.3f}, alarm above {limit:.3f}")

# %%
# The stream
# ----------
# ``step`` takes one number and the state, and gives the next state. It goes on from the state that
# ``forward`` ended with. Weights are packed once.

stream[200:206] += 0.8  # a jump
stream[410:450] = stream[410]  # a sensor that hangs

weights = fastgru.pack(params)
y_t, h = fastgru.step(past[-1:], weights, h)
errors = np.zeros(600)
for t, value in enumerate(stream):
    errors[t] = value - (y_t @ readout[:-1] + readout[-1])  # measured, and what was expected
    y_t, h = fastgru.step(np.array([value]), weights, h)

alarms = np.flatnonzero(np.abs(errors) > limit)
print(f"alarms before the first fault: {np.sum(alarms < 200)}")
print("first alarm of each fault:", alarms[alarms >= 200][0], alarms[alarms >= 410][0])

# %%
figure, (top, bottom) = plt.subplots(2, figsize=(9, 5), sharex=True, layout="constrained")
top.plot(stream, lw=1)
top.plot(alarms, stream[alarms], "r.", label="alarm")
top.set(ylabel="stream", xlim=(0, 600))
top.legend()
bottom.plot(np.abs(errors), lw=1)
bottom.axhline(limit, color="r", ls=":")
bottom.set(xlabel="step", ylabel="error", ylim=(0, None))
plt.show()
