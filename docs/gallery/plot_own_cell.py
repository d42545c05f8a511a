"""
A cell of your own
==================

An LSTM whose gates are hard sigmoids: straight lines that end at 0 and 1. Old models of Keras have
them. The cell is a module of its own, as its functions must be found by whatever compiles and keeps
them:

.. literalinclude:: /gallery/hard_lstm.py
"""

# %%
# Check it and make it known
# --------------------------
# ``check_cell`` compares every derivative with the equations. After ``register_cell``, all
# functions take the name.

import matplotlib.pyplot as plt
import numpy as np
from hard_lstm import HARD_LSTM, hard

import fastgru

fastgru.check_cell(HARD_LSTM)
if HARD_LSTM.name not in fastgru.cells():
    fastgru.register_cell(HARD_LSTM)

# %%
# Equations are plain Python, too, so they can be drawn:

a = np.linspace(-5, 5, 201)
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(a, 1 / (1 + np.exp(-a)), label="sigmoid")
axis.plot(a, hard(a), label="hard sigmoid")
axis.set(xlabel="a")
axis.legend()
plt.show()

# %%
# Use it
# ------
# Weights have the names and shapes of an LSTM's, so both cells can take the same ones.

lstm = fastgru.init_params(2, 32, cell="lstm", rng=0)
params = fastgru.Params.from_dict(lstm.to_dict(), cell="hard_lstm")
x = np.random.default_rng(0).normal(size=(16, 60, 2)).astype("float32")
y, (h_n, c_n), saved = fastgru.forward_train(x, params)
gradients = fastgru.backward(saved, dy=np.ones_like(y))
print(gradients.params)

# %%
# Its gradients are computed as those of the other cells are. Side by side, three units of the two
# cells:

usual, _ = fastgru.forward(x, lstm)
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for unit in range(3):
    axis.plot(usual[0, :, unit], f"C{unit}-", label="lstm" if unit == 0 else None)
    axis.plot(y[0, :, unit], f"C{unit}--", label="hard_lstm" if unit == 0 else None)
axis.set(xlabel="step", ylabel="h")
axis.legend()
plt.show()
