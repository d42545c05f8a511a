"""All that a GPU computes in another way than Python: the one file of device intrinsics.

Each is a plain Python function with a version for the GPU beside it, so that kernels run unchanged
as Python, where a test wants to see what every thread does. Beside each stands what it becomes in
the machine code (SASS) of sm_80 and sm_90, those of clusters of sm_90 alone.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic, overload

from .. import primitives


def _constant(kind: Any, value: float) -> Any:
    """A number of a Numba type: a bare one would turn float32 arithmetic into float64."""
    return np.float32(value) if kind == types.float32 else np.float64(value)


def _address(context: Any, builder: Any, kind: Any, array: Any, indices: Any) -> Any:
    """Where an element of a contiguous array is."""
    struct = context.make_array(kind)(context, builder, array)
    at, *others = indices
    for index, extent in zip(others, cgutils.unpack_tuple(builder, struct.shape)[1:], strict=True):
        at = builder.add(builder.mul(at, extent), index)
    return builder.gep(struct.data, [at])


def _four_at(context: Any, builder: Any, address: Any, result: Any) -> Any:
    """Four neighbours of 32 bits, as a tuple; the address is a multiple of 16 bytes."""
    vector = ir.VectorType(address.type.pointee, 4)
    four_at_once = builder.load(builder.bitcast(address, vector.as_pointer(address.type.addrspace)))
    four_at_once.align = 16
    numbers = map(ir.IntType(32), range(4))
    parts = [builder.extract_element(four_at_once, number) for number in numbers]
    return context.make_tuple(builder, result, parts)


def _void(builder: Any, text: str, constraints: str, *operands: Any) -> None:
    """Instructions without a result, which keep their place among others that touch memory."""
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    assembly = ir.InlineAsm(kind, text, f"{constraints}~{{memory}}", side_effect=True)
    builder.call(assembly, operands, attrs=("convergent",))


@overload(primitives.one_like)
def _one_like(a):
    """An immediate operand."""
    one = _constant(a, 1)
    return lambda a: one


@overload(primitives.zero_like)
def _zero_like(a):
    """An immediate operand."""
    zero = _constant(a, 0)
    return lambda a: zero


@overload(primitives.exp)
def _exp(a):
    """float32: FMUL and FFMA around MUFU.EX2, 2 ulp."""
    return lambda a: math.exp(a)


@overload(primitives.tanh)
def _tanh(a):
    """float32: a polynomial near 0, else MUFU.EX2 and MUFU.RCP, 2 ulp."""
    return lambda a: math.tanh(a)


@overload(primitives.sigmoid)
def _sigmoid(a):
    """float32: MUFU.EX2 and a rounded division; where exp overflows, 0."""
    one = _constant(a, 1)
    return lambda a: one / (one + math.exp(-a))


def load_four(array, row, middle, k):
    """Four neighbours ``array[row, middle, k : k + 4]``, where k is a multiple of four.

    `array` is shared memory, float32, and starts on 16 bytes, as every row of it does: LDS.128.
    """
    a = array[row, middle]
    return a[k], a[k + 1], a[k + 2], a[k + 3]


@intrinsic
def _load_four(typing, array, row, middle, k):
    index, four = types.int64, types.UniTuple(array.dtype, 4)

    def emit(context, builder, sig, args):
        first = _address(context, builder, array, args[0], args[1:])
        return _four_at(context, builder, first, sig.return_type)

    return four(array, index, index, index), emit


@overload(load_four)
def _load_four_on_gpu(array, row, middle, k):
    return lambda array, row, middle, k: _load_four(array, row, middle, k)


# Words that blocks exchange: a value and, above it, the number of its exchange, written and read as
# one. A word with the expected number holds the expected value, whatever its bits are, so neither
# flags nor fences are needed.


def put_word(words, slot, row, unit, number, value):
    """Write a word of `words`, (slots, rows, H) uint64: ST.E.64.STRONG.GPU."""
    bits = int(np.float32(value).view(np.uint32))
    words[slot, row, unit] = (number & 0xFFFFFFFF) << 32 | bits


def get_word(words, slot, row, unit):
    """Number, modulo 2^32, and value of a word as it is now: LD.E.64.STRONG.GPU."""
    word = int(words[slot, row, unit])
    return word >> 32, np.uint32(word & 0xFFFFFFFF).view(np.float32)


@intrinsic
def _put_word(typing, words, slot, row, unit, number, value):
    index = types.int64

    def emit(context, builder, sig, args):
        address = _address(context, builder, words, args[0], args[1:4])
        bits = builder.zext(builder.bitcast(args[5], ir.IntType(32)), ir.IntType(64))
        above = builder.shl(args[4], ir.Constant(ir.IntType(64), 32))
        kind = ir.FunctionType(ir.VoidType(), [address.type, ir.IntType(64)])
        store = ir.InlineAsm(kind, "st.relaxed.gpu.u64 [$0], $1;", "l,l", side_effect=True)
        builder.call(store, [address, builder.or_(above, bits)])
        return context.get_dummy_value()

    return types.void(words, index, index, index, index, types.float32), emit


@intrinsic
def _get_word(typing, words, slot, row, unit):
    index, result = types.int64, types.Tuple((types.int64, types.float32))

    def emit(context, builder, sig, args):
        address = _address(context, builder, words, args[0], args[1:4])
        kind = ir.FunctionType(ir.IntType(64), [address.type])
        load = ir.InlineAsm(kind, "ld.relaxed.gpu.u64 $0, [$1];", "=l,l", side_effect=True)
        word = builder.call(load, [address])
        number = builder.lshr(word, ir.Constant(ir.IntType(64), 32))
        value = builder.bitcast(builder.trunc(word, ir.IntType(32)), ir.FloatType())
        return context.make_tuple(builder, sig.return_type, (number, value))

    return result(words, index, index, index), emit


@overload(put_word)
def _put_word_on_gpu(words, slot, row, unit, number, value):
    return lambda words, slot, row, unit, number, value: _put_word(
        words, slot, row, unit, number, value
    )


@overload(get_word)
def _get_word_on_gpu(words, slot, row, unit):
    return lambda words, slot, row, unit: _get_word(words, slot, row, unit)


# Clusters, from compute capability 9.0 on: blocks that run at the same time and write to each
# other's shared memory. As Python, what acts a GPU out brings them together.
acted_out: Any = None


def arrive_at_cluster():
    """Tell the cluster that all that this thread has written is there: MEMBAR.ALL.GPU, UCGABAR_ARV.

    It waits until that is so, for global memory too.
    """
    acted_out.arrive_at_cluster()


def wait_for_cluster():
    """Wait until all threads of the cluster have arrived: UCGABAR_WAIT, CCTL.IVALL.

    The latter empties the first-level cache of global memory.
    """
    acted_out.wait_for_cluster()


def _barrier(text: str) -> Any:
    @intrinsic
    def barrier(typing):
        def emit(context, builder, sig, args):
            _void(builder, text, "")
            return context.get_dummy_value()

        return types.void(), emit

    return barrier


# Not `.aligned`: threads of a warp may have gone different ways before.
_arrive = _barrier("barrier.cluster.arrive.release;")
_wait = _barrier("barrier.cluster.wait.acquire;")


@overload(arrive_at_cluster)
def _arrive_on_gpu():
    return lambda: _arrive()


@overload(wait_for_cluster)
def _wait_on_gpu():
    return lambda: _wait()


# Tensor cores multiply words of 32 bits: two neighbouring bfloat16 numbers, or one TF32 number.


def two_bf16(low, high):
    """A word of two numbers, rounded to nearest: F2FP.BF16.F32.PACK_AB."""
    a, b = (_upper_half(value) for value in (low, high))
    return np.uint32(b << 16 | a)


def one_tf32(value):
    """A word of one number, rounded to nearest, halves away from 0: F2FP.TF32 or IADD and LOP3."""
    return np.uint32(_rounded_bits(value, 0x1000) & 0xFFFFE000)


def put_bf16(words, at, rank, value):
    """Write a number into a block's `words`, flat, shared; `at` counts numbers: ST.E.U16."""
    acted_out.shared_by(words, rank).view(np.uint16)[at] = _upper_half(value)


def put_tf32(words, at, rank, value):
    """Write a number into a block's `words`, flat, shared; `at` counts numbers: ST.E."""
    acted_out.shared_by(words, rank)[at] = one_tf32(value)


def load_words(words, at):
    """Four neighbours, where `at` is a multiple of four: LDS.128."""
    return words[at], words[at + 1], words[at + 2], words[at + 3]


def multiply_bf16(a, b, c):
    """A warp's ``C + A B``, (16, 8) + (16, 16) (16, 8), float32 sums: HMMA.16816.F32.BF16.

    In words, A is (16, 8) and B is (8, 8). With g, t = divmod(lane, 4), a lane has the words
    A[g, t], A[g + 8, t], A[g, t + 4], A[g + 8, t + 4] and B[t, g], B[t + 4, g], and the sums
    C[g, 2 t], C[g, 2 t + 1], C[g + 8, 2 t], C[g + 8, 2 t + 1], as tuples.
    """
    return acted_out.of_warp(_multiply_bf16, (a, b, c))


def multiply_tf32(a, b, c):
    """A warp's ``C + A B``, (16, 8) + (16, 8) (8, 8), words as above: HMMA.1688.F32.TF32."""
    return acted_out.of_warp(_multiply_tf32, (a, b, c))


def _rounded_bits(value, half):
    """Bits of a float32, with `half` of a unit of what is kept added, if it is a finite number."""
    bits = int(np.float32(value).view(np.uint32))
    return bits if bits & 0x7F800000 == 0x7F800000 else bits + half


def _upper_half(value):
    """Bits of the nearest bfloat16, of two that are as near the even one."""
    bits = int(np.float32(value).view(np.uint32))
    if np.isnan(value):
        return 0x7FFF
    return _rounded_bits(value, 0x7FFF + (bits >> 16 & 1)) >> 16


def _numbers_of_bf16(words):
    """The numbers in words, (rows, words), in order."""
    halves = np.stack([words << 16, words & np.uint32(0xFFFF0000)], axis=-1)
    return halves.view(np.float32).reshape(len(words), -1)


def _multiply_tiles(lanes, numbers):
    """What the 32 lanes of a warp get for what they have."""
    weights, vectors, sums = zip(*lanes, strict=True)
    of_a = np.array(weights, np.uint32).reshape(8, 4, 2, 2)  # g, t, half of k, half of the rows
    of_b = np.array(vectors, np.uint32).reshape(8, 4, 2)  # g, t, half of k
    of_c = np.array(sums, np.float32).reshape(8, 4, 2, 2)  # g, t, half of the rows, column
    a, b = of_a.transpose(3, 0, 2, 1).reshape(16, 8), of_b.transpose(0, 2, 1).reshape(8, 8)
    c = of_c.transpose(2, 0, 1, 3).reshape(16, 8) + numbers(a) @ numbers(b).T
    return c.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3).reshape(32, 4)


def _multiply_bf16(lanes):
    return _multiply_tiles(lanes, _numbers_of_bf16)


def _multiply_tf32(lanes):
    return _multiply_tiles(lanes, lambda words: words.view(np.float32))


def _converted(text: str, count: int) -> Any:
    """An instruction that makes a word of so many numbers, the last one first."""
    constraints = ",".join(["=r", *["f"] * count])

    def emit(context, builder, sig, args):
        kind = ir.FunctionType(ir.IntType(32), [ir.FloatType()] * count)
        return builder.call(ir.InlineAsm(kind, text, constraints), args[::-1])

    return emit


@intrinsic
def _two_bf16(typing, low, high):
    one = types.float32
    return types.uint32(one, one), _converted("cvt.rn.bf16x2.f32 $0, $1, $2;", 2)


@intrinsic
def _one_tf32(typing, value):
    return types.uint32(types.float32), _converted("cvt.rna.tf32.f32 $0, $1;", 1)


def _put(size: int, text: str) -> Any:
    """Numbers of so many bytes into the shared memory of a block of the cluster."""

    @intrinsic
    def put(typing, words, at, rank, value):
        def emit(context, builder, sig, args):
            address = _address(context, builder, words, args[0], [ir.Constant(ir.IntType(64), 0)])
            number = ir.IntType(64)
            start = builder.ptrtoint(address, number)
            there = builder.add(start, builder.mul(args[1], number(size)))
            which = builder.trunc(args[2], ir.IntType(32))
            _void(builder, text, "l,r,f,", there, which, args[3])
            return context.get_dummy_value()

        index = types.int64
        return types.void(words, index, index, types.float32), emit

    return put


_PLACE = (
    "{ .reg .u64 s; .reg .u32 p; cvta.to.shared.u64 s, $0; cvt.u32.u64 p, s; "
    "mapa.shared::cluster.u32 p, p, $1; "
)
_put_bf16 = _put(2, _PLACE + ".reg .b16 v; cvt.rn.bf16.f32 v, $2; st.shared::cluster.b16 [p], v; }")
_put_tf32 = _put(
    4, _PLACE + ".reg .b32 v; cvt.rna.tf32.f32 v, $2; st.shared::cluster.b32 [p], v; }"
)


@intrinsic
def _load_words(typing, words, at):
    def emit(context, builder, sig, args):
        address = _address(context, builder, words, args[0], args[1:])
        return _four_at(context, builder, address, sig.return_type)

    return types.UniTuple(types.uint32, 4)(words, types.int64), emit


def _multiply(shape: str, kind: str) -> Any:
    """The product of tiles by a warp's tensor cores."""
    text = (
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

    @intrinsic
    def multiply(typing, a, b, c):
        def emit(context, builder, sig, args):
            operands = [part for arg in args for part in cgutils.unpack_tuple(builder, arg)]
            four = ir.LiteralStructType([ir.FloatType()] * 4)
            called = ir.FunctionType(four, [operand.type for operand in operands])
            # All threads of the warp together: not to be moved into a branch.
            assembly = ir.InlineAsm(called, text, constraints)
            found = builder.call(assembly, operands, attrs=("convergent",))
            parts = [builder.extract_value(found, number) for number in range(4)]
            return context.make_tuple(builder, sig.return_type, parts)

        words, sums = (
            (types.UniTuple(types.uint32, n) for n in (4, 2)),
            types.UniTuple(types.float32, 4),
        )
        return sums(*words, sums), emit

    return multiply


_warp_bf16, _warp_tf32 = _multiply("m16n8k16", "bf16"), _multiply("m16n8k8", "tf32")


@overload(two_bf16)
def _two_bf16_on_gpu(low, high):
    return lambda low, high: _two_bf16(low, high)


@overload(one_tf32)
def _one_tf32_on_gpu(value):
    return lambda value: _one_tf32(value)


@overload(put_bf16)
def _put_bf16_on_gpu(words, at, rank, value):
    return lambda words, at, rank, value: _put_bf16(words, at, rank, value)


@overload(put_tf32)
def _put_tf32_on_gpu(words, at, rank, value):
    return lambda words, at, rank, value: _put_tf32(words, at, rank, value)


@overload(load_words)
def _load_words_on_gpu(words, at):
    return lambda words, at: _load_words(words, at)


@overload(multiply_bf16)
def _multiply_bf16_on_gpu(a, b, c):
    return lambda a, b, c: _warp_bf16(a, b, c)


@overload(multiply_tf32)
def _multiply_tf32_on_gpu(a, b, c):
    return lambda a, b, c: _warp_tf32(a, b, c)
