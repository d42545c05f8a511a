"""Rows of user arrays of any strides, and the ragged order in which rows are computed.

See `ragged`. Saved values and gradients are kept in packed rows, without padding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import element_pointer, inlined, jitable, make_sweeps, prefetch
from .tuning import CACHE_LINE, ROWS_AHEAD


def _row_loop(
    context: Any, builder: Any, array_type: Any, array: Any, n: Any, t: Any, column: Any
) -> Any:
    """Address of element i of ``array[n, t, column:]``, as a function of i; strides in bytes."""
    struct = context.make_array(array_type)(context, builder, array)
    strides = cgutils.unpack_tuple(builder, struct.strides, 3)
    byte = cgutils.int8_t.as_pointer()
    element = struct.data.type
    start = builder.bitcast(struct.data, byte)
    for index, stride in zip((n, t, column), strides):
        start = builder.gep(start, [builder.mul(index, stride)])

    def at(i: Any) -> Any:
        return builder.bitcast(builder.gep(start, [builder.mul(i, strides[2])]), element)

    return at, builder.bitcast(start, element), strides[2]


def _make_row_copy(direction: str) -> Any:
    """Intrinsic that moves part of a row between a user's array and a buffer of ours."""

    def row_copy(
        typing: Any,
        array: Any,  # (N, T, F), any strides, perhaps unaligned
        n: Any,
        t: Any,
        column: Any,  # first element of the row
        buffer: Any,  # pointer or flat array; the elements are buffer[start : start + count]
        start: Any,
        count: Any,
    ) -> Any:
        index = types.intp
        sig = types.void(array, index, index, index, buffer, index, index)
        size = array.dtype.bitwidth // 8

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            at, first, stride = _row_loop(context, builder, array, *args[:4])
            ours = element_pointer(context, builder, buffer, args[4], args[5])
            contiguous = builder.icmp_signed("==", stride, stride.type(size))

            def move(pointer: Any, mine: Any) -> None:
                theirs = builder.load(pointer)
                theirs.align = 1
                value = builder.load(mine)
                if direction == "load":
                    builder.store(theirs, mine)
                elif direction == "add":
                    builder.store(builder.fadd(value, theirs), mine)
                else:
                    total = builder.fadd(theirs, value) if direction == "accumulate" else value
                    builder.store(total, pointer).align = 1

            # Two loops, so that LLVM can vectorise the one for contiguous rows.
            with builder.if_else(contiguous) as (then, otherwise):
                with then, cgutils.for_range(builder, args[6]) as loop:
                    move(builder.gep(first, [loop.index]), builder.gep(ours, [loop.index]))
                with otherwise, cgutils.for_range(builder, args[6]) as loop:
                    move(at(loop.index), builder.gep(ours, [loop.index]))
            return context.get_dummy_value()

        return sig, emit

    row_copy.__name__ = f"{direction}_row"
    return intrinsic(row_copy)


load_row = _make_row_copy("load")  # buffer[start + i] = array[n, t, column + i]
add_row = _make_row_copy("add")  # buffer[start + i] += array[n, t, column + i]
store_row = _make_row_copy("store")  # array[n, t, column + i] = buffer[start + i]
accumulate_row = _make_row_copy("accumulate")  # array[n, t, column + i] += buffer[start + i]


@intrinsic
def prefetch_row(
    typing: Any,
    array: Any,  # (N, T, F), any strides
    n: Any,
    t: Any,
    column: Any,
    count: Any,
) -> Any:
    """Prefetch the cache lines of part of a row, if its elements are contiguous.

    The row need not exist.
    """
    index = types.intp
    sig = types.void(array, index, index, index, index)
    size = array.dtype.bitwidth // 8

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, first, stride = _row_loop(context, builder, array, *args[:4])
        lines = builder.add(builder.mul(args[4], stride), stride.type(CACHE_LINE - 1))
        lines = builder.sdiv(lines, stride.type(CACHE_LINE))
        contiguous = builder.icmp_signed("==", stride, stride.type(size))
        with builder.if_then(contiguous), cgutils.for_range(builder, lines) as loop:
            distance = builder.mul(loop.index, stride.type(CACHE_LINE // size))
            prefetch(builder, builder.gep(first, [distance]))
        return context.get_dummy_value()

    return sig, emit


@jitable
def time_index(step, length, reverse):
    """Time at which a row of so many steps takes a step; in reverse the last time comes first."""
    return length - 1 - step if reverse else step


@inlined
def prefetch_ahead(array, order, lengths, row, end, step, reverse, shift, column, count):
    """Prefetch part of a row, ROWS_AHEAD later, of the sorted rows before `end`, at a step.

    `shift` is the distance in time from the step's own row.
    """
    # array (N, T, F); order (N,); lengths (N,)
    ahead = row + ROWS_AHEAD
    if ahead < end:
        t = time_index(step, lengths[ahead], reverse) + shift
        prefetch_row(array, order[ahead], t, column, count)


@jitable
def running(offset, step, first, last):
    """How many of the sorted rows first to last - 1 still run at a step."""
    # offset (T + 1,): packed rows before each step
    return min(max(offset[step + 1] - offset[step] - first, 0), last - first)


@jitable
def step_of(offset, packed):
    """The step of a packed row."""
    low, high = 0, len(offset) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if offset[middle] <= packed:
            low = middle
        else:
            high = middle
    return low


@inlined
def previous_h(y, initial, layer, n, step, t, reverse, column, buffer, start, count):
    """Load the h that a step started from: the initial one, or the output a step earlier."""
    # y (N, T, H); initial (layers * directions, N, H); buffer flat
    if step == 0:
        load_row(initial, layer, n, column, buffer, start, count)
    else:
        load_row(y, n, t + 1 if reverse else t - 1, column, buffer, start, count)


def make_state_rows(lanes: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Build ``load_state`` and ``store_state``, for some units of the rows of a row block."""
    fill_zero = make_sweeps(lanes).fill_zero

    @jitable
    def load_state(members, states, layer, order, first, rows, units, state, plan):
        # members: for each (layers * directions, N, H); state: pointer to (states, rows, h)
        for row in range(rows):
            for member in range(states):
                to = (member * plan.block_rows + row) * plan.h_row + units.first
                fill_zero(state, to, units.vectors * lanes)
                load_row(
                    members[member], layer, order[first + row], units.first, state, to, units.real
                )

    @jitable
    def store_state(members_out, states, layer, order, first, rows, units, state, plan):
        for row in range(rows):
            for member in range(states):
                at = (member * plan.block_rows + row) * plan.h_row + units.first
                store_row(
                    members_out[member], layer, order[first + row], units.first,
                    state, at, units.real,
                )  # fmt: skip

    return load_state, store_state


class Units(NamedTuple):
    """A run of whole vectors of units."""

    first: int
    last: int  # the first that is not in it
    vectors: int
    real: int  # how many of them are not padding


@jitable
def units_of(rank, members, H, lanes):
    """The units (or columns) of one of so many that share them."""
    vectors = (H + lanes - 1) // lanes
    first, last = vectors * rank // members, vectors * (rank + 1) // members
    real = max(0, min(last * lanes, H) - first * lanes)
    return Units(first * lanes, last * lanes, last - first, real)
