"""Parts of a matrix of any strides, with as many rows and columns as a vector has lanes."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import constant, element_pointer, load, store, vec_of


def _square(
    context: Any,
    builder: Any,
    array_type: Any,
    args: Any,
    move_row: Callable[[Any, Any], None],
    move_element: Callable[[Any, Any], None],
) -> Any:
    """Walk ``matrix[row : row + rows, column : column + columns]`` beside a buffer of vectors.

    Whole rows of contiguous elements at once, where there are as many of both as lanes, else single
    elements. The functions take the matrix's address and the buffer's.
    """
    matrix, row, column, rows, columns = args[:5]
    vec = vec_of(array_type)
    struct = context.make_array(array_type)(context, builder, matrix)
    strides = cgutils.unpack_tuple(builder, struct.strides, 2)
    start = builder.bitcast(struct.data, cgutils.int8_t.as_pointer())
    for index, stride in zip((row, column), strides):
        start = builder.gep(start, [builder.mul(index, stride)])

    def at(i: Any, j: Any) -> Any:
        distance = builder.add(builder.mul(i, strides[0]), builder.mul(j, strides[1]))
        return builder.bitcast(builder.gep(start, [distance]), struct.data.type)

    buffer = cgutils.alloca_once(builder, vec.ir, size=vec.lanes)
    integer = row.type
    vectors = [builder.gep(buffer, [integer(i)]) for i in range(vec.lanes)]
    elements = builder.bitcast(buffer, vec.ir.element.as_pointer())
    whole = builder.and_(
        builder.icmp_signed("==", rows, integer(vec.lanes)),
        builder.icmp_signed("==", columns, integer(vec.lanes)),
    )
    contiguous = builder.icmp_signed("==", strides[1], integer(array_type.dtype.bitwidth // 8))

    def walk() -> None:
        with builder.if_else(builder.and_(whole, contiguous)) as (then, otherwise):
            with then:
                for i, vector in enumerate(vectors):
                    move_row(at(integer(i), integer(0)), vector)
            with (
                otherwise,
                cgutils.for_range(builder, rows) as i,
                cgutils.for_range(builder, columns) as j,
            ):
                place = builder.add(builder.mul(i.index, integer(vec.lanes)), j.index)
                move_element(at(i.index, j.index), builder.gep(elements, [place]))

    return vectors, walk


@intrinsic
def load_square(
    typing: Any,
    matrix: Any,  # any strides, perhaps unaligned
    row: Any,
    column: Any,
    rows: Any,  # at most as many as lanes, likewise the columns; what is not there is 0
    columns: Any,
) -> Any:
    """Such a part as a tuple of vectors, one for each row."""
    vec = vec_of(matrix)
    result = types.UniTuple(vec, vec.lanes)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def move_row(pointer: Any, vector: Any) -> None:
            value = load(builder, vec, pointer)
            value.align = 1
            builder.store(value, vector)

        def move_element(pointer: Any, element: Any) -> None:
            value = builder.load(pointer)
            value.align = 1
            builder.store(value, element)

        vectors, walk = _square(context, builder, matrix, args, move_row, move_element)
        for vector in vectors:
            builder.store(constant(vec, 0.0), vector)
        walk()
        return context.make_tuple(builder, result, [builder.load(vector) for vector in vectors])

    return result(matrix, types.intp, types.intp, types.intp, types.intp), emit


@intrinsic
def store_square(
    typing: Any,
    matrix: Any,  # aligned; any strides
    row: Any,
    column: Any,
    rows: Any,
    columns: Any,
    square: Any,
) -> Any:
    """Write a part of a tuple of vectors: so many rows and columns of it."""
    vec = vec_of(matrix)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def move_row(pointer: Any, vector: Any) -> None:
            store(builder, vec, builder.load(vector), pointer)

        def move_element(pointer: Any, element: Any) -> None:
            builder.store(builder.load(element), pointer)

        vectors, walk = _square(context, builder, matrix, args, move_row, move_element)
        for value, vector in zip(cgutils.unpack_tuple(builder, args[5], vec.lanes), vectors):
            builder.store(value, vector)
        walk()
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp, types.intp, types.intp, square), emit


@intrinsic
def store_leading(
    typing: Any, array: Any, start: Any, stride: Any, count: Any, vectors: Any
) -> Any:
    """Store the first `count` of a tuple of vectors `stride` elements apart in a flat array."""
    vec = vec_of(array)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for number, value in enumerate(cgutils.unpack_tuple(builder, args[4], len(vectors))):
            with builder.if_then(builder.icmp_signed(">", args[3], args[3].type(number))):
                index = builder.add(args[1], builder.mul(args[2], args[2].type(number)))
                pointer = element_pointer(context, builder, sig.args[0], args[0], index)
                store(builder, vec, value, pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, vectors), emit


@intrinsic
def transposed(typing: Any, square: Any) -> Any:
    """Lane i of vector j becomes lane j of vector i."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = len(square)
        vectors = cgutils.unpack_tuple(builder, args[0], lanes)
        swap = 1
        while swap < lanes:  # off the diagonal, tiles of so many lanes change places
            upper = [lanes + (j ^ swap) if j & swap else j for j in range(lanes)]
            lower = [lanes + j if j & swap else j ^ swap for j in range(lanes)]
            for i in range(lanes):
                if not i & swap:
                    a, b = vectors[i], vectors[i | swap]
                    for place, indices in ((i, upper), (i | swap, lower)):
                        mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), indices)
                        vectors[place] = builder.shuffle_vector(a, b, mask)
            swap *= 2
        return context.make_tuple(builder, square, vectors)

    return square(square), emit
