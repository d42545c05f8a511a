"""Sequences and their targets, as `fit` takes them."""

from typing import Any, NamedTuple

from ..check import library_of as check_library
from ..check_calls import check_lengths
from .check import check_sequences
from .tree import library_of


class Data(NamedTuple):
    """Sequences and their targets.

    Attributes
    ----------
    x : (N, T, I) array
    y : array
        Targets, as the loss takes them.
    lengths : (N,) array of int, or None
    weight : (N,) or (N, T) array, or None
    of_steps : bool
        Whether targets are of steps.
    """

    x: Any
    y: Any
    lengths: Any
    weight: Any
    of_steps: bool

    def rows(self, rows: Any) -> "Data":
        """Some samples, without the steps that none of them has."""
        weight = None if self.weight is None else self.weight[rows]
        lengths = None if self.lengths is None else self.lengths[rows]
        data = Data(self.x[rows], self.y[rows], lengths, weight, self.of_steps)
        if lengths is None or not len(lengths):
            return data
        return data.steps(0, max(1, int(lengths.max())))

    def steps(self, first: int, end: int) -> "Data":
        """Some steps, of the same lengths."""
        part = slice(first, end)
        y = self.y[:, part] if self.of_steps else self.y
        weight = self.weight
        if weight is not None and weight.ndim > 1:
            weight = weight[:, part]
        return self._replace(x=self.x[:, part], y=y, weight=weight)

    @property
    def counts(self) -> bool:
        """Whether anything has a weight."""
        weight = self.weight
        if weight is None:
            return True
        if self.of_steps and self.lengths is not None:
            xp = library_of(weight)
            valid = xp.arange(self.x.shape[1]) < xp.asarray(self.lengths)[:, None]
            weight = xp.where(valid, weight if weight.ndim > 1 else weight[:, None], 0)
        return bool((weight != 0).any())


def checked_data(name: str, data: tuple[Any, ...], of_steps: bool) -> Data:
    """Data of the user's, if its parts fit each other."""
    x, y, lengths, weight = (*data, None, None)[:4]
    check_sequences(f"{name}x", x)
    check_library(f"{name}y", y)
    if weight is not None:
        check_library(f"{name}weight", weight)
    if not len(x):
        raise ValueError(f"{name}x: expected at least one sample, got none")
    for part, array in (("y", y), ("weight", weight)):
        if array is not None and array.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"{name}{part}: expected {len(x)} samples, as x has, got shape {array.shape}"
            )
    if lengths is not None:
        lengths = check_lengths(lengths, True, *x.shape[:2])
    if of_steps and y.shape[1:2] != x.shape[1:2]:
        raise ValueError(
            f"{name}y: expected targets of {x.shape[1]} steps, as the model puts out "
            f"(pooling='steps'), got shape {y.shape}"
        )
    shapes = [x.shape[:1], x.shape[:2]] if of_steps else [x.shape[:1]]
    if weight is not None and weight.shape not in shapes:
        raise ValueError(
            f"{name}weight: expected shape {' or '.join(map(str, shapes))}, got {weight.shape}"
        )
    return Data(x, y, lengths, weight, of_steps)
