"""Calling a compiled kernel by its address, and the tables of numbers that kernels are given."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic


@intrinsic
def call_at(typing: Any, address: Any, *args: Any) -> Any:
    """Call the compiled kernel at an address; its parameters have the types of the arguments.

    Kernels raise nothing, so no status is checked afterwards. Numba's own type for functions as
    arguments is looked up at each call, which takes 60 µs.
    """

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        kinds = sig.args[1]
        call_conv = context.call_conv
        kind = call_conv.get_function_type(types.none, kinds)
        kernel = builder.inttoptr(values[0], kind.as_pointer())
        unpacked = cgutils.unpack_tuple(builder, values[1], len(kinds))
        call_conv.call_function(builder, kernel, types.none, kinds, unpacked)
        return context.get_dummy_value()

    return types.void(types.intp, types.BaseTuple.from_types(args)), emit


@intrinsic
def record(typing: Any, kind: Any, table: Any, start: Any) -> Any:
    """A named tuple of whole numbers, `kind`, from consecutive words of a table."""
    if not isinstance(kind, types.NamedTupleClass):
        raise RequireLiteralValue(kind)
    fields = kind.instance_class._fields
    result = types.NamedUniTuple(types.intp, len(fields), kind.instance_class)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = context.make_array(sig.args[1])(context, builder, args[1]).data
        first = builder.gep(first, [args[2]])
        words = [builder.load(builder.gep(first, [ir.IntType(64)(n)])) for n in range(len(fields))]
        return context.make_tuple(builder, result, words)

    return result(kind, table, types.intp), emit
