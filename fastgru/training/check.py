"""Refusals of options of training, each naming the option, what was expected and what came."""

import math
from collections.abc import Sequence
from typing import Any

from ..check import library_of


def check_number(
    name: str, value: Any, *, least: float = -math.inf, below: float = math.inf
) -> float:
    """A finite number in a range, as a float.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is outside.
    """
    expected = f"a number of at least {least:g}" if least > -math.inf else "a number"
    if below < math.inf:
        expected += f" and below {below:g}"
    if isinstance(value, bool) or (not isinstance(value, int | float) and not _is_scalar(value)):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    number = float(value)
    if not (least <= number < below and math.isfinite(number)):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number


def _is_scalar(value: Any) -> bool:
    """Whether it is a number of NumPy's."""
    return (
        getattr(value, "ndim", None) == 0
        and getattr(value, "dtype", None) is not None
        and (value.dtype.kind in "iuf")
    )


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """One of some values.

    Raises
    ------
    ValueError
        If it is none.
    """
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return value
    raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_sequences(name: str, value: Any) -> None:
    """Refuse what is no array of samples, steps and features.

    Raises
    ------
    TypeError
        If it is no array.
    ValueError
        If it has another number of axes.
    """
    library_of(name, value)
    if value.ndim != 3:
        raise ValueError(f"{name}: expected shape (samples, steps, features), got {value.shape}")
