"""One layer in one direction over a batch: what runs the kernels for given sizes."""

import functools
import time
from typing import Any

import numpy as np

from ..cells import Cell
from ..ragged import RaggedRows
from .layer import Way, layer_for
from .memory import aligned
from .threads import Pace, allowed_threads, is_small
from .weights import Array, Weights

# Reading the weights of a step takes as long as multiplying them with so many rows. Each thread's
# share stays in its own cache: a step of an LSTM of 256 units, 2 MB, takes 25 to 40 µs with two
# threads and 57 to 75 with one.
_ROWS_WORTH_READING = 3


class Recurrence:
    """One layer in one direction: the kernels, and how they are run for given sizes.

    It holds no data, so it serves any number of calls, at once too.

    Parameters
    ----------
    cell : Cell
    input_size, hidden_size : int
    dtype : numpy.dtype
    ragged : RaggedRows
        Of `ragged_rows`.

    Attributes
    ----------
    form : tuple
        What decides the layout of the values kept, beside the rows: it depends on the CPU.
    """

    def __init__(
        self, cell: Cell, input_size: int, hidden_size: int, dtype: Any, ragged: RaggedRows
    ) -> None:
        self.layer = layer_for(cell, input_size, hidden_size, dtype)
        self.ragged = ragged
        self.total = ragged.total
        self.form = self.layer.size.value, self.layer.size.unit
        self.work = self.layer.row_work * max(self.total, _ROWS_WORTH_READING)
        self._kept_ends: Array | None = None
        self._kept_pace_work: int | None = None
        self._nothing = self.layer.nothing
        # Of calls so short that nothing about them is decided or noted each time.
        self._short_way: Way | None = None
        if is_small(self.work):
            self._short_way = self.layer.way(1, ragged)
            self._short_forward = functools.partial(self._short_way.forward, *ragged)

    def _way(self, pace: Pace) -> Way:
        """How the threads that may be used now run the loop."""
        threads = pace.choose(allowed_threads(self.work), self.pace_work())
        return self.layer.way(threads, self.ragged)

    def pace_work(self) -> int:
        """Multiply-adds, and what reading the weights of steps with few rows is worth in them."""
        if self._kept_pace_work is None:
            rows = np.diff(self.ragged.offset)
            rows = np.maximum(rows[rows > 0], _ROWS_WORTH_READING)
            self._kept_pace_work = self.layer.row_work * int(rows.sum())
        return self._kept_pace_work

    def _ends(self) -> Array:
        """Where the blocks of steps that backward takes end, the last ones first, and 0."""
        if self._kept_ends is None:
            offset, most = self.ragged.offset, self.layer.gradient_rows(len(self.ragged.order))
            ends = [len(offset) - 1]
            while ends[-1] > 0:
                first = int(np.searchsorted(offset, offset[ends[-1]] - most))
                ends.append(min(first, ends[-1] - 1))
            self._kept_ends = np.array(ends if len(ends) > 1 else [0, 0], np.intp)
        return self._kept_ends

    def forward(
        self,
        weights: Array,
        x: Array,
        initial: tuple[Array, ...],
        layer: int,
        reverse: bool,
        y_out: Array,
        final_out: tuple[Array, ...],
        keep: bool,
    ) -> Array:
        """Write y and the final state.

        Parameters
        ----------
        weights : array
            Of `Packing.pack`.
        x : (N, T, I) array
        initial, final_out : tuple of (layers * directions, N, H) arrays
            For each member of the state; `layer` is the index into them.
        layer : int
        reverse : bool
            Walk each row from its last step to its first.
        y_out : (N, T, H) array
            Written where a step is valid.
        keep : bool
            Keep the values that backward needs.

        Returns
        -------
        (…,) array
            The values kept; empty otherwise.
        """
        values = self._nothing
        if keep:
            values = aligned(self.total * self.layer.size.value, self.layer.dtype)
        way, pace = self._short_way, None
        if way is None:
            pace, _ = self.layer.paces(len(self.ragged.order))
            way = self._way(pace)
            run = functools.partial(way.forward, *self.ragged)
            start = time.perf_counter()
        else:
            run = self._short_forward
        work = way.forward_shelf.borrow()
        try:
            run(
                x, initial, layer, reverse, weights, y_out, final_out, values, keep, work,
                way.meeting(), 0, way.workers,
            )  # fmt: skip
        finally:
            way.forward_shelf.give_back(work)
        if pace is not None:
            pace.record(way.workers, time.perf_counter() - start, self.pace_work())
        return values

    def backward(
        self,
        weights: Weights,
        x: Array,
        initial: tuple[Array, ...],
        layer: int,
        reverse: bool,
        y: Array,
        values: Array,
        dy: Array | None,
        dfinal: tuple[Array, ...] | None,
        dx_out: Array,
        dinitial_out: tuple[Array, ...],
    ) -> dict[str, Array]:
        """Gradients of everything, from those of y and of the final state.

        Parameters are those of `forward`, with `values` what it kept, and

        Parameters
        ----------
        weights : mapping of str to array
            By name; those absent are missing.
        dy : (N, T, H) array or None
            Gradient of y; read where a step is valid.
        dfinal, dinitial_out : tuple of (layers * directions, N, H) arrays
            Gradients of the final state, or None for zeros, and of the initial state.
        dx_out : (N, T, I) array
            The gradient of x is added where a step is valid.

        Returns
        -------
        dict of str to array
            Gradients of the weights, by name.
        """
        of = self.layer
        way, pace = self._short_way, None
        if way is None:
            _, pace = of.paces(len(self.ragged.order))
            way = self._way(pace)
        run = of.backward.on(way)
        start = time.perf_counter()  # a kernel's compilation is not the pace of a call
        for number, member in enumerate(dinitial_out):
            member[layer] = 0 if dfinal is None else dfinal[number][layer]
        gradients = {name: np.empty(w.shape, of.dtype) for name, w in weights.items()}
        by_columns, sums_shelf = of.backward.by_columns, of.backward.sums_shelf(self.total)
        packed, d_shelf = by_columns.pack(weights), of.gradients_shelf(self.ragged)
        sums, d, work = sums_shelf.borrow(), d_shelf.borrow(), way.backward_shelf.borrow()
        try:
            run(
                self._ends(), *self.ragged, y if dy is None else dy, dy is not None, layer, x, y,
                initial, reverse, packed, values, dx_out, dinitial_out,
                gradients["weight_ih"], gradients.get("weight_hh", of.no_weight),
                gradients.get("bias_ih", of.nothing), gradients.get("bias_hh", of.nothing),
                d, sums, work, way.meeting(),
            )  # fmt: skip
        finally:
            by_columns.give_back(packed)
            sums_shelf.give_back(sums)
            d_shelf.give_back(d)
            way.backward_shelf.give_back(work)
        if pace is not None:
            pace.record(way.threads, time.perf_counter() - start, self.pace_work())
        return gradients
