"""From a factory to a compiled kernel: argument types, serial or parallel, the disk cache."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.core.compiler_lock import global_compiler_lock

from ..cells import Cell, Operand
from ..plan import PhasePlan, phase_plans
from ..store import functions_digest
from . import backpropagation, backward, forward, gradients, packing
from . import maths as _maths  # noqa: F401 - teaches Numba the primitives that cells call
from .cache import KernelCache
from .simd import lanes_of

# Kernels allocate nothing, and callers hold their arrays while they run, so no references are
# counted (the option is Numba's own, and hardly documented). Counters are atomic, were changed for
# every row that LLVM did not see through, and took a third of training at (50, 32, 32, 32), more
# than half of it at (1000, 1, 8, 16), and 1 to 2 µs of each step.
_UNCOUNTED: dict[str, Any] = {"_nrt": False}


@functools.cache
def lanes(dtype: np.dtype[Any]) -> int:
    """Elements of a NumPy dtype in one vector."""
    return lanes_of(numba.from_dtype(dtype))


def _theirs(dtype: types.Type, ndim: int) -> types.Array:
    """A user's array: any strides, never written, perhaps unaligned."""
    return types.Array(dtype, ndim, "A", readonly=True, aligned=False)


def _parameter_types(dtype: types.Type, states: int) -> dict[str, types.Type]:
    """Types of all parameters of all kernels, by name; those not named here are indices.

    Every kernel is compiled for exactly one signature per dtype: arrays of any layout convert to
    these types without a copy.
    """
    rows = _theirs(dtype, 3)
    rows_out = types.Array(dtype, 3, "A")
    flat = types.Array(dtype, 1, "C")
    indices = types.Array(types.intp, 1, "C", readonly=True)
    flags = dict.fromkeys(
        ("reverse", "keep", "has_dy", "is_first", "is_last", "by_columns"), types.boolean
    )
    return flags | {
        **dict.fromkeys(("x", "y", "h0", "dy", "source"), rows),
        **dict.fromkeys(("y_out", "dx_out"), rows_out),
        "initial": types.UniTuple(rows, states),
        **dict.fromkeys(("final_out", "dstate_out"), types.UniTuple(rows_out, states)),
        **dict.fromkeys(("weights", "saved", "d", "work", "sums"), flat),
        **dict.fromkeys(("values_out", "d_out", "packed_out"), flat),
        **dict.fromkeys(("dbias_out", "dbias_ih_out", "dbias_hh_out"), flat),
        **dict.fromkeys(("order", "lengths", "offset"), indices),
        **dict.fromkeys(("parts", "gate_rows", "bias_rows"), indices),
        **dict.fromkeys(("inputs", "products", "ends"), indices),
        **dict.fromkeys(("weight_ih", "weight_hh"), _theirs(dtype, 2)),
        **dict.fromkeys(("bias_ih", "bias_hh"), _theirs(dtype, 1)),
        "meeting": types.Array(types.intp, 1, "C"),
        **dict.fromkeys(
            ("dweight_out", "dweight_ih_out", "dweight_hh_out"), types.Array(dtype, 2, "C")
        ),
    }


def _cell_functions(cell: Cell) -> list[Callable[..., Any]]:
    functions = [f for phase in cell.phases for f in (phase.forward, phase.backward)]
    return functions + [f for phase in cell.phases for f in _operand_functions(phase.operand)]


def _operand_functions(operand: Operand | None) -> list[Callable[..., Any]]:
    return [] if operand is None else [operand.value, operand.gradient]


def _name_closures(function: Callable[..., Any], token: str) -> None:
    """Give the functions that a factory made names of their own.

    Numba derives symbols from a function's name and a number counted up in each process. Kernels of
    one factory that come from the cache, compiled by different processes, can share both, and the
    linker then silently takes the first for the second.
    """
    plain = function.__qualname__.partition("<kernel ")[0]
    if "<locals>" not in plain:
        return
    function.__qualname__ = f"{plain}<kernel {token}>"
    for cell in function.__closure__ or ():
        if inspect.isfunction(cell.cell_contents):
            _name_closures(cell.cell_contents, token)


def _compile(
    function: Callable[..., Any],
    dtype: np.dtype[Any],
    states: int,
    key: str,
    cell_functions: list[Callable[..., Any]],
    parallel: bool = False,
) -> Any:
    """Compile for the one signature that the parameters' names imply."""
    cell_digest = functions_digest(cell_functions)
    cache = KernelCache(f"{function.__qualname__} {lanes(dtype)} {key} {cell_digest}")
    _name_closures(function, cache.digest)
    dispatcher = numba.njit(nogil=True, parallel=parallel, **_UNCOUNTED)(function)
    kinds = _kinds_of(function, dtype, states)
    return _load_or_compile(dispatcher, kinds, None if cell_digest is None else cache)


def _kinds_of(
    function: Callable[..., Any], dtype: np.dtype[Any], states: int
) -> tuple[types.Type, ...]:
    """The types that the names of a kernel's parameters imply."""
    kinds = _parameter_types(numba.from_dtype(dtype), states)
    return tuple(kinds.get(name, types.intp) for name in inspect.signature(function).parameters)


def _load_or_compile(dispatcher: Any, kinds: tuple[Any, ...], cache: KernelCache | None) -> Any:
    """Compile a dispatcher for one signature and no other, by the cache if there is one."""
    if numba.config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set: these kernels exist only compiled")
    if cache is not None and cache.is_exact:
        dispatcher._cache = cache
    dispatcher.compile(types.void(*kinds))
    dispatcher.disable_compile()
    return dispatcher


class Kernel:
    """A kernel compiled for one signature.

    Attributes
    ----------
    call : callable
        Runs it; arguments must have its types, for nothing checks them.
    dispatcher : numba.core.dispatcher.Dispatcher
        What Numba made; the machine code is there as long as this.
    """

    def __init__(self, dispatcher: Any) -> None:
        self.dispatcher = dispatcher
        (self._signature,) = dispatcher.nopython_signatures
        # The dispatcher itself would look at the type of every argument again, which takes 0.6 µs.
        self.call: Callable[..., None] = dispatcher.get_overload(self._signature.args)

    @property
    def address(self) -> int:
        """Where its machine code is."""
        compiled = self.dispatcher.overloads[self._signature.args]
        with global_compiler_lock:  # no fork while LLVM looks for it, see `thread_pool`
            return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))

    @property
    def is_kept(self) -> bool:
        """Whether it is on disk for later processes."""
        cache = self.dispatcher._cache
        return isinstance(cache, KernelCache) and cache.is_kept


class ThreadedKernel(Kernel):
    """A kernel whose last two parameters are a worker's number and their count.

    One worker runs on the calling thread. Several run on Numba's threads, by a small parallel
    launcher that gets the kernel's address: both run the same machine code, and the kernel is not
    compiled again inside a parallel region, which took four times as long.
    """

    def __init__(self, dispatcher: Any, threads: Callable[..., None]) -> None:
        super().__init__(dispatcher)
        self._threads = threads
        # Not by `cached_property`: in Python 3.11 that holds a lock, which a child that is forked
        # meanwhile would wait for.
        self._launcher: Kernel | None = None

    @property
    def launcher(self) -> Kernel:
        """What runs this kernel on threads; its first argument is the kernel's address."""
        if self._launcher is None:
            kinds = (types.intp, *self._signature.args)
            cache = KernelCache(self._threads.__qualname__)
            dispatcher = numba.njit(nogil=True, parallel=True, **_UNCOUNTED)(self._threads)
            launcher = Kernel(_load_or_compile(dispatcher, kinds, cache))
            # In this order: another thread may come between.
            self._parallel = functools.partial(launcher.call, self.address)
            self._launcher = launcher
        return self._launcher

    def on(self, workers: int) -> Callable[..., None]:
        """What runs so many workers, like `call`; its last two arguments are 0 and `workers`."""
        if workers == 1:
            return self.call
        self.launcher  # noqa: B018 - compiled when it is first needed
        return self._parallel


@functools.cache
def forward_kernel(cell: Cell, dtype: np.dtype[Any]) -> ThreadedKernel:
    """`forward.make_forward`, compiled."""
    function = forward.make_forward(cell, lanes(dtype))
    functions = _cell_functions(cell)
    dispatcher = _compile(function, dtype, len(cell.states), cell.name, functions)
    return ThreadedKernel(dispatcher, forward.forward_threads)


@functools.cache
def backward_kernel(cell: Cell, dtype: np.dtype[Any]) -> Kernel:
    """`backward.make_backward`, compiled."""
    function = backward.make_backward(cell, lanes(dtype))
    functions = _cell_functions(cell)
    dispatcher = _compile(function, dtype, len(cell.states), cell.name, functions)
    return Kernel(dispatcher)


@functools.cache
def input_gradient_kernel(dtype: np.dtype[Any]) -> Kernel:
    """`gradients.make_input_gradient`, compiled."""
    return Kernel(_compile(gradients.make_input_gradient(lanes(dtype)), dtype, 1, "", []))


@functools.cache
def weight_gradient_kernel(
    operand: Operand | None, first_value: int, vectors: int, dtype: np.dtype[Any]
) -> Kernel:
    """`gradients.make_weight_gradient`, compiled."""
    function = gradients.make_weight_gradient(operand, first_value, vectors, lanes(dtype))
    functions = _operand_functions(operand)
    key = f"{' '.join(f.__qualname__ for f in functions)} {first_value} {vectors}"
    return Kernel(_compile(function, dtype, 1, key, functions))


@functools.cache
def packing_kernel(dtype: np.dtype[Any]) -> ThreadedKernel:
    """`packing.make_pack`, compiled."""
    dispatcher = _compile(packing.make_pack(lanes(dtype)), dtype, 1, "", [])
    return ThreadedKernel(dispatcher, packing.pack_threads)


@functools.cache
def backpropagation_kernel(states: int, dtype: np.dtype[Any], parallel: bool) -> Kernel:
    """`backpropagation.make_backpropagation`, compiled; its workers run on threads, or by turns."""
    function = backpropagation.make_backpropagation()
    key = f"{states} {'parallel' if parallel else 'serial'}"
    return Kernel(_compile(function, dtype, states, key, [], parallel=parallel))


class WeightPart(NamedTuple):
    """The weights of one kind, "input" or "recurrent", of one phase, if it has some."""

    plan: PhasePlan
    kind: str
    first: int  # its first pre-activation
    blocks: int  # its pre-activations
    operand: Operand | None  # what they multiply; None for x

    def gradient_kernel(self, dtype: np.dtype[Any]) -> Kernel:
        """The kernel of their gradient."""
        vectors = gradients.group_vectors(self.blocks)
        return weight_gradient_kernel(self.operand, self.plan.first_value, vectors, dtype)


def weight_parts(cell: Cell) -> list[WeightPart]:
    """All of a cell's weights by phase and kind."""
    parts = []
    for plan in phase_plans(cell):
        operand = cell.phases[plan.number].operand
        parts.append(WeightPart(plan, "input", plan.first, plan.inputs, None))
        recurrent = plan.first_recurrent, plan.recurrents, operand
        parts.append(WeightPart(plan, "recurrent", *recurrent))
    return [part for part in parts if part.blocks]


def kernel_makers(cell: Cell, dtype: np.dtype[Any]) -> dict[str, Callable[[], Kernel]]:
    """What makes each kernel that calls of a cell and dtype may use, by a name to show."""
    forward_of = functools.partial(forward_kernel, cell, dtype)
    pack = functools.partial(packing_kernel, dtype)
    whole_pass = functools.partial(backpropagation_kernel, len(cell.states), dtype)
    return {
        "packing": pack,
        "packing, launcher": lambda: pack().launcher,
        "forward": forward_of,
        "forward, launcher": lambda: forward_of().launcher,
        "backward": functools.partial(backward_kernel, cell, dtype),
        "gradient of x": functools.partial(input_gradient_kernel, dtype),
        **{
            f"gradient of {part.kind} weights, phase {part.plan.number}": functools.partial(
                part.gradient_kernel, dtype
            )
            for part in weight_parts(cell)
        },
        "backward pass": functools.partial(whole_pass, parallel=False),
        "backward pass, parallel": functools.partial(whole_pass, parallel=True),
    }
