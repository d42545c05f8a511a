"""The product of one row and packed panels, for one step of a recurrence.

It does what `product` does for one row, with the same results, and is quicker to call: with few
units the call takes as long as the product. It takes all panels of a step at once, strip by strip.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .product import first_of_strip, tile_shapes
from .simd import jitable, literal, pointer, vec_of
from .tile import Factors, Operands, Panels, Sums, chunks_of, emit_tile, moved, while_left
from .tuning import ENOUGH_SUM_BYTES, FIRST_CACHE, STRIP_BITS


class RowSums(NamedTuple):
    """Sums of a row, added to: a pointer to the first; panels lie a vector apart."""

    memory: Any
    gate: Any  # elements from gate to gate


class RowFactors(NamedTuple):
    """What the panels are multiplied with: a pointer to the first; a segment is contiguous."""

    memory: Any
    segment: Any  # elements from segment to segment


class RowExtent(NamedTuple):
    """Sizes of a product of one row; panels have no gaps."""

    segments: Any  # that each sum runs over, at least 1
    K: Any  # length of a segment, at least 1
    panels: Any


@jitable
def strip_bits(vectors, sum_bytes, panel_bytes):
    """Logarithm of the size of a row's strips, by what a vector's sums and its weights take.

    Vectors are taken one by one where the first-level cache has room for one, but not for all: then
    the last one is still there when the next step starts with it. Forward takes 3 to 7 % less time
    so for 64 to 96 units (EPYC), 2 to 3 % for 128 of a GRU. Two rows would gain nothing, and where
    one vector has too few sums, it takes 15 to 25 % more.
    """
    leaves_some = panel_bytes <= FIRST_CACHE < vectors * panel_bytes
    return 0 if leaves_some and sum_bytes >= ENOUGH_SUM_BYTES else STRIP_BITS


@intrinsic(prefer_literal=True)
def _multiply_row(
    typing: Any,
    sums: Any,  # pointer
    gate: Any,  # elements from gate to gate of the sums
    factors: Any,  # RowFactors
    panels: Any,  # pointer
    extent: Any,  # RowExtent
    gates: Any,  # literal
) -> Any:
    """The product with some panels."""
    sig = types.void(sums, gate, factors, panels, extent, gates)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        memory, to_gate, of_factors, of_panels, sizes, _ = args
        first_factor, to_segment = cgutils.unpack_tuple(builder, of_factors)
        segments, K, all_panels = cgutils.unpack_tuple(builder, sizes)
        vec, integer = vec_of(sig.args[0]), K.type
        count = literal(gates)
        none, one, of_k = integer(0), integer(1), integer(count * vec.lanes)
        all_sums = Sums(memory, none, to_gate)
        row_factors = Factors(first_factor, none, to_segment, one)
        to_panel = builder.mul(builder.mul(segments, K), of_k)
        all_weights = Panels(of_panels, to_panel, of_k)
        chunks = chunks_of(builder, segments, K)
        panel = cgutils.alloca_once_value(builder, none)
        (_, panel_counts) = tile_shapes(count)[-1]
        for tile_panels in panel_counts:
            with while_left(builder, panel, all_panels, tile_panels):
                at = builder.load(panel)
                these = moved(builder, all_sums, builder.mul(at, integer(vec.lanes)))
                weights = moved(builder, all_weights, builder.mul(at, to_panel))
                operands = Operands(these, these, row_factors, weights, segments, K, chunks)
                emit_tile(builder, vec, operands, None, 1, tile_panels, count)
        return context.get_dummy_value()

    return sig, emit


def make_row_product(gates: int, lanes: int, itemsize: int) -> Callable[..., None]:
    """Build the product of one row for a number of gates, at least 1."""

    def multiply_row(
        sums,  # RowSums: panels, gates
        factors,  # RowFactors: segments, k
        weights,  # pointer to panels, segments, k, gates
        extent,  # RowExtent
        step,  # which step this is: every other one takes the last strip first
    ):
        panel = extent.segments * extent.K * gates * lanes
        bits = strip_bits(extent.panels, gates * lanes * itemsize, panel * itemsize)
        for strip in range((extent.panels + (1 << bits) - 1) >> bits):
            vector = first_of_strip(strip, extent.panels, bits, step)
            size = RowExtent(extent.segments, extent.K, min(1 << bits, extent.panels - vector))
            _multiply_row(
                pointer(sums.memory, vector * lanes), sums.gate, factors,
                pointer(weights, vector * panel), size, gates,
            )  # fmt: skip

    return multiply_row
