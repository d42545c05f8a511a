"""A SIMD vector as a Numba type: arithmetic, loads and stores.

`Vec` stands for an LLVM vector as wide as the CPU's registers, so a function written for one unit
runs on 16 of them (float32, AVX-512). The register width is read from the features that Numba
compiles for; the same source serves AVX-512, AVX2, SSE and NEON.
"""

import functools
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    register_jitable,
    register_model,
)

from .. import primitives


class Target(NamedTuple):
    """What Numba's compiler is told to compile for."""

    triple: str
    cpu: str
    features: frozenset[str]  # those switched on

    @property
    def is_arm64(self) -> bool:
        """Whether it is 64-bit Arm, which macOS calls arm64; no features are reported there."""
        return self.triple.startswith(("aarch64", "arm64"))

    @property
    def is_x86(self) -> bool:
        """Whether it is x86 with 64 bits."""
        return self.triple.startswith(("x86_64", "amd64"))


@functools.cache
def target() -> Target:
    """The target of Numba's compiler: NUMBA_CPU_NAME, NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX
    count, and so does what Numba switches off by itself.
    """
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return Target(triple, cpu, frozenset(f[1:] for f in features.split(",") if f.startswith("+")))


def has_avx512() -> bool:
    """Whether vectors are AVX-512's."""
    return "avx512f" in target().features


def has_fma() -> bool:
    """Whether there is an instruction that multiplies and adds; else LLVM would call a function."""
    return target().is_arm64 or has_avx512() or "fma" in target().features


def register_bits() -> int:
    """Width of the widest vector register."""
    return 512 if has_avx512() else 256 if "avx2" in target().features else 128


def register_count() -> int:
    """Number of vector registers: 16 on x86 before AVX-512, else 32."""
    return 32 if has_avx512() or target().is_arm64 else 16


def lanes_of(dtype: types.Float) -> int:
    """Elements of `dtype` in one vector."""
    return register_bits() // dtype.bitwidth


def jitable(function: Any) -> Any:
    """Decorator: kernels may call the function, and so may Python.

    Without the wrapper for C, which nobody calls: it took a tenth of the time to compile.
    """
    return register_jitable(no_cfunc_wrapper=True)(function)


# Decorator: the function's code replaces each call. A call passes every array as seven words on the
# stack, and a row or a step takes several: 70 ns a row where LLVM did not inline by itself.
inlined = register_jitable(forceinline=True, no_cfunc_wrapper=True)


class Vec(types.Type):
    """A vector of `lanes` elements of a floating type."""

    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(f"Vec({dtype}, {lanes})")

    @property
    def ir(self) -> ir.VectorType:
        """The LLVM type."""
        scalar = ir.FloatType() if self.dtype.bitwidth == 32 else ir.DoubleType()
        return ir.VectorType(scalar, self.lanes)

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes."""
        return self.lanes * self.dtype.bitwidth // 8

    @property
    def suffix(self) -> str:
        """The type's part of the names of LLVM's intrinsics."""
        return f"v{self.lanes}f{self.dtype.bitwidth}"


def vec_of(memory: Any) -> Vec:
    """The vector type that holds elements of a type of array or pointer."""
    return Vec(memory.dtype, lanes_of(memory.dtype))


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, fe_type.ir)


def lower_on_vec(function: Any, arity: int) -> Any:
    """Decorator: ``emit(builder, vec, *values)`` becomes `function` for `arity` equal vectors."""

    def register(emit: Any) -> Any:
        @infer_global(function)
        class _Template(AbstractTemplate):
            def generic(self, args: Any, kws: Any) -> Any:
                first = args[0]
                if len(args) == arity and isinstance(first, Vec) and set(args) == {first}:
                    return signature(first, *args)
                return None

        @lower_builtin(function, *[Vec] * arity)
        def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, sig.return_type, *args)

        return emit

    return register


def constants(vec: Vec, values: Iterable[float]) -> ir.Constant:
    """A vector of these values, rounded to the element type."""
    return ir.Constant(vec.ir, [vec.ir.element(float(vec.dtype(value))) for value in values])


def constant(vec: Vec, value: float) -> ir.Constant:
    """A vector with `value` in every lane, rounded to the element type."""
    return constants(vec, [value] * vec.lanes)


def call_llvm(builder: Any, vec: Vec, name: str, *args: Any) -> Any:
    """Call one of LLVM's elementwise intrinsics (``llvm.fma``, ``llvm.fabs``, …)."""
    kind = ir.FunctionType(vec.ir, [vec.ir] * len(args))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{vec.suffix}")
    return builder.call(function, args)


def multiply_add(builder: Any, vec: Vec, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where there is an instruction for it, else twice."""
    if has_fma():
        return call_llvm(builder, vec, "fma", a, b, c)
    return builder.fadd(builder.fmul(a, b), c)


lower_on_vec(operator.add, 2)(lambda builder, vec, a, b: builder.fadd(a, b))
lower_on_vec(operator.sub, 2)(lambda builder, vec, a, b: builder.fsub(a, b))
lower_on_vec(operator.mul, 2)(lambda builder, vec, a, b: builder.fmul(a, b))
lower_on_vec(operator.truediv, 2)(lambda builder, vec, a, b: builder.fdiv(a, b))
lower_on_vec(operator.neg, 1)(lambda builder, vec, a: builder.fneg(a))
lower_on_vec(primitives.one_like, 1)(lambda builder, vec, a: constant(vec, 1.0))
lower_on_vec(primitives.zero_like, 1)(lambda builder, vec, a: constant(vec, 0.0))


@infer_global(primitives.constant_like)
class _ConstantTemplate(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and isinstance(args[0], Vec) and isinstance(args[1], types.Float):
            return signature(args[0], args[0], args[1])
        return None


@lower_builtin(primitives.constant_like, Vec, types.Float)
def _lower_constant(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """The number in every lane, rounded to the element type."""
    vec, number = sig.return_type, args[1]
    if vec.dtype != sig.args[1]:
        number = context.cast(builder, number, sig.args[1], vec.dtype)
    alone = builder.insert_element(ir.Constant(vec.ir, ir.Undefined), number, ir.IntType(32)(0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vec.lanes), [0] * vec.lanes)
    return builder.shuffle_vector(alone, alone, everywhere)


def element_pointer(context: Any, builder: Any, kind: Any, memory: Any, index: Any) -> Any:
    """Address of element `index` of a pointer or a contiguous array, without a bounds check."""
    if isinstance(kind, types.Array):
        memory = context.make_array(kind)(context, builder, memory).data
    return builder.gep(memory, [index])


@intrinsic
def pointer(typing: Any, memory: Any, index: Any) -> Any:
    """Pointer to element `index` of a pointer or a contiguous array.

    Kernels pass on memory so: an array would be seven words on the stack in each call.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return element_pointer(context, builder, sig.args[0], *args)

    return types.CPointer(memory.dtype)(memory, types.intp), emit


@intrinsic
def select_pointer(typing: Any, condition: Any, then: Any, other: Any) -> Any:
    """One of two pointers."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return then(types.boolean, then, other), emit


def load(builder: Any, vec: Vec, pointer: Any) -> Any:
    """Load a vector; only the element's own alignment is assumed."""
    value = builder.load(builder.bitcast(pointer, vec.ir.as_pointer()))
    value.align = vec.dtype.bitwidth // 8
    return value


def store(builder: Any, vec: Vec, value: Any, pointer: Any) -> None:
    """Store a vector; only the element's own alignment is assumed."""
    instruction = builder.store(value, builder.bitcast(pointer, vec.ir.as_pointer()))
    instruction.align = vec.dtype.bitwidth // 8


def prefetch(builder: Any, pointer: Any, level: int = 1) -> None:
    """Prefetch the cache line of an address, which need not be valid, into a level of cache."""
    number, byte = ir.IntType(32), cgutils.int8_t.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(
        function, [builder.bitcast(pointer, byte), number(0), number(4 - level), number(1)]
    )


def literal(value: Any) -> int:
    """The number in a literal integer type."""
    if not isinstance(value, types.IntegerLiteral):
        raise RequireLiteralValue(value)
    return value.literal_value


def vectors_type(array: Any, count: int) -> Any:
    """The type of a tuple of `count` vectors."""
    return types.UniTuple(vec_of(array), count) if count else types.Tuple(())


@intrinsic(prefer_literal=True)
def load_vectors(typing: Any, array: Any, start: Any, stride: Any, count: Any) -> Any:
    """Tuple of `count` vectors that begin `stride` elements apart in flat memory."""
    result = vectors_type(array, literal(count))

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = []
        for number in range(literal(count)):
            index = builder.add(args[1], builder.mul(args[2], args[2].type(number)))
            pointer = element_pointer(context, builder, sig.args[0], args[0], index)
            loaded.append(load(builder, vec_of(array), pointer))
        return context.make_tuple(builder, result, loaded)

    return result(array, types.intp, types.intp, count), emit


@intrinsic
def store_vectors(typing: Any, array: Any, start: Any, stride: Any, vectors: Any) -> Any:
    """Store a tuple of vectors `stride` elements apart in flat memory."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for number, value in enumerate(cgutils.unpack_tuple(builder, args[3], len(vectors))):
            index = builder.add(args[1], builder.mul(args[2], args[2].type(number)))
            pointer = element_pointer(context, builder, sig.args[0], args[0], index)
            store(builder, vec_of(array), value, pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), emit


@intrinsic(prefer_literal=True)
def zero_vectors(typing: Any, array: Any, count: Any) -> Any:
    """Tuple of `count` zero vectors of the array's type."""
    result = vectors_type(array, literal(count))

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = constant(vec_of(array), 0.0)
        return context.make_tuple(builder, result, [zero] * literal(count))

    return result(array, count), emit


@intrinsic
def add_vectors(typing: Any, vectors: Any, addends: Any) -> Any:
    """Add to the leading members of a tuple of vectors; the others stay."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        sums = cgutils.unpack_tuple(builder, args[0], len(vectors))
        for number, value in enumerate(cgutils.unpack_tuple(builder, args[1], len(addends))):
            sums[number] = builder.fadd(sums[number], value)
        return context.make_tuple(builder, vectors, sums)

    return vectors(vectors, addends), emit


class Sweeps(NamedTuple):
    """Loops over whole vectors of flat memory."""

    fill_zero: Any  # (to, i, count)
    copy: Any  # (to, i, source, j, count)
    add: Any  # (to, i, source, j, count)


@functools.cache
def make_sweeps(lanes: int) -> Sweeps:
    """Build these loops.

    Loops over single elements stay scalar: Numba's
    index may wrap around and arrays may overlap, for all that LLVM knows.
    """

    @jitable
    def fill_zero(to, i, count):
        for at in range(0, count, lanes):
            store_vectors(to, i + at, 0, zero_vectors(to, 1))

    @jitable
    def copy(to, i, source, j, count):
        for at in range(0, count, lanes):
            store_vectors(to, i + at, 0, load_vectors(source, j + at, 0, 1))

    @jitable
    def add(to, i, source, j, count):
        for at in range(0, count, lanes):
            total = add_vectors(load_vectors(to, i + at, 0, 1), load_vectors(source, j + at, 0, 1))
            store_vectors(to, i + at, 0, total)

    return Sweeps(fill_zero, copy, add)
