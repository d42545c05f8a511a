"""The product of rows and packed panels: the one matrix kernel of the CPU backend.

Every product here (projection, recurrence, their gradients) adds to sums that lie in memory, mostly
those that it replaces:

    sums[row, panel, gate] = start[row, panel, gate]
                             + sum over segments and k of
                               factors[row, segment, k] * panels[panel, segment, k, gate]

where a panel is one SIMD vector of units, packed so that it is read in order. The sums of a tile of
rows and panels stay in registers while k runs. Each sum is one accumulator over ascending k, or one
for each chunk of a long segment, whatever the tile, so no result depends on how rows are grouped.
It begins at 0, and is added to `start`, or to the chunks before, in the end: sums of sums round
less, and a short sum does not wait for `start`.

It is compiled once for each number of gates, and called by its address: by all cells, in both
passes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import jitable, literal, register_count, vec_of
from .tile import (
    Ahead,
    Extent,
    Factors,
    Operands,
    Panels,
    Sums,
    chunks_of,
    emit_tile,
    moved,
    while_left,
)
from .tuning import ENOUGH_SUMS, NEAR_CACHE, STRIP, TALLEST_TILE

__all__ = ["Extent", "Factors", "Panels", "Prefetch", "Sums"]


class Prefetch(NamedTuple):
    """What full tiles and pairs prefetch, a cache line in each round."""

    panels: Any  # pointer to panels, without gaps, that may be read after these
    memory: Any  # pointer to what else is needed next
    tile: Any  # elements of it from one tile's to the next one's
    round: Any  # elements of it from one round's to the next one's; 0 to prefetch panels instead


def tile_shapes(gates: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Row counts of the tiles for so many gates, largest first, each with its panel counts.

    Up to three quarters of the registers hold sums, the rest one step's weights and the broadcast.
    Fewer rows take several panels at once, so that enough independent sums hide the latency of the
    multiply-add. There is a tile for every count of rows left over, so that they read the weights
    once: three rows as two and one took twice as long. Panel counts end in 1, so all are covered;
    several rows take a strip of four as two and two, since of three and one the one has too few
    sums (7 % slower on a Xeon, which starts two multiply-adds in a cycle).
    """
    budget = register_count() * 3 // 4
    most = max(1, min(TALLEST_TILE, budget // gates))
    shapes = []
    for rows in range(most, 0, -1):
        panels = max(1, min(STRIP, budget // (rows * gates)))
        counts = (4, 3, 2, 1) if rows <= 2 else (4, 2, 1)
        shapes.append((rows, tuple(sorted({c for c in counts if c <= panels}, reverse=True))))
    return tuple(shapes)


def pair_heights(gates: int) -> tuple[int, ...]:
    """Row counts of two tiles for the rows of a full one and one or two more: one for each count.

    One or two rows alone would read all weights for a few multiply-adds each. On a Xeon, forward
    takes 4 to 8 % less time so for 9, 10 and 17 rows of a GRU and 7 and 8 of an LSTM, 1 to 3 % less
    for 32 of an LSTM, whose full tiles have 6. None where tiles of half the height have too few
    sums.
    """
    (full_rows, (panels, *_)), *_ = tile_shapes(gates)
    half = full_rows // 2
    if full_rows < 3 or half * gates * panels < ENOUGH_SUMS:
        return ()
    return (half + 1,) if full_rows % 2 else (half + 1, half)


class TileCounts(NamedTuple):
    """The full tiles of a product, by which a step's prefetching is divided among them."""

    full_rows: int
    full_panels: int
    pairs: int  # how many rows more than full tiles' make a pair of tiles


def tile_counts(gates: int) -> TileCounts:
    """Of a product with so many gates."""
    (full_rows, (full_panels, *_)), *_ = tile_shapes(gates)
    return TileCounts(full_rows, full_panels, len(pair_heights(gates)))


class Share(NamedTuple):
    """What each product of a step prefetches beside its panels; see `Prefetch`."""

    strip: int  # elements from one strip's to the next one's; 0 to prefetch panels instead
    tile: int
    round: int


@jitable
def share_of_strip(size, rows, vectors, rounds, weight_bytes, tiles):
    """How the full tiles and pairs of a step, of so many rounds each, prefetch `size` elements.

    An equal share each, unless there are more weights than stay in a near cache: these come first.
    """
    if size == 0 or weight_bytes > NEAR_CACHE:
        return Share(0, 0, 0)
    of_each = size // ((vectors + STRIP - 1) // STRIP)
    count = rows // tiles.full_rows
    if count > 0 and 0 < rows % tiles.full_rows <= tiles.pairs:
        count += 1
    rounds_in_all = count * (min(vectors, STRIP) // tiles.full_panels) * rounds
    of_round = of_each // max(1, rounds_in_all) + 1
    return Share(of_each, of_round * rounds, of_round)


@jitable
def first_of_strip(number, vectors, bits, step):
    """First vector of a step's next strip, of ceil(vectors / 2^bits).

    Every other step goes from the last strip to the first: where the weights are too many for a
    cache, those read last are still in it. One row of 256 or 512 units gains 2 to 5 %. After its
    last strip comes the same one again, as the next step of one phase starts there.
    """
    last = (vectors - 1) >> bits
    number = min(number, last)
    if step % 2 == 1:
        number = last - number
    return number << bits


@intrinsic(prefer_literal=True)
def _multiply(
    typing: Any,
    sums: Any,  # Sums
    start: Any,  # Sums: what is added to them in the end; may be the sums themselves
    factors: Any,  # Factors
    panels: Any,  # Panels
    prefetch: Any,  # Prefetch
    extent: Any,  # Extent
    gates: Any,  # literal
) -> Any:
    """The product, for any size."""
    sig = types.void(sums, start, factors, panels, prefetch, extent, gates)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kinds = Sums, Sums, Factors, Panels, Prefetch, Extent
        of_sums, of_start, of_factors, of_panels, ahead_of, (segments, K, all_rows, all_panels) = (
            kind(*cgutils.unpack_tuple(builder, value)) for kind, value in zip(kinds, args)
        )
        vec, integer = vec_of(sig.args[0].types[0]), K.type
        row = cgutils.alloca_once(builder, integer)
        panel = cgutils.alloca_once(builder, integer)
        done = cgutils.alloca_once(builder, integer)  # tiles that have prefetched, of these panels
        done_in_all = cgutils.alloca_once_value(builder, integer(0))

        chunks = chunks_of(builder, segments, K)

        (full_rows, full_panels), *smaller = tile_shapes(literal(gates))
        heights = pair_heights(literal(gates))

        # Full tiles first, then, if so many rows are left that they call for it, a pair.
        has_full = builder.icmp_signed(">=", all_rows, integer(full_rows))
        left = builder.srem(all_rows, integer(full_rows))
        # As left - 1 of 0 is the largest unsigned number, this is 1 <= left <= len(heights).
        some_left = builder.icmp_unsigned("<", builder.sub(left, integer(1)), integer(len(heights)))
        has_pair = builder.and_(has_full, some_left)
        full_end = builder.sub(all_rows, left)
        before_pair = builder.sub(full_end, integer(full_rows))
        full_end = builder.select(has_pair, before_pair, full_end)
        paired_end = builder.select(has_pair, all_rows, full_end)
        tiles = builder.sdiv(full_end, integer(full_rows))
        tiles = builder.add(tiles, builder.select(has_pair, integer(2), integer(0)))

        def panels_ahead(next_panel: Any) -> Ahead:
            """What a tile prefetches: the next panels, about an equal share for each.

            Where weights come from the third-level cache, that hides its latency (64 rows of
            512 and 1024 units take 5 to 20 % less time on a Xeon), but only if it is evenly spread:
            a core waits for 10 to 16 lines at a time, and then for the oldest of them.
            """
            is_last = builder.icmp_signed(">=", next_panel, all_panels)
            to_next = builder.mul(next_panel, of_panels.panel)
            following = builder.gep(of_panels.memory, [to_next])
            first = builder.select(is_last, ahead_of.panels, following)
            width = integer(full_panels[0] * literal(gates) * vec.size_bytes)
            advance = builder.sdiv(width, tiles)
            number = builder.load(done)
            builder.store(builder.add(number, integer(1)), done)
            before = builder.mul(number, builder.mul(advance, builder.mul(segments, K)))
            first = builder.bitcast(first, cgutils.int8_t.as_pointer())
            return Ahead(builder.gep(first, [before]), advance)

        def needed_soon(next_panel: Any) -> Ahead:
            """What a tile prefetches."""
            of_next = panels_ahead(next_panel)
            number = builder.load(done_in_all)
            builder.store(builder.add(number, integer(1)), done_in_all)
            first = builder.gep(ahead_of.memory, [builder.mul(number, ahead_of.tile)])
            advance = builder.mul(ahead_of.round, integer(vec.dtype.bitwidth // 8))
            is_other = builder.icmp_signed(">", ahead_of.round, integer(0))
            return Ahead(
                builder.select(is_other, builder.bitcast(first, of_next.start.type), of_next.start),
                builder.select(is_other, advance, of_next.advance),
            )

        def tile(tile_rows: int, tile_panels: int, prefetches: bool) -> None:
            at_row, at_panel = builder.load(row), builder.load(panel)
            to_panel = builder.mul(at_panel, integer(vec.lanes))

            def of_tile(these: Sums) -> Sums:
                to_row = builder.mul(at_row, these.row)
                place = builder.gep(these.memory, [builder.add(to_row, to_panel)])
                return these._replace(memory=place)

            operands = Operands(
                of_tile(of_sums),
                of_tile(of_start),
                moved(builder, of_factors, builder.mul(at_row, of_factors.row)),
                moved(builder, of_panels, builder.mul(at_panel, of_panels.panel)),
                segments,
                K,
                chunks,
            )
            next_panel = builder.add(at_panel, integer(tile_panels))
            ahead = needed_soon(next_panel) if prefetches else None
            emit_tile(builder, vec, operands, ahead, tile_rows, tile_panels, literal(gates))

        strip = cgutils.alloca_once_value(builder, integer(0))
        with while_left(builder, strip, all_panels, 1, STRIP):
            first = builder.load(strip)
            end = builder.add(first, integer(STRIP))
            end = builder.select(builder.icmp_signed("<", end, all_panels), end, all_panels)
            with builder.if_then(has_full):
                # A panel's weights stay in L1, or at least L2, while all rows pass.
                builder.store(first, panel)
                for tile_panels in full_panels:
                    prefetches = tile_panels == full_panels[0]
                    with while_left(builder, panel, end, tile_panels):
                        builder.store(integer(0), row)
                        builder.store(integer(0), done)
                        with while_left(builder, row, full_end, full_rows):
                            tile(full_rows, tile_panels, prefetches)
                        for tile_rows in heights:
                            with while_left(builder, row, paired_end, tile_rows):
                                tile(tile_rows, tile_panels, prefetches)
            # The rows that are left.
            builder.store(paired_end, row)
            for tile_rows, panel_counts in smaller:
                with while_left(builder, row, all_rows, tile_rows):
                    builder.store(first, panel)
                    for tile_panels in panel_counts:
                        with while_left(builder, panel, end, tile_panels):
                            tile(tile_rows, tile_panels, False)
        return context.get_dummy_value()

    return sig, emit


def make_product(gates: int) -> Callable[..., None]:
    """Build the product for a number of gates, at least 1."""

    def multiply(
        sums,  # Sums: rows, panels, gates
        start,  # Sums: what is added to them in the end; may be the sums themselves
        factors,  # Factors: rows, segments, k
        panels,  # Panels: panels, segments, k, gates
        prefetch,  # Prefetch
        extent,  # Extent
    ):
        _multiply(sums, start, factors, panels, prefetch, extent, gates)

    return multiply
