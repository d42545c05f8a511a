"""What the loops over time steps are given: sizes, device, stream, and the arrays of a call."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..ragged import RaggedRows
from .blas import Product
from .launch import PreparedArray

# Of a thread: devices that are ready, its own mark, and ones by device, stream and dtype.
of_thread = threading.local()


class PackedWeights(NamedTuple):
    """The weights of one layer and direction, as the kernels take them."""

    ih: Any  # (input gates * H, I)
    hh: Any  # (recurrent gates * H, H)
    constants: Any  # (1, pre-activations, H): sums of biases, or weights of units


class Layer(NamedTuple):
    """What decides which loop takes a pass through one layer and direction."""

    cell: Cell
    H: int
    dtype: np.dtype[Any]
    precision: str | None
    device: Any
    samples: int
    steps: int
    time_blocks: int  # see `recurrence`


class Context(NamedTuple):
    """One call, on one device and stream."""

    cell: Cell
    H: int
    dtype: np.dtype[Any]
    precision: str | None
    ragged: RaggedRows
    offset: list[int]  # packed rows before each step; see `ragged`
    reverse: bool
    product: Callable[..., Product]  # `blas.product` in this precision
    xp: Any
    device: Any
    stream: int
    order: PreparedArray  # (N,) sample of each sorted row
    lengths: PreparedArray  # (N,) steps of each sorted row
    offset_on_device: PreparedArray  # (T + 1,)

    @property
    def N(self) -> int:  # noqa: N802
        """Number of samples."""
        return len(self.ragged.order)

    @property
    def indices(self) -> tuple[PreparedArray, PreparedArray, PreparedArray]:
        """The ragged order, on the device."""
        return self.order, self.lengths, self.offset_on_device

    def rows(self, first: int, last: int) -> int:
        """Packed rows of steps `first` to `last` - 1."""
        return self.offset[last] - self.offset[first]


class ForwardArrays(NamedTuple):
    """What a loop forward reads and writes."""

    x_sums: Any  # (packed rows of a time block, input gates, H): W x
    hh: Any  # (recurrent gates * H, H): the recurrent weights
    constants: Any  # (1, pre-activations, H)
    step_inputs: Any  # (packed rows of a time block, 1), of cells that take them, else (0, 1)
    state: Any  # (N, states, H), updated
    values: Any  # (packed rows, values, H) if they are kept, else (N, values, H); written
    y_out: Any  # (N, T, H), any strides; written
    keep: bool


class BackwardArrays(NamedTuple):
    """What a loop backward reads and writes."""

    h_before: Any  # (packed rows of a time block, 1, H): h before each step
    hh: Any  # (recurrent gates * H, H): the recurrent weights
    constants: Any  # (1, pre-activations, H): weights of units; (1, 0, H) if there are none
    values: Any  # (packed rows, values, H)
    dy: Any  # (N, T, H), any strides; read if `has_dy`
    dstate: Any  # (N, states, H), updated
    d_ih: Any  # (packed rows of a time block, input gates, H): of W x + b; written
    d_hh: Any  # (packed rows of a time block, recurrent gates, H): of U operand + b; written
    d_alone: Any  # (packed rows of a time block, pre-activations that no product feeds, H); written
    has_dy: bool


# Takes all rows through steps `first` to `last` - 1, or back through them.
RunSteps = Callable[[int, int], None]
