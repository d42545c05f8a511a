"""What `backward` needs of a forward pass."""

from typing import Any

from .calls import Call
from .check import check_type
from .packed import Operands, operands_of
from .params import Params
from .stack import Stack, States

# A plain tuple, which takes 0.2 µs less than a named one.
Kept = tuple[
    Operands,
    Call,
    Stack,
    States,  # the initial ones
    list[Any],  # sequences: x, then the outputs of every layer: (N, T, features)
    list[list[Any]],  # values, [layer][direction], in the kernels' form
    Any,  # attention, (N, T, 1), or None
]


class Saved:
    """What `backward` needs of a `forward_train`; refers to x, y and params without copying them.

    Attributes
    ----------
    params : Params
        The weights used; running statistics are those after this batch.
    """

    __slots__ = "__weakref__", "_kept"

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    @property
    def params(self) -> Params:
        return self._kept[0].params

    def __reduce__(self) -> Any:
        """Pickled with x, y, the weights and all values kept."""
        operands, call, stack, *values = self._kept
        if call.elsewhere is not None:
            raise TypeError(
                f"Saved of {operands.params.library} arrays cannot be pickled, as it holds memory "
                "of their device: call backward in this process"
            )
        kinds = call.layout, call.N, call.T, call.precision, stack.lengths
        return _restored, (operands.params, kinds, stack.forms, tuple(values))

    def __repr__(self) -> str:
        return f"Saved({self.params!r})"


def kept_by(saved: Saved) -> Kept:
    """What was saved, if that is what was given."""
    if not isinstance(saved, Saved):  # the check's own call takes 0.1 µs
        check_type("saved", saved, Saved)
    return saved._kept


def bytes_kept(saved: Saved) -> int:
    """Bytes of what a forward pass kept beside x and the weights: values, and outputs of layers."""
    _, _, _, _, (_, *outputs), values, _ = saved._kept
    kept = [
        member
        for of_layer in values
        for of_direction in of_layer
        for member in _arrays(of_direction)
    ]
    return sum(array.nbytes for array in (*outputs, *kept))


def _arrays(kept: Any) -> list[Any]:
    """The arrays in what the kernels kept: one, or one and statistics."""
    members = kept if isinstance(kept, tuple) else (kept,)
    return [member for member in members if hasattr(member, "nbytes")]


def _restored(params: Params, kinds: Any, forms: list[Any], values: Any) -> Saved:
    """`Saved` out of a pickle."""
    layout, N, T, precision, lengths = kinds
    operands = operands_of(params)
    call = Call(operands.architecture, layout, N, T, precision)
    stack = call.stack if lengths is None else call.stack_with(lengths)
    if stack.forms != forms:
        raise ValueError(
            "Saved was pickled on a CPU with vectors of another width, by which the values kept "
            "are laid out: call backward on a machine of that kind"
        )
    return Saved((operands, call, stack, *values))
