"""One layer in one direction over a batch, on a GPU: products by cuBLAS, equations by our kernels.

Steps run one after the other on CuPy's current stream: for each phase a product of the operand with
the recurrent weights and a kernel for its equations. The input projection and all gradients of
weights are products over many steps at once: over as many as the workspace allows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..cells import HIDDEN, Cell
from ..plan import PhasePlan, phase_plans
from ..ragged import RaggedRows
from . import blas, rows
from .blas import Matrix
from .launch import BLOCK, MOVE_BLOCK, Kernel, move_grid, unit_grid
from .pointwise import (
    make_backward_phase,
    make_forward_phase,
    make_operand,
    make_operand_gradient,
)

# Workspace for a block of steps; larger blocks make no product faster.
_BLOCK_BYTES = 256 * 2**20


class Weights(NamedTuple):
    """The weights of one layer and direction, as the kernels take them."""

    ih: Any  # (input gates * H, I)
    hh: Any  # (recurrent gates * H, H)
    bias_ih: Any  # (input gates, H)
    bias_hh: Any  # (recurrent gates, H)


def pack(cell: Cell, weights: Any) -> Weights:
    """The weights of one layer and direction by position, contiguous; missing biases are 0."""
    import cupy as xp

    gates, recurrent = len(cell.input_gates), len(cell.recurrent_gates)
    H = weights["weight_ih"].shape[0] // gates

    def bias(name: str, count: int) -> Any:
        values = weights.get(name)
        if values is None:
            return xp.zeros((count, H), ih.dtype)
        return xp.ascontiguousarray(values).reshape(count, H)

    with weights["weight_ih"].device:
        ih = xp.ascontiguousarray(weights["weight_ih"])
        hh = xp.ascontiguousarray(weights["weight_hh"]) if recurrent else xp.empty((0, H), ih.dtype)
        return Weights(ih, hh, bias("bias_ih", gates), bias("bias_hh", recurrent))


class _PhaseKernels(NamedTuple):
    """The kernels of a phase."""

    plan: PhasePlan
    forward: Kernel
    backward: Kernel
    operand: Kernel | None  # None where the operand is h itself
    operand_gradient: Kernel | None


@functools.cache
def _phase_kernels(cell: Cell, dtype: np.dtype[Any]) -> tuple[_PhaseKernels, ...]:
    def kernels(plan: PhasePlan) -> _PhaseKernels:
        def of(make: Callable[[Cell, int], Callable[..., None]]) -> Kernel:
            return Kernel(make(cell, plan.number), dtype)

        plain = cell.phases[plan.number].operand is HIDDEN or plan.recurrents == 0
        return _PhaseKernels(
            plan,
            of(make_forward_phase),
            of(make_backward_phase),
            None if plain else of(make_operand),
            None if plain else of(make_operand_gradient),
        )

    return tuple(kernels(plan) for plan in phase_plans(cell))


@functools.cache
def _row_kernels(dtype: np.dtype[Any]) -> dict[str, Kernel]:
    functions = (
        rows.gather_sequence, rows.add_sequence, rows.gather_h_before, rows.gather_state,
        rows.scatter_state,
    )  # fmt: skip
    return {function.__name__: Kernel(function, dtype) for function in functions}


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
        self.I, self.H, self.N = input_size, hidden_size, len(ragged.order)
        self.S, self.V = len(cell.states), cell.num_values
        self.gates, self.recurrent = len(cell.input_gates), len(cell.recurrent_gates)
        self.steps = len(ragged.offset) - 1
        self.offset: list[int] = ragged.offset.tolist()
        self.phases = _phase_kernels(cell, dtype)
        self._indices_on: dict[int, tuple[Any, Any, Any]] = {}

    def _indices(self) -> tuple[Any, Any, Any]:
        """Order, lengths and offset of `ragged` on the current device."""
        number = self.xp.cuda.Device().id
        if number not in self._indices_on:
            order, lengths, offset = (self.xp.asarray(p.astype(np.int64)) for p in self.ragged)
            self._indices_on[number] = order, lengths, offset
        return self._indices_on[number]

    def _blocks(self, row_elements: int) -> list[tuple[int, int]]:
        """First step and end of the blocks of steps whose packed rows fit the workspace."""
        most = max(1, _BLOCK_BYTES // (row_elements * self.dtype.itemsize))
        blocks, first = [], 0
        while first < self.steps:
            fitting = int(np.searchsorted(self.ragged.offset, self.offset[first] + most, "right"))
            last = max(first + 1, fitting - 1)
            blocks.append((first, last))
            first = last
        return blocks

    def _rows(self, first: int, last: int) -> int:
        """Packed rows of steps `first` to `last` - 1."""
        return self.offset[last] - self.offset[first]

    def _move(
        self, name: str, stream: int, arrays: tuple[Any, ...], steps: int, *numbers: int
    ) -> None:
        """Run a kernel of `rows` over so many steps."""
        if self.N > 0:
            kernel = _row_kernels(self.dtype)[name].bind(self.xp.cuda.Device(), *arrays)
            kernel(move_grid(steps, self.N), MOVE_BLOCK, stream, *numbers)

    def _take_state(self, members: tuple[Any, ...], layer: int, stream: int) -> Any:
        """A state of ours, (N, states, H), from a user's."""
        state = self.xp.empty((self.N, self.S, self.H), self.dtype)
        for member, source in enumerate(members):
            arrays = (source, self._indices()[0], state)
            self._move("gather_state", stream, arrays, 1, layer, member)
        return state

    def _put_state(self, state: Any, members: tuple[Any, ...], layer: int, stream: int) -> None:
        """A state of ours into a user's."""
        for member, target in enumerate(members):
            arrays = (state, self._indices()[0], target)
            self._move("scatter_state", stream, arrays, 1, layer, member)

    def forward(
        self,
        weights: Weights,
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
        xp, H, S, V = self.xp, self.H, self.S, self.V
        device, stream = xp.cuda.Device(), xp.cuda.get_current_stream().ptr
        indices = order, lengths, _ = self._indices()
        blocks = self._blocks(self.I + self.gates * H)
        most = max([self._rows(*block) for block in blocks], default=0)
        xs = xp.empty((most, self.I), self.dtype)
        x_sums = xp.empty((most, self.gates, H), self.dtype)
        values = xp.empty((self.offset[-1] if keep else self.N, V, H), self.dtype)
        state = self._take_state(initial, layer, stream)
        runs = []
        for phase in self.phases:
            part = phase.plan
            sums = xp.empty((self.N, part.recurrents, H), self.dtype)
            operand, make = Matrix(state, 0, S * H), None
            if phase.operand is not None:
                buffer = xp.empty((self.N, H), self.dtype)
                operand = Matrix(buffer, 0, H)
                make = phase.operand.bind(device, state, values, buffer)
            equations = phase.forward.bind(
                device, x_sums, sums, weights.bias_ih, weights.bias_hh, state, values, y_out,
                order, lengths,
            )  # fmt: skip
            recurrent = Matrix(weights.hh, part.recurrents_before * H * H, H, transposed=True)
            runs.append((part.recurrents * H, operand, recurrent, sums, make, equations))

        for first, last in blocks:
            rows_of_block = self._rows(first, last)
            if rows_of_block == 0:
                break  # no sample is as long
            self._move("gather_sequence", stream, (x, *indices, xs), last - first, first, reverse)
            self._gemm(
                rows_of_block, self.gates * H, self.I,
                Matrix(xs, 0, self.I), Matrix(weights.ih, 0, self.I, transposed=True),
                Matrix(x_sums, 0, self.gates * H), add=False,
            )  # fmt: skip
            for step in range(first, last):
                running = self._rows(step, step + 1)
                if running == 0:
                    break
                grid = unit_grid(running, H)
                value_start = self.offset[step] if keep else 0
                for columns, operand, recurrent, sums, make, equations in runs:
                    if make is not None:
                        make(grid, BLOCK, stream, running, value_start)
                    if columns:
                        self._gemm(
                            running, columns, H, operand, recurrent, Matrix(sums, 0, columns),
                            add=False,
                        )  # fmt: skip
                    equations(
                        grid, BLOCK, stream, running, step, reverse,
                        self.offset[step] - self.offset[first], value_start,
                    )  # fmt: skip
        self._put_state(state, final_out, layer, stream)
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
        dfinal: tuple[Any, ...],
        dx_out: Any,
        dinitial_out: tuple[Any, ...],
    ) -> dict[str, Any]:
        """Gradients of everything, from those of y and of the final state.

        See `fastgru.kernels.cpu`; the gradient of x is added to `dx_out`.
        """
        xp, H, S, V = self.xp, self.H, self.S, self.V
        device, stream = xp.cuda.Device(), xp.cuda.get_current_stream().ptr
        indices = order, lengths, _ = self._indices()
        packed = pack(self.cell, weights)
        gradients = {name: xp.zeros(weight.shape, self.dtype) for name, weight in weights.items()}
        row = self.I + (self.gates + self.recurrent + 2) * H
        blocks = self._blocks(row)
        most = max([self._rows(*block) for block in blocks], default=0)
        xs = xp.empty((most, self.I), self.dtype)
        h_before = xp.empty((most, 1, H), self.dtype)
        operands = xp.empty((most, H), self.dtype)
        d_ih = xp.empty((most, self.gates, H), self.dtype)
        d_hh = xp.empty((most, self.recurrent, H), self.dtype)
        ones = xp.ones((1, most), self.dtype)
        dvalues = xp.empty((self.N, V, H), self.dtype)
        doperand = xp.empty((self.N, H), self.dtype)
        dstate = self._take_state(dfinal, layer, stream)
        runs = []
        for phase in reversed(self.phases):
            part = phase.plan
            equations = phase.backward.bind(
                device, h_before, values, y if dy is None else dy, dstate, dvalues, d_ih, d_hh,
                order, lengths,
            )  # fmt: skip
            target, spread = Matrix(dstate, 0, S * H), None
            if phase.operand_gradient is not None:
                target = Matrix(doperand, 0, H)
                spread = phase.operand_gradient.bind(
                    device, h_before, values, doperand, dstate, dvalues
                )
            recurrent = Matrix(packed.hh, part.recurrents_before * H * H, H)
            runs.append((part, recurrent, target, spread, equations))

        wide = self.recurrent * H
        for first, last in reversed(blocks):
            rows_of_block = self._rows(first, last)
            if rows_of_block == 0:
                continue
            self._move(
                "gather_h_before", stream, (y, initial[0], *indices, h_before), last - first,
                layer, first, reverse,
            )  # fmt: skip
            for step in reversed(range(first, last)):
                running = self._rows(step, step + 1)
                if running == 0:
                    continue
                grid = unit_grid(running, H)
                start = self.offset[step] - self.offset[first]
                for part, recurrent, target, spread, equations in runs:
                    equations(
                        grid, BLOCK, stream, running, step, reverse, dy is not None,
                        start, self.offset[step],
                    )  # fmt: skip
                    if part.recurrents:
                        at = start * wide + part.recurrents_before * H
                        self._gemm(
                            running, H, part.recurrents * H, Matrix(d_hh, at, wide), recurrent,
                            target, add=spread is None,
                        )  # fmt: skip
                    if spread is not None:
                        spread(grid, BLOCK, stream, running, start, self.offset[step])
            self._move("gather_sequence", stream, (x, *indices, xs), last - first, first, reverse)
            self._add_weight_gradients(
                gradients, rows_of_block, self.offset[first], xs, h_before, values, operands,
                d_ih, d_hh, ones, stream,
            )  # fmt: skip
            self._gemm(  # xs is not needed any more
                rows_of_block, self.I, self.gates * H,
                Matrix(d_ih, 0, self.gates * H), Matrix(packed.ih, 0, self.I),
                Matrix(xs, 0, self.I), add=False,
            )  # fmt: skip
            self._move("add_sequence", stream, (xs, *indices, dx_out), last - first, first, reverse)
        self._put_state(dstate, dinitial_out, layer, stream)
        return gradients

    def _add_weight_gradients(
        self, gradients, count, first_value, xs, h_before, values, operands, d_ih, d_hh, ones,
        stream,
    ):  # fmt: skip
        """Add what so many packed rows contribute to the gradients of the weights."""
        H, I = self.H, self.I
        wide = self.gates * H
        self._gemm(
            wide, I, count, Matrix(d_ih, 0, wide, transposed=True), Matrix(xs, 0, I),
            Matrix(gradients["weight_ih"], 0, I), add=True,
        )  # fmt: skip
        for name, d, columns in (
            ("bias_ih", d_ih, wide),
            ("bias_hh", d_hh, self.recurrent * H),
        ):
            if name in gradients:
                self._gemm(
                    1, columns, count, Matrix(ones, 0, count), Matrix(d, 0, columns),
                    Matrix(gradients[name], 0, columns), add=True,
                )  # fmt: skip
        wide = self.recurrent * H
        for phase in self.phases:
            part = phase.plan
            if part.recurrents == 0:
                continue
            operand = h_before
            if phase.operand is not None:
                phase.operand.bind(self.xp.cuda.Device(), h_before, values, operands)(
                    unit_grid(count, H), BLOCK, stream, count, first_value
                )
                operand = operands
            columns = part.recurrents_before * H
            self._gemm(
                part.recurrents * H, H, count,
                Matrix(d_hh, columns, wide, transposed=True), Matrix(operand, 0, H),
                Matrix(gradients["weight_hh"], columns * H, H), add=True,
            )  # fmt: skip
