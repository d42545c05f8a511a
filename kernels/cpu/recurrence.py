"""One layer in one direction over a batch: what runs the kernels for given sizes."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..cells import Cell
from ..layout import Statistics
from ..ragged import RaggedRows
from .layer import Schedule, layer_for
from .packed import Array, Weights
from .threads import Pace, allowed_threads, is_small
from .tuning import ROWS_WORTH_READING
from .workspace import Buffers, aligned


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
        self.form = self.layer.rows.value, self.layer.rows.unit
        self.work = self.layer.row_work * max(self.total, ROWS_WORTH_READING)
        self._kept_ends: Array | None = None
        self._kept_pace_work: int | None = None
        self._kept_gradients_buffers: Buffers | None = None
        self._nothing = self.layer.nothing
        self._no_step_input = np.empty((0, 0, 0), dtype)
        # Of calls so short that nothing about them is decided or noted each time.
        self._short_schedule: Schedule | None = None
        if is_small(self.work):
            self._short_schedule = self.layer.schedule(1, ragged)
            self._short_forward = functools.partial(self._short_schedule.forward, *ragged)

    def _schedule(self, pace: Pace) -> Schedule:
        """How the threads that may be used now run the loop."""
        threads = pace.choose(allowed_threads(self.work), self.pace_work())
        return self.layer.schedule(threads, self.ragged)

    def pace_work(self) -> int:
        """Multiply-adds, and what reading the weights of steps with few rows is worth in them."""
        if self._kept_pace_work is None:
            rows = np.diff(self.ragged.offset)
            rows = np.maximum(rows[rows > 0], ROWS_WORTH_READING)
            self._kept_pace_work = self.layer.row_work * int(rows.sum())
        return self._kept_pace_work

    def _gradients_buffers(self) -> Buffers:
        """Where the gradients of pre-activations come from."""
        if self._kept_gradients_buffers is None:
            self._kept_gradients_buffers = self.layer.gradients_buffers(self.ragged)
        return self._kept_gradients_buffers

    def _ends(self) -> Array:
        """Where the time blocks that backward takes end, the last ones first, and 0."""
        if self._kept_ends is None:
            offset, most = self.ragged.offset, self.layer.gradient_rows(len(self.ragged.order))
            if self.layer.cell.norm is not None:  # whose gradients depend on those of all rows
                most = self.total
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
        step_input: Array | None = None,
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
        step_input : (N, T, 1) array, optional
            For cells that take a number for each sample and step.

        Returns
        -------
        (…,) array
            The values kept; empty otherwise.
        """
        values = self._nothing
        if keep:
            values = aligned(self.total * self.layer.rows.value, self.layer.dtype)
        schedule, pace = self._short_schedule, None
        if schedule is None:
            pace, _ = self.layer.paces(len(self.ragged.order))
            schedule = self._schedule(pace)
            run = functools.partial(schedule.forward, *self.ragged)
            start = time.perf_counter()
        else:
            run = self._short_forward
        if len(initial) == 1:  # kernels are compiled for two members, see `build`
            initial, final_out = initial + initial, final_out + final_out
        if step_input is None:
            step_input = self._no_step_input
        work = schedule.forward_buffers.acquire()
        try:
            run(
                x, step_input, initial, layer, reverse, weights, y_out, final_out, values, keep,
                work, schedule.barrier(), 0, schedule.workers,
            )  # fmt: skip
        finally:
            schedule.forward_buffers.release(work)
        if pace is not None:
            pace.record(schedule.workers, time.perf_counter() - start, self.pace_work())
        return values

    def bound(
        self, weights: Array, initial: tuple[Array, ...], layer: int, final_out: tuple[Array, ...]
    ) -> Callable[[Array, Array, Array | None], None] | None:
        """`forward` in time order with everything but the sequences given, for a stream's steps.

        Parameters
        ----------
        weights, initial, layer, final_out
            As for `forward`.

        Returns
        -------
        callable or None
            Takes x, y_out and step_input, or None for the latter. None if calls may run on several
            threads: how they do is decided each time.
        """
        schedule = self._short_schedule
        if schedule is None:
            return None
        if len(initial) == 1:
            initial, final_out = initial + initial, final_out + final_out
        run, nothing, no_step_input = self._short_forward, self._nothing, self._no_step_input
        buffers, barrier, workers = schedule.forward_buffers, schedule.barrier(), schedule.workers
        acquire, release = buffers.acquire, buffers.release

        def forward(x: Array, y_out: Array, step_input: Array | None) -> None:
            if step_input is None:
                step_input = no_step_input
            work = acquire()
            run(
                x, step_input, initial, layer, False, weights, y_out, final_out, nothing, False,
                work, barrier, 0, workers,
            )  # fmt: skip
            release(work)

        return forward

    def statistics(self, weights: Weights, x: Array, reverse: bool) -> Statistics | None:
        """Of the input parts, for cells that normalise them over a batch; else None.

        Parameters
        ----------
        weights : mapping of str to array
            By name.
        x : (N, T, I) array
        reverse : bool
            As for `forward`.
        """
        norm = self.layer.norm
        return None if norm is None else norm.statistics(weights, x, reverse, self.ragged)

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
        statistics: Statistics | None = None,
        step_input: Array | None = None,
        dstep_out: Array | None = None,
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
        statistics : Statistics, optional
            Those that forward ran with, where input parts are normalised.
        dstep_out : (N, T, 1) array, optional
            The gradient of the step's input is added where a step is valid.

        Returns
        -------
        dict of str to array
            Gradients of the trainable weights, by name, in their order.
        """
        of = self.layer
        schedule, pace = self._short_schedule, None
        if schedule is None:
            _, pace = of.paces(len(self.ragged.order))
            schedule = self._schedule(pace)
        parts = of.backward(tuple(weights))
        run = parts.on(schedule)
        start = time.perf_counter()  # a kernel's compilation is not the pace of a call
        for number, member in enumerate(dinitial_out):
            member[layer] = 0 if dfinal is None else dfinal[number][layer]
        gradients = {name: np.empty(shape, of.dtype) for name, shape in parts.gradients}
        vectors = (*[gradients[name] for name in parts.vectors], *parts.no_vectors)
        if len(initial) == 1:
            initial, dinitial_out = initial + initial, dinitial_out + dinitial_out
        if dstep_out is None:
            dstep_out = self._no_step_input
        packed_inputs, norm = of.nothing, parts.no_norm
        if statistics is not None and of.norm is not None:
            packed_inputs = of.norm.packing.pack_plain(weights)
            norm = of.norm.for_backward(weights, statistics)
        by_columns, sums_buffers = parts.by_columns, parts.sums_buffers(self.total)
        packed, d_buffers = by_columns.pack(weights), self._gradients_buffers()
        sums, d, work = (
            sums_buffers.acquire(), d_buffers.acquire(), schedule.backward_buffers.acquire()
        )  # fmt: skip
        constants = np.empty(parts.constants_shape, of.dtype)
        try:
            run(
                self._ends(), *self.ragged, y if dy is None else dy, dy is not None, layer, x, y,
                initial, reverse, packed, values, packed_inputs, norm, dx_out, dstep_out,
                dinitial_out, gradients.get(parts.input_name, of.no_weight),
                gradients.get(parts.recurrent_name, of.no_weight), constants, vectors, d, sums,
                work, schedule.barrier(),
            )  # fmt: skip
        finally:
            by_columns.give_back(packed)
            sums_buffers.release(sums)
            d_buffers.release(d)
            schedule.backward_buffers.release(work)
        if of.norm is not None:
            gradients.update(of.norm.gradients(weights, norm))
            gradients = {name: gradients[name] for name in weights if name in gradients}
            of.norm.packing.give_back(packed_inputs)
        if pace is not None:
            pace.record(schedule.threads, time.perf_counter() - start, self.pace_work())
        return gradients
