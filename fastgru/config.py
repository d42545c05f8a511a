"""What this installation computes with."""

import sys

from .backends import describe_backends


def show_config() -> None:
    """Print versions, vector width, threading layer, folder of compiled kernels, and GPU.

    Starts Numba's thread pool, which alone knows its layer.

    Examples
    --------
    >>> import fastgru
    >>> fastgru.show_config()  # doctest: +ELLIPSIS
    python ...
    """
    # Imported here: it costs more time than all of the package.
    from importlib.metadata import PackageNotFoundError, version

    from . import __version__

    lines = {"python": sys.version.split()[0], "fastgru": __version__}
    for package in ("numpy", "numba", "llvmlite", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            lines[package] = version(package)
        except PackageNotFoundError:
            lines[package] = "not installed"
    lines |= describe_backends()
    for label, text in lines.items():
        print(f"{label:<17} {text}")
