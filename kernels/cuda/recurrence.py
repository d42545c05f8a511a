"""One layer in one direction over a batch, on a GPU.

Everything runs on CuPy's current stream. The input projection and all gradients of weights are
products over many steps at once, as many as the workspace allows; between them a loop takes the
rows through those steps: see `loops`. Such a run of steps is a *time block*.
"""

import functools
import logging
import threading
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..ragged import RaggedRows
from . import blas, loops, rows, tuning
from .blas import Matrix
from .context import BackwardArrays, Context, ForwardArrays, Layer, PackedWeights
from .launch import Kernel, PreparedArray, row_grid, unit_grid
from .loops.steps import phase_kernels
from .packing import pack_weights

_log = logging.getLogger(__name__)
# Of a thread: devices that are ready, its own mark, and ones by device, stream and dtype.
of_thread = threading.local()
_DEFAULT_OF_THREAD = 2  # the driver's number of the default stream of each thread


@functools.cache
def _row_kernels(dtype: np.dtype[Any]) -> dict[str, Kernel]:
    return {name: Kernel(function, dtype, name) for name, function in rows.FUNCTIONS.items()}


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
        self.steps = len(ragged.offset) - 1
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

    def _time_blocks(self, row_elements: int) -> _TimeBlocks:
        """The time blocks, for packed rows of so many elements."""
        if row_elements not in self._time_blocks_of:
            fit = max(1, tuning.WORKSPACE_BYTES // (row_elements * self.dtype.itemsize))
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
    ) -> Any:
        """Write y and the final state; see `fastgru.kernels.cpu`.

        Returns
        -------
        (packed rows, values, H) array
            The values kept; empty otherwise.
        """
        xp, H, context = self.xp, self.H, self._context(reverse)
        blocks, most = self._time_blocks(self.I + self.gates * H)
        xs = xp.empty((most, self.I), self.dtype)
        x_sums = xp.empty((most, self.gates, H), self.dtype)
        kept = self.offset[-1] if keep else self.N
        values = xp.empty((kept, self.cell.num_values, H), self.dtype)
        state = self._take_state(context, initial, layer)
        arrays = ForwardArrays(x_sums, weights, state, values, y_out, keep)
        loop = self._loop(context.device, len(blocks)).forward(context, arrays)
        for first, last, count in blocks:
            if count == 0:
                break  # no sample is as long
            packing = (x, xs, *context.indices)
            self._move(context, "gather_sequence", packing, last - first, first, reverse)
            self._gemm(
                count, self.gates * H, self.I,
                Matrix(xs, 0, self.I), Matrix(weights.ih, 0, self.I, transposed=True),
                Matrix(x_sums, 0, self.gates * H), add=False,
            )  # fmt: skip
            loop(first, last)
        self._put_state(context, state, final_out, layer)
        return values if keep else values[:0]

    def backward(
        self,
        weights: Any,
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
    ) -> dict[str, Any]:
        """Gradients of everything, from those of y and of the final state.

        See `fastgru.kernels.cpu`; the gradient of x is added to `dx_out`.
        """
        xp, H, context = self.xp, self.H, self._context(reverse)
        packed = pack_weights(self.cell, weights)
        blocks, most = self._time_blocks(self.I + (self.gates + self.recurrent + 2) * H)
        # The first time block that has rows overwrites them, the others add.
        make, add = xp.empty if most else xp.zeros, False
        gradients = {name: make(weight.shape, self.dtype) for name, weight in weights.items()}
        xs = xp.empty((most, self.I), self.dtype)
        d_ih = xp.empty((most, self.gates, H), self.dtype)
        if dfinal is None:
            dstate = xp.zeros((self.N, len(dinitial_out), H), self.dtype)
        else:
            dstate = self._take_state(context, dfinal, layer)
        arrays = BackwardArrays(
            xp.empty((most, 1, H), self.dtype), packed, values, y if dy is None else dy,
            dstate, d_ih, xp.empty((most, self.recurrent, H), self.dtype), dy is not None,
        )  # fmt: skip
        loop = self._loop(context.device, len(blocks)).backward(context, arrays)
        for first, last, count in reversed(blocks):
            if count == 0:
                continue
            steps = last - first
            before = (x, xs, y, initial[0], arrays.h_before, *context.indices)
            self._move(context, "gather_before", before, steps, layer, first, reverse)
            loop(first, last)
            self._weight_gradients(context, gradients, count, self.offset[first], xs, arrays, add)
            add = True
            self._gemm(  # xs is not needed any more
                count, self.I, self.gates * H,
                Matrix(d_ih, 0, self.gates * H), Matrix(packed.ih, 0, self.I),
                Matrix(xs, 0, self.I), add=False,
            )  # fmt: skip
            adding = (dx_out, xs, *context.indices)
            self._move(context, "add_sequence", adding, steps, first, reverse)
        self._put_state(context, arrays.dstate, dinitial_out, layer)
        return gradients

    def _ones(self, context: Context, count: int) -> Any:
        """So many ones, few of them kept: making them takes the host as long as three launches."""
        kept = vars(of_thread).setdefault("ones", {})
        key = context.device.id, context.stream, self.dtype
        ones, _ = kept.get(key, (None, None))
        if ones is None or ones.size < count:
            ones = self.xp.ones(count, self.dtype)
            if count <= tuning.MOST_ONES:
                if len(kept) >= tuning.MOST_STREAMS:
                    kept.clear()
                # While the stream is there, no other has its number.
                kept[key] = ones, self.xp.cuda.get_current_stream()
        return ones

    def _weight_gradients(
        self,
        context: Context,
        gradients: dict[str, Any],
        count: int,
        first_value: int,
        xs: Any,
        arrays: BackwardArrays,
        add: bool,
    ) -> None:
        """Write, or add, what so many packed rows contribute to the gradients of the weights."""
        H, I, d_ih, d_hh = self.H, self.I, arrays.d_ih, arrays.d_hh
        wide_ih, wide_hh = self.gates * H, self.recurrent * H
        self._gemm(
            wide_ih, I, count, Matrix(d_ih, 0, wide_ih, transposed=True), Matrix(xs, 0, I),
            Matrix(gradients["weight_ih"], 0, I), add=add,
        )  # fmt: skip
        for name, d, columns in (("bias_ih", d_ih, wide_ih), ("bias_hh", d_hh, wide_hh)):
            if name in gradients:  # a sum, and none that a lower precision makes faster
                ones = Matrix(self._ones(context, count), 0, count)
                total = Matrix(gradients[name], 0, columns)
                blas.gemm(1, columns, count, ones, Matrix(d, 0, columns), total, add=add)
        for phase in phase_kernels(self.cell, self.dtype):
            part, operand = phase.plan, arrays.h_before
            if part.recurrents == 0:
                continue
            if phase.operand is not None:
                operand = self.xp.empty((count, H), self.dtype)
                make = phase.operand.bind(context.device, arrays.h_before, arrays.values, operand)
                make(unit_grid(count, H), tuning.UNIT_THREADS, context.stream, count, first_value)
            at = part.recurrents_before * H
            self._gemm(
                part.recurrents * H, H, count,
                Matrix(d_hh, at, wide_hh, transposed=True), Matrix(operand, 0, H),
                Matrix(gradients["weight_hh"], at * H, H), add=add,
            )  # fmt: skip
