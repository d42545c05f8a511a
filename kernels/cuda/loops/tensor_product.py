"""Products of rows with recurrent weights on tensor cores, by the warps of a block.

A block multiplies its own units' weights with the vectors of eight rows. A warp has a tile of 16
units, of all gates, and a quarter of what they are multiplied with: its weights lie in registers,
and those that do not fit there in shared memory; the quarters are summed through shared memory.

Tensor cores take words (see `tensor_intrinsics`), eight of each row of a tile at once. Which eight
is free where weights and vectors agree on it: a lane's four words of two products are neighbours
here, so that it loads them at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba.cuda.extending import register_jitable

from .. import tuning
from .tensor_intrinsics import (
    load_words,
    mma_bf16,
    mma_tf32,
    pack_bf16,
    round_tf32,
    store_remote_bf16,
    store_remote_tf32,
)

ROWS = 8  # of a tile
PARTS = 4  # of the vectors, each of other warps
UNITS = 16  # of a warp
LANES = 32
_PAIR_WORDS = 16  # words of a row in two products
_LANE_WORDS = 8  # words of the weights in two products


def _word_of_bf16(weight_at, hh, gate, unit, word, zero):
    return pack_bf16(
        weight_at(hh, gate, unit, 2 * word, zero),
        weight_at(hh, gate, unit, 2 * word + 1, zero),
    )


def _word_of_tf32(weight_at, hh, gate, unit, word, zero):
    return round_tf32(weight_at(hh, gate, unit, word, zero))


class Numbers(NamedTuple):
    """How a precision's numbers are rounded, sent and multiplied."""

    per_word: int  # numbers of a word
    word: Callable[..., Any]
    store_remote: Callable[..., None]
    multiply: Callable[..., Any]


NUMBERS = {
    "bf16": Numbers(2, register_jitable(_word_of_bf16), store_remote_bf16, mma_bf16),
    "tf32": Numbers(1, register_jitable(_word_of_tf32), store_remote_tf32, mma_tf32),
}


class TensorTile(NamedTuple):
    """How blocks of threads share the work of eight rows."""

    H: int
    precision: str
    gates: int
    vectors: int  # of a row: h, or gradients by gate
    blocks: int  # of a cluster
    units: int  # of a block
    buffers: int  # for vectors: two, used in turns, or one

    @property
    def threads(self) -> int:
        """Threads of a block: a lane for each row and unit."""
        return ROWS * self.units

    @property
    def pairs(self) -> int:
        """Pairs of products of a part."""
        return -(-self.H // (NUMBERS[self.precision].per_word * PARTS * _PAIR_WORDS))

    @property
    def in_registers(self) -> int:
        """Those of all gates' whose weights are in registers, gate by gate of the first pairs."""
        return min(self.pairs * self.gates, tuning.CLUSTER_WEIGHT_REGISTERS // _LANE_WORDS)

    @property
    def stride(self) -> int:
        """Words from vector to vector.

        Lanes of eight rows load at once: the rows' distance is an odd multiple of half the banks of
        shared memory, which there is for fewer than eight vectors.
        """
        words = PARTS * self.pairs * _PAIR_WORDS
        apart = (n for n in range(words, words + 32, 4) if n * self.vectors % 32 == 16)
        return next(apart, words)

    @property
    def first_vector(self) -> int:
        """The first word of the vectors: before them are weights."""
        warps = self.threads // LANES
        return warps * (self.pairs * self.gates - self.in_registers) * _LANE_WORDS * LANES

    @property
    def words(self) -> int:
        """Words of shared memory: weights and vectors."""
        return self.first_vector + self.buffers * ROWS * self.vectors * self.stride

    @property
    def sums(self) -> tuple[int, int, int]:
        """Shape of the sums, (parts * rows, gates, units and padding).

        A warp's lanes write the sums of eight units in every other row at once: each of them in
        another bank, with fewer than eight gates.
        """
        gates = self.gates if self.vectors == 1 else 1
        apart = (n for n in range(self.units, self.units + 16) if n * gates % 16 in (4, 12))
        return PARTS * ROWS, gates, next(apart, self.units)


def _make_vector_start(tile: TensorTile) -> Callable[..., Any]:
    """Build ``vector_start(step, row, vector)``: the first word of a vector of a row."""
    vectors, stride, first, buffers = tile.vectors, tile.stride, tile.first_vector, tile.buffers

    def vector_start(step, row, vector):
        return first + ((step % buffers * ROWS + row) * vectors + vector) * stride

    return register_jitable(vector_start)


def make_tensor_product(tile: TensorTile, by_columns: bool) -> tuple[Any, Any]:
    """Build what loads a warp's weights, and what multiplies them.

    By rows: sums[part, row, gate, unit] = sum over k of U[gate, unit, k] * vectors[row, 0, k].
    By columns: sums[part, row, 0, unit] = sum over gates and k of U[gate, k, unit] *
    vectors[row, gate, k]. Both over the k of the part. Weights are loaded for units of the cell;
    sums are of the block's units.
    """
    H, gates, pairs, in_registers = tile.H, tile.gates, tile.pairs, tile.in_registers
    in_shared, part_words, tiles = (
        pairs * gates - in_registers,
        pairs * _PAIR_WORDS,
        tile.units // UNITS,
    )
    _, word_of, _, multiply_tiles = NUMBERS[tile.precision]
    vector_start = _make_vector_start(tile)

    if by_columns:

        def weight(hh, gate, unit, k, zero):
            return hh[gate * H + k, unit] if unit < H and k < H else zero

    else:

        def weight(hh, gate, unit, k, zero):
            return hh[gate * H + unit, k] if unit < H and k < H else zero

    weight_at = register_jitable(weight)

    def weight_word(hh, first_unit, thread, product, number, zero):
        # The numbers of a lane's words: unit and unit + 8 of the first word, of the second, ...
        pair, gate = product // gates, product % gates
        warp, lane = thread // LANES, thread % LANES
        unit = first_unit + warp % tiles * UNITS + lane // 4 + number % 2 * 8
        word = warp // tiles * part_words + pair * _PAIR_WORDS + lane % 4 * 4 + number // 2
        return word_of(weight_at, hh, gate, unit, word, zero)

    def shared_start(thread, product, half):
        # Neighbouring lanes load four neighbouring words each.
        number = thread // LANES * in_shared + product - in_registers
        return ((number * 2 + half) * LANES + thread % LANES) * 4

    load_word, shared_start_of = register_jitable(weight_word), register_jitable(shared_start)

    def make_load_registers(count: int) -> Callable[..., None]:
        """Build what loads so many words into registers.

        Written out: LLVM does not unroll such a loop, and without that an array is in memory.
        """
        if count == 1:

            def load_some(at, hh, first_unit, thread, weights, zero):
                weights[at // _LANE_WORDS, at % _LANE_WORDS] = load_word(
                    hh, first_unit, thread, at // _LANE_WORDS, at % _LANE_WORDS, zero
                )

        else:
            half = count // 2
            first, second = make_load_registers(half), make_load_registers(count - half)

            def load_some(at, hh, first_unit, thread, weights, zero):
                first(at, hh, first_unit, thread, weights, zero)
                second(at + half, hh, first_unit, thread, weights, zero)

        return register_jitable(forceinline=True)(load_some)

    load_registers = make_load_registers(in_registers * _LANE_WORDS)

    def load(hh, first_unit, thread, weights, words, zero):
        # hh: (gates * H, H); weights: (in_registers, 8), of the thread; words: flat, shared
        load_registers(0, hh, first_unit, thread, weights, zero)
        for product in range(in_registers, pairs * gates):
            for number in range(_LANE_WORDS):
                words[shared_start_of(thread, product, number // 4) + number % 4] = load_word(
                    hh, first_unit, thread, product, number, zero
                )

    def add(low, high, b, total, gate):
        # low, high: a lane's words of the weights; b: of the vectors; total: (gates, 4)
        c = total[gate, 0], total[gate, 1], total[gate, 2], total[gate, 3]
        c = multiply_tiles(low, b[:2], c)
        c = multiply_tiles(high, b[2:], c)
        total[gate, 0], total[gate, 1], total[gate, 2], total[gate, 3] = c

    add_products = register_jitable(add)

    def add_from_registers(weights, words, thread, step, product, total):
        w, gate = weights[product], product % gates
        b = load_words(words, vector_word(thread, step, gate, product // gates))
        add_products((w[0], w[1], w[2], w[3]), (w[4], w[5], w[6], w[7]), b, total, gate)

    def add_from_shared(words, thread, step, product, total, gate):
        b = load_words(words, vector_word(thread, step, gate, product // gates))
        low = load_words(words, shared_start_of(thread, product, 0))
        high = load_words(words, shared_start_of(thread, product, 1))
        add_products(low, high, b, total, gate)

    from_registers, from_shared = (
        register_jitable(add_from_registers),
        register_jitable(add_from_shared),
    )
    whole = -(-in_registers // gates) * gates

    def add_all(weights, words, thread, step, total):
        for product in range(in_registers):
            from_registers(weights, words, thread, step, product, total)
        for product in range(in_registers, whole):
            from_shared(words, thread, step, product, total, product % gates)
        for first in range(whole, pairs * gates, gates):
            for gate in range(gates):
                from_shared(words, thread, step, first + gate, total, gate)

    def vector_at(thread, step, vector, pair):
        warp, lane = thread // LANES, thread % LANES
        word = warp // tiles * part_words + pair * _PAIR_WORDS + lane % 4 * 4
        return vector_start(step, lane // 4, vector) + word

    if by_columns:
        vector_word = register_jitable(vector_at)

        def store(sums, part, row, unit, total, number):
            all_gates = total[0, number]
            for gate in range(1, gates):
                all_gates += total[gate, number]
            sums[part * ROWS + row, 0, unit] = all_gates

    else:

        def only_vector_at(thread, step, gate, pair):
            return first_vector_word(thread, step, 0, pair)

        first_vector_word = register_jitable(vector_at)
        vector_word = register_jitable(only_vector_at)

        def store(sums, part, row, unit, total, number):
            for gate in range(gates):
                sums[part * ROWS + row, gate, unit] = total[gate, number]

    multiply_all, store_sums = register_jitable(add_all), register_jitable(store)

    def multiply(weights, words, thread, step, total, sums, zero):
        # total: (gates, 4), of the thread
        for gate in range(gates):
            for number in range(4):
                total[gate, number] = zero
        multiply_all(weights, words, thread, step, total)
        warp, lane = thread // LANES, thread % LANES
        for number in range(4):
            row, unit = (
                lane % 4 * 2 + number % 2,
                warp % tiles * UNITS + lane // 4 + number // 2 * 8,
            )
            store_sums(sums, warp // tiles, row, unit, total, number)

    return register_jitable(load), register_jitable(multiply)


def make_send(tile: TensorTile) -> Callable[..., None]:
    """Build what gives a row's values of one unit, a tuple, to all blocks of the cluster."""
    _, _, store_remote, _ = NUMBERS[tile.precision]
    per_word, blocks = NUMBERS[tile.precision].per_word, tile.blocks
    vector_start = _make_vector_start(tile)

    def make(vectors: int) -> Callable[..., None]:
        if vectors == 0:

            def send(words, step, row, unit, values):
                return

        else:
            before, last = make(vectors - 1), vectors - 1

            def send(words, step, row, unit, values):
                # words: flat, shared
                before(words, step, row, unit, values)
                at = vector_start(step, row, last) * per_word + unit
                for rank in range(blocks):
                    store_remote(words, at, rank, values[last])

        return register_jitable(send)

    return make(tile.vectors)
