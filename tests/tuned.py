"""Other numbers for the CPU backend than those of its table, to test how it decides."""

from types import ModuleType
from typing import Any

from fastgru.kernels.cpu import tuning


def tune(module: ModuleType, **numbers: Any) -> None:
    """Give numbers of `tuning` other values, in one of the modules that use them.

    Each module has a copy of its own. What is compiled, or was prepared with a number, keeps it.
    """
    for name, value in numbers.items():
        if not (hasattr(tuning, name) and hasattr(module, name)):
            raise AttributeError(f"{module.__name__} uses no {name} of {tuning.__name__}")
        setattr(module, name, value)
