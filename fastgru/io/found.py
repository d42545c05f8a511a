"""What readers give: the recurrent layers of a file, with where each weight came from."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..params import Params


@dataclass(frozen=True)
class Layer:
    """A recurrent layer, or a stack of them, that a file or mapping holds.

    Attributes
    ----------
    name : str
        Of the module, layer or node.
    params : Params
        Its weights.
    sources : mapping of str to str
        For each key of ``params.to_dict()``, what it was made from.
    initial : tuple of array
        The initial state that the file gives, as `forward` takes its members, (L * D, H) each;
        empty where it gives none.
    notes : tuple of str
        What else a user should know, a sentence each.
    """

    name: str
    params: Params
    sources: Mapping[str, str]
    initial: tuple[Any, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def initial_state(self, batch_size: int) -> Any:
        """The initial state for a batch, as `forward` takes it.

        Parameters
        ----------
        batch_size : int
            Number of samples, N.

        Returns
        -------
        array, tuple of array or None
            (L * D, N, H), the same for all samples; a pair for the LSTM; None where the file gives
            none.
        """
        members = tuple(
            np.broadcast_to(member[:, None], (len(member), batch_size, member.shape[-1]))
            for member in self.initial
        )
        return members if len(members) > 1 else next(iter(members), None)

    def __repr__(self) -> str:
        return f"Layer({self.name!r}, {self.params!r})"

    def __str__(self) -> str:
        lines = [f"{self.name or '(no name)'}: {self.params!r}"]
        width = max(map(len, self.sources), default=0)
        lines += [f"  {key:<{width}}  from {source}" for key, source in self.sources.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


class Found(Mapping[str, Layer]):
    """The recurrent layers of a file or mapping by name, in its order.

    Printed, it shows each layer, where its weights came from, and what was left out.

    Parameters
    ----------
    origin : str
        The file, or what kind of mapping it was.
    layers : sequence of Layer
        Of different names.
    left_out : sequence of str
        Arrays, layers or nodes that are no part of any of them.

    Attributes
    ----------
    origin : str
    left_out : tuple of str

    Raises
    ------
    ValueError
        If two layers have one name.
    """

    def __init__(self, origin: str, layers: Iterable[Layer], left_out: Iterable[str] = ()) -> None:
        self.origin = origin
        self.left_out = tuple(left_out)
        self._layers: dict[str, Layer] = {}
        for layer in layers:
            if layer.name in self._layers:
                raise ValueError(f"layers: expected different names, got {layer.name!r} twice")
            self._layers[layer.name] = layer

    def __getitem__(self, name: str) -> Layer:
        try:
            return self._layers[name]
        except KeyError:
            raise KeyError(f"expected one of {', '.join(map(repr, self))}, got {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def only(self) -> Params:
        """The params of the one layer.

        Raises
        ------
        ValueError
            If there is none, or more than one: then take one by its name.
        """
        if len(self) != 1:
            names = ", ".join(map(repr, self)) or "none"
            raise ValueError(f"{self.origin}: expected one recurrent layer, got {names}")
        (layer,) = self._layers.values()
        return layer.params

    def __repr__(self) -> str:
        return f"Found({self.origin!r}, {list(self)}, left_out={len(self.left_out)})"

    def __str__(self) -> str:
        parts = [self.origin, *map(str, self._layers.values())]
        if self.left_out:
            parts.append("left out: " + ", ".join(self.left_out))
        return "\n".join(parts)
