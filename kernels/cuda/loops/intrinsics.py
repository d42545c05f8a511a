"""Instructions that Numba has no function for: loads of four, and words that blocks exchange.

Intrinsics exist on the GPU alone. Beside each stands what it becomes in the machine code (SASS) of
sm_80 and sm_90. `tensor_intrinsics` has those of clusters and tensor cores.
"""

from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic


def element_address(context: Any, builder: Any, kind: Any, array: Any, indices: Any) -> Any:
    """Emit the address of an element of a contiguous array."""
    struct = context.make_array(kind)(context, builder, array)
    at, *others = indices
    for index, extent in zip(others, cgutils.unpack_tuple(builder, struct.shape)[1:], strict=True):
        at = builder.add(builder.mul(at, extent), index)
    return builder.gep(struct.data, [at])


def load_vector(context: Any, builder: Any, address: Any, result: Any) -> Any:
    """Emit a load of four neighbours of 32 bits, as a tuple; the address is aligned to 16 bytes."""
    kind = ir.VectorType(address.type.pointee, 4)
    vector = builder.load(builder.bitcast(address, kind.as_pointer(address.type.addrspace)))
    vector.align = 16
    numbers = map(ir.IntType(32), range(4))
    parts = [builder.extract_element(vector, number) for number in numbers]
    return context.make_tuple(builder, result, parts)


@intrinsic
def load_four(typing, array, row, middle, k):
    """Four neighbours ``array[row, middle, k : k + 4]``, where k is a multiple of four: LDS.128.

    `array` is shared memory, float32, and starts on 16 bytes, as every row of it does.
    """
    index, four = types.int64, types.UniTuple(array.dtype, 4)

    def emit(context, builder, sig, args):
        first = element_address(context, builder, array, args[0], args[1:])
        return load_vector(context, builder, first, sig.return_type)

    return four(array, index, index, index), emit


# Tagged words: a value in the lower half, and above it the number of its exchange, written and read
# as one. A word with the expected number holds the expected value, whatever its bits are, so
# neither flags nor fences are needed.


@intrinsic
def store_tagged(typing, words, slot, row, unit, number, value):
    """Write a word of `words`, (slots, rows, H) uint64: ST.E.64.STRONG.GPU."""
    index = types.int64

    def emit(context, builder, sig, args):
        address = element_address(context, builder, words, args[0], args[1:4])
        bits = builder.zext(builder.bitcast(args[5], ir.IntType(32)), ir.IntType(64))
        above = builder.shl(args[4], ir.Constant(ir.IntType(64), 32))
        kind = ir.FunctionType(ir.VoidType(), [address.type, ir.IntType(64)])
        store = ir.InlineAsm(kind, "st.relaxed.gpu.u64 [$0], $1;", "l,l", side_effect=True)
        builder.call(store, [address, builder.or_(above, bits)])
        return context.get_dummy_value()

    return types.void(words, index, index, index, index, types.float32), emit


@intrinsic
def load_tagged(typing, words, slot, row, unit):
    """Number, modulo 2^32, and value of a word as it is now: LD.E.64.STRONG.GPU."""
    index, result = types.int64, types.Tuple((types.int64, types.float32))

    def emit(context, builder, sig, args):
        address = element_address(context, builder, words, args[0], args[1:4])
        kind = ir.FunctionType(ir.IntType(64), [address.type])
        load = ir.InlineAsm(kind, "ld.relaxed.gpu.u64 $0, [$1];", "=l,l", side_effect=True)
        word = builder.call(load, [address])
        number = builder.lshr(word, ir.Constant(ir.IntType(64), 32))
        value = builder.bitcast(builder.trunc(word, ir.IntType(32)), ir.FloatType())
        return context.make_tuple(builder, sig.return_type, (number, value))

    return result(words, index, index, index), emit
