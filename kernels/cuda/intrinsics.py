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
        struct = context.make_array(array)(context, builder, args[0])
        _, rows, columns = cgutils.unpack_tuple(builder, struct.shape, 3)
        at = builder.add(builder.mul(args[1], rows), args[2])
        at = builder.add(builder.mul(at, columns), args[3])
        first = builder.gep(struct.data, [at])
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
