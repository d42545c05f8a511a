"""Names of weights, as in PyTorch's state dicts: ``weight_ih_l0``, ``bias_hh_l1_reverse``, …"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .kernels.cells import CELLS, KINDS

FULL_NAME = re.compile(r"(?P<name>[a-z_]+)_l(?P<layer>0|[1-9][0-9]{0,8})(?P<reverse>_reverse)?")


def weight_names() -> list[str]:
    """Names of the weights that any cell has, in the order of their kinds."""
    weights = [w for cell in CELLS.values() for w in cell.weights]
    weights.sort(key=lambda w: KINDS.index(w.kind))
    return list(dict.fromkeys(w.name for w in weights))


def suffix(layer: int, direction: int) -> str:
    """End of the full names of a layer's and direction's weights."""
    return f"_l{layer}{'_reverse' if direction else ''}"


def named_arrays(layers: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """All arrays by their full names, out of ``layers[layer][direction][name]``."""
    return {
        name + suffix(number, direction): array
        for number, layer in enumerate(layers)
        for direction, arrays in enumerate(layer)
        for name, array in arrays.items()
    }
