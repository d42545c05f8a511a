"""The loop of `steps` as a CUDA graph: one launch for the launches of all steps.

A graph repeats launches with the addresses that they had, so it has arrays of its own: what a pass
brings is copied into them, and what it leaves is copied out. A kind of pass is captured when it
comes a second time, not many others later; the first pass has the driver load what it loads late.
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

from ...layout import total_values
from .. import blas, tuning
from ..context import BackwardArrays, Context, ForwardArrays, Layer, RunSteps
from . import steps

_log = logging.getLogger(__name__)


def suits(layer: Layer) -> bool:
    """Whether this loop can take a layer: few enough values for copies of all of them."""
    cell, H = layer.cell, layer.H
    vectors = len(cell.pre_activations) + len(cell.recurrent_gates) + total_values(cell) + 3
    values = layer.samples * layer.steps * vectors * H + len(cell.recurrent_gates) * H * H
    few = values * layer.dtype.itemsize <= tuning.GRAPH_BYTES
    short = tuning.GRAPH_FEWEST_STEPS <= layer.steps <= tuning.GRAPH_MOST_STEPS
    return few and short and layer.time_blocks == 1


class PassKind(NamedTuple):
    """Forward or backward: what prepares the loop, and names of arrays."""

    prepare: Callable[[Context, Any], RunSteps]
    arrays: tuple[str, ...]
    inputs: tuple[str, ...]  # those that are copied into the graph's
    outputs: tuple[str, ...]  # and out of them


FORWARD = PassKind(
    steps.forward,
    ("x_sums", "hh", "constants", "step_inputs", "state", "values", "y_out"),
    ("x_sums", "hh", "constants", "step_inputs", "state"),
    ("state", "y_out"),
)
FORWARD_TO_KEEP = FORWARD._replace(outputs=("state", "y_out", "values"))
BACKWARD = PassKind(
    steps.backward,
    ("h_before", "hh", "constants", "values", "dy", "dstate", "d_ih", "d_hh", "d_alone"),
    ("h_before", "hh", "constants", "values", "dstate"),
    ("dstate", "d_ih", "d_hh", "d_alone"),
)
BACKWARD_FROM_DY = BACKWARD._replace(inputs=(*BACKWARD.inputs, "dy"))


class _StreamResources(NamedTuple):
    """What the passes of one thread on one stream have in common: they never overlap."""

    handle: blas.Handle
    workspace: Any
    capturing: Any  # the stream that is captured

    def context(self, context: Context, stream: int) -> Context:
        """The context with products by our handle, on a stream."""
        multiply = self.handle.on(stream, self.workspace)
        product = functools.partial(blas.product, precision=context.precision, multiply=multiply)
        return context._replace(stream=stream, product=product)


class CapturedPass(NamedTuple):
    """A graph with the arrays that it works on."""

    graph: Any
    arrays: Any
    others: tuple[Any, ...]  # what it also refers to
    size: int  # of the arrays, in bytes


class Captures(threading.local):
    """What a thread has captured: two threads that shared a stream would mix their copies."""

    def __init__(self) -> None:
        self.passes: OrderedDict[Hashable, CapturedPass] = OrderedDict()
        # Kinds of the latest passes, the last one last: whether they may be captured.
        self.recent: OrderedDict[Hashable, bool] = OrderedDict()
        self.size = 0
        self._resources: OrderedDict[Hashable, _StreamResources | None] = OrderedDict()

    def resources(self, context: Context) -> _StreamResources | None:
        """What the passes on this stream have in common; None if it cannot be had."""
        key, xp = (context.device.id, context.stream), context.xp
        if key not in self._resources:
            try:
                resources = _StreamResources(
                    blas.Handle(),
                    xp.empty(tuning.CUBLAS_WORKSPACE_BYTES, np.uint8),
                    xp.cuda.Stream(non_blocking=True),
                )
            except Exception:
                _log.warning("no graphs on stream %d of device %d", key[1], key[0], exc_info=True)
                resources = None
            self._resources[key] = resources
        self._resources.move_to_end(key)
        if len(self._resources) > tuning.GRAPH_STREAMS:
            self._resources.popitem(last=False)
        return self._resources[key]

    def comes_again(self, key: Hashable) -> bool:
        """Whether a kind of pass is a recent one that may be captured; from now on it is recent."""
        again = self.recent.pop(key, None)
        self.recent[key] = again is not False
        while len(self.recent) > tuning.GRAPH_RECENT:
            self.recent.popitem(last=False)
        return bool(again)

    def take(self, key: Hashable) -> CapturedPass | None:
        """The captured pass of a kind; nobody else has it until it is put back."""
        captured = self.passes.pop(key, None)
        if captured is not None:
            self.size -= captured.size
        return captured

    def put(self, key: Hashable, captured: CapturedPass) -> None:
        """Keep a captured pass."""
        self.take(key)
        self.passes[key] = captured
        self.size += captured.size

    def has_room(self, size: int) -> bool:
        """Make room, by letting go of what is not recent: a set of kinds that does not fit would
        otherwise be captured again and again.
        """
        for key in [key for key in self.passes if key not in self.recent]:
            if self.size + size > tuning.GRAPH_BYTES_OF_THREAD:
                self.take(key)
        return self.size + size <= tuning.GRAPH_BYTES_OF_THREAD


of_thread = Captures()
_capture_lock = threading.Lock()  # captures of two threads can end each other


def forward(context: Context, arrays: ForwardArrays) -> RunSteps:
    """Prepare the loop of a forward pass."""
    return _loop(context, arrays, FORWARD_TO_KEEP if arrays.keep else FORWARD)


def backward(context: Context, arrays: BackwardArrays) -> RunSteps:
    """Prepare the loop of a backward pass."""
    return _loop(context, arrays, BACKWARD_FROM_DY if arrays.has_dy else BACKWARD)


def _loop(context: Context, arrays: Any, kind: PassKind) -> RunSteps:
    def run(first: int, last: int) -> None:
        key = _key(context, arrays, kind, first, last)
        again, resources = of_thread.comes_again(key), of_thread.resources(context)
        if resources is None:
            kind.prepare(context, arrays)(first, last)
            return
        captured = of_thread.take(key)
        if captured is None and again:
            try:
                captured = _capture(resources, context, arrays, kind, first, last)
            except Exception:
                _log.warning("a pass was not captured, nor will be", exc_info=True)
                of_thread.recent[key] = False
        if captured is None:  # the same products as a graph's, to the last bit
            kind.prepare(resources.context(context, context.stream), arrays)(first, last)
            return
        _copy(arrays, captured.arrays, kind.inputs)
        captured.graph.launch()
        _copy(captured.arrays, arrays, kind.outputs)
        of_thread.put(key, captured)

    return run


def _copy(source: Any, target: Any, names: tuple[str, ...]) -> None:
    for name in names:
        getattr(target, name)[...] = getattr(source, name)


def _key(context: Context, arrays: Any, kind: PassKind, first: int, last: int) -> Hashable:
    """All that a graph depends on but the values in its arrays."""
    shapes = tuple([getattr(arrays, name).shape for name in (*kind.inputs, *kind.outputs)])
    return (
        kind, context.cell, context.dtype, context.precision, context.reverse, context.device.id,
        context.stream, context.ragged.order.tobytes(), context.ragged.lengths.tobytes(), shapes,
        first, last,
    )  # fmt: skip


def _capture(
    resources: _StreamResources,
    context: Context,
    arrays: Any,
    kind: PassKind,
    first: int,
    last: int,
) -> CapturedPass | None:
    """A captured pass for passes like this one; None where there is no room for it."""
    xp = context.xp
    given = [getattr(arrays, name) for name in kind.arrays]
    size = sum(array.nbytes for array in given)
    if not of_thread.has_room(size):
        return None

    own = {name: xp.empty(a.shape, context.dtype) for name, a in zip(kind.arrays, given)}
    if "y_out" in own:
        own["y_out"][...] = 0  # padding is copied out too
    mine = arrays._replace(**own)
    stream = resources.capturing
    with _capture_lock:
        loop = kind.prepare(resources.context(context, stream.ptr), mine)
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
    return CapturedPass(graph, mine, (loop, resources, context), size)
