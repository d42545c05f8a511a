"""Models in JSON: objects of nested lists of numbers, checked before they are believed."""

import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..safetensors import RefusedError, is_shallow, parsed
from .convention import floating

# JSON that is read takes up to 30 times its length in memory.
_LONGEST, DEPTH = 64 << 20, 12
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def model_of(path: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LONGEST:
            raise RefusedError(f"expected JSON of at most {_LONGEST} bytes, got {size}")
        text = file.read(size).removeprefix(_BYTE_ORDER_MARK)
    if not is_shallow(text, DEPTH):
        raise RefusedError(f"its JSON is nested deeper than {DEPTH}, as no model is")
    try:
        model = parsed(text)
    except ValueError as error:
        raise RefusedError(f"it is no JSON: {error}") from error
    if type(model) is not dict:
        raise RefusedError(f"expected a JSON object, got {type(model).__name__}")
    return model


def numbers(name: str, value: Any, dtype: Any) -> Any:
    """Nested lists of finite numbers as an array; arrays as they are.

    Raises
    ------
    TypeError, ValueError
        If they are none, or of unequal lengths.
    """
    if isinstance(value, np.ndarray):
        return floating(name, value, dtype)
    shape: list[int] = []
    members = [value]
    while members and all(type(member) is list for member in members) and len(shape) < DEPTH:
        lengths = {*map(len, members)}
        if len(lengths) > 1:
            raise ValueError(f"{name}: expected lists of equal length, got {sorted(lengths)[:4]}")
        shape += lengths
        members = [*chain.from_iterable(members)]
    others = {*map(type, members)} - {int, float}
    if others:
        found = ", ".join(sorted(kind.__name__ for kind in others))
        raise ValueError(f"{name}: expected nested lists of numbers, got {found} among them")
    with np.errstate(over="ignore"):  # what is too large is refused
        try:
            array = np.array(members, np.float64).astype(dtype)
        except OverflowError as error:
            raise ValueError(f"{name}: {error}") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected numbers that {np.dtype(dtype)} has, got larger ones")
    return array.reshape(shape)
