"""What all calls of one cell, dtype and size of a layer share: kernels, workspace, pace of calls.

Calls come with batches of all sizes and lengths; what does not depend on them is prepared once.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cells import INPUT, NORM_SCALE, NORM_SHIFT, RECURRENT, Cell
from ..layout import (
    Statistics,
    backward_workspace,
    forward_workspace,
    multiply_adds,
    rows_of,
    vector_weights,
)
from ..ragged import RaggedRows
from . import build, tables
from .backward import LoopPlan
from .barrier import BARRIER_WORDS
from .gradients import needs_totals
from .normalise import norm_worker_size
from .packed import Array, Packing, Weights, flat, vector_places
from .threads import Pace, split
from .tuning import (
    GRADIENT_BLOCK_BYTES,
    GRADIENT_BLOCK_ROWS,
    GRADIENT_BLOCK_STEPS,
    INPUT_WEIGHTS_PER_BLOCK,
    LARGEST_GRADIENT_BLOCK_BYTES,
    TIME_BLOCK_BYTES,
)
from .workspace import Buffers, pool

# Schedules that are kept: calls with lengths have many.
_KEPT_SCHEDULES = 256

_NO_BARRIER = np.empty(0, np.intp)


@dataclass(slots=True, eq=False)
class Schedule:
    """How threads run the loops, and what memory that takes."""

    threads: int  # that may be used
    workers: int  # threads that the loops use
    is_team: bool  # whether they share each row block's units
    forward_buffers: Buffers  # where forward's workspace comes from
    forward: Callable[..., None]  # the kernel with its table
    backward_buffers: Buffers
    backward_plan: tuple[LoopPlan, int]  # and rows at once
    backward: dict["Backward", Callable[..., None]]  # with all of its tables, once called for

    def barrier(self) -> Array:
        """A new barrier for the workers; empty if they are no team."""
        return np.zeros(BARRIER_WORDS, np.intp) if self.is_team else _NO_BARRIER


class Layer:
    """One layer's cell, sizes and dtype, whatever the rows.

    Attributes
    ----------
    rows : layout.Rows
        Lengths of rows of flat memory.
    row_work : int
        Multiply-adds of the forward pass of one packed row.
    states : int
        Members that a state is passed with.
    nothing, no_weight : array
        What stands for arrays that are not there.
    """

    def __init__(self, cell: Cell, input_size: int, hidden_size: int, dtype: np.dtype[Any]) -> None:
        self.cell, self.dtype, self.I, self.H = cell, dtype, input_size, hidden_size
        self.lanes = build.lanes(dtype)
        self.rows = rows_of(cell, input_size, hidden_size, self.lanes)
        self.row_work = multiply_adds(cell, input_size, hidden_size)
        self.states = build.states_passed(len(cell.states))
        self.nothing, self.no_weight = np.empty(0, dtype), np.empty((0, 0), dtype)
        self._kernel = build.forward_kernel(self.states, dtype)
        # Their machine code is there as long as they are, and is called by its address.
        self.kernels = tables.forward_kernels(cell, dtype)
        self._pool = pool(dtype)
        self._schedules: dict[tuple[int, int, int, float], Schedule] = {}
        self._paces: dict[int, tuple[Pace, Pace]] = {}
        self._backwards: dict[tuple[str, ...], Backward] = {}
        self._norm: Norm | None = None

    def paces(self, rows: int) -> tuple[Pace, Pace]:
        """How fast forward and backward are, of calls with about so many rows."""
        key = rows.bit_length()
        found = self._paces.get(key)
        if found is None:
            found = self._paces.setdefault(key, (Pace(), Pace()))
        return found

    def schedule(self, threads: int, ragged: RaggedRows) -> Schedule:
        """How so many threads run the loops."""
        rows, steps = len(ragged.order), len(ragged.offset) - 1
        # Steps of padding after the longest row do not count. One thread takes all rows anyway.
        running = 0.0 if threads == 1 else ragged.total / max([1, *ragged.lengths[:1]])
        key = threads, rows, steps, running
        found = self._schedules.get(key)
        if found is None:
            if len(self._schedules) >= _KEPT_SCHEDULES:
                self._schedules.clear()
            found = self._schedules.setdefault(key, self._schedule_for(*key))
        return found

    def _schedule_for(self, threads: int, rows: int, all_steps: int, running: float) -> Schedule:
        itemsize = self.dtype.itemsize
        # A row that is normalised stays on one thread: its sums have one order.
        has_row_norm = any(phase.norm for phase in self.cell.phases)
        shares = 1 if has_row_norm else self.rows.unit // self.lanes
        recurrent_bytes = multiply_adds(self.cell, 0, self.H) * itemsize
        row_bytes = self.row_work * itemsize
        how = split(threads, rows, running, shares, row_bytes, recurrent_bytes)
        buffer_bytes = how.rows * (self.rows.x + self.rows.pre) * itemsize
        input_bytes = len(self.cell.input_gates) * self.H * self.I * itemsize
        block_bytes = max(TIME_BLOCK_BYTES, input_bytes // INPUT_WEIGHTS_PER_BLOCK)
        steps = max(1, min(block_bytes // buffer_bytes, all_steps))
        states = len(self.cell.states)
        workspace = forward_workspace(self.rows, states, how.rows, steps)
        backward = max(
            backward_workspace(self.rows, states, how.rows).size,
            tables.gradients_worker_size(self),
            norm_worker_size(self.rows.x, self.rows.pre) if self.cell.norm else 0,
        )
        table = tables.forward_table(self, self.kernels, workspace, how.rows, steps)
        return Schedule(
            threads,
            how.workers,
            how.shared,
            self._pool.buffers(how.workers * workspace.size),
            functools.partial(self._kernel.on(how.workers), table),
            self._pool.buffers(threads * backward),
            (LoopPlan(backward, how.workers, threads), how.rows),
            {},
        )

    def gradient_rows(self, rows: int) -> int:
        """Packed rows that backward takes at once, in whole steps and at least one of them."""
        row_bytes = self.rows.pre * self.dtype.itemsize
        some_steps = GRADIENT_BLOCK_STEPS * rows
        return max(
            GRADIENT_BLOCK_BYTES // row_bytes,
            GRADIENT_BLOCK_ROWS,
            min(some_steps, LARGEST_GRADIENT_BLOCK_BYTES // row_bytes),
        )

    def gradients_buffers(self, ragged: RaggedRows) -> Buffers:
        """Where the gradients of the pre-activations of a time block come from."""
        rows, packed_rows = len(ragged.order), ragged.total
        if self.cell.norm is None:
            packed_rows = min(packed_rows, max(self.gradient_rows(rows), rows))
        return self._pool.buffers(packed_rows * self.rows.d + tables.overrun(self.lanes))

    @property
    def norm(self) -> "Norm | None":
        """What a batch norm needs, if there is one; prepared when it is first needed."""
        if self._norm is None and self.cell.norm is not None:
            self._norm = Norm(self)
        return self._norm

    def backward(self, names: tuple[str, ...]) -> "Backward":
        """What backward needs, for the weights of these names; prepared when it is first called."""
        found = self._backwards.get(names)
        if found is None:
            found = self._backwards[names] = Backward(self, names)
        return found


class Norm:
    """What the statistics of a layer's input parts need.

    Attributes
    ----------
    packing : Packing
        How the weights are laid out.
    table : array
        Of the kernels.
    columns : int
        Normalised gates * H.
    """

    def __init__(self, of: Layer) -> None:
        self.packing = Packing(of.cell, of.I, of.H, of.dtype)
        self.table = tables.norm_table(of, of.kernels)
        self.columns = len(of.cell.input_gates) * of.H
        self._kernel = build.statistics_kernel(of.dtype)
        self._scale, self._shift = (
            weight.name if (weight := of.cell.weight_of(kind)) else ""
            for kind in (NORM_SCALE, NORM_SHIFT)
        )
        self._eps = of.cell.norm.eps if of.cell.norm else 0.0
        self._buffers = pool(of.dtype).buffers(norm_worker_size(of.rows.x, of.rows.pre))

    def statistics(
        self, weights: Weights, x: Array, reverse: bool, ragged: RaggedRows
    ) -> Statistics:
        """Mean and variance over all valid steps."""
        norm = np.empty((4, self.columns))
        packed, work = self.packing.pack_plain(weights), self._buffers.acquire()
        try:
            self._kernel.call(self.table, *ragged, x, reverse, packed, norm, work)
        finally:
            self.packing.give_back(packed)
            self._buffers.release(work)
        return Statistics(norm[0], norm[1] / max(1, ragged.total), ragged.total)

    def for_backward(self, weights: Weights, statistics: Statistics) -> Array:
        """What the backward pass takes: (5, columns) float64."""
        norm = np.empty((5, self.columns))
        norm[0] = statistics.mean
        with np.errstate(all="ignore"):  # what overflows does so silently, as in kernels
            norm[1] = (statistics.variance + self._eps) ** -0.5
        norm[2] = weights[self._scale]
        return norm

    def gradients(self, weights: Weights, norm: Array) -> dict[str, Array]:
        """Gradients of scale and shift, by name."""
        dtype = weights[self._scale].dtype
        with np.errstate(all="ignore"):
            found = {self._scale: norm[3].astype(dtype)}
            if self._shift in weights:
                found[self._shift] = norm[4].astype(dtype)
        return found


class Backward:
    """What backward needs of a layer beside its threads.

    Attributes
    ----------
    by_columns : Packing
        How the weights are laid out.
    input_name, recurrent_name : str
        Of the matrices.
    gradients : list of tuple
        Name and shape of each gradient that the kernels make, in the order of the weights.
    vectors : list of str
        Names of the vectors of weights that there are.
    no_vectors : tuple of array
        What is passed after their gradients, for as many as kernels take.
    """

    def __init__(self, of: Layer, names: tuple[str, ...]) -> None:
        cell, dtype = of.cell, of.dtype
        self.by_columns = Packing(cell, of.I, of.H, dtype, by_columns=True)
        self._of, self._kernels = of, tables.backward_kernels(cell, dtype)
        self.input_name, self.recurrent_name = (
            weight.name if (weight := cell.weight_of(kind)) else "" for kind in (INPUT, RECURRENT)
        )
        every = vector_weights(cell)
        self.vectors = [weight.name for weight in every if weight.name in names]
        made = (self.input_name, self.recurrent_name, *self.vectors)
        shapes = {weight.name: weight.shape(of.I, of.H) for weight in cell.weights}
        self.gradients = [(name, shapes[name]) for name in names if name in made]
        self.vectors_passed = build.vectors_passed(len(every))
        self.no_vectors = (of.nothing,) * (self.vectors_passed - len(self.vectors))
        self.no_norm = np.empty((0, 0))
        places = vector_places(cell).reshape(-1, 3)
        # Vectors that are there, one after the other.
        there = {n: i for i, n in enumerate([n for n, w in enumerate(every) if w.name in names])}
        kept = [(there[v], gate, term) for v, gate, term in places.tolist() if v in there]
        has_constants = bool(kept)
        self._pass = tables.pass_table(of, self._kernels, has_constants)
        self._places = flat(kept)
        self._norm_table = _NO_BARRIER if of.norm is None else of.norm.table
        terms = len(cell.pre_activations) if has_constants else 0
        self.constants_shape = terms * of.H, 1
        size, of_dtype = self._pass.sums_size, pool(dtype)
        self._sums_buffers = of_dtype.buffers(size), of_dtype.buffers(2 * size)

    def sums_buffers(self, rows: int) -> Buffers:
        """Where the sums of the gradients of weights come from, over so many packed rows."""
        return self._sums_buffers[needs_totals(rows)]

    def on(self, schedule: Schedule) -> Callable[..., None]:
        """The backward pass with its first arguments, which are the same for all calls."""
        found = schedule.backward.get(self)
        if found is None:
            of = self._of
            kernel = build.backward_pass_kernel(
                of.states, self.vectors_passed, of.dtype, schedule.threads > 1
            )
            loop = tables.backward_table(of, self._kernels, *schedule.backward_plan)
            found = functools.partial(
                kernel.call, self._pass.table, self._pass.gate_rows, self._places, loop,
                self._norm_table,
            )  # fmt: skip
            schedule.backward[self] = found
        return found


@functools.lru_cache(maxsize=64)
def layer_for(cell: Cell, input_size: int, hidden_size: int, dtype: np.dtype[Any]) -> Layer:
    """The one `Layer` of these."""
    return Layer(cell, input_size, hidden_size, dtype)
