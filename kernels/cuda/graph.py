"""The loop of `steps` as a CUDA graph: one launch for the launches of all steps.

A graph repeats launches with the addresses that they had, so it has arrays of its own: what a pass
brings is copied into them, and what it leaves is copied out. A kind of pass is captured when it
comes again soon; the pass before shows that it does, and has the driver load what it loads late.
Where that is not possible (no room, or another thread did what ends a capture) the pass is launched
step by step, and the log says why.
"""

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from . import blas, steps
from .context import BackwardArrays, Context, ForwardArrays, Layer, Loop

_log = logging.getLogger(__name__)

# Estimates. Fewer steps are launched in less time than copying takes; for more, a graph's memory
# and the time to capture it are no longer small.
_FEWEST_STEPS, _MOST_STEPS = 8, 2048
# Of the arrays of one graph, and of all graphs of a thread.
_MOST_BYTES, _MOST_BYTES_OF_THREAD = 2**26, 2**28
# Kinds of passes, of the latest ones, that count as recent.
_RECENT = 16
# Streams of which a thread keeps what their passes have in common.
_MOST_STREAMS = 8
# For cuBLAS, which asks for as much on a GPU of capability 9.
_WORKSPACE_BYTES = 2**25


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer: few enough values for copies of all of them."""
    cell, H = layer.cell, layer.H
    vectors = len(cell.input_gates) + len(cell.recurrent_gates) + cell.num_values + 3
    values = layer.samples * layer.steps * vectors * H + len(cell.recurrent_gates) * H * H
    few = values * layer.dtype.itemsize <= _MOST_BYTES
    return few and _FEWEST_STEPS <= layer.steps <= _MOST_STEPS and layer.blocks == 1


class _Kind(NamedTuple):
    """Forward or backward: what prepares the loop, and names of arrays."""

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


class _Place(NamedTuple):
    """What the passes of one thread on one stream have in common: they never overlap."""

    handle: blas.Handle
    workspace: Any
    capturing: Any  # the stream that is captured

    def context(self, context: Context, stream: int) -> Context:
        """The context with products by our handle, on a stream."""
        multiply = self.handle.on(stream, self.workspace)
        product = functools.partial(blas.product, precision=context.precision, multiply=multiply)
        return context._replace(stream=stream, product=product)


class _Plan(NamedTuple):
    """A graph with the arrays that it works on."""

    graph: Any
    arrays: Any
    others: tuple[Any, ...]  # what it also refers to
    size: int  # of the arrays, in bytes


class _OfThread(threading.local):
    """Places and plans of a thread: two threads that shared a stream would mix their copies."""

    def __init__(self) -> None:
        self.plans: OrderedDict[Hashable, _Plan] = OrderedDict()
        # Kinds of the latest passes, the last one last: whether they may be captured.
        self.recent: OrderedDict[Hashable, bool] = OrderedDict()
        self.size = 0
        self._places: OrderedDict[Hashable, _Place | None] = OrderedDict()

    def place(self, context: Context) -> _Place | None:
        """What the passes on this stream have in common; None if it cannot be had."""
        key, xp = (context.device.id, context.stream), context.xp
        if key not in self._places:
            try:
                place = _Place(
                    blas.Handle(),
                    xp.empty(_WORKSPACE_BYTES, np.uint8),
                    xp.cuda.Stream(non_blocking=True),
                )
            except Exception:
                _log.warning("no graphs on stream %d of device %d", key[1], key[0], exc_info=True)
                place = None
            self._places[key] = place
        self._places.move_to_end(key)
        if len(self._places) > _MOST_STREAMS:
            self._places.popitem(last=False)
        return self._places[key]

    def comes_again(self, key: Hashable) -> bool:
        """Whether a kind of pass is a recent one that may be captured; from now on it is recent."""
        again = self.recent.pop(key, None)
        self.recent[key] = again is not False
        while len(self.recent) > _RECENT:
            self.recent.popitem(last=False)
        return bool(again)

    def take(self, key: Hashable) -> _Plan | None:
        """The plan of a kind; nobody else has it until it is put back."""
        plan = self.plans.pop(key, None)
        if plan is not None:
            self.size -= plan.size
        return plan

    def put(self, key: Hashable, plan: _Plan) -> None:
        """Keep a plan."""
        self.take(key)
        self.plans[key] = plan
        self.size += plan.size

    def has_room(self, size: int) -> bool:
        """Make room, by letting go of what is not recent; a set of kinds that does not fit would
        otherwise be captured again and again.
        """
        for key in [key for key in self.plans if key not in self.recent]:
            if self.size + size > _MOST_BYTES_OF_THREAD:
                self.take(key)
        return self.size + size <= _MOST_BYTES_OF_THREAD


_of_thread = _OfThread()
_capture_lock = threading.Lock()  # captures of two threads can end each other


def forward(context: Context, arrays: ForwardArrays) -> Loop:
    """Prepare the loop of a forward pass."""
    return _loop(context, arrays, _FORWARD_TO_KEEP if arrays.keep else _FORWARD)


def backward(context: Context, arrays: BackwardArrays) -> Loop:
    """Prepare the loop of a backward pass."""
    return _loop(context, arrays, _BACKWARD_FROM_DY if arrays.has_dy else _BACKWARD)


def _loop(context: Context, arrays: Any, kind: _Kind) -> Loop:
    def run(first: int, last: int) -> None:
        key = _key(context, arrays, kind, first, last)
        again, place = _of_thread.comes_again(key), _of_thread.place(context)
        if place is None:
            kind.prepare(context, arrays)(first, last)
            return
        plan = _of_thread.take(key)
        if plan is None and again:
            try:
                plan = _capture(place, context, arrays, kind, first, last)
            except Exception:
                _log.warning("a pass was not captured, nor will be", exc_info=True)
                _of_thread.recent[key] = False
        if plan is None:  # the same products as a graph's, to the last bit
            kind.prepare(place.context(context, context.stream), arrays)(first, last)
            return
        _copy(arrays, plan.arrays, kind.taken)
        _copy(arrays.weights, plan.arrays.weights, _WEIGHTS)
        plan.graph.launch()
        _copy(plan.arrays, arrays, kind.left)
        _of_thread.put(key, plan)

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


def _capture(
    place: _Place, context: Context, arrays: Any, kind: _Kind, first: int, last: int
) -> _Plan | None:
    """A plan for passes like this one; None where there is no room for it."""
    xp = context.xp
    given = [getattr(arrays, name) for name in kind.arrays]
    given += [getattr(arrays.weights, name) for name in _WEIGHTS]
    size = sum(array.nbytes for array in given)
    if not _of_thread.has_room(size):
        return None

    def like(source: Any, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: xp.empty(getattr(source, name).shape, context.dtype) for name in names}

    own, weights = like(arrays, kind.arrays), like(arrays.weights, _WEIGHTS)
    if "y_out" in own:
        own["y_out"][...] = 0  # padding is copied out too
    mine = arrays._replace(weights=arrays.weights._replace(ih=None, **weights), **own)
    stream = place.capturing
    with _capture_lock:
        loop = kind.prepare(place.context(context, stream.ptr), mine)
        # Once without capturing it, on whatever is in these arrays: what is loaded late cannot be
        # loaded while capturing.
        xp.cuda.get_current_stream().synchronize()
        loop(first, last)
        stream.synchronize()
        stream.begin_capture()
        try:
            loop(first, last)
        finally:
            graph = stream.end_capture()
    return _Plan(graph, mine, (loop, place, context), size)
