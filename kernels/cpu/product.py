"""The product of rows and packed panels: the one matrix kernel of the CPU backend.

Every product here (projection, recurrence, their gradients) adds to sums that lie in memory, mostly
those that it replaces:

    C[row, panel, gate] = S[row, panel, gate]
                          + sum over blocks and k of A[row, block, k] * B[panel, block, k, gate]

where a panel is one SIMD vector of units and B is packed so that it is read in order. The sums of a
tile of rows and panels stay in registers while k runs. Each sum is one accumulator over ascending
k, or one for each chunk of a long block, whatever the tile, so no result depends on how rows are
grouped. It starts at 0, and is added to S, or to the chunks before, in the end: sums of sums round
less, and a short sum does not wait for S.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .plan import GROUP
from .simd import NEAR_CACHE, element_pointer, literal, register_count, vec_of
from .tile import CHUNK, Ahead, Operands, emit_tile


def tile_shapes(gates: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Row counts of the tiles for so many gates, largest first, each with its panel counts.

    Up to three quarters of the registers hold sums, the rest one step's weights and the broadcast.
    Fewer rows take several panels at once, so that enough independent sums hide the latency of the
    multiply-add. There is a tile for every count of rows left over, so that they read the weights
    once: three rows as two and one took twice as long. Panel counts end in 1, so all are covered;
    several rows take a group of four as two and two, since of three and one the one has too few
    sums (7 % slower on a Xeon, which starts two multiply-adds in a cycle).
    """
    budget = register_count() * 3 // 4
    most = max(1, min(8, budget // gates))
    shapes = []
    for rows in range(most, 0, -1):
        panels = max(1, min(GROUP, budget // (rows * gates)))
        counts = (4, 3, 2, 1) if rows <= 2 else (4, 2, 1)
        shapes.append((rows, tuple(sorted({c for c in counts if c <= panels}, reverse=True))))
    return tuple(shapes)


# A tile needs so many sums: a multiply-add takes four cycles, and two start in each.
_ENOUGH_SUMS = 8


def pair_heights(gates: int) -> tuple[int, ...]:
    """Row counts of two tiles for the rows of a full one and one or two more: one for each count.

    One or two rows alone would read all weights for a few multiply-adds each. On a Xeon, forward
    takes 4 to 8 % less time so for 9, 10 and 17 rows of a GRU and 7 and 8 of an LSTM, 1 to 3 % less
    for 32 of an LSTM, whose full tiles have 6. None where tiles of half the height have too few
    sums.
    """
    (full_rows, (panels, *_)), *_ = tile_shapes(gates)
    half = full_rows // 2
    if full_rows < 3 or half * gates * panels < _ENOUGH_SUMS:
        return ()
    return (half + 1,) if full_rows % 2 else (half + 1, half)


class Ask(NamedTuple):
    """What the products of a step ask for beside their sums: see `product`."""

    size: int  # elements that each product asks for; 0 to ask for weights instead
    n_tile: int
    n_round: int


def make_share_out(gates: int) -> Callable[..., Ask]:
    """Build ``share_out(size, rows, vectors, rounds, weight_bytes)``.

    By what it gives, the full tiles and pairs of a step, of so many rounds each, ask for `size`
    elements, an equal share each, unless there are more weights than stay in a near cache: these
    come first.
    """
    # Without gates nothing is multiplied, and what this gives has no effect.
    (full_rows, (full_panels, *_)), *_ = tile_shapes(max(1, gates))
    pairs = len(pair_heights(max(1, gates)))

    @register_jitable
    def share_out(size, rows, vectors, rounds, weight_bytes):
        if size == 0 or weight_bytes > NEAR_CACHE:
            return Ask(0, 0, 0)
        of_each = size // ((vectors + GROUP - 1) // GROUP)
        tiles = rows // full_rows
        if tiles > 0 and 0 < rows % full_rows <= pairs:
            tiles += 1
        rounds_in_all = tiles * (min(vectors, GROUP) // full_panels) * rounds
        n_round = of_each // max(1, rounds_in_all) + 1
        return Ask(of_each, n_round * rounds, n_round)

    return share_out


@intrinsic(prefer_literal=True)
def product(
    typing: Any,
    C: Any,  # flat; the sums
    c: Any,  # index of the first sum
    c_row: Any,  # distance between rows
    c_gate: Any,  # distance between gates; panels lie one vector apart
    S: Any,  # flat; what is added to them in the end, laid out likewise; may be C itself
    s: Any,
    s_row: Any,
    s_gate: Any,
    A: Any,  # flat; the broadcast operand
    a: Any,  # index of its first element
    a_row: Any,
    a_block: Any,
    a_k: Any,
    B: Any,  # flat; packed vectors
    b: Any,  # index of the first
    b_panel: Any,  # distance between panels
    b_k: Any,  # distance between k, blocks following on each other; gates are contiguous
    b_after: Any,  # index of panels, without gaps, that may be read after these: to ask for
    soon: Any,  # (), or (N, n, n_tile, n_round) with N flat, to ask for N while tiles are full
    blocks: Any,  # at least 1
    K: Any,  # length of a block, at least 1
    rows: Any,
    panels: Any,
    gates: Any,  # literal
) -> Any:
    """``C[row, panel, gate] = S[row, panel, gate] + sum A[row, block, k] B[panel, block, k, gate]``

    For any size; without gates there is nothing to do.

    Full tiles and pairs ask for the weights that come next or, where `soon` has an `n_round` above
    0, for what else is needed soon: the i-th one, in round j, for the line of
    ``N[n + i * n_tile + j * n_round]``.
    """
    index = types.intp
    sig = types.void(
        *(C, index, index, index),
        *(S, index, index, index),
        *(A, index, index, index, index),
        *(B, index, index, index, index),
        *(soon, index, index, index, index, gates),
    )

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if literal(gates) == 0:
            return context.get_dummy_value()
        c_row, c_gate = args[2:4]
        s_row, s_gate = args[6:8]
        a_row, a_block, a_k = args[10:13]
        b_panel, b_k, after = args[15:18]
        blocks, K, all_rows, all_panels = args[19:23]
        vec, integer = vec_of(C), K.type
        first_c, first_s, first_a, first_b = (
            element_pointer(context, builder, sig.args[n], args[n], args[n + 1])
            for n in (0, 4, 8, 13)
        )
        first_after = element_pointer(context, builder, sig.args[13], args[13], after)
        row = cgutils.alloca_once(builder, integer)
        panel = cgutils.alloca_once(builder, integer)
        asked = cgutils.alloca_once(builder, integer)  # tiles that have asked, of these panels
        asked_in_all = cgutils.alloca_once_value(builder, integer(0))

        shift = integer(CHUNK.bit_length() - 1)
        chunks_of_block = builder.ashr(builder.add(K, integer(CHUNK - 1)), shift)
        chunks = builder.mul(blocks, chunks_of_block)

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

        def weights_ahead(next_panel: Any) -> Ahead:
            """What a tile asks for: the next panels' weights, about an equal share for each.

            Where weights come from the third-level cache, that hides the way from there (64 rows of
            512 and 1024 units take 5 to 20 % less time on a Xeon), but only if it is evenly spread:
            a core waits for 10 to 16 lines at a time, and then for the oldest of them.
            """
            is_last = builder.icmp_signed(">=", next_panel, all_panels)
            following = builder.gep(first_b, [builder.mul(next_panel, b_panel)])
            start = builder.select(is_last, first_after, following)
            width = integer(full_panels[0] * literal(gates) * vec.size_bytes)
            advance = builder.sdiv(width, tiles)
            number = builder.load(asked)
            builder.store(builder.add(number, integer(1)), asked)
            before = builder.mul(number, builder.mul(advance, builder.mul(blocks, K)))
            start = builder.bitcast(start, cgutils.int8_t.as_pointer())
            return Ahead(builder.gep(start, [before]), advance)

        def needed_soon(next_panel: Any) -> Ahead:
            """What a tile asks for."""
            weights = weights_ahead(next_panel)
            if not len(soon):
                return weights
            array, n, n_tile, n_round = cgutils.unpack_tuple(builder, args[18], len(soon))
            number = builder.load(asked_in_all)
            builder.store(builder.add(number, integer(1)), asked_in_all)
            first = builder.add(n, builder.mul(number, n_tile))
            start = element_pointer(context, builder, soon[0], array, first)
            advance = builder.mul(n_round, integer(soon[0].dtype.bitwidth // 8))
            wanted = builder.icmp_signed(">", n_round, integer(0))
            return Ahead(
                builder.select(wanted, builder.bitcast(start, weights.start.type), weights.start),
                builder.select(wanted, advance, weights.advance),
            )

        def tile(tile_rows: int, tile_panels: int, asks: bool) -> None:
            at_row, at_panel = builder.load(row), builder.load(panel)
            to_panel = builder.mul(at_panel, integer(vec.lanes))
            operands = Operands(
                builder.gep(first_c, [builder.add(builder.mul(at_row, c_row), to_panel)]),
                *(c_row, c_gate),
                builder.gep(first_s, [builder.add(builder.mul(at_row, s_row), to_panel)]),
                *(s_row, s_gate),
                builder.gep(first_a, [builder.mul(at_row, a_row)]),
                *(a_row, a_block, a_k),
                builder.gep(first_b, [builder.mul(at_panel, b_panel)]),
                *(b_panel, b_k, blocks, K, chunks),
            )
            ahead = needed_soon(builder.add(at_panel, integer(tile_panels))) if asks else None
            emit_tile(builder, vec, operands, ahead, tile_rows, tile_panels, literal(gates))

        @contextmanager
        def while_left(
            counter: Any, limit: Any, needed: int, step: int | None = None
        ) -> Iterator[None]:
            """``while counter + needed <= limit: ...; counter += step``, by default `needed`."""
            test, body, end = (builder.append_basic_block(n) for n in ("test", "body", "end"))
            builder.branch(test)
            builder.position_at_end(test)
            before = builder.load(counter)
            # Not `before + needed <= limit`: where a loop has become empty, LLVM then counts its
            # rounds by a division of 128 bits, a function that no Arm process has (LLVM 20 to 22).
            end_of_starts = builder.sub(limit, integer(needed - 1))
            builder.cbranch(builder.icmp_signed("<", before, end_of_starts), body, end)
            builder.position_at_end(body)
            yield
            builder.store(builder.add(before, integer(step or needed)), counter)
            builder.branch(test)
            builder.position_at_end(end)

        group = cgutils.alloca_once_value(builder, integer(0))
        with while_left(group, all_panels, 1, GROUP):
            first = builder.load(group)
            end = builder.add(first, integer(GROUP))
            end = builder.select(builder.icmp_signed("<", end, all_panels), end, all_panels)
            with builder.if_then(has_full):
                # A panel's weights stay in L1, or at least L2, while all rows pass.
                builder.store(first, panel)
                for tile_panels in full_panels:
                    asks = tile_panels == full_panels[0]
                    with while_left(panel, end, tile_panels):
                        builder.store(integer(0), row)
                        builder.store(integer(0), asked)
                        with while_left(row, full_end, full_rows):
                            tile(full_rows, tile_panels, asks)
                        for tile_rows in heights:
                            with while_left(row, paired_end, tile_rows):
                                tile(tile_rows, tile_panels, asks)
            # The rows that are left.
            builder.store(paired_end, row)
            for tile_rows, panel_counts in smaller:
                with while_left(row, all_rows, tile_rows):
                    builder.store(first, panel)
                    for tile_panels in panel_counts:
                        with while_left(panel, end, tile_panels):
                            tile(tile_rows, tile_panels, False)
        return context.get_dummy_value()

    return sig, emit
