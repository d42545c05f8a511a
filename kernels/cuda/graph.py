"""The loop of `steps` as a CUDA graph: one launch for the launches of all steps.

A graph repeats launches with the addresses that they had, so it has arrays of its own: what a pass
brings is copied into them, and what it leaves is copied out, which takes about as long as two
steps. A kind of pass is captured when it comes for the second time; the first one shows that it
comes again, and has the driver load what it loads late.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from . import blas, steps
from .context import BackwardArrays, Context, ForwardArrays, Layer, Loop

# Fewer steps are launched in less time than is spent on copying; more make large graphs, which gain
# nothing on two of half the steps.
_FEWEST_STEPS, _MOST_STEPS = 8, 2048
# Of the arrays of one graph, and of all graphs of a thread.
_MOST_BYTES, _MOST_BYTES_OF_THREAD = 2**26, 2**28
# Kinds of passes of which a thread remembers that they came.
_MOST_KINDS = 256
# For cuBLAS, of each graph.
_WORKSPACE_BYTES = 2**22


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer: few enough values for copies of all of them."""
    cell = layer.cell
    vectors = len(cell.input_gates) + len(cell.recurrent_gates) + cell.num_values + 3
    size = layer.rows * vectors * layer.H * layer.dtype.itemsize
    few = size <= _MOST_BYTES and _FEWEST_STEPS <= layer.steps <= _MOST_STEPS
    return few and layer.blocks == 1


class _Kind(NamedTuple):
    """A direction, forward or backward: what prepares its loop, and names of arrays."""

    prepare: Callable[[Context, Any], Loop]
    arrays: tuple[str, ...]
    taken: tuple[str, ...]  # those that are copied in
    left: tuple[str, ...]  # and out


_FORWARD = _Kind(
    steps.forward, ("x_sums", "state", "values", "y_out"), ("x_sums", "state"), ("state", "y_out")
)
_FORWARD_TO_KEEP = _FORWARD._replace(left=("state", "y_out", "values"))
_BACKWARD = _Kind(
    steps.backward,
    ("h_before", "values", "dy", "dstate", "d_ih", "d_hh"),
    ("h_before", "values", "dstate"),
    ("dstate", "d_ih", "d_hh"),
)
_BACKWARD_FROM_DY = _BACKWARD._replace(taken=("h_before", "values", "dstate", "dy"))
_WEIGHTS = ("hh", "bias_ih", "bias_hh")


class _Plan(NamedTuple):
    """A graph with the arrays that it works on."""

    graph: Any
    arrays: Any
    others: tuple[Any, ...]  # what it also refers to
    size: int  # bytes


class _Plans:
    """The plans of one thread, by kind of pass; the one used last comes last."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, _Plan] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._size = 0

    def comes_again(self, key: Hashable) -> bool:
        """Whether a kind of pass came before; from now on it did."""
        again = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _MOST_KINDS:
            self._seen.popitem(last=False)
        return again

    def take(self, key: Hashable) -> _Plan | None:
        """The plan of a kind; nobody else has it until it is put back."""
        plan = self._plans.pop(key, None)
        if plan is not None:
            self._size -= plan.size
        return plan

    def put(self, key: Hashable, plan: _Plan) -> None:
        """Keep a plan, and let go of those that were not used for longest where it is too much."""
        self.take(key)
        self._plans[key] = plan
        self._size += plan.size
        while self._size > _MOST_BYTES_OF_THREAD:
            _, oldest = self._plans.popitem(last=False)
            self._size -= oldest.size


_of_thread = threading.local()


def _plans() -> _Plans:
    """Those of this thread: two threads that shared a stream would mix their copies."""
    found: _Plans = vars(_of_thread).setdefault("plans", _Plans())
    return found


def forward(context: Context, arrays: ForwardArrays) -> Loop:
    """Prepare the loop of a forward pass."""
    return _loop(context, arrays, _FORWARD_TO_KEEP if arrays.keep else _FORWARD)


def backward(context: Context, arrays: BackwardArrays) -> Loop:
    """Prepare the loop of a backward pass."""
    return _loop(context, arrays, _BACKWARD_FROM_DY if arrays.has_dy else _BACKWARD)


def _loop(context: Context, arrays: Any, kind: _Kind) -> Loop:
    def run(first: int, last: int) -> None:
        plans, key = _plans(), _key(context, arrays, kind, first, last)
        if not plans.comes_again(key):
            kind.prepare(context, arrays)(first, last)
            return
        plan = plans.take(key) or _capture(context, arrays, kind, first, last)
        _copy(arrays, plan.arrays, kind.taken)
        _copy(arrays.weights, plan.arrays.weights, _WEIGHTS)
        plan.graph.launch()
        _copy(plan.arrays, arrays, kind.left)
        plans.put(key, plan)

    return run


def _copy(source: Any, target: Any, names: tuple[str, ...]) -> None:
    for name in names:
        getattr(target, name)[...] = getattr(source, name)


def _key(context: Context, arrays: Any, kind: _Kind, first: int, last: int) -> Hashable:
    """All that a graph depends on but the values in its arrays."""
    shapes = tuple([getattr(arrays, name).shape for name in (*kind.taken, *kind.left)])
    return (
        kind, context.cell, context.dtype, context.precision, context.reverse, context.device.id,
        context.stream, context.ragged.order.tobytes(), context.ragged.lengths.tobytes(), shapes,
        first, last,
    )  # fmt: skip


def _capture(context: Context, arrays: Any, kind: _Kind, first: int, last: int) -> _Plan:
    """A plan for passes like this one."""
    xp = context.xp

    def like(source: Any, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: xp.empty(getattr(source, name).shape, context.dtype) for name in names}

    own, weights = like(arrays, kind.arrays), like(arrays.weights, _WEIGHTS)
    if "y_out" in own:
        own["y_out"][...] = 0  # padding is copied out too
    mine = arrays._replace(weights=arrays.weights._replace(ih=None, **weights), **own)
    stream, workspace = xp.cuda.Stream(non_blocking=True), xp.empty(_WORKSPACE_BYTES, np.uint8)
    gemm = functools.partial(
        blas.gemm,
        precision=context.precision,
        multiply=blas.on_captured(context.device, stream.ptr, workspace),
    )
    loop = kind.prepare(context._replace(stream=stream.ptr, gemm=gemm), mine)
    # Once without capturing it, on whatever is in these arrays: our handle may choose other
    # kernels than CuPy's did, and what is loaded late cannot be loaded while capturing.
    xp.cuda.get_current_stream().synchronize()
    loop(first, last)
    stream.synchronize()
    stream.begin_capture()
    try:
        loop(first, last)
    finally:
        graph = stream.end_capture()
    size = sum(array.nbytes for array in (*own.values(), *weights.values(), workspace))
    return _Plan(graph, mine, (loop, workspace, context, stream), size)
