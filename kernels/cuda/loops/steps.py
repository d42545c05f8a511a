"""The loop for any cell and size: for each step and phase a product and a kernel of equations.

The one that is used by default. `graph` repeats its launches at once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...cells import HIDDEN, Cell
from ...layout import PhasePlan, phase_plans
from ...store import cell_digest
from .. import tuning
from ..blas import Matrix
from ..context import BackwardArrays, Context, ForwardArrays, Layer, RunSteps
from ..launch import Kernel, unit_grid
from ..normalise import make_normalise, make_normalise_backward
from ..pointwise import (
    make_backward_phase,
    make_forward_phase,
    make_operand,
    make_operand_gradient,
)


class PhaseKernels(NamedTuple):
    """The kernels of a phase."""

    plan: PhasePlan
    forward: Kernel
    backward: Kernel
    operand: Kernel | None  # None where the operand is h itself
    operand_gradient: Kernel | None
    normalise: Kernel | None  # None where recurrent sums are used as they are
    normalise_backward: Kernel | None


@functools.cache
def phase_kernels(cell: Cell, dtype: np.dtype[Any]) -> tuple[PhaseKernels, ...]:
    """The kernels of each phase of a cell."""

    digest = cell_digest(cell)

    def kernels(plan: PhasePlan) -> PhaseKernels:
        key = None if digest is None else f"{digest} {plan.number}"

        def of(make: Callable[[Cell, int], Callable[..., None]]) -> Kernel:
            return Kernel(make(cell, plan.number), dtype, key)

        def of_row(make: Callable[..., Callable[..., None]]) -> Kernel:
            own_key = None if key is None else f"{key} {tuning.SUM_THREADS}"
            return Kernel(make(cell, plan.number, dtype), dtype, own_key)

        plain = cell.phases[plan.number].operand is HIDDEN or plan.recurrents == 0
        normalises = cell.phases[plan.number].norm is not None
        return PhaseKernels(
            plan,
            of(make_forward_phase),
            of(make_backward_phase),
            None if plain else of(make_operand),
            None if plain else of(make_operand_gradient),
            of_row(make_normalise) if normalises else None,
            of_row(make_normalise_backward) if normalises else None,
        )

    return tuple(kernels(plan) for plan in phase_plans(cell))


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer: every one."""
    return True


def forward(context: Context, arrays: ForwardArrays) -> RunSteps:
    """Prepare the loop of a forward pass."""
    xp, H, N, stream, device = (getattr(context, n) for n in ("xp", "H", "N", "stream", "device"))
    x_sums, hh, constants, step_inputs, state, values, y_out, keep = arrays
    offset, stride, threads = context.offset, state.shape[1] * H, tuning.UNIT_THREADS
    row_threads = tuning.SUM_THREADS, 1
    phases = []
    for phase in phase_kernels(context.cell, context.dtype):
        part = phase.plan
        h_sums = xp.empty((N, part.recurrents, H), context.dtype)
        operand, make = Matrix(state, 0, stride), None
        if phase.operand is not None:
            buffer = xp.empty((N, H), context.dtype)
            operand, make = Matrix(buffer, 0, H), phase.operand.bind(device, state, values, buffer)
        equations = phase.forward.bind(
            device, x_sums, h_sums, constants, step_inputs, state, values, y_out, context.order,
            context.lengths,
        )  # fmt: skip
        normalise = None
        if phase.normalise is not None:
            normalise = phase.normalise.bind(device, h_sums, constants, values)
        columns = part.recurrents * H
        recurrent = Matrix(hh, part.recurrents_before * H * H, H, transposed=True)
        sums = Matrix(h_sums, 0, columns)
        multiply = (
            context.product(columns, H, operand, recurrent, sums, add=False) if columns else None
        )
        phases.append((make, multiply, normalise, equations))

    def run(first: int, last: int) -> None:
        for step in range(first, last):
            rows = context.rows(step, step + 1)
            if rows == 0:
                break  # no sample is as long
            grid, value_start = unit_grid(rows, H), offset[step] if keep else 0
            for make, multiply, normalise, equations in phases:
                if make is not None:
                    make(grid, threads, stream, rows, value_start)
                if multiply is not None:
                    multiply(rows, 0)
                if normalise is not None:
                    normalise((rows, 1), row_threads, stream, value_start)
                equations(
                    grid, threads, stream, rows, step, context.reverse,
                    offset[step] - offset[first], value_start,
                )  # fmt: skip

    return run


def backward(context: Context, arrays: BackwardArrays) -> RunSteps:
    """Prepare the loop of a backward pass."""
    xp, H, N, stream, device = (getattr(context, n) for n in ("xp", "H", "N", "stream", "device"))
    h_before, hh, constants, values, dy, dstate, d_ih, d_hh, d_alone, has_dy = arrays
    offset, stride, wide = context.offset, dstate.shape[1] * H, d_hh.shape[1] * H
    threads, row_threads = tuning.UNIT_THREADS, (tuning.SUM_THREADS, 1)
    kernels = phase_kernels(context.cell, context.dtype)
    # One phase has no earlier values, and h as an operand takes its gradient at once.
    dvalues = xp.empty((N if len(kernels) > 1 else 0, values.shape[1], H), context.dtype)
    spreads = any(phase.operand_gradient for phase in kernels)
    doperand = xp.empty((N if spreads else 0, H), context.dtype)
    phases = []
    for phase in reversed(kernels):
        part = phase.plan
        equations = phase.backward.bind(
            device, h_before, values, constants, dy, dstate, dvalues, d_ih, d_hh, d_alone,
            context.order, context.lengths,
        )  # fmt: skip
        normalise = None
        if phase.normalise_backward is not None:
            normalise = phase.normalise_backward.bind(device, values, d_hh)
        target, spread = Matrix(dstate, 0, stride), None
        if phase.operand_gradient is not None:
            target = Matrix(doperand, 0, H)
            spread = phase.operand_gradient.bind(
                device, h_before, values, doperand, dstate, dvalues
            )
        recurrent = Matrix(hh, part.recurrents_before * H * H, H)
        columns, add = part.recurrents * H, spread is None
        d = Matrix(d_hh, part.recurrents_before * H, wide)
        multiply = context.product(H, columns, d, recurrent, target, add=add) if columns else None
        phases.append((multiply, spread, normalise, equations))

    def run(first: int, last: int) -> None:
        for step in reversed(range(first, last)):
            rows = context.rows(step, step + 1)
            if rows == 0:
                continue
            grid, start = unit_grid(rows, H), offset[step] - offset[first]
            for multiply, spread, normalise, equations in phases:
                equations(
                    grid, threads, stream, rows, step, context.reverse, has_dy, start, offset[step]
                )
                if normalise is not None:
                    normalise((rows, 1), row_threads, stream, start, offset[step])
                if multiply is not None:
                    multiply(rows, start * wide)
                if spread is not None:
                    spread(grid, threads, stream, rows, start, offset[step])

    return run
