"""The product of rows and packed panels: the one matrix kernel of the CPU backend.

Every product here (projection, recurrence, their gradients) adds to sums that lie in memory, mostly
those that it replaces:

    C[row, panel, gate] = S[row, panel, gate]
                          + sum over blocks and k of A[row, block, k] * B[panel, block, k, gate]

where a panel is one SIMD vector of units and B is packed so that it is read in order. The sums of a
tile of rows and panels stay in registers while k runs. Each sum is one accumulator over ascending k
whatever the tile, so no result depends on how rows are grouped. It starts at 0, and S is added in
the end: sums of sums round less, and a short sum does not wait for S.

The loops are emitted as LLVM code, for one reason: tiles of a dozen shapes, which Numba would have
to compile as a dozen nested functions (4 to 7 s instead of 0.4).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .plan import GROUP
from .simd import (
    Vec,
    call_llvm,
    constant,
    element_pointer,
    literal,
    load,
    prefetch,
    register_count,
    store,
    vec_of,
)

# Tiles that ask for their sums before they start: of so many vectors, in so many rounds.
_MANY_SUMS, _LONG_BLOCK = 16, 64


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


class _Operands(NamedTuple):
    """Addresses of a tile's first elements, distances in elements, and lengths (LLVM values)."""

    C: Any
    c_row: Any
    c_gate: Any
    S: Any
    s_row: Any
    s_gate: Any
    A: Any
    a_row: Any
    a_block: Any
    a_k: Any
    B: Any
    b_panel: Any
    blocks: Any
    K: Any


class _Ahead(NamedTuple):
    """A tile's share of the weights that the next tiles need (LLVM values)."""

    start: Any  # address
    advance: Any  # how many bytes further in each round


@contextmanager
def _count_up(builder: Any, limit: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """``for i in range(limit)`` for limit >= 1; gives i and the function that carries a value.

    ``carry(first)`` returns the value at the top of the loop and a list into which the body puts
    the value for the next round; after the loop that value is the final one.
    """
    before = builder.block
    body = builder.append_basic_block(name)
    builder.branch(body)
    builder.position_at_end(body)
    carried: list[tuple[Any, list[Any]]] = []

    def carry(first: Any) -> tuple[Any, list[Any]]:
        phi = builder.phi(first.type)
        phi.add_incoming(first, before)
        following: list[Any] = []
        carried.append((phi, following))
        return phi, following

    i, i_next = carry(limit.type(0))
    yield i, carry
    i_next.append(builder.add(i, limit.type(1)))
    again = builder.icmp_signed("<", i_next[0], limit)
    for phi, (value,) in carried:
        phi.add_incoming(value, builder.block)
    after = builder.append_basic_block(f"{name}.end")
    branch = builder.cbranch(again, body, after)
    # Without this LLVM unrolls every tile several times: no faster, and 3 s more to compile.
    module = builder.module
    disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    loop = ir.values.MDValue(module, [disable], name=str(len(module.metadata)))
    loop.operands = (loop, disable)
    branch.set_metadata("llvm.loop", loop)
    builder.position_at_end(after)


def _renamed(builder: Any, value: Any) -> Any:
    """An integer as a value of its own, which LLVM does not take for the one that it is.

    Values that many tiles use are otherwise computed once for all of them, have no register while
    so much code runs, and are read from the stack in every round of a tile, before each use.
    """
    kind = ir.FunctionType(value.type, [value.type])
    return builder.asm(kind, "", "=r,0", [value], side_effect=True)


def _emit_tile(
    builder: Any,
    vec: Vec,
    o: _Operands,
    ahead: _Ahead | None,
    rows: int,
    panels: int,
    gates: int,
) -> None:
    """One tile: sum over blocks and k, then add S, and store the sums."""
    integer = o.K.type

    def step(pointer: Any, *distances: tuple[Any, int]) -> Any:
        for distance, times in distances:
            pointer = builder.gep(pointer, [builder.mul(distance, integer(times))])
        return pointer

    lane = integer(1)

    def places(start: Any, to_row: Any, to_gate: Any) -> list[Any]:
        return [
            step(start, (to_row, row), (lane, panel * vec.lanes), (to_gate, gate))
            for row in range(rows)
            for panel in range(panels)
            for gate in range(gates)
        ]

    # Sums may lie in the third-level cache (of weight gradients of many units they do), and are
    # needed after the last round: asked for before a long first one, they are there by then.
    starts = places(o.S, o.s_row, o.s_gate)
    if len(starts) >= _MANY_SUMS:
        with builder.if_then(builder.icmp_signed(">=", o.K, integer(_LONG_BLOCK))):
            for start in starts:
                prefetch(builder, start)

    sums = [constant(vec, 0.0)] * len(starts)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vec.lanes), [0] * vec.lanes)
    undefined = ir.Constant(vec.ir, ir.Undefined)

    with _count_up(builder, o.blocks, "block") as (block, carry_block):
        firsts = [o.B, *sums, *([] if ahead is None else [ahead.start])]
        outer = [carry_block(first) for first in firsts]
        o = o._replace(a_row=_renamed(builder, o.a_row), b_panel=_renamed(builder, o.b_panel))
        if ahead is not None:
            advance = _renamed(builder, ahead.advance)
        a_block = builder.gep(o.A, [builder.mul(block, o.a_block)])
        with _count_up(builder, o.K, "k") as (_, carry):
            b, *inner = [carry(value) for value, _ in outer]
            a, a_next = carry(a_block)

            def weight(number: int) -> Any:
                panel, gate = divmod(number, gates)
                return load(builder, vec, step(b[0], (o.b_panel, panel), (lane, gate * vec.lanes)))

            def broadcast(row: int) -> Any:
                scalar = builder.load(step(a, (o.a_row, row)))
                first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
                return builder.shuffle_vector(first, undefined, everywhere)

            def add(row: int, number: int, operand: Any, factor: Any) -> None:
                total, following = inner[row * panels * gates + number]
                following.append(call_llvm(builder, vec, "fma", operand, factor, total))

            # Registers hold the shorter side of the tile, while the longer one passes: with both
            # they would not suffice, and sums would go to the stack and back in each round.
            if 1 < rows < panels * gates:
                operands = [broadcast(row) for row in range(rows)]
                for number in range(panels * gates):
                    factor = weight(number)
                    for row, operand in enumerate(operands):
                        add(row, number, operand, factor)
            else:
                factors = [weight(number) for number in range(panels * gates)]
                for row in range(rows):
                    operand = broadcast(row)
                    for number, factor in enumerate(factors):
                        add(row, number, operand, factor)
            if ahead is not None:
                place, following = inner[-1]
                prefetch(builder, place, level=2)
                following.append(builder.gep(place, [advance]))
            a_next.append(builder.gep(a, [o.a_k]))
            b[1].append(step(b[0], (lane, gates * vec.lanes)))
        for (_, result), (_, following) in zip([b, *inner], outer, strict=True):
            following.extend(result)

    results, totals = places(o.C, o.c_row, o.c_gate), outer[1 : 1 + len(sums)]
    for start, result, (_, (total,)) in zip(starts, results, totals, strict=True):
        store(builder, vec, builder.fadd(load(builder, vec, start), total), result)


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
    b_panel: Any,  # distance between panels; blocks, k and gates are contiguous
    b_after: Any,  # index of panels that may be read after these
    blocks: Any,  # at least 1
    K: Any,  # length of a block, at least 1
    rows: Any,
    panels: Any,
    gates: Any,  # literal
) -> Any:
    """``C[row, panel, gate] = S[row, panel, gate] + sum A[row, block, k] B[panel, block, k, gate]``

    For any size; without gates there is nothing to do.
    """
    index = types.intp
    sig = types.void(
        *(C, index, index, index),
        *(S, index, index, index),
        *(A, index, index, index, index),
        *(B, index, index, index),
        *(index, index, index, index, gates),
    )

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if literal(gates) == 0:
            return context.get_dummy_value()
        c_row, c_gate = args[2:4]
        s_row, s_gate = args[6:8]
        a_row, a_block, a_k = args[10:13]
        b_panel, after, blocks, K, all_rows, all_panels = args[15:21]
        vec, integer = vec_of(C), K.type
        first_c, first_s, first_a, first_b = (
            element_pointer(context, builder, sig.args[n], args[n], args[n + 1])
            for n in (0, 4, 8, 13)
        )
        first_after = element_pointer(context, builder, sig.args[13], args[13], after)
        row = cgutils.alloca_once(builder, integer)
        panel = cgutils.alloca_once(builder, integer)

        (full_rows, full_panels), *smaller = tile_shapes(literal(gates))

        def weights_ahead(at_row: Any, next_panel: Any) -> _Ahead:
            """What a full tile asks for: the next panels' weights, about an equal share for each.

            Where weights come from the third-level cache, that hides the way from there (64 rows of
            512 and 1024 units take 5 to 20 % less time on a Xeon), but only if it is evenly spread:
            a core waits for 10 to 16 lines at a time, and then for the oldest of them.
            """
            is_last = builder.icmp_signed(">=", next_panel, all_panels)
            following = builder.gep(first_b, [builder.mul(next_panel, b_panel)])
            start = builder.select(is_last, first_after, following)
            number = builder.sdiv(at_row, integer(full_rows))
            tiles = builder.sdiv(all_rows, integer(full_rows))
            width = integer(full_panels[0] * literal(gates) * vec.size_bytes)
            advance = builder.sdiv(width, tiles)
            before = builder.mul(number, builder.mul(advance, builder.mul(blocks, K)))
            start = builder.bitcast(start, cgutils.int8_t.as_pointer())
            return _Ahead(builder.gep(start, [before]), advance)

        def tile(tile_rows: int, tile_panels: int) -> None:
            at_row, at_panel = builder.load(row), builder.load(panel)
            to_panel = builder.mul(at_panel, integer(vec.lanes))
            operands = _Operands(
                builder.gep(first_c, [builder.add(builder.mul(at_row, c_row), to_panel)]),
                *(c_row, c_gate),
                builder.gep(first_s, [builder.add(builder.mul(at_row, s_row), to_panel)]),
                *(s_row, s_gate),
                builder.gep(first_a, [builder.mul(at_row, a_row)]),
                *(a_row, a_block, a_k),
                builder.gep(first_b, [builder.mul(at_panel, b_panel)]),
                *(b_panel, blocks, K),
            )
            ahead = None
            if (tile_rows, tile_panels) == (full_rows, full_panels[0]):
                ahead = weights_ahead(at_row, builder.add(at_panel, integer(tile_panels)))
            _emit_tile(builder, vec, operands, ahead, tile_rows, tile_panels, literal(gates))

        @contextmanager
        def while_left(
            counter: Any, limit: Any, needed: int, step: int | None = None
        ) -> Iterator[None]:
            """``while counter + needed <= limit: ...; counter += step``, by default `needed`."""
            test, body, end = (builder.append_basic_block(n) for n in ("test", "body", "end"))
            builder.branch(test)
            builder.position_at_end(test)
            before = builder.load(counter)
            following = builder.add(before, integer(needed))
            builder.cbranch(builder.icmp_signed("<=", following, limit), body, end)
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
            builder.store(integer(0), row)
            # Full tiles: a panel's weights stay in L1 while all rows pass.
            builder.store(first, panel)
            for tile_panels in full_panels:
                with while_left(panel, end, tile_panels):
                    builder.store(integer(0), row)
                    with while_left(row, all_rows, full_rows):
                        tile(full_rows, tile_panels)
            # The rows that are left.
            for tile_rows, panel_counts in smaller:
                with while_left(row, all_rows, tile_rows):
                    builder.store(first, panel)
                    for tile_panels in panel_counts:
                        with while_left(panel, end, tile_panels):
                            tile(tile_rows, tile_panels)
        return context.get_dummy_value()

    return sig, emit
