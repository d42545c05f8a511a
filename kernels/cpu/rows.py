"""Rows of user arrays of any strides, and the ragged order in which rows are computed.

Samples are sorted by length, longest first, so those still running at a step are a leading run of
the sorted rows. *Packed rows* list all valid (step, row) pairs, step by step: step s holds the
packed rows offset[s] to offset[s + 1]. Saved values and gradients are kept in this order, without
padding.
"""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .simd import element_pointer


def _row_loop(context: Any, builder: Any, array_type: Any, array: Any, n: Any, t: Any) -> Any:
    """Address of element i of ``array[n, t]``, as a function of i; strides are in bytes."""
    struct = context.make_array(array_type)(context, builder, array)
    strides = cgutils.unpack_tuple(builder, struct.strides, 3)
    byte = cgutils.int8_t.as_pointer()
    element = struct.data.type
    start = builder.bitcast(struct.data, byte)
    for index, stride in ((n, strides[0]), (t, strides[1])):
        start = builder.gep(start, [builder.mul(index, stride)])

    def at(i: Any) -> Any:
        return builder.bitcast(builder.gep(start, [builder.mul(i, strides[2])]), element)

    return at, builder.bitcast(start, element), strides[2]


def _make_row_copy(direction: str) -> Any:
    """Intrinsic that moves one row between a user's array and a contiguous buffer of ours."""

    def row_copy(
        typing: Any,
        array: Any,  # (N, T, F), any strides, perhaps unaligned
        n: Any,
        t: Any,
        buffer: Any,  # flat; the row is buffer[start : start + count]
        start: Any,
        count: Any,
    ) -> Any:
        index = types.intp
        sig = types.void(array, index, index, buffer, index, index)
        size = array.dtype.bitwidth // 8

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            at, first, stride = _row_loop(context, builder, array, *args[:3])
            ours = element_pointer(context, builder, buffer, args[3], args[4])
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
                with then, cgutils.for_range(builder, args[5]) as loop:
                    move(builder.gep(first, [loop.index]), builder.gep(ours, [loop.index]))
                with otherwise, cgutils.for_range(builder, args[5]) as loop:
                    move(at(loop.index), builder.gep(ours, [loop.index]))
            return context.get_dummy_value()

        return sig, emit

    row_copy.__name__ = f"{direction}_row"
    return intrinsic(row_copy)


load_row = _make_row_copy("load")  # buffer[start + i] = array[n, t, i]
add_row = _make_row_copy("add")  # buffer[start + i] += array[n, t, i]
store_row = _make_row_copy("store")  # array[n, t, i] = buffer[start + i]
accumulate_row = _make_row_copy("accumulate")  # array[n, t, i] += buffer[start + i]


@register_jitable
def time_index(step, length, reverse):
    """Time at which a row of so many steps takes a step; in reverse the last time comes first."""
    return length - 1 - step if reverse else step


@register_jitable
def running(offset, step, first, last):
    """How many of the sorted rows first to last - 1 still run at a step."""
    # offset (T + 1,): packed rows before each step
    return min(max(offset[step + 1] - offset[step] - first, 0), last - first)


@register_jitable
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


@register_jitable
def previous_h(y, initial, layer, n, step, t, reverse, buffer, start, count):
    """Load the h that a step started from: the initial one, or the output a step earlier."""
    # y (N, T, H); initial (layers * directions, N, H); buffer flat
    if step == 0:
        load_row(initial, layer, n, buffer, start, count)
    else:
        load_row(y, n, t + 1 if reverse else t - 1, buffer, start, count)
