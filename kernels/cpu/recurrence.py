"""One layer in one direction over a batch: what runs the kernels for given sizes."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cells import Cell
from ..plan import phase_plans
from ..ragged import RaggedRows
from . import build
from .backpropagation import InputProduct, WeightProduct
from .gradients import (
    group_vectors,
    input_gradient_worker_size,
    weight_gradient_overrun,
    weight_gradient_sums,
    weight_gradient_worker_size,
)
from .memory import Shelf, aligned, pool
from .plan import backward_layout, forward_layout, row_sizes
from .team import MEETING_WORDS
from .threads import Pace, allowed_threads, is_small, split
from .weights import (
    Array,
    Packing,
    Weights,
    gate_rows,
    multiply_adds,
)

# Inputs and pre-activations of a block of time steps, which are written and read again soon.
_TIME_BLOCK_BYTES = 256 * 1024
# Each block reads all input weights. Where they are many times as large, blocks grow with them:
# with two threads, forward for 64 rows of 1024 units gains 4 % (LSTM) and 1 % (GRU).
_INPUT_WEIGHTS_PER_BLOCK = 8
# Gradients of the pre-activations of a block of time steps, which are read three times: they should
# come from the cache, but each block reads and writes the sums of all weight gradients, which for
# large weights is a lot: so there is a least number of rows too. With two threads of an EPYC, 512
# units take 2 to 5 % less time in backward with 1024 rows than with 512; with one, the same.
_GRADIENT_BLOCK_BYTES = 2 * 1024 * 1024
_GRADIENT_BLOCK_ROWS = 1024
# And, of many rows, a few steps: each block loads and stores what backward knows of every row, and
# cannot ask for the values of the step before its first one.
_GRADIENT_BLOCK_STEPS, _LARGEST_GRADIENT_BLOCK_BYTES = 3, 4 * 1024 * 1024
# Reading the weights of a step takes as long as multiplying them with so many rows. Each thread's
# share stays in its own cache: a step of an LSTM of 256 units, 2 MB, takes 25 to 40 µs with two
# threads and 57 to 75 with one.
_ROWS_WORTH_READING = 3


@functools.lru_cache(maxsize=64)
def _by_columns(cell: Cell, I: int, H: int, dtype: np.dtype[Any]) -> Packing:
    """How backward has weights laid out; kept, as calls with lengths are prepared each time."""
    return Packing(cell, I, H, dtype, by_columns=True)


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
    """

    def __init__(
        self, cell: Cell, input_size: int, hidden_size: int, dtype: Any, ragged: RaggedRows
    ) -> None:
        self.cell = cell
        self.dtype = dtype
        self.ragged = ragged
        self.rows = len(ragged.order)
        self.steps = len(ragged.offset) - 1
        self.total = ragged.total
        self.lanes = build.lanes(dtype)
        self.I, self.H = input_size, hidden_size
        pre, values = len(cell.pre_activations), cell.num_values
        self.size = row_sizes(pre, values, input_size, hidden_size, self.lanes)
        self.row_work = multiply_adds(cell, input_size, hidden_size)
        self.work = self.row_work * max(self.total, _ROWS_WORTH_READING)
        self._kernel = build.forward_kernel(cell, dtype)
        self._pool = pool(dtype)
        self._nothing = np.empty(0, dtype)
        self._no_weight = np.empty((0, 0), dtype)
        self._ways: dict[int, _Way] = {}
        self._backward_runs: dict[int, Callable[..., None]] = {}
        self._kernels: list[build.Kernel] = []
        self._forward_pace, self._backward_pace = Pace(), Pace()
        # Of calls so short that nothing about them is decided or noted each time.
        self._short_way = self._way(Pace()) if is_small(self.work) else None

    def _way(self, pace: Pace) -> "_Way":
        """How the threads that may be used now run the loop."""
        threads = pace.choose(allowed_threads(self.work))
        way = self._ways.get(threads)
        if way is None:
            way = self._ways[threads] = self._way_for(threads)
        return way

    def _way_for(self, threads: int) -> "_Way":
        units, itemsize = self.size.unit // self.lanes, self.dtype.itemsize
        recurrent_bytes = multiply_adds(self.cell, 0, self.H) * itemsize
        # Steps of padding after the longest row do not count.
        running = self.total / max([1, *self.ragged.lengths[:1]])
        row_bytes = self.row_work * itemsize
        way = split(threads, self.rows, running, units, row_bytes, recurrent_bytes)
        buffer_bytes = way.rows * (self.size.x + self.size.pre) * itemsize
        input_bytes = len(self.cell.input_gates) * self.H * self.I * itemsize
        block_bytes = max(_TIME_BLOCK_BYTES, input_bytes // _INPUT_WEIGHTS_PER_BLOCK)
        steps = max(1, min(block_bytes // buffer_bytes, self.steps))
        states = len(self.cell.states)
        forward = forward_layout(0, way.rows, steps, states, self.size).end
        backward = max(
            backward_layout(0, way.rows, states, self.size).end,
            input_gradient_worker_size(self.I, self.lanes),
            weight_gradient_worker_size(max(self.I, self.H), self.lanes),
        )
        forward_shelf = self._pool.shelf(way.workers * forward)
        backward_shelf = self._pool.shelf(threads * backward)
        sizes = (forward, way.rows, steps)
        run = functools.partial(self._kernel.on(way.workers), *self.ragged, *sizes)
        return _Way(
            threads, way.workers, way.shared, forward_shelf, run, backward_shelf,
            (backward, way.rows),
        )  # fmt: skip

    @functools.cached_property
    def _ends(self) -> list[int]:
        """Where the blocks of steps that backward takes end, the last ones first, and 0."""
        offset = self.ragged.offset
        row_bytes = self.size.pre * self.dtype.itemsize
        some_steps = _GRADIENT_BLOCK_STEPS * self.rows
        most = max(
            _GRADIENT_BLOCK_BYTES // row_bytes,
            _GRADIENT_BLOCK_ROWS,
            min(some_steps, _LARGEST_GRADIENT_BLOCK_BYTES // row_bytes),
        )
        ends = [self.steps]
        while ends[-1] > 0:
            first = int(np.searchsorted(offset, offset[ends[-1]] - most))
            ends.append(min(first, ends[-1] - 1))
        return ends if self.steps else [0, 0]

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
        values = aligned(self.total * self.size.value, self.dtype) if keep else self._nothing
        way = self._short_way
        if way is None:
            way = self._way(self._forward_pace)
            start = time.perf_counter()
        work = way.forward_shelf.borrow()
        try:
            way.forward(
                x, initial, layer, reverse, weights, y_out, final_out, values, keep, work,
                way.meeting(), 0, way.workers,
            )  # fmt: skip
        finally:
            way.forward_shelf.give_back(work)
        if self._short_way is None:
            self._forward_pace.record(way.workers, time.perf_counter() - start)
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
        way = self._short_way or self._way(self._backward_pace)
        run = self._backpropagation(way)
        start = time.perf_counter()  # a kernel's compilation is not the pace of a call
        for number, member in enumerate(dinitial_out):
            member[layer] = 0 if dfinal is None else dfinal[number][layer]
        gradients = {name: np.empty(w.shape, self.dtype) for name, w in weights.items()}
        packed, (sums_shelf, d_shelf) = self._by_columns.pack(weights), self._gradient_shelves
        sums, d, work = sums_shelf.borrow(), d_shelf.borrow(), way.backward_shelf.borrow()
        try:
            run(
                y if dy is None else dy, dy is not None, layer, x, y, initial, reverse,
                packed, values, dx_out, dinitial_out,
                gradients["weight_ih"], gradients.get("weight_hh", self._no_weight),
                gradients.get("bias_ih", self._nothing), gradients.get("bias_hh", self._nothing),
                d, sums, work, way.meeting(),
            )  # fmt: skip
        finally:
            self._by_columns.give_back(packed)
            sums_shelf.give_back(sums)
            d_shelf.give_back(d)
            way.backward_shelf.give_back(work)
        if not self._short_way:
            self._backward_pace.record(way.threads, time.perf_counter() - start)
        return gradients

    # What backward needs is prepared when it is first called: many never call it.

    def _backpropagation(self, way: "_Way") -> Callable[..., None]:
        """The backward pass with its first arguments, which are the same for all calls."""
        run = self._backward_runs.get(way.threads)
        if run is None:
            states = len(self.cell.states)
            inputs, products, gates = self._tables
            run = self._backward_runs[way.threads] = functools.partial(
                build.backpropagation_kernel(states, self.dtype, way.threads > 1).call,
                self._address(build.backward_kernel(self.cell, self.dtype)),
                self._address(build.input_gradient_kernel(self.dtype)),
                _flat(inputs), _flat(products), _flat(gates), np.array(self._ends, np.intp),
                *self.ragged, self.H, self.size.unit, self.size.pre, self.size.value,
                *way.backward_sizes, way.workers, way.threads,
            )  # fmt: skip
        return run

    def _address(self, kernel: build.Kernel) -> int:
        """Where a kernel's machine code is, and stays as long as this object."""
        self._kernels.append(kernel)
        return kernel.address

    @functools.cached_property
    def _by_columns(self) -> Packing:
        return _by_columns(self.cell, self.I, self.H, self.dtype)

    @functools.cached_property
    def _gradient_shelves(self) -> tuple[Shelf, Shelf]:
        """Where sums of the gradients of weights, and gradients of pre-activations, come from."""
        _, products, _ = self._tables
        sums = sum(product.sums_size for product in products)
        packed_rows = int((-np.diff(self.ragged.offset[self._ends])).max())
        d = packed_rows * self.size.pre + weight_gradient_overrun(self.lanes)
        return self._pool.shelf(sums), self._pool.shelf(d)

    @functools.cached_property
    def _tables(self) -> tuple[list[InputProduct], list[WeightProduct], list[Array]]:
        """The products that the gradients of x and of the weights are, and gates of the latter."""
        starts, unit = self._by_columns.starts, self.size.unit
        inputs: list[InputProduct] = []
        products: list[WeightProduct] = []
        gates: list[Array] = []
        for plan in phase_plans(self.cell):
            operand = self.cell.phases[plan.number].operand
            if plan.inputs:
                start = starts[plan.number, "input"]
                inputs.append(InputProduct(plan.first * unit, plan.inputs, start))
            for kind, columns, first, blocks, made_by in (
                ("input", self.I, plan.first, plan.inputs, None),
                ("recurrent", self.H, plan.first_recurrent, plan.recurrents, operand),
            ):
                if blocks:
                    vectors = group_vectors(blocks)
                    kernel = build.weight_gradient_kernel(
                        made_by, plan.first_value, vectors, self.dtype
                    )
                    groups, sums_size = weight_gradient_sums(blocks, unit, columns, self.lanes)
                    place = kind == "recurrent", first * unit, sum(map(len, gates)), blocks
                    products.append(WeightProduct(self._address(kernel), *place, groups, sums_size))
                    gates.append(gate_rows(self.cell, plan, kind))
        return inputs, products, gates


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """How threads run the loops, and what memory that takes."""

    threads: int  # that may be used
    workers: int  # threads that the loops use
    shared: bool  # whether they share each block's units
    forward_shelf: Shelf  # where forward's workspace comes from
    forward: Callable[..., None]  # the kernel with its first arguments, which are the same for all
    backward_shelf: Shelf
    backward_sizes: tuple[int, int]  # of one worker's part of it, rows a block

    def meeting(self) -> Array:
        """A new meeting place for the workers; empty if they do not share blocks."""
        return np.zeros(MEETING_WORDS, np.intp) if self.shared else _NO_MEETING


_NO_MEETING = np.empty(0, np.intp)


def _flat(rows: Sequence[Any]) -> Array:
    """Rows of whole numbers, one after the other."""
    return np.array([number for row in rows for number in row], np.intp)
