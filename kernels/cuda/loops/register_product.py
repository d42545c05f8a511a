"""Products of rows with recurrent weights that stay in the registers of a block of threads.

Thread (part, unit) holds the weights of one unit and of a part of what they are multiplied with. It
multiplies them with every row of a tile, and the parts are summed through shared memory. In
`resident_kernels` a block has all units, in `exchange_kernels` it has some.
"""

from typing import Any, NamedTuple

from numba.cuda.extending import register_jitable

from .intrinsics import load_four


class Tile(NamedTuple):
    """How a block of threads shares the work of its rows."""

    H: int
    units: int  # of them that the block has
    parts: int  # of the vectors that weights are multiplied with
    length: int  # of a part, a multiple of four
    rows: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.units * self.parts

    @property
    def slices(self) -> int:
        """Blocks that have all units together."""
        return -(-self.H // self.units)

    @property
    def padded(self) -> int:
        """Length of the vectors."""
        return self.parts * self.length


def make_product(tile: Tile, gates: int, by_columns: bool) -> tuple[Any, Any]:
    """Build what loads a thread's weights, and what multiplies them with the rows of a tile.

    By rows: sums[part, row, gate, unit] = sum over k of U[gate, unit, k] * vectors[row, 0, k].
    By columns: sums[part, row, 0, unit] = sum over gates and k of U[gate, k, unit] *
    vectors[row, gate, k]. Both over the k of the thread's part. Weights are loaded for a unit of
    the cell; sums are of the block's units.
    """
    H, units, parts, length, most_rows = tile

    if by_columns:

        def index(gate, unit, k):
            return gate * H + k, unit

    else:

        def index(gate, unit, k):
            return gate * H + unit, k

    weight_at = register_jitable(index)

    if units == H:

        def is_inside(unit, k):
            return k < H

    else:  # the last block may have fewer units

        def is_inside(unit, k):
            return k < H and unit < H

    has_weight = register_jitable(is_inside)

    def load(hh, unit, part, weights, zero):
        # hh: (gates * H, H); weights: (gates, length), of the thread
        for gate in range(gates):
            for k in range(length):
                row, column = weight_at(gate, unit, part * length + k)
                inside = has_weight(unit, part * length + k)
                weights[gate, k] = hh[row, column] if inside else zero

    def dot(weights, gate, vectors, row, which, part, total):
        # weights: (gates, length), of the thread; vectors: (rows, vectors, padded), shared
        for k in range(0, length, 4):
            a, b, c, d = load_four(vectors, row, which, part * length + k)
            total += weights[gate, k] * a
            total += weights[gate, k + 1] * b
            total += weights[gate, k + 2] * c
            total += weights[gate, k + 3] * d
        return total

    add_dot = register_jitable(dot)

    if by_columns:

        def multiply(weights, vectors, rows, part, unit, sums, zero):
            # vectors: (rows, gates, padded); sums: (parts * rows, 1, units)
            for row in range(rows):
                total = zero
                for gate in range(gates):
                    total = add_dot(weights, gate, vectors, row, gate, part, total)
                sums[part * most_rows + row, 0, unit] = total

    else:

        def multiply(weights, vectors, rows, part, unit, sums, zero):
            # vectors: (rows, 1, padded); sums: (parts * rows, gates, units)
            for row in range(rows):
                for gate in range(gates):
                    total = add_dot(weights, gate, vectors, row, 0, part, zero)
                    sums[part * most_rows + row, gate, unit] = total

    return register_jitable(load), register_jitable(multiply)
