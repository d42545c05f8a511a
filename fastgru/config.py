"""What this installation computes with."""

import sys
from importlib.metadata import PackageNotFoundError, version

from .backends import describe_backends


def show_config() -> None:
    """Print versions, vector width, threading layer, folder of compiled kernels, and GPU.

    Starts Numba's thread pool, which alone knows its layer.
    """
    lines = {"python": sys.version.split()[0]}
    for package in ("fastgru", "numpy", "numba", "llvmlite", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            lines[package] = version(package)
        except PackageNotFoundError:
            lines[package] = "not installed"
    lines |= describe_backends()
    for label, text in lines.items():
        print(f"{label:<17} {text}")
