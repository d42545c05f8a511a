"""One tile of a product: sums of some rows and panels, in registers; see `product`.

The loops are emitted as LLVM code, for one reason: tiles of a dozen shapes, which Numba would have
to compile as a dozen nested functions (4 to 7 s instead of 0.4).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir

from .simd import Vec, constant, load, multiply_add, prefetch, store
from .tuning import CHUNK, LONG_BLOCK, MANY_SUMS


class Sums(NamedTuple):
    """Sums in memory: a pointer to the first; distances in elements. Panels lie a vector apart."""

    memory: Any
    row: Any  # from row to row
    gate: Any


class Factors(NamedTuple):
    """What rows are multiplied with, element by element: a pointer to the first, and distances."""

    memory: Any
    row: Any
    segment: Any  # from segment to segment of a sum
    k: Any


class Panels(NamedTuple):
    """Packed vectors: a pointer to the first, and distances in elements."""

    memory: Any
    panel: Any
    k: Any  # from k to k, segments following on each other; gates are contiguous


class Extent(NamedTuple):
    """Sizes of a product."""

    segments: Any  # that each sum runs over, at least 1
    K: Any  # length of a segment, at least 1
    rows: Any
    panels: Any


class Operands(NamedTuple):
    """What a tile works on (LLVM values)."""

    sums: Sums
    start: Sums
    factors: Factors
    panels: Panels
    segments: Any
    K: Any  # length of a segment
    chunks: Any  # of all segments: segments * ceil(K / CHUNK)


class Ahead(NamedTuple):
    """What a tile prefetches: a line in each round (LLVM values)."""

    start: Any  # address
    advance: Any  # how many bytes further in each round


def chunks_of(builder: Any, segments: Any, K: Any) -> Any:
    """The chunks of so many segments of this length."""
    integer = K.type
    shift = integer(CHUNK.bit_length() - 1)
    return builder.mul(segments, builder.ashr(builder.add(K, integer(CHUNK - 1)), shift))


def moved(builder: Any, group: Any, distance: Any) -> Any:
    """Sums, factors or panels that begin so many elements later."""
    return group._replace(memory=builder.gep(group.memory, [distance]))


@contextmanager
def while_left(
    builder: Any, counter: Any, limit: Any, needed: int, step: int | None = None
) -> Iterator[None]:
    """``while counter + needed <= limit: ...; counter += step``, by default `needed`."""
    integer = limit.type
    test, body, end = (builder.append_basic_block(n) for n in ("test", "body", "end"))
    builder.branch(test)
    builder.position_at_end(test)
    before = builder.load(counter)
    # Not `before + needed <= limit`: where a loop has become empty, LLVM then counts its rounds by
    # a division of 128 bits, a function that no Arm process has (LLVM 20 to 22).
    end_of_starts = builder.sub(limit, integer(needed - 1))
    builder.cbranch(builder.icmp_signed("<", before, end_of_starts), body, end)
    builder.position_at_end(body)
    yield
    builder.store(builder.add(before, integer(step or needed)), counter)
    builder.branch(test)
    builder.position_at_end(end)


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


def emit_tile(
    builder: Any,
    vec: Vec,
    o: Operands,
    ahead: Ahead | None,
    rows: int,
    panels: int,
    gates: int,
) -> None:
    """One tile: the start and the sums over segments and k, by chunks of them."""
    integer = o.K.type

    def step(pointer: Any, *distances: tuple[Any, int]) -> Any:
        for distance, times in distances:
            pointer = builder.gep(pointer, [builder.mul(distance, integer(times))])
        return pointer

    lane = integer(1)

    def places(of: Sums) -> list[Any]:
        return [
            step(of.memory, (of.row, row), (lane, panel * vec.lanes), (of.gate, gate))
            for row in range(rows)
            for panel in range(panels)
            for gate in range(gates)
        ]

    # Sums may lie in the third-level cache (of weight gradients of many units they do), and are
    # needed after the last round: prefetched before a long first one, they are there by then.
    starts = places(o.start)
    if len(starts) >= MANY_SUMS:
        with builder.if_then(builder.icmp_signed(">=", o.K, integer(LONG_BLOCK))):
            for start in starts:
                prefetch(builder, start)

    zero = constant(vec, 0.0)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vec.lanes), [0] * vec.lanes)
    undefined = ir.Constant(vec.ir, ir.Undefined)

    results = places(o.sums)
    with _count_up(builder, o.chunks, "chunk") as (chunk, carry_chunk):
        first_places = [o.panels.memory] if ahead is None else [o.panels.memory, ahead.start]
        outer = [carry_chunk(place) for place in first_places]
        # Of the chunk and of its segment: the first factor; and what is left of the segment.
        first = o.factors.memory
        chunk_start, segment_start, left = map(carry_chunk, (first, first, o.K))
        to_row, to_panel = _renamed(builder, o.factors.row), _renamed(builder, o.panels.panel)
        if ahead is not None:
            advance = _renamed(builder, ahead.advance)
        is_short = builder.icmp_signed("<", left[0], integer(CHUNK))
        count = builder.select(is_short, left[0], integer(CHUNK))
        with _count_up(builder, count, "k") as (_, carry):
            inner = [carry(zero) for _ in starts]
            b, *prefetched = [carry(value) for value, _ in outer]
            factor, next_factor = carry(chunk_start[0])

            def weight(number: int) -> Any:
                panel, gate = divmod(number, gates)
                return load(builder, vec, step(b[0], (to_panel, panel), (lane, gate * vec.lanes)))

            def broadcast(row: int) -> Any:
                scalar = builder.load(step(factor, (to_row, row)))
                alone = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
                return builder.shuffle_vector(alone, undefined, everywhere)

            def add(row: int, number: int, operand: Any, vector: Any) -> None:
                total, following = inner[row * panels * gates + number]
                following.append(multiply_add(builder, vec, operand, vector, total))

            # Registers hold the shorter side of the tile, while the longer one passes: with both
            # they would not suffice, and sums would go to the stack and back in each round.
            if 1 < rows < panels * gates:
                operands = [broadcast(row) for row in range(rows)]
                for number in range(panels * gates):
                    vector = weight(number)
                    for row, operand in enumerate(operands):
                        add(row, number, operand, vector)
            else:
                vectors = [weight(number) for number in range(panels * gates)]
                for row in range(rows):
                    operand = broadcast(row)
                    for number, vector in enumerate(vectors):
                        add(row, number, operand, vector)
            if ahead is not None:
                place, following = prefetched[0]
                prefetch(builder, place, level=2)
                following.append(builder.gep(place, [advance]))
            next_factor.append(builder.gep(factor, [o.factors.k]))
            b[1].append(step(b[0], (o.panels.k, 1)))
        for (_, result), (_, following) in zip([b, *prefetched], outer, strict=True):
            following.extend(result)
        is_first = builder.icmp_signed("==", chunk, integer(0))
        for start, result, (_, (total,)) in zip(starts, results, inner, strict=True):
            before = load(builder, vec, builder.select(is_first, start, result))
            store(builder, vec, builder.fadd(before, total), result)
        rest = builder.sub(left[0], count)
        is_done = builder.icmp_signed("==", rest, integer(0))
        next_segment = builder.gep(segment_start[0], [o.factors.segment])
        chunk_start[1].append(builder.select(is_done, next_segment, next_factor[0]))
        segment_start[1].append(builder.select(is_done, next_segment, segment_start[0]))
        left[1].append(builder.select(is_done, o.K, rest))
