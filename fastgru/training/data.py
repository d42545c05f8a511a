"""Sequences and their targets, as `fit` takes them."""

from typing import Any, NamedTuple

import numpy as np


class Data(NamedTuple):
    """Sequences and their targets.

    Attributes
    ----------
    x : (N, T, I) array
    y : array
        Targets, as the loss takes them.
    lengths : (N,) array of int, or None
    weight : (N,) array, or None
    """

    x: Any
    y: Any
    lengths: Any = None
    weight: Any = None

    def rows(self, rows: Any) -> "Data":
        """Some samples, without the steps that none of them has."""
        x, y = self.x[rows], self.y[rows]
        weight = None if self.weight is None else self.weight[rows]
        lengths = None if self.lengths is None else self.lengths[rows]
        if lengths is None or not len(lengths):
            return Data(x, y, lengths, weight)
        longest = max(1, int(lengths.max()))
        if y.ndim > 1 and y.shape[1] == x.shape[1] and longest < x.shape[1]:
            y = y[:, :longest]
        return Data(x[:, :longest], y, lengths, weight)


def checked_data(name: str, data: Any, of_steps: bool) -> Data:
    """Data of the user's, if its parts fit each other."""
    made = Data(*data)
    if made.lengths is not None:
        made = made._replace(lengths=np.asarray(made.lengths))
    for part, array in zip(Data._fields, made, strict=True):
        if array is not None and len(array) != len(made.x):
            raise ValueError(
                f"{name}{part}: expected {len(made.x)} samples, as x has, got {len(array)}"
            )
    if of_steps and made.y.shape[1:2] != made.x.shape[1:2]:
        raise ValueError(
            f"{name}y: expected targets of {made.x.shape[1]} steps, as the model puts out "
            f"(pooling='steps'), got shape {made.y.shape}"
        )
    return made
