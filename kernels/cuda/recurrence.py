"""One layer in one direction over a batch, on a GPU.

Everything runs on CuPy's current stream, in four stages:

- project: the input parts W x of many steps at once, as many as the workspace allows. Such a run of
  steps is a *time block*.
- normalise: cells with a batch norm take the statistics of their input parts; see `normalise`.
- recur: a loop takes the rows through the steps of a time block; see `loops`.
- gradients: those of weights and of x are products over a time block; see `gradients`.
"""

import functools
import logging
from typing import Any, NamedTuple

import numpy as np

from ..cells import UNIT, Cell
from ..layout import Statistics, total_values
from ..ragged import RaggedRows
from ..store import cell_digest
from . import blas, loops, rows, tuning
from .blas import Matrix
from .context import BackwardArrays, Context, ForwardArrays, Layer, PackedWeights, of_thread
from .gradients import WeightGradients
from .launch import Kernel, PreparedArray, row_grid
from .normalise import ELEMENTS_PER_INPUT_PART, InputNormGradient, Moments
from .packing import Weights, pack_matrices, pack_vectors
from .step_input import make_step_gradient
from .terms import num_alone

_log = logging.getLogger(__name__)
_DEFAULT_OF_THREAD = 2  # the driver's number of the default stream of each thread


@functools.cache
def _row_kernels(dtype: np.dtype[Any]) -> dict[str, Kernel]:
    return {name: Kernel(function, dtype, name) for name, function in rows.FUNCTIONS.items()}


@functools.cache
def _step_gradient_kernel(cell: Cell, dtype: np.dtype[Any]) -> Kernel:
    digest = cell_digest(cell)
    key = None if digest is None else f"{digest} {tuning.SUM_THREADS}"
    return Kernel(make_step_gradient(cell, dtype), dtype, key)


class _TimeBlocks(NamedTuple):
    """Runs of time steps whose packed rows fit the workspace."""

    blocks: tuple[tuple[int, int, int], ...]  # first step, end, packed rows
    most: int  # packed rows of one


class Recurrence:
    """One layer in one direction: the kernels, and how they are run for given sizes.

    Parameters
    ----------
    cell : Cell
    input_size, hidden_size : int
    dtype : numpy.dtype
    ragged : RaggedRows
        Of `ragged_rows`.
    precision : str, optional
        Of the products; see `blas.COMPUTE`.

    Attributes
    ----------
    total : int
        Valid steps of all samples.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        dtype: Any,
        ragged: RaggedRows,
        precision: str | None = None,
    ) -> None:
        import cupy as xp

        self.xp, self.cell, self.dtype, self.ragged = xp, cell, dtype, ragged
        self._gemm = functools.partial(blas.gemm, precision=precision)
        self._product = functools.partial(blas.product, precision=precision)
        self.I, self.H, self.N = input_size, hidden_size, len(ragged.order)
        self.gates, self.recurrent = len(cell.input_gates), len(cell.recurrent_gates)
        self.alone, self.takes_step_input = num_alone(cell), bool(cell.step_inputs)
        self.steps, self.total = len(ragged.offset) - 1, ragged.total
        self.offset: list[int] = ragged.offset.tolist()
        self.precision = precision
        self._loops: dict[tuple[int, int], loops.TimeLoop] = {}  # by device and time blocks
        # The ragged order by device, stream and thread; time blocks by the size of a row.
        self.indices_on: dict[tuple[int, int, Any], tuple[PreparedArray, ...]] = {}
        self._time_blocks_of: dict[int, _TimeBlocks] = {}

    def _loop(self, device: Any, time_blocks: int) -> loops.TimeLoop:
        """The loop for a device and so many time blocks."""
        loop = self._loops.get((device.id, time_blocks))
        if loop is None:
            loop = loops.choose(
                Layer(
                    self.cell, self.H, self.dtype, self.precision, device, self.N, self.steps,
                    time_blocks,
                )
            )  # fmt: skip
            self._loops[device.id, time_blocks] = loop
            names = self.cell.name, self.H, self.dtype, loop.name, loop.why
            _log.debug("%s, H = %d, %s: loop %r: %s", *names)
        return loop

    def _context(self, reverse: bool) -> Context:
        """The current device and stream, and all that does not change from call to call."""
        device = self.xp.cuda.Device()
        # The driver launches in a thread's context, which the first call of the runtime makes.
        ready: set[int] = vars(of_thread).setdefault("devices", set())
        if device.id not in ready:
            self.xp.cuda.runtime.free(0)
            ready.add(device.id)
        stream = self.xp.cuda.get_current_stream().ptr
        # The number of the default stream of each thread is the same, and that of a thread comes
        # again when it has ended.
        whose = stream == _DEFAULT_OF_THREAD and vars(of_thread).setdefault("thread", object())
        # Copied on this stream, and given back to its memory: for other streams it could be too
        # early, or too late.
        indices = self.indices_on.get((device.id, stream, whose))
        if indices is None:
            arrays = [self.xp.asarray(part.astype(np.int64)) for part in self.ragged]
            indices = tuple([PreparedArray.of(array) for array in arrays])
            if len(self.indices_on) >= tuning.MOST_STREAMS:
                self.indices_on.clear()
            self.indices_on[device.id, stream, whose] = indices
        return Context(
            self.cell, self.H, self.dtype, self.precision, self.ragged, self.offset, reverse,
            self._product, self.xp, device, stream, *indices,
        )  # fmt: skip

    def _rows_at_once(self, row_elements: int) -> int:
        """Rows of so many elements that fit the workspace; one at least."""
        return max(1, tuning.WORKSPACE_BYTES // (row_elements * self.dtype.itemsize))

    def _time_blocks(self, row_elements: int) -> _TimeBlocks:
        """The time blocks, for packed rows of so many elements."""
        if row_elements not in self._time_blocks_of:
            fit = self._rows_at_once(row_elements)
            blocks, first = [], 0
            while first < self.steps:
                end = int(np.searchsorted(self.ragged.offset, self.offset[first] + fit, "right"))
                last = max(first + 1, end - 1)
                blocks.append((first, last, self.offset[last] - self.offset[first]))
                first = last
            most = max([rows for _, _, rows in blocks], default=0)
            self._time_blocks_of[row_elements] = _TimeBlocks(tuple(blocks), most)
        return self._time_blocks_of[row_elements]

    def _move(
        self, context: Context, name: str, arrays: tuple[Any, ...], steps: int, *numbers: int
    ) -> None:
        """Run a kernel of `rows` over so many steps."""
        if self.N > 0:
            kernel = _row_kernels(self.dtype)[name].bind(context.device, *arrays)
            kernel(row_grid(steps, self.N), tuning.ROW_THREADS, context.stream, *numbers)

    def _take_state(self, context: Context, members: tuple[Any, ...], layer: int) -> Any:
        """A state of ours, (N, states, H), from a user's."""
        state = self.xp.empty((self.N, len(members), self.H), self.dtype)
        for member, source in enumerate(members):
            arrays = (source, state, context.order)
            self._move(context, "gather_state", arrays, 1, layer, member)
        return state

    def _put_state(
        self, context: Context, state: Any, members: tuple[Any, ...], layer: int
    ) -> None:
        """A state of ours into a user's."""
        for member, target in enumerate(members):
            arrays = (target, state, context.order)
            self._move(context, "scatter_state", arrays, 1, layer, member)

    def _project(self, ih: Any, xs: Any, first_row: int, count: int, x_sums: Any) -> None:
        """W x of so many rows of xs."""
        wide = self.gates * self.H
        self._gemm(
            count, wide, self.I,
            Matrix(xs, first_row * self.I, self.I), Matrix(ih, 0, self.I, transposed=True),
            Matrix(x_sums, 0, wide), add=False,
        )  # fmt: skip

    def forward(
        self,
        weights: PackedWeights,
        x: Any,
        initial: tuple[Any, ...],
        layer: int,
        reverse: bool,
        y_out: Any,
        final_out: tuple[Any, ...],
        keep: bool,
        step_input: Any = None,
    ) -> Any:
        """Write y and the final state; see `fastgru.kernels.cpu`.

        Returns
        -------
        (packed rows, values, H) array
            The values kept; empty otherwise.
        """
        xp, H, context = self.xp, self.H, self._context(reverse)
        blocks, most = self._time_blocks(self.I + self.gates * H + self.takes_step_input)
        xs = xp.empty((most, self.I), self.dtype)
        x_sums = xp.empty((most, self.gates, H), self.dtype)
        step_inputs = xp.empty((most if self.takes_step_input else 0, 1), self.dtype)
        kept = self.total if keep else self.N
        values = xp.empty((kept, total_values(self.cell), H), self.dtype)
        state = self._take_state(context, initial, layer)
        arrays = ForwardArrays(
            x_sums, weights.hh, weights.constants, step_inputs, state, values, y_out, keep
        )
        loop = self._loop(context.device, len(blocks)).forward(context, arrays)
        for first, last, count in blocks:
            if count == 0:
                break  # no sample is as long
            self._gather(context, x, xs, first, last)
            if self.takes_step_input:
                self._gather(context, step_input, step_inputs, first, last)
            self._project(weights.ih, xs, 0, count, x_sums)
            loop(first, last)
        self._put_state(context, state, final_out, layer)
        return values if keep else values[:0]

    def _gather(self, context: Context, sequence: Any, packed: Any, first: int, last: int) -> None:
        """The packed rows of some steps of a user's sequence."""
        arrays = (sequence, packed, *context.indices)
        self._move(context, "gather_sequence", arrays, last - first, first, context.reverse)

    def statistics(self, weights: Weights, x: Any, reverse: bool) -> Statistics | None:
        """Of the input parts, for cells that normalise them over a batch; else None.

        See `fastgru.kernels.cpu`.
        """
        if self.cell.norm is None:
            return None
        xp, context, wide = self.xp, self._context(reverse), self.gates * self.H
        ih, _ = pack_matrices(self.cell, weights, self.H)
        blocks, most = self._time_blocks(self.I + ELEMENTS_PER_INPUT_PART * wide)
        xs, x_sums = (xp.empty((most, width), self.dtype) for width in (self.I, wide))
        moments = Moments(xp, wide)
        for first, last, count in blocks:
            if count == 0:
                break  # no sample is as long
            self._gather(context, x, xs, first, last)
            self._project(ih, xs, 0, count, x_sums)
            moments.add(x_sums[:count])
        return moments.statistics()

    def backward(
        self,
        weights: Weights,
        x: Any,
        initial: tuple[Any, ...],
        layer: int,
        reverse: bool,
        y: Any,
        values: Any,
        dy: Any,
        dfinal: tuple[Any, ...] | None,
        dx_out: Any,
        dinitial_out: tuple[Any, ...],
        statistics: Statistics | None = None,
        step_input: Any = None,
        dstep_out: Any = None,
    ) -> dict[str, Any]:
        """Gradients of everything, from those of y and of the final state.

        See `fastgru.kernels.cpu`; gradients of x and of the step's input are added to `dx_out` and
        `dstep_out`.
        """
        xp, H, context = self.xp, self.H, self._context(reverse)
        ih, hh = pack_matrices(self.cell, weights, H)
        wide = self.gates * H
        blocks, most = self._time_blocks(
            self.I + (self.gates + self.recurrent + self.alone + 2) * H
        )
        norm = None
        if statistics is not None:
            # The gradients of its input parts depend on those of all rows: one time block, which
            # takes memory for the whole sequence.
            norm = InputNormGradient(xp, self.cell, weights, statistics)
            blocks, most = ((0, self.steps, self.total),), self.total
        gradients = WeightGradients(context, weights, self.I, self._gemm, most > 0)
        add = False  # the first time block that has rows overwrites them, the others add
        xs = xp.empty((most, self.I), self.dtype)
        d_ih, d_hh, d_alone = (
            xp.empty((most, terms, H), self.dtype)
            for terms in (self.gates, self.recurrent, self.alone)
        )
        if dfinal is None:
            dstate = xp.zeros((self.N, len(dinitial_out), H), self.dtype)
        else:
            dstate = self._take_state(context, dfinal, layer)
        arrays = BackwardArrays(
            xp.empty((most, 1, H), self.dtype), hh, self._unit_weights(weights), values,
            y if dy is None else dy, dstate, d_ih, d_hh, d_alone, dy is not None,
        )  # fmt: skip
        loop = self._loop(context.device, len(blocks)).backward(context, arrays)
        for first, last, count in reversed(blocks):
            if count == 0:
                continue
            steps = last - first
            before = (x, xs, y, initial[0], arrays.h_before, *context.indices)
            self._move(context, "gather_before", before, steps, layer, first, reverse)
            loop(first, last)
            gradients.add_recurrent(arrays, count, self.offset[first], add)
            if dstep_out is not None:
                self._add_step_gradient(context, d_alone, dstep_out, first, last)
            if norm is not None:
                self._transform(norm, ih, xs, d_ih)
            gradients.add_input(xs, d_ih, count, add)
            add = True
            self._gemm(  # xs is not needed any more
                count, self.I, wide, Matrix(d_ih, 0, wide), Matrix(ih, 0, self.I),
                Matrix(xs, 0, self.I), add=False,
            )  # fmt: skip
            adding = (dx_out, xs, *context.indices)
            self._move(context, "add_sequence", adding, steps, first, reverse)
        self._put_state(context, arrays.dstate, dinitial_out, layer)
        found = gradients.by_name()
        if norm is not None:
            found |= norm.gradients(weights)
        return {name: found[name] for name in weights if name in found}

    def _unit_weights(self, weights: Weights) -> Any:
        """The weights of units as backward takes them, (1, pre-activations or 0, H)."""
        units = [weight for weight in self.cell.weights if weight.kind == UNIT]
        if not units:
            return self.xp.empty((1, 0, self.H), self.dtype)
        return pack_vectors(self.cell, weights, units, self.H, self.dtype)

    def _add_step_gradient(
        self, context: Context, d_alone: Any, dstep_out: Any, first: int, last: int
    ) -> None:
        """Add the gradient of the step's input, of some steps."""
        kernel = _step_gradient_kernel(self.cell, self.dtype)
        launch = kernel.bind(context.device, dstep_out, d_alone, *context.indices)
        grid, block = row_grid(last - first, self.N), (tuning.SUM_THREADS, 1)
        launch(grid, block, context.stream, first, context.reverse)

    def _transform(self, norm: InputNormGradient, ih: Any, xs: Any, d_ih: Any) -> None:
        """Turn gradients of normalised input parts into those of W x, of all rows.

        Twice over them, some at a time, as W x is computed anew: for sums, then with these.
        """
        wide = self.gates * self.H
        most = min(self.total, self._rows_at_once(ELEMENTS_PER_INPUT_PART * wide))
        x_sums = self.xp.empty((most, wide), self.dtype)
        d = d_ih.reshape(-1, wide)
        for take in (norm.add, norm.transform):
            for first in range(0, self.total, most):
                count = min(most, self.total - first)
                self._project(ih, xs, first, count, x_sums)
                take(x_sums[:count], d[first : first + count])
