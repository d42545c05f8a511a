"""What `resident`, `exchange` and `cluster` have in common: recurrent weights stay on chip.

Each of their kernels takes all rows through many time steps. They differ in where the weights are
and how h gets from thread to thread; what a thread does for its own row and unit is here. For cells
of one phase whose operand is h; others have `steps`.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numba.cuda.extending import register_jitable

from ...cells import HIDDEN, INPUT, Cell
from ...layout import gates_of_terms, phase_plans
from ...store import cell_digest
from ..context import BackwardArrays, Context, ForwardArrays, RunSteps
from ..launch import Kernel
from ..pointwise import make_inputs, make_join, make_recurrent, time_index
from ..unit_values import compiled, make_load, make_store, make_zeros

T_co = TypeVar("T_co", covariant=True)


class Pair(NamedTuple, Generic[T_co]):
    """Something for each direction."""

    forward: T_co
    backward: T_co


def has_one_product(cell: Cell, dtype: np.dtype[Any]) -> bool:
    """Whether a cell's step is one product with h, of float32, and all else are its equations.

    Cells that normalise, or with pre-activations that no product feeds, are not known here.
    """
    (part, *more) = phase_plans(cell)
    phase = cell.phases[0]
    normalises = cell.norm is not None or phase.norm is not None
    plain = phase.operand is HIDDEN and part.first_input == part.first and not normalises
    return not more and part.recurrents > 0 and plain and dtype.itemsize == 4


# --- in kernels: what a thread does for its own row and unit --------------------------------------


@register_jitable
def own_steps(order, lengths, row, mine, first_step, last_step):
    """A thread's sample, and the step before which it ends; without a row none is its own."""
    # order, lengths: (N,)
    return (
        order[row] if mine else 0,
        min(last_step, lengths[row]) if mine else first_step,
    )


def make_reduce(most_rows: int, gates: int) -> Callable[..., None]:
    """Build what adds up the parts of one row's and unit's sums, into those of the first part."""

    def reduce(sums, row, unit, parts):
        # sums: (parts * rows, gates, units)
        for gate in range(gates):
            total = sums[row, gate, unit]
            for part in range(1, parts):
                total += sums[part * most_rows + row, gate, unit]
            sums[row, gate, unit] = total

    return register_jitable(reduce)


class ForwardParts(NamedTuple):
    """What kernels are made of, forward."""

    load_state: Callable[..., Any]
    store_state: Callable[..., None]
    no_inputs: Callable[[Any], Any]
    no_state: Callable[[Any], Any]
    no_values: Callable[[Any], Any]
    load_inputs: Callable[..., Any]
    advance: Callable[..., Any]
    store_step: Callable[..., None]


def forward_parts(cell: Cell, rows: int) -> ForwardParts:
    """Build them, for tiles of at most so many rows."""
    states, values = range(len(cell.states)), range(cell.num_values)
    inputs, recurrent, join = (make(cell, 0) for make in (make_inputs, make_recurrent, make_join))
    store_values, reduce = make_store(values), make_reduce(rows, len(cell.recurrent_gates))
    equations = compiled(cell.phases[0].forward)

    def load_inputs(x_sums, constants, offset, first_step, step, row, unit):
        # x_sums: (packed rows of these steps, input gates, H);
        # constants: (1, pre-activations, H); offset: (T + 1,)
        return inputs(x_sums, offset[step] - offset[first_step] + row, constants, unit)

    def advance(sums, line, column, parts, x_part, constants, unit, members):
        # sums: (parts * rows, gates, units), the unit's in `column`;
        # constants: (1, pre-activations, units)
        reduce(sums, line, column, parts)
        a = join(x_part, recurrent(sums, line, column, constants, unit))
        return equations(a, members, ())

    def store_step(y_out, values, offset, lengths, step, row, n, unit, reverse, keep, h, new):
        # y_out: (N, T, H); values: (packed rows, values, H); offset: (T + 1,); lengths: (N,)
        y_out[n, time_index(step, lengths[row], reverse), unit] = h
        if keep:
            store_values(values, offset[step] + row, unit, new)

    return ForwardParts(
        make_load(states),
        make_store(states),
        make_zeros(phase_plans(cell)[0].inputs),
        make_zeros(len(states)),
        make_zeros(len(values)),
        register_jitable(load_inputs),
        register_jitable(advance),
        register_jitable(store_step),
    )


class BackwardParts(NamedTuple):
    """As `ForwardParts`, backward."""

    load_state: Callable[..., Any]
    store_state: Callable[..., None]
    no_state: Callable[[Any], Any]
    no_values: Callable[[Any], Any]
    no_gradients: Callable[[Any], Any]  # of all pre-activations
    load_step: Callable[..., Any]
    add_output: Callable[..., Any]
    differentiate: Callable[..., Any]
    recurrent: Callable[[Any], Any]
    store_step: Callable[..., None]
    add_product: Callable[..., Any]


def backward_parts(cell: Cell, rows: int) -> BackwardParts:
    """Build them, for tiles of at most so many rows."""
    part = phase_plans(cell)[0]
    states, values = range(len(cell.states)), range(cell.num_values)
    first = part.terms - part.recurrents  # the first pre-activation that h feeds
    load_values, no_values = make_load(values), make_zeros(len(values))
    store_ih = make_store(gates_of_terms(cell, part, INPUT))
    store_hh, reduce = make_store(range(part.recurrents)), make_reduce(rows, 1)
    equations = compiled(cell.phases[0].backward)

    def load_step(h_before, values, offset, first_step, step, row, unit):
        # h_before: (packed rows of these steps, 1, H); values: (packed rows, values, H);
        # offset: (T + 1,)
        packed = offset[step] - offset[first_step] + row
        return packed, h_before[packed, 0, unit], load_values(values, offset[step] + row, unit)

    def add_output(members, dy, n, step, length, unit, reverse):
        # dy: (N, T, H)
        return (members[0] + dy[n, time_index(step, length, reverse), unit],) + members[1:]

    def differentiate(h, saved, members, zero):
        da, before, _ = equations(h, saved, members, no_values(zero))
        return da, before

    def recurrent(da):
        return da[first:]

    recurrent_of = register_jitable(recurrent)

    def store_step(d_ih, d_hh, packed, unit, da):
        # d_ih, d_hh: (packed rows of these steps, input or recurrent gates, H)
        store_ih(d_ih, packed, unit, da)
        store_hh(d_hh, packed, unit, recurrent_of(da))

    def add_product(sums, line, column, parts, members):
        # sums: (parts * rows, 1, units)
        reduce(sums, line, column, parts)
        return (members[0] + sums[line, 0, column],) + members[1:]

    return BackwardParts(
        make_load(states),
        make_store(states),
        make_zeros(len(states)),
        no_values,
        make_zeros(part.terms),
        register_jitable(load_step),
        register_jitable(add_output),
        register_jitable(differentiate),
        recurrent_of,
        register_jitable(store_step),
        register_jitable(add_product),
    )


# --- on the host ----------------------------------------------------------------------------------


def make_kernels(
    cell: Cell,
    dtype: np.dtype[Any],
    makers: Pair[Callable[[Cell, Any], Callable[..., None]]],
    tiles: Pair[Any],
    options: Callable[[Any], dict[str, Any]] = lambda tile: {},
) -> Pair[Kernel]:
    """The kernels of a cell for tiles; `options` gives more about a tile's `Kernel`."""
    digest = cell_digest(cell)

    def kernel(make: Callable[[Cell, Any], Callable[..., None]], tile: Any) -> Kernel:
        key = None if digest is None else f"{digest} {tile}"
        return Kernel(make(cell, tile), dtype, key, tile.threads, **options(tile))

    return Pair(kernel(makers.forward, tiles.forward), kernel(makers.backward, tiles.backward))


def launch_forward(
    context: Context, arrays: ForwardArrays, kernel: Kernel, grid: tuple[int, int], threads: int
) -> RunSteps:
    """The loop that one launch of a kernel makes."""
    launch = kernel.bind(
        context.device, arrays.x_sums, arrays.hh, arrays.constants, arrays.state, arrays.values,
        arrays.y_out, *context.indices,
    )  # fmt: skip

    def run(first: int, last: int) -> None:
        launch(grid, (threads, 1), context.stream, first, last, context.reverse, arrays.keep)

    return run


def launch_backward(
    context: Context, arrays: BackwardArrays, kernel: Kernel, grid: tuple[int, int], threads: int
) -> RunSteps:
    """As `launch_forward`, backward."""
    launch = kernel.bind(
        context.device, arrays.h_before, arrays.hh, arrays.values, arrays.dy, arrays.dstate,
        arrays.d_ih, arrays.d_hh, *context.indices,
    )  # fmt: skip

    def run(first: int, last: int) -> None:
        launch(grid, (threads, 1), context.stream, first, last, context.reverse, arrays.has_dy)

    return run
