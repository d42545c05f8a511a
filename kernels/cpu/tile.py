"""One tile of a product: sums of some rows and panels, in registers; see `product`.

The loops are emitted as LLVM code, for one reason: tiles of a dozen shapes, which Numba would have
to compile as a dozen nested functions (4 to 7 s instead of 0.4).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir

from .simd import Vec, constant, load, multiply_add, prefetch, store

# So many products at most are summed in one accumulator, then added to the sums in memory: long
# sums round less so, by a random walk's estimate 4 times for 10 000 inputs and 20 for a million
# (measured: 1 to 4, and 6 to 50). With 256, layers of 512 and 1024 units take 1 to 2 % more time
# than with 512. A power of two.
CHUNK = 512
# Tiles that ask for their sums before they start: of so many vectors, in so many rounds.
_MANY_SUMS, _LONG_BLOCK = 16, 64


class Operands(NamedTuple):
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
    b_k: Any
    blocks: Any
    K: Any  # length of a block
    chunks: Any  # of all blocks: blocks * ceil(K / CHUNK)


class Ahead(NamedTuple):
    """What a tile asks for, as it is needed soon: a line in each round (LLVM values)."""

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


def emit_tile(
    builder: Any,
    vec: Vec,
    o: Operands,
    ahead: Ahead | None,
    rows: int,
    panels: int,
    gates: int,
) -> None:
    """One tile: S and the sums over blocks and k, by chunks of them, in C."""
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

    zero = constant(vec, 0.0)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vec.lanes), [0] * vec.lanes)
    undefined = ir.Constant(vec.ir, ir.Undefined)

    results = places(o.C, o.c_row, o.c_gate)
    with _count_up(builder, o.chunks, "chunk") as (chunk, carry_chunk):
        outer = [carry_chunk(first) for first in (o.B, *([] if ahead is None else [ahead.start]))]
        # Of the chunk and of its block: the first element; and what is left of the block.
        a_chunk, a_block, left = map(carry_chunk, (o.A, o.A, o.K))
        o = o._replace(a_row=_renamed(builder, o.a_row), b_panel=_renamed(builder, o.b_panel))
        if ahead is not None:
            advance = _renamed(builder, ahead.advance)
        is_short = builder.icmp_signed("<", left[0], integer(CHUNK))
        count = builder.select(is_short, left[0], integer(CHUNK))
        with _count_up(builder, count, "k") as (_, carry):
            inner = [carry(zero) for _ in starts]
            b, *fetched = [carry(value) for value, _ in outer]
            a, a_next = carry(a_chunk[0])

            def weight(number: int) -> Any:
                panel, gate = divmod(number, gates)
                return load(builder, vec, step(b[0], (o.b_panel, panel), (lane, gate * vec.lanes)))

            def broadcast(row: int) -> Any:
                scalar = builder.load(step(a, (o.a_row, row)))
                first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
                return builder.shuffle_vector(first, undefined, everywhere)

            def add(row: int, number: int, operand: Any, factor: Any) -> None:
                total, following = inner[row * panels * gates + number]
                following.append(multiply_add(builder, vec, operand, factor, total))

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
                place, following = fetched[0]
                prefetch(builder, place, level=2)
                following.append(builder.gep(place, [advance]))
            a_next.append(builder.gep(a, [o.a_k]))
            b[1].append(step(b[0], (o.b_k, 1)))
        for (_, result), (_, following) in zip([b, *fetched], outer, strict=True):
            following.extend(result)
        is_first = builder.icmp_signed("==", chunk, integer(0))
        for start, result, (_, (total,)) in zip(starts, results, inner, strict=True):
            before = load(builder, vec, builder.select(is_first, start, result))
            store(builder, vec, builder.fadd(before, total), result)
        rest = builder.sub(left[0], count)
        is_done = builder.icmp_signed("==", rest, integer(0))
        next_block = builder.gep(a_block[0], [o.a_block])
        a_chunk[1].append(builder.select(is_done, next_block, a_next[0]))
        a_block[1].append(builder.select(is_done, next_block, a_block[0]))
        left[1].append(builder.select(is_done, o.K, rest))
