"""The floating-point mode that kernels run in: IEEE 754's, whatever the calling thread's is.

Other libraries may switch a thread to flush subnormal numbers to zero, to another rounding, or to
traps. Numba's threads would keep their own mode, so results would depend on their number.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import target

# x86's MXCSR: the six flags of what happened, and the mode in which nothing traps nor is flushed.
_X86_FLAGS, _X86_DEFAULT = 0x3F, 0x1F80
_ARM64_DEFAULT = 0


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _read(builder: Any) -> Any:
    """The control register, as 64 bits."""
    number = ir.IntType(64)
    if target().is_x86:
        word = cgutils.alloca_once(builder, ir.IntType(32))
        place = builder.bitcast(word, cgutils.int8_t.as_pointer())
        _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), place)
        return builder.zext(builder.load(word), number)
    if target().is_arm64:
        return _call(builder, "llvm.aarch64.get.fpcr", number)
    return number(0)


def _write(builder: Any, mode: Any) -> None:
    if target().is_x86:
        word = cgutils.alloca_once(builder, ir.IntType(32))
        builder.store(builder.trunc(mode, word.type.pointee), word)
        place = builder.bitcast(word, cgutils.int8_t.as_pointer())
        _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), place)
    elif target().is_arm64:
        _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), mode)


def _is_default(builder: Any, mode: Any) -> Any:
    if target().is_x86:
        settings = builder.and_(mode, mode.type(~_X86_FLAGS & 0xFFFF))
        return builder.icmp_unsigned("==", settings, mode.type(_X86_DEFAULT))
    return builder.icmp_unsigned("==", mode, mode.type(_ARM64_DEFAULT))


def _keep_in_place(builder: Any) -> None:
    """Let no load or store, and so nothing that is computed from or for one, move past here."""
    kind = ir.FunctionType(ir.VoidType(), [])
    builder.asm(kind, "", "~{memory}", [], side_effect=True)


@intrinsic
def enter_ieee_mode(typing: Any) -> Any:
    """Switch this thread to IEEE 754's mode; gives the mode to `restore_mode` in the end."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mode = _read(builder)
        # Writing takes some 20 cycles, and is hardly ever needed.
        with builder.if_then(builder.not_(_is_default(builder, mode)), likely=False):
            default = _X86_DEFAULT if target().is_x86 else _ARM64_DEFAULT
            _write(builder, mode.type(default))
        _keep_in_place(builder)
        return mode

    return types.int64(), emit


@intrinsic
def restore_mode(typing: Any, mode: Any) -> Any:
    """Switch this thread back to the mode that `enter_ieee_mode` found."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _keep_in_place(builder)
        with builder.if_then(builder.not_(_is_default(builder, args[0])), likely=False):
            _write(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit
