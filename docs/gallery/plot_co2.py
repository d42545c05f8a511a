"""
Forecast the CO2 record of Mauna Loa
====================================

A GRU reads the last two years of a weekly series. A linear read-out of its last state gives the
change over each of the next 12 weeks at once. It trains on 1958 to 1996 and forecasts five years
that it has not seen.

:mod:`fastgru.demo` has the recipe, to copy: windows, scaling, read-out, Adam, clipped gradients.
Here are fewer passes over the data than ``python -m fastgru demo`` makes, and one seed.
"""

# %%
# The series, cut into windows
# ----------------------------
# No training window, and no number that scales, depends on the held-out weeks.

import matplotlib.pyplot as plt
import numpy as np

from fastgru import demo

problem = demo.prepare(*demo.load_co2())
print("training windows:", problem.x_train.shape, "targets:", problem.y_train.shape)

# %%
# Training
# --------

result = demo.run("gru", epochs=8, hidden_size=24, seed=0, problem=problem)
print(f"loss of the first and last pass: {result.losses[0]:.3f} {result.losses[-1]:.3f}")

# %%
# Forecasts
# ---------
# Every 12 weeks a new forecast, beside what was measured.

HORIZON = demo.HORIZON
shown = slice(problem.held_out - demo.YEAR, None)
origins = problem.test_origins[::HORIZON]
weeks = origins[:, None] + np.arange(1, HORIZON + 1)

figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
axis.plot(problem.dates[shown], problem.ppm[shown], ".", ms=4, color="0.6", label="measured")
axis.axvline(problem.dates[problem.held_out], color="0.3", ls=":", label="held out from here")
lines = axis.plot(problem.dates[weeks].T, result.forecast[::HORIZON].T, color="C0", lw=2)
lines[0].set_label("GRU, a new forecast every 12 weeks")
axis.set(title="Weekly CO$_2$ at Mauna Loa", xlabel="date", ylabel="CO$_2$ (ppm)")
axis.legend(loc="lower right")
plt.show()

# %%
# Beside forecasts that need no training
# --------------------------------------

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
ahead = np.arange(1, HORIZON + 1)
axis.plot(ahead, result.error, "o-", label="GRU")
for name, error in result.naive_errors.items():
    axis.plot(ahead, error, "--", label=name)
axis.set(xlabel="weeks ahead", ylabel="mean absolute error (ppm)", xticks=ahead)
axis.set_ylim(bottom=0)
axis.legend()
plt.show()
