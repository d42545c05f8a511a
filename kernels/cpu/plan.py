"""What follows from a cell's sizes: how scratch memory is laid out.

The same functions serve both ends, the Python that allocates and the kernels that index. Rows of
scratch get one vector of padding: strides of a power of two would put all rows of a tile into the
same few cache sets.
"""

from typing import NamedTuple

from numba.extending import register_jitable

from .simd import FIRST_CACHE, inlined


class Sizes(NamedTuple):
    """Lengths in elements of one row of each kind."""

    unit: int  # H in whole vectors
    x: int  # inputs of one packed row
    pre: int  # its pre-activations, or their gradients
    value: int  # its saved values
    h: int  # one member of the state


@register_jitable
def padded(size, lanes):
    """`size` rounded up to whole vectors."""
    return (size + lanes - 1) // lanes * lanes


@register_jitable
def row_sizes(num_pre, num_values, input_size, hidden_size, lanes):
    """Row lengths of a cell with so many pre-activations and values."""
    unit = padded(hidden_size, lanes)
    return Sizes(
        unit,
        padded(input_size, lanes) + lanes,
        num_pre * unit + lanes,
        num_values * unit,
        unit + lanes,
    )


class Units(NamedTuple):
    """A run of whole vectors of units."""

    first: int
    last: int  # the first that is not in it
    vectors: int
    real: int  # how many of them are not padding


@register_jitable
def units_of(rank, members, H, lanes):
    """The units (or columns) of one of so many that share them."""
    vectors = (H + lanes - 1) // lanes
    first, last = vectors * rank // members, vectors * (rank + 1) // members
    real = max(0, min(last * lanes, H) - first * lanes)
    return Units(first * lanes, last * lanes, last - first, real)


# Vectors of units whose weights a product reads before the next ones', and its logarithm: groups
# are found by shifts, as divisions took 2 % of a small step.
GROUP_BITS = 2
GROUP = 1 << GROUP_BITS


# Bytes of sums with which one vector keeps a core busy while weights come from the second-level
# cache: a multiply-add takes four cycles, in each of which 32 bytes come, on an EPYC.
_ENOUGH_SUM_BYTES = 4 * 32


@register_jitable
def group_bits(rows, vectors, sum_bytes, panel_bytes):
    """Logarithm of the size of a step's groups, by what a vector's sums and its weights take.

    One row takes vectors one by one where the first-level cache has room for one, but not for all:
    then the last one is still there when the next step turns back. Forward takes 3 to 7 % less
    time so for 64 to 96 units (EPYC), 2 to 3 % for 128 of a GRU. Two rows gain nothing, and where
    one vector has too few sums, it takes 15 to 25 % more.
    """
    leaves_some = panel_bytes <= FIRST_CACHE < vectors * panel_bytes
    if rows == 1 and leaves_some and sum_bytes >= _ENOUGH_SUM_BYTES:
        return 0
    return GROUP_BITS


@register_jitable
def first_of_group(number, vectors, bits, step):
    """First vector of a step's next group, of ceil(vectors / 2^bits).

    Every other step goes from the last group to the first: where the weights are too many for a
    cache, those read last are still in it. One row of 256 or 512 units gains 2 to 5 %. After its
    last group comes the same one again, as the next step of one phase starts there.
    """
    last = (vectors - 1) >> bits
    number = min(number, last)
    if step % 2 == 1:
        number = last - number
    return number << bits


class ForwardLayout(NamedTuple):
    """Indices into the part of the forward loop's workspace that a block of rows uses."""

    state: int  # (states, rows, h)
    operand: int  # (2, rows, h): the one being multiplied and the next one take turns
    x: int  # (rows * steps, x)
    pre: int  # (rows * steps, pre)
    values: int  # (rows, value), used when values are not kept
    end: int


@register_jitable
def forward_layout(start, rows, steps, states, size):
    """Lay out the forward workspace, from index `start`, for so many rows and steps a block."""
    operand = start + states * rows * size.h
    x = operand + 2 * rows * size.h
    pre = x + rows * steps * size.x
    values = pre + rows * steps * size.pre
    return ForwardLayout(start, operand, x, pre, values, values + rows * size.value)


class BackwardLayout(NamedTuple):
    """Indices into the part of the backward loop's workspace that a block of rows uses."""

    dstate: int  # (states, rows, h)
    h: int  # (rows, h): h before the step
    doperand: int  # (rows, h)
    dvalues: int  # (rows, value)
    end: int


@register_jitable
def backward_layout(start, rows, states, size):
    """Lay out the backward workspace, from index `start`, for so many rows a block."""
    h = start + states * rows * size.h
    doperand = h + rows * size.h
    dvalues = doperand + rows * size.h
    return BackwardLayout(start, h, doperand, dvalues, dvalues + rows * size.value)


def chain(functions):
    """One compiled function that calls all of them, in order, with the same arguments.

    Numba must know them (`inlined`, `register_jitable`). Phases differ in their number of gates, so
    a loop over them has no single type to compile.
    """
    first, *rest = functions
    if not rest:
        return first
    others = chain(rest)

    @inlined
    def both(*args):
        first(*args)
        others(*args)

    return both
