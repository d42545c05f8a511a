"""Calling a compiled kernel by its address, from the loops that run its workers."""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def call_at(typing: Any, address: Any, *args: Any) -> Any:
    """Call the compiled kernel at an address; its parameters have the types of the arguments.

    Numba's own type for functions as arguments is looked up at each call, which takes 60 µs.
    """

    def emit(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        kinds = sig.args[1]
        call_conv = context.call_conv
        kind = call_conv.get_function_type(types.none, kinds)
        kernel = builder.inttoptr(values[0], kind.as_pointer())
        unpacked = cgutils.unpack_tuple(builder, values[1], len(kinds))
        status, _ = call_conv.call_function(builder, kernel, types.none, kinds, unpacked)
        with builder.if_then(status.is_error):
            call_conv.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(types.intp, types.BaseTuple.from_types(args)), emit
