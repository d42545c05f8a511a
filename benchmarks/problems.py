"""What is computed when speed is measured: one layer with its inputs, of one of these shapes.

asv runs this at earlier commits too: of fastgru it uses what has long been there.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastgru
from fastgru.kernels.cells import CELLS

Array = NDArray[Any]
Shape = tuple[int, int, int, int]  # T, B, I, H

# fmt: off
SHAPES: tuple[Shape, ...] = (
    (1, 1, 16, 32), (100, 1, 16, 32), (1000, 1, 8, 16), (100, 1, 64, 128), (100, 1, 256, 256),
    (100, 1, 512, 512), (50, 32, 32, 32), (100, 32, 64, 128), (100, 64, 128, 256),
    (50, 64, 256, 512), (50, 128, 512, 512), (25, 64, 1024, 1024), (100, 256, 64, 64),
    (24, 1024, 8, 64),
)
# fmt: on
# A handful: a small stream, a larger one, a batch, and a layer that is bound by arithmetic.
FEW_SHAPES = tuple(SHAPES[k] for k in (1, 3, 7, 9))
MODES = {
    "forward": "forward (inference, weights prepared beforehand)",
    "train": "forward + backward (gradients of x, h0 and all weights, which change every time)",
    "step": "one time step of one stream (weights prepared beforehand, the state fed back)",
}


def shape_of(text: str) -> Shape:
    """A shape given as T,B,I,H."""
    T, B, I, H = (int(size) for size in text.split(","))
    if min(T, B, I, H) < 1:
        raise ValueError(text)
    return T, B, I, H


def shapes_for(mode: str, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """These shapes as a mode has them: a step is of one row and one time step."""
    if mode == "step":
        return tuple(dict.fromkeys((1, 1, I, H) for _, _, I, H in shapes))
    return shapes


@dataclass(frozen=True)
class Problem:
    """One layer with its inputs; x and dy are (B, T, features), states are tuples of (B, H)."""

    cell: str
    params: fastgru.Params
    x: Array
    states: tuple[Array, ...]
    dy: Array
    attention: Array | None = None  # (B, T), for cells that take a number a sample and step

    @classmethod
    def draw(cls, cell: str, T: int, B: int, I: int, H: int, dtype: str) -> "Problem":
        """Random weights, inputs and gradients; always the same for the same arguments."""
        rng = np.random.default_rng([T, B, I, H])

        def normal(*shape: int) -> Array:
            return rng.normal(size=shape).astype(dtype)

        params = fastgru.init_params(I, H, cell=cell, dtype=dtype, rng=rng)
        states = tuple(np.tanh(normal(B, H)) for _ in CELLS[cell].states)
        if cell == "libru":  # whose states are probabilities
            states = tuple(0.5 + 0.5 * state for state in states)
        x, dy = normal(B, T, I), normal(B, T, H)
        takes = bool(getattr(CELLS[cell], "step_inputs", ()))  # which earlier cells lack
        attention = rng.random(size=(B, T)).astype(dtype) if takes else None
        return cls(cell, params, x, states, dy, attention)

    def on(self, library: str) -> "Problem":
        """The same problem with arrays of another library, "numpy" or "cupy"."""
        move = importlib.import_module(library).asarray
        states = tuple(move(state) for state in self.states)
        attention = None if self.attention is None else move(self.attention)
        params = self.params.map(move)
        return Problem(self.cell, params, move(self.x), states, move(self.dy), attention)

    def step_inputs(self, t: int | slice = slice(None)) -> dict[str, Any]:
        """Arguments that the cell takes beside x, of all steps or one; earlier ones take none."""
        return {} if self.attention is None else {"attention": self.attention[:, t]}

    def row_steps(self, mode: str) -> int:
        """Time steps that a call computes, counted for every row of the batch."""
        B, T, _ = self.x.shape
        return int(B if mode == "step" else B * T)

    def flops(self, mode: str) -> int:
        """Operations of the products of a call; backward has twice those of forward."""
        of_row = sum(array.size for array in self.params.to_dict().values() if array.ndim == 2)
        once = 2 * self.row_steps(mode) * of_row
        return int(3 * once if mode == "train" else once)

    @property
    def weights(self) -> dict[str, Array]:
        """The weights by PyTorch's names, without the layer: weight_ih, weight_hh and biases."""
        return dict(self.params.layers[0][0].items())

    @property
    def x_time_major(self) -> Array:
        """x as a contiguous (T, B, I) array."""
        return np.ascontiguousarray(self.x.transpose(1, 0, 2))
