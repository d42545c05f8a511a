"""All that a GPU computes in another way than Python: the one file of device intrinsics.

Each is a plain Python function with a version for the GPU beside it, so that kernels run unchanged
as Python, where a test wants to see what every thread does. Beside each stands what it becomes in
the machine code (SASS) of sm_80 and sm_90.
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
    """Where an element of a contiguous array of three dimensions is."""
    struct = context.make_array(kind)(context, builder, array)
    _, rows, columns = cgutils.unpack_tuple(builder, struct.shape, 3)
    at = builder.add(builder.mul(indices[0], rows), indices[1])
    return builder.gep(struct.data, [builder.add(builder.mul(at, columns), indices[2])])


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
        vector = ir.VectorType(ir.FloatType(), 4)
        four_at_once = builder.load(builder.bitcast(first, vector.as_pointer(first.type.addrspace)))
        four_at_once.align = 16
        numbers = map(ir.IntType(32), range(4))
        parts = [builder.extract_element(four_at_once, number) for number in numbers]
        return context.make_tuple(builder, sig.return_type, parts)

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
