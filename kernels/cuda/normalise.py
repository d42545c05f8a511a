"""Normalisers: of a row's recurrent sums, by kernels; of input parts over a batch, by CuPy.

See `LayerNorm` and `BatchNorm`. Every sum has a fixed order. Those over a row are sums of the
dtype, by a tree; those over a batch are float64. A batch norm needs the input parts of all rows
before the first step, and all gradients before those of W and of x: input parts are computed anew
for it, some rows at a time. Forward runs with the norm folded into the weights.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from ..cells import NORM_SCALE, NORM_SHIFT, Cell
from ..layout import Statistics, phase_plans
from . import tuning
from .reduction import make_block_sum

# Elements that `Moments` and `InputNormGradient` need for one of the input parts at once, itself
# included: float64 takes two of float32.
ELEMENTS_PER_INPUT_PART = 7


def make_normalise(cell: Cell, number: int, dtype: np.dtype[Any]) -> Callable[..., None]:
    """Build the kernel that normalises the recurrent sums of a phase, for all rows of a step.

    A block takes a row.
    """
    phase, part = cell.phases[number], phase_plans(cell)[number]
    gates, first_constant, first_value = (
        part.recurrents,
        part.first_recurrent,
        part.first_norm_value,
    )
    threads, block_sum = tuning.SUM_THREADS, make_block_sum(1)
    shape, kind = (1, threads), types.float32 if dtype.itemsize == 4 else types.float64
    # Numbers of the dtype: bare ones would turn float32 arithmetic into float64.
    real = dtype.type
    zero, one, eps = real(0), real(1), real(phase.norm.eps if phase.norm else 0)

    def normalise(
        h_sums,  # (N, recurrent gates of the phase, H): U times the operand
        constants,  # (1, pre-activations, H): sums of biases
        values,  # (rows, values, H): the normalised sums, and one over their deviation in the
        #          first unit, are written
        value_start,  # the step's first row in `values`
    ):
        row, thread = cuda.blockIdx.x, cuda.threadIdx.x
        value_row, H = value_start + row, h_sums.shape[2]
        partial = cuda.shared.array(shape, kind)
        count = real(gates * H)

        total = zero
        for gate in range(gates):
            unit = thread
            while unit < H:
                total += h_sums[row, gate, unit] + constants[0, first_constant + gate, unit]
                unit += threads
        partial[0, thread] = total
        block_sum(partial)
        mean = partial[0, 0] / count
        cuda.syncthreads()  # before it is overwritten

        squares = zero
        for gate in range(gates):
            unit = thread
            while unit < H:
                u = h_sums[row, gate, unit] + constants[0, first_constant + gate, unit]
                squares += (u - mean) * (u - mean)
                unit += threads
        partial[0, thread] = squares
        block_sum(partial)
        scale = one / real(math.sqrt(partial[0, 0] / count + eps))

        for gate in range(gates):
            unit = thread
            while unit < H:
                u = h_sums[row, gate, unit] + constants[0, first_constant + gate, unit]
                values[value_row, first_value + gate, unit] = (u - mean) * scale
                unit += threads
        if thread == 0:
            values[value_row, first_value + gates, 0] = scale

    return normalise


def make_normalise_backward(cell: Cell, number: int, dtype: np.dtype[Any]) -> Callable[..., None]:
    """Build the kernel that turns gradients of normalised sums into those of the sums.

    With g those gradients and u the normalised sums: ``(g - mean of g - u * mean of g u) /
    deviation``.
    """
    part = phase_plans(cell)[number]
    gates, first_gate, first_value = part.recurrents, part.recurrents_before, part.first_norm_value
    threads, block_sum = tuning.SUM_THREADS, make_block_sum(2)
    shape, kind = (2, threads), types.float32 if dtype.itemsize == 4 else types.float64
    real = dtype.type
    zero = real(0)

    def normalise_backward(
        values,  # (packed rows, values, H): what `normalise` wrote
        d_hh,  # (packed rows of the time block, recurrent gates, H); those of the phase change
        packed_start,  # the step's first row in `d_hh`
        value_start,  # the step's first row in `values`
    ):
        thread, H = cuda.threadIdx.x, d_hh.shape[2]
        row, value_row = packed_start + cuda.blockIdx.x, value_start + cuda.blockIdx.x
        partial = cuda.shared.array(shape, kind)
        count = real(gates * H)

        total, along = zero, zero
        for gate in range(gates):
            unit = thread
            while unit < H:
                g = d_hh[row, first_gate + gate, unit]
                total += g
                along += g * values[value_row, first_value + gate, unit]
                unit += threads
        partial[0, thread], partial[1, thread] = total, along
        block_sum(partial)
        mean, slope = partial[0, 0] / count, partial[1, 0] / count
        scale = values[value_row, first_value + gates, 0]

        for gate in range(gates):
            unit = thread
            while unit < H:
                g = d_hh[row, first_gate + gate, unit]
                own = g - mean - values[value_row, first_value + gate, unit] * slope
                d_hh[row, first_gate + gate, unit] = own * scale
                unit += threads

    return normalise_backward


class Moments:
    """Mean and variance of the columns of matrices, joined one after the other."""

    def __init__(self, xp: Any, columns: int) -> None:
        self._rows = 0
        self._mean, self._squares = xp.zeros(columns, np.float64), xp.zeros(columns, np.float64)

    def add(self, part: Any) -> None:
        """Take in a matrix, (rows, columns), with at least one row."""
        rows = len(part)
        joined = self._rows + rows
        mean = part.sum(axis=0, dtype=np.float64) / rows
        centred = part - mean
        moved = mean - self._mean
        self._mean += moved * (rows / joined)
        self._squares += (centred * centred).sum(axis=0)
        self._squares += moved * moved * (self._rows * rows / joined)
        self._rows = joined

    def statistics(self) -> Statistics:
        """Of all rows so far."""
        return Statistics(self._mean, self._squares / max(1, self._rows), self._rows)


class InputNormGradient:
    """What turns gradients of normalised input parts into those of W x.

    With g the gradient of ``scale * a + shift``, a normalised: the gradient of W x is
    ``scale / deviation * (g - mean of g - a * mean of g a)``. So all rows are taken in first.
    """

    def __init__(self, xp: Any, cell: Cell, weights: Any, statistics: Statistics) -> None:
        if cell.norm is None:
            raise ValueError(f"cell {cell.name!r}: expected one with batch norm")
        mean, variance, self._rows = statistics
        self._mean, self._over = mean, (variance + cell.norm.eps) ** -0.5
        self._names = {
            kind: w.name for kind in (NORM_SCALE, NORM_SHIFT) if (w := cell.weight_of(kind))
        }
        self._factor = weights[self._names[NORM_SCALE]] * self._over
        self._along, self._plain = (xp.zeros(mean.shape, np.float64) for _ in range(2))

    def add(self, sums: Any, d: Any) -> None:
        """Take in rows of W x and of g, (rows, columns)."""
        self._along += (d * ((sums - self._mean) * self._over)).sum(axis=0)
        self._plain += d.sum(axis=0, dtype=np.float64)

    def transform(self, sums: Any, d: Any) -> None:
        """Turn g into the gradient of W x, given all rows."""
        along, plain = self._along / self._rows, self._plain / self._rows
        d[...] = self._factor * (d - plain - (sums - self._mean) * (self._over * along))

    def gradients(self, weights: Any) -> dict[str, Any]:
        """Gradients of scale and shift, by name, of those that there are."""
        found = {NORM_SCALE: self._along, NORM_SHIFT: self._plain}
        return {
            name: found[kind].astype(weights[name].dtype)
            for kind, name in self._names.items()
            if name in weights
        }
