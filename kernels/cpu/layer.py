"""What all calls of one cell, dtype and size of a layer share: kernels, workspace, pace of calls.

Calls come with batches of all sizes and lengths; what does not depend on them is prepared once.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cells import Cell
from ..ragged import RaggedRows
from . import build
from .backpropagation import InputProduct, WeightProduct
from .gradients import (
    input_gradient_worker_size,
    needs_totals,
    weight_gradient_overrun,
    weight_gradient_sums,
    weight_gradient_worker_size,
)
from .memory import Shelf, pool
from .plan import backward_layout, forward_layout, row_sizes
from .team import MEETING_WORDS
from .threads import Pace, split
from .weights import Array, Packing, gate_rows, multiply_adds

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
# Ways of running the loops that are kept: calls with lengths have many.
_KEPT_WAYS = 256

_NO_MEETING = np.empty(0, np.intp)


@dataclass(slots=True, eq=False)
class Way:
    """How threads run the loops, and what memory that takes."""

    threads: int  # that may be used
    workers: int  # threads that the loops use
    shared: bool  # whether they share each block's units
    forward_shelf: Shelf  # where forward's workspace comes from
    forward: Callable[..., None]  # the kernel with its first arguments, which are the same for all
    backward_shelf: Shelf
    backward_sizes: tuple[int, int]  # of one worker's part of it, rows a block
    backward: Callable[..., None] | None = None  # likewise, once it has been called for

    def meeting(self) -> Array:
        """A new meeting place for the workers; empty if they do not share blocks."""
        return np.zeros(MEETING_WORDS, np.intp) if self.shared else _NO_MEETING


class Layer:
    """One layer's cell, sizes and dtype, whatever the rows.

    Attributes
    ----------
    size : Sizes
        Of rows of scratch memory.
    row_work : int
        Multiply-adds of the forward pass of one packed row.
    nothing, no_weight : array
        What stands for arrays that are not there.
    """

    def __init__(self, cell: Cell, input_size: int, hidden_size: int, dtype: np.dtype[Any]) -> None:
        self.cell, self.dtype, self.I, self.H = cell, dtype, input_size, hidden_size
        self.lanes = build.lanes(dtype)
        pre, values = len(cell.pre_activations), cell.num_values
        self.size = row_sizes(pre, values, input_size, hidden_size, self.lanes)
        self.row_work = multiply_adds(cell, input_size, hidden_size)
        self.nothing, self.no_weight = np.empty(0, dtype), np.empty((0, 0), dtype)
        self._kernel = build.forward_kernel(cell, dtype)
        self._pool = pool(dtype)
        self._ways: dict[tuple[int, int, int, float], Way] = {}
        self._paces: dict[int, tuple[Pace, Pace]] = {}
        self._backward: Backward | None = None

    def paces(self, rows: int) -> tuple[Pace, Pace]:
        """How fast forward and backward are, of calls with about so many rows."""
        key = rows.bit_length()
        found = self._paces.get(key)
        if found is None:
            found = self._paces.setdefault(key, (Pace(), Pace()))
        return found

    def way(self, threads: int, ragged: RaggedRows) -> Way:
        """How so many threads run the loops."""
        rows, steps = len(ragged.order), len(ragged.offset) - 1
        # Steps of padding after the longest row do not count. One thread takes all rows anyway.
        running = 0.0 if threads == 1 else ragged.total / max([1, *ragged.lengths[:1]])
        key = threads, rows, steps, running
        way = self._ways.get(key)
        if way is None:
            if len(self._ways) >= _KEPT_WAYS:
                self._ways.clear()
            way = self._ways.setdefault(key, self._way_for(*key))
        return way

    def _way_for(self, threads: int, rows: int, all_steps: int, running: float) -> Way:
        units, itemsize = self.size.unit // self.lanes, self.dtype.itemsize
        recurrent_bytes = multiply_adds(self.cell, 0, self.H) * itemsize
        row_bytes = self.row_work * itemsize
        way = split(threads, rows, running, units, row_bytes, recurrent_bytes)
        buffer_bytes = way.rows * (self.size.x + self.size.pre) * itemsize
        input_bytes = len(self.cell.input_gates) * self.H * self.I * itemsize
        block_bytes = max(_TIME_BLOCK_BYTES, input_bytes // _INPUT_WEIGHTS_PER_BLOCK)
        steps = max(1, min(block_bytes // buffer_bytes, all_steps))
        states = len(self.cell.states)
        forward = forward_layout(0, way.rows, steps, states, self.size).end
        backward = max(
            backward_layout(0, way.rows, states, self.size).end,
            input_gradient_worker_size(self.I, self.lanes),
            weight_gradient_worker_size(max(self.I, self.H), self.lanes),
        )
        forward_shelf = self._pool.shelf(way.workers * forward)
        backward_shelf = self._pool.shelf(threads * backward)
        run = functools.partial(self._kernel.on(way.workers), forward, way.rows, steps)
        return Way(
            threads, way.workers, way.shared, forward_shelf, run, backward_shelf,
            (backward, way.rows),
        )  # fmt: skip

    def gradient_rows(self, rows: int) -> int:
        """Packed rows that backward takes at once, in whole steps and at least one of them."""
        row_bytes = self.size.pre * self.dtype.itemsize
        some_steps = _GRADIENT_BLOCK_STEPS * rows
        return max(
            _GRADIENT_BLOCK_BYTES // row_bytes,
            _GRADIENT_BLOCK_ROWS,
            min(some_steps, _LARGEST_GRADIENT_BLOCK_BYTES // row_bytes),
        )

    def gradients_shelf(self, ragged: RaggedRows) -> Shelf:
        """Where the gradients of the pre-activations of a block of steps come from."""
        rows = len(ragged.order)
        packed_rows = min(ragged.total, max(self.gradient_rows(rows), rows))
        size = packed_rows * self.size.pre + weight_gradient_overrun(self.lanes)
        return self._pool.shelf(size)

    @property
    def backward(self) -> "Backward":
        """What backward needs; prepared when it is first called, as many never call it."""
        if self._backward is None:
            self._backward = Backward(self)
        return self._backward


class Backward:
    """What backward needs of a layer beside its threads.

    Attributes
    ----------
    by_columns : Packing
        How the weights are laid out.
    """

    def __init__(self, of: Layer) -> None:
        self.by_columns = Packing(of.cell, of.I, of.H, of.dtype, by_columns=True)
        # Their machine code is there as long as they are, and is called by its address.
        self._loop = build.backward_kernel(of.cell, of.dtype)
        self._input_gradient = build.input_gradient_kernel(of.dtype)
        self._weight_gradients: list[build.Kernel] = []
        inputs, products, gates = self._tables(of)
        self._sums_size = sum(product.sums_size for product in products)
        self._pool = pool(of.dtype)
        self._states, self._dtype = len(of.cell.states), of.dtype
        self._arguments = (
            self._loop.address, self._input_gradient.address,
            _flat(inputs), _flat(products), _flat(gates),
            of.H, of.size.unit, of.size.pre, of.size.value,
        )  # fmt: skip

    def sums_shelf(self, rows: int) -> Shelf:
        """Where the sums of the gradients of weights come from, over so many packed rows."""
        return self._pool.shelf(self._sums_size * (2 if needs_totals(rows) else 1))

    def on(self, way: Way) -> Callable[..., None]:
        """The backward pass with its first arguments, which are the same for all calls."""
        if way.backward is None:
            kernel = build.backpropagation_kernel(self._states, self._dtype, way.threads > 1)
            way.backward = functools.partial(
                kernel.call, *self._arguments, *way.backward_sizes, way.workers, way.threads
            )
        return way.backward

    def _tables(self, of: Layer) -> tuple[list[InputProduct], list[WeightProduct], list[Array]]:
        """The products that the gradients of x and of the weights are, and gates of the latter."""
        starts, unit = self.by_columns.starts, of.size.unit
        inputs: list[InputProduct] = []
        products: list[WeightProduct] = []
        gates: list[Array] = []
        for part in build.weight_parts(of.cell):
            plan, is_input = part.plan, part.kind == "input"
            if is_input:
                start = starts[plan.number, "input"]
                inputs.append(InputProduct(part.first * unit, part.blocks, start))
            kernel = part.gradient_kernel(of.dtype)
            self._weight_gradients.append(kernel)
            columns = of.I if is_input else of.H
            groups, sums_size = weight_gradient_sums(part.blocks, unit, columns, of.lanes)
            place = not is_input, part.first * unit, sum(map(len, gates)), part.blocks
            products.append(WeightProduct(kernel.address, *place, groups, sums_size))
            gates.append(gate_rows(of.cell, plan, part.kind))
        return inputs, products, gates


@functools.lru_cache(maxsize=64)
def layer_for(cell: Cell, input_size: int, hidden_size: int, dtype: np.dtype[Any]) -> Layer:
    """The one `Layer` of these."""
    return Layer(cell, input_size, hidden_size, dtype)


def _flat(rows: Sequence[Any]) -> Array:
    """Rows of whole numbers, one after the other."""
    return np.array([number for row in rows for number in row], np.intp)
