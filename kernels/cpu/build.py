"""From a factory to a compiled kernel: argument types, serial or parallel, the disk cache.

Of each cell only its equations are compiled. All else (packing, loops, products, gradients) is
compiled once for each dtype, and calls them by their addresses.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.compiler_lock import global_compiler_lock

from ..cells import HIDDEN, Cell
from ..layout import phase_plans, vector_weights
from ..store import cell_digest
from . import backward, backward_pass, equations, forward, gradients, normalise, packing
from . import maths as _maths  # noqa: F401 - teaches Numba the primitives that cells call
from .cache import KernelCache
from .product import Extent, Factors, Panels, Prefetch, Sums, make_product
from .row_product import RowExtent, RowFactors, RowSums, make_row_product
from .simd import lanes_of

_OPTIONS: dict[str, Any] = {
    # Kernels allocate nothing, and callers hold their arrays while they run, so no references are
    # counted (the option is Numba's own, and hardly documented). Counters are atomic, were changed
    # for every row that LLVM could not inline, and took a third of training at (50, 32, 32, 32),
    # more than half of it at (1000, 1, 8, 16), and 1 to 2 µs of each step.
    "_nrt": False,
    # Kernels raise nothing: a division by zero would be a branch in loops.
    "error_model": "numpy",
}
# Members of a state and vectors of weights that kernels are compiled for, at least: so kernels are
# the same for all cells that have no more.
_STATES, _VECTORS = 2, 3
# For kernels that nothing but other kernels calls.
_CALLED_BY_ADDRESS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@functools.cache
def lanes(dtype: np.dtype[Any]) -> int:
    """Elements of a NumPy dtype in one vector."""
    return lanes_of(numba.from_dtype(dtype))


def _theirs(dtype: types.Type, ndim: int) -> types.Array:
    """A user's array: any strides, never written, perhaps unaligned."""
    return types.Array(dtype, ndim, "A", readonly=True, aligned=False)


def states_passed(count: int) -> int:
    """Members that a state is passed with; those that it does not have are not read."""
    return max(count, _STATES)


def vectors_passed(count: int) -> int:
    """Vectors of weights that are passed; those that a cell does not have are not read."""
    return max(count, _VECTORS)


def _parameter_types(dtype: types.Type, states: int, vectors: int) -> dict[str, types.Type]:
    """Types of the parameters of kernels that take arrays, by name; all others are indices.

    Every kernel is compiled for exactly one signature per dtype: arrays of any layout convert to
    these types without a copy.
    """
    rows = _theirs(dtype, 3)
    rows_out = types.Array(dtype, 3, "A")
    flat = types.Array(dtype, 1, "C")
    matrix_out = types.Array(dtype, 2, "C")
    indices = types.Array(types.intp, 1, "C", readonly=True)
    of_states = {
        "initial": types.UniTuple(rows, states),
        **dict.fromkeys(("final_out", "dstate_out"), types.UniTuple(rows_out, states)),
    }
    return of_states | {
        **dict.fromkeys(
            ("reverse", "keep", "has_dy", "is_first", "is_last", "by_columns"), types.boolean
        ),
        **dict.fromkeys(("x", "step_input", "y", "h0", "dy", "source"), rows),
        **dict.fromkeys(("y_out", "dx_out", "dstep_out"), rows_out),
        **dict.fromkeys(("packed", "packed_weights", "packed_inputs", "saved", "d", "d_in"), flat),
        **dict.fromkeys(
            ("packed_out", "values_out", "d_out", "workspace", "sums", "sums_of_all"), flat
        ),
        **dict.fromkeys(("table", "loop_table", "norm_table", "parts"), indices),
        **dict.fromkeys(("order", "lengths", "offset", "ends"), indices),
        **dict.fromkeys(("gate_rows", "vector_places"), indices),
        **dict.fromkeys(("weight_ih", "weight_hh"), _theirs(dtype, 2)),
        "vectors": types.UniTuple(_theirs(dtype, 1), vectors),
        "dvectors_out": types.UniTuple(flat, vectors),
        "norm": types.Array(types.float64, 2, "C"),
        "barrier": types.Array(types.intp, 1, "C"),
        **dict.fromkeys(
            ("dweight_out", "dweight_ih_out", "dweight_hh_out", "dconstants"), matrix_out
        ),
    }


def _record(kind: Any, pointers: tuple[str, ...], dtype: types.Type) -> types.Type:
    """The type of a named tuple of whole numbers and, for these fields, pointers to elements."""
    fields = [types.CPointer(dtype) if f in pointers else types.intp for f in kind._fields]
    return types.NamedTuple(fields, kind)


def _product_types(dtype: types.Type) -> dict[str, types.Type]:
    """Types of the parameters of products."""
    of_sums = _record(Sums, ("memory",), dtype)
    return {
        "sums": of_sums,
        "start": of_sums,
        "factors": _record(Factors, ("memory",), dtype),
        "panels": _record(Panels, ("memory",), dtype),
        "prefetch": _record(Prefetch, ("panels", "memory"), dtype),
        "extent": types.NamedUniTuple(types.intp, len(Extent._fields), Extent),
    }


def _row_product_types(dtype: types.Type) -> dict[str, types.Type]:
    """Types of the parameters of products of one row."""
    return {
        "sums": _record(RowSums, ("memory",), dtype),
        "factors": _record(RowFactors, ("memory",), dtype),
        "weights": types.CPointer(dtype),
        "extent": types.NamedUniTuple(types.intp, len(RowExtent._fields), RowExtent),
    }


def _equation_types(dtype: types.Type) -> dict[str, types.Type]:
    """Types of the parameters of a cell's equations."""
    names = (
        "a_in",
        "h",
        "state",
        "values",
        "constants",
        "operand_out",
        "doperand",
        "dstate",
        "dvalues",
    )
    return dict.fromkeys((*names, "d_out"), _record(equations.Strided, ("memory",), dtype))


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
    kinds: dict[str, types.Type],
    key: str | None = "",
    parallel: bool = False,
    **options: Any,
) -> Any:
    """Compile for the one signature that the parameters' names imply, by these types.

    The key names, beside the function and its sources, what decides the code; without one (None)
    nothing is kept.
    """
    cache = KernelCache(f"{function.__qualname__} {lanes(dtype)} {parallel} {key}")
    _name_closures(function, cache.digest)
    dispatcher = numba.njit(nogil=True, parallel=parallel, **_OPTIONS, **options)(function)
    names = inspect.signature(function).parameters
    signature = tuple(kinds.get(name, types.intp) for name in names)
    return _load_or_compile(dispatcher, signature, None if key is None else cache)


def _compile_generic(
    function: Callable[..., Any],
    dtype: np.dtype[Any],
    states: int = _STATES,
    vectors: int = _VECTORS,
    parallel: bool = False,
) -> Any:
    """Compile a kernel that knows no cell, only numbers of arrays."""
    kinds = _parameter_types(numba.from_dtype(dtype), states, vectors)
    return _compile(function, dtype, kinds, f"{states} {vectors}", parallel)


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
            dispatcher = numba.njit(nogil=True, parallel=True, **_OPTIONS)(self._threads)
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
def product_kernel(gates: int, dtype: np.dtype[Any]) -> Kernel:
    """`product.make_product`, compiled."""
    kinds = _product_types(numba.from_dtype(dtype))
    return Kernel(_compile(make_product(gates), dtype, kinds, str(gates), **_CALLED_BY_ADDRESS))


@functools.cache
def row_product_kernel(gates: int, dtype: np.dtype[Any]) -> Kernel:
    """`row_product.make_row_product`, compiled."""
    kinds = _row_product_types(numba.from_dtype(dtype))
    function = make_row_product(gates, lanes(dtype), dtype.itemsize)
    return Kernel(_compile(function, dtype, kinds, str(gates), **_CALLED_BY_ADDRESS))


@functools.cache
def forward_kernel(states: int, dtype: np.dtype[Any]) -> ThreadedKernel:
    """`forward.make_forward`, compiled."""
    function = forward.make_forward(lanes(dtype), dtype.itemsize)
    return ThreadedKernel(_compile_generic(function, dtype, states), forward.forward_threads)


@functools.cache
def backward_kernel(states: int, dtype: np.dtype[Any]) -> Kernel:
    """`backward.make_backward`, compiled."""
    function = backward.make_backward(lanes(dtype), dtype.itemsize)
    return Kernel(_compile_generic(function, dtype, states))


@functools.cache
def input_gradient_kernel(dtype: np.dtype[Any]) -> Kernel:
    """`gradients.make_input_gradient`, compiled."""
    return Kernel(_compile_generic(gradients.make_input_gradient(lanes(dtype)), dtype))


@functools.cache
def weight_gradient_kernel(dtype: np.dtype[Any]) -> Kernel:
    """`gradients.make_weight_gradient`, compiled."""
    function = gradients.make_weight_gradient(lanes(dtype), dtype.itemsize)
    return Kernel(_compile_generic(function, dtype))


@functools.cache
def statistics_kernel(dtype: np.dtype[Any]) -> Kernel:
    """`normalise.make_statistics`, compiled."""
    return Kernel(_compile_generic(normalise.make_statistics(lanes(dtype)), dtype))


@functools.cache
def input_norm_kernel(dtype: np.dtype[Any]) -> Kernel:
    """`normalise.make_input_norm_backward`, compiled."""
    return Kernel(_compile_generic(normalise.make_input_norm_backward(lanes(dtype)), dtype))


@functools.cache
def packing_kernel(vectors: int, dtype: np.dtype[Any]) -> ThreadedKernel:
    """`packing.make_pack`, compiled."""
    dispatcher = _compile_generic(packing.make_pack(lanes(dtype)), dtype, vectors=vectors)
    return ThreadedKernel(dispatcher, packing.pack_threads)


@functools.cache
def backward_pass_kernel(states: int, vectors: int, dtype: np.dtype[Any], parallel: bool) -> Kernel:
    """`backward_pass.make_backward_pass`, compiled; its workers run on threads, or by turns."""
    function = backward_pass.make_backward_pass()
    return Kernel(_compile_generic(function, dtype, states, vectors, parallel))


# --- a cell's equations ---------------------------------------------------------------------------


def _equations_kernel(
    function: Callable[..., None], cell: Cell, number: int, dtype: np.dtype[Any]
) -> Kernel:
    """Equations of one phase, compiled; kept by the structure and the code of the cell."""
    digest = cell_digest(cell)
    key = None if digest is None else f"{digest} {number}"
    kinds = _equation_types(numba.from_dtype(dtype))
    return Kernel(_compile(function, dtype, kinds, key, **_CALLED_BY_ADDRESS))


@functools.cache
def forward_equations(cell: Cell, number: int, dtype: np.dtype[Any]) -> Kernel:
    """`equations.make_forward_phase`, compiled."""
    function = equations.make_forward_phase(cell, number, lanes(dtype))
    return _equations_kernel(function, cell, number, dtype)


@functools.cache
def first_operand(cell: Cell, dtype: np.dtype[Any]) -> Kernel | None:
    """`equations.make_first_operand`, compiled; None where the operand is h."""
    if cell.phases[0].operand is HIDDEN:
        return None
    return _equations_kernel(equations.make_first_operand(cell, lanes(dtype)), cell, 0, dtype)


@functools.cache
def backward_equations(cell: Cell, number: int, dtype: np.dtype[Any]) -> Kernel:
    """`equations.make_backward_phase`, compiled."""
    function = equations.make_backward_phase(cell, number, lanes(dtype))
    return _equations_kernel(function, cell, number, dtype)


@functools.cache
def operand_gradient(cell: Cell, number: int, dtype: np.dtype[Any]) -> Kernel | None:
    """`equations.make_operand_gradient`, compiled.

    None where the operand is h, and where nothing multiplies it.
    """
    plan, operand = phase_plans(cell)[number], cell.phases[number].operand
    if plan.recurrents == 0 or operand is HIDDEN:
        return None
    make = equations.make_operand_gradient
    function = make(operand, plan.first_value, lanes(dtype))
    return _equations_kernel(function, cell, number, dtype)


def kernel_makers(cell: Cell, dtype: np.dtype[Any]) -> dict[str, Callable[[], Kernel]]:
    """What makes each kernel that calls of a cell and dtype may use, by a name to show."""
    states = states_passed(len(cell.states))
    vectors = vectors_passed(len(vector_weights(cell)))
    pack = functools.partial(packing_kernel, vectors, dtype)
    forward_of = functools.partial(forward_kernel, states, dtype)
    whole_pass = functools.partial(backward_pass_kernel, states, vectors, dtype)
    makers: dict[str, Callable[[], Kernel | None]] = {
        "packing": pack,
        "packing, launcher": lambda: pack().launcher,
        "forward": forward_of,
        "forward, launcher": lambda: forward_of().launcher,
        "backward": functools.partial(backward_kernel, states, dtype),
        "gradient of x": functools.partial(input_gradient_kernel, dtype),
        "gradient of weights": functools.partial(weight_gradient_kernel, dtype),
        "backward pass": functools.partial(whole_pass, parallel=False),
        "backward pass, parallel": functools.partial(whole_pass, parallel=True),
    }
    if cell.norm is not None:
        makers["statistics"] = functools.partial(statistics_kernel, dtype)
        makers["input norm, backward"] = functools.partial(input_norm_kernel, dtype)
    for gates in sorted(gates_of_products(cell)):
        makers[f"product, {gates} gates"] = functools.partial(product_kernel, gates, dtype)
    for gates in sorted({1} | {plan.recurrents for plan in phase_plans(cell)} - {0}):
        makers[f"product, one row, {gates} gates"] = functools.partial(
            row_product_kernel, gates, dtype
        )
    if cell.phases[0].operand is not HIDDEN:
        makers["first operand"] = functools.partial(first_operand, cell, dtype)
    for plan in phase_plans(cell):
        n = plan.number
        makers[f"equations, phase {n}"] = functools.partial(forward_equations, cell, n, dtype)
        makers[f"equations, phase {n}, backward"] = functools.partial(
            backward_equations, cell, n, dtype
        )
        if plan.recurrents and cell.phases[n].operand is not HIDDEN:
            makers[f"operand, phase {n}, backward"] = functools.partial(
                operand_gradient, cell, n, dtype
            )
    return makers  # type: ignore[return-value]  # those left that give a kernel


def gates_of_products(cell: Cell) -> set[int]:
    """Numbers of gates that products of a cell have, in both passes."""
    found = {1}
    for plan in phase_plans(cell):
        found |= {plan.inputs, plan.recurrents}
        found |= {gradients.strip_vectors(n) for n in (plan.inputs, plan.recurrents) if n}
    if vector_weights(cell):
        found.add(gradients.strip_vectors(len(cell.pre_activations)))
    return found - {0}
