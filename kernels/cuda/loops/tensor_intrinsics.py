"""Instructions of clusters and of tensor cores.

Intrinsics exist on the GPU alone. Beside each stands what it becomes in the machine code (SASS) of
sm_90. Tensor cores multiply words of 32 bits: two neighbouring bfloat16 numbers, or one TF32
number.
"""

from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

from .intrinsics import element_address, load_vector


def _emit_void(builder: Any, text: str, constraints: str, *operands: Any) -> None:
    """Emit instructions without a result, which keep their place among others on memory."""
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    assembly = ir.InlineAsm(kind, text, f"{constraints}~{{memory}}", side_effect=True)
    builder.call(assembly, operands, attrs=("convergent",))


# --- clusters: blocks that run at the same time and write to each other's shared memory -----------

# The barrier is not `.aligned`: threads of a warp may have taken different branches before.


@intrinsic
def cluster_arrive(typing):
    """Tell the cluster that all that this thread has written is there: MEMBAR.ALL.GPU, UCGABAR_ARV.

    It waits until that is so, for global memory too.
    """

    def emit(context, builder, sig, args):
        _emit_void(builder, "barrier.cluster.arrive.release;", "")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def cluster_wait(typing):
    """Wait until all threads of the cluster have arrived: UCGABAR_WAIT, CCTL.IVALL.

    The latter empties the first-level cache of global memory.
    """

    def emit(context, builder, sig, args):
        _emit_void(builder, "barrier.cluster.wait.acquire;", "")
        return context.get_dummy_value()

    return types.void(), emit


_MAP_ADDRESS = (
    "{ .reg .u64 s; .reg .u32 p; cvta.to.shared.u64 s, $0; cvt.u32.u64 p, s; "
    "mapa.shared::cluster.u32 p, p, $1; "
)


def _remote_store(size: int, text: str, words: Any) -> Any:
    """Signature and code of a store of a number of so many bytes into a block of the cluster."""

    def emit(context, builder, sig, args):
        number = ir.IntType(64)
        address = element_address(context, builder, words, args[0], [number(0)])
        start = builder.ptrtoint(address, number)
        target = builder.add(start, builder.mul(args[1], number(size)))
        rank = builder.trunc(args[2], ir.IntType(32))
        _emit_void(builder, _MAP_ADDRESS + text, "l,r,f,", target, rank, args[3])
        return context.get_dummy_value()

    index = types.int64
    return types.void(words, index, index, types.float32), emit


@intrinsic
def store_remote_bf16(typing, words, at, rank, value):
    """Write a number into a block's `words`, flat, shared; `at` counts numbers: ST.E.U16."""
    text = ".reg .b16 v; cvt.rn.bf16.f32 v, $2; st.shared::cluster.b16 [p], v; }"
    return _remote_store(2, text, words)


@intrinsic
def store_remote_tf32(typing, words, at, rank, value):
    """Write a number into a block's `words`, flat, shared; `at` counts numbers: ST.E."""
    text = ".reg .b32 v; cvt.rna.tf32.f32 v, $2; st.shared::cluster.b32 [p], v; }"
    return _remote_store(4, text, words)


# --- tensor cores ---------------------------------------------------------------------------------


def _conversion(text: str, count: int) -> Any:
    """Code of an instruction that makes a word of so many numbers, the last one first."""
    constraints = ",".join(["=r", *["f"] * count])

    def emit(context, builder, sig, args):
        kind = ir.FunctionType(ir.IntType(32), [ir.FloatType()] * count)
        return builder.call(ir.InlineAsm(kind, text, constraints), args[::-1])

    return emit


@intrinsic
def pack_bf16(typing, low, high):
    """A word of two numbers, rounded to nearest: F2FP.BF16.F32.PACK_AB."""
    one = types.float32
    return types.uint32(one, one), _conversion("cvt.rn.bf16x2.f32 $0, $1, $2;", 2)


@intrinsic
def round_tf32(typing, value):
    """A word of one number, rounded to nearest, halves away from 0: F2FP.TF32 or IADD and LOP3."""
    return types.uint32(types.float32), _conversion("cvt.rna.tf32.f32 $0, $1;", 1)


@intrinsic
def load_words(typing, words, at):
    """Four neighbours of `words`, flat, shared, where `at` is a multiple of four: LDS.128."""

    def emit(context, builder, sig, args):
        address = element_address(context, builder, words, args[0], args[1:])
        return load_vector(context, builder, address, sig.return_type)

    return types.UniTuple(types.uint32, 4)(words, types.int64), emit


def _tile_product(shape: str, kind: str) -> Any:
    """Signature and code of the product of tiles by a warp's tensor cores."""
    text = (
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

    def emit(context, builder, sig, args):
        operands = [part for arg in args for part in cgutils.unpack_tuple(builder, arg)]
        four = ir.LiteralStructType([ir.FloatType()] * 4)
        called = ir.FunctionType(four, [operand.type for operand in operands])
        # All threads of the warp together: not to be moved into a branch.
        assembly = ir.InlineAsm(called, text, constraints)
        found = builder.call(assembly, operands, attrs=("convergent",))
        parts = [builder.extract_value(found, number) for number in range(4)]
        return context.make_tuple(builder, sig.return_type, parts)

    a, b = (types.UniTuple(types.uint32, count) for count in (4, 2))
    sums = types.UniTuple(types.float32, 4)
    return sums(a, b, sums), emit


@intrinsic
def mma_bf16(typing, a, b, c):
    """A warp's ``C + A B``, (16, 8) + (16, 16) (16, 8), float32 sums: HMMA.16816.F32.BF16.

    In words, A is (16, 8) and B is (8, 8). With g, t = divmod(lane, 4), a lane has the words
    A[g, t], A[g + 8, t], A[g, t + 4], A[g + 8, t + 4] and B[t, g], B[t + 4, g], and the sums
    C[g, 2 t], C[g, 2 t + 1], C[g + 8, 2 t], C[g + 8, 2 t + 1], as tuples.
    """
    return _tile_product("m16n8k16", "bf16")


@intrinsic
def mma_tf32(typing, a, b, c):
    """A warp's ``C + A B``, (16, 8) + (16, 8) (8, 8), words as above: HMMA.1688.F32.TF32."""
    return _tile_product("m16n8k8", "tf32")
