"""Gradients of the weights of one layer and direction: products over the packed rows of a pass."""

from collections.abc import Callable, Mapping
from typing import Any

from ..cells import RECURRENT
from ..layout import vector_weights
from . import blas, tuning
from .blas import Matrix
from .context import BackwardArrays, Context, of_thread
from .launch import unit_grid
from .loops.steps import phase_kernels
from .terms import gradient_runs, sums_parts


class WeightGradients:
    """Gradients of the weights, added up over the time blocks of a pass.

    Vectors of weights have the gradients of the pre-activations that they are part of, summed over
    rows.

    Parameters
    ----------
    context : Context
    weights : mapping of str to array
        By name; those absent are missing.
    I : int
        Inputs.
    gemm : callable
        `blas.gemm` in the precision of the products.
    has_rows : bool
        Whether there are any: then the first time block overwrites the gradients.
    """

    def __init__(
        self,
        context: Context,
        weights: Mapping[str, Any],
        I: int,
        gemm: Callable[..., None],
        has_rows: bool,
    ) -> None:
        xp, cell, dtype = context.xp, context.cell, context.dtype
        self._context, self._I, self._gemm, self._weights = context, I, gemm, weights
        make = xp.empty if has_rows else xp.zeros
        recurrent = cell.weight_of(RECURRENT)
        self._ih = make(weights[cell.input_weight.name].shape, dtype)
        self._hh = None if recurrent is None else make(weights[recurrent.name].shape, dtype)
        self._vectors = [w for w in vector_weights(cell) if w.name in weights]
        rows = {
            row
            for weight in self._vectors
            for _, target, count in gradient_runs(cell, weight)
            for row in range(target, target + count)
        }
        parts = sums_parts(cell)
        self._parts = [p for p in parts if not rows.isdisjoint(range(p.row, p.row + p.gates))]
        shape = sum(part.gates for part in parts) if self._parts else 0, context.H
        self._sums = make(shape, dtype)

    def add_recurrent(
        self, arrays: BackwardArrays, count: int, first_value: int, add: bool
    ) -> None:
        """Write, or add, those of all but the input weights, of so many packed rows.

        By the gradients as the loop has left them, before those of input parts are changed.
        """
        context, H = self._context, self._context.H
        for part in self._parts:  # sums, and none that a lower precision makes faster
            d = getattr(arrays, part.array)
            wide, columns = d.shape[1] * H, part.gates * H
            blas.gemm(
                1, columns, count, Matrix(self._ones(count), 0, count),
                Matrix(d, part.first * H, wide), Matrix(self._sums, part.row * H, columns),
                add=add,
            )  # fmt: skip
        wide = arrays.d_hh.shape[1] * H
        for phase in phase_kernels(context.cell, context.dtype):
            plan, operand = phase.plan, arrays.h_before
            if plan.recurrents == 0:
                continue
            if phase.operand is not None:
                operand = context.xp.empty((count, H), context.dtype)
                make = phase.operand.bind(context.device, arrays.h_before, arrays.values, operand)
                make(unit_grid(count, H), tuning.UNIT_THREADS, context.stream, count, first_value)
            at = plan.recurrents_before * H
            self._gemm(
                plan.recurrents * H, H, count,
                Matrix(arrays.d_hh, at, wide, transposed=True), Matrix(operand, 0, H),
                Matrix(self._hh, at * H, H), add=add,
            )  # fmt: skip

    def add_input(self, xs: Any, d_ih: Any, count: int, add: bool) -> None:
        """Write, or add, those of the input weights."""
        wide, I = d_ih.shape[1] * self._context.H, self._I
        self._gemm(
            wide, I, count, Matrix(d_ih, 0, wide, transposed=True), Matrix(xs, 0, I),
            Matrix(self._ih, 0, I), add=add,
        )  # fmt: skip

    def _ones(self, count: int) -> Any:
        """So many ones, few of them kept: making them takes the host as long as three launches."""
        context, xp = self._context, self._context.xp
        kept = vars(of_thread).setdefault("ones", {})
        key = context.device.id, context.stream, context.dtype
        ones, _ = kept.get(key, (None, None))
        if ones is None or ones.size < count:
            ones = xp.ones(count, context.dtype)
            if count <= tuning.MOST_ONES:
                if len(kept) >= tuning.MOST_STREAMS:
                    kept.clear()
                # While the stream is there, no other has its number.
                kept[key] = ones, xp.cuda.get_current_stream()
        return ones

    def by_name(self) -> dict[str, Any]:
        """All of them, by name."""
        cell, H = self._context.cell, self._context.H
        recurrent = cell.weight_of(RECURRENT)
        found = {cell.input_weight.name: self._ih}
        if recurrent is not None:
            found[recurrent.name] = self._hh
        for weight in self._vectors:
            gates = self._context.xp.empty((len(weight.gates), H), self._context.dtype)
            for source, target, count in gradient_runs(cell, weight):
                gates[source : source + count] = self._sums[target : target + count]
            found[weight.name] = gates.reshape(-1)
        return found
