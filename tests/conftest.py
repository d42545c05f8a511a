"""Registers the toy cells before tests are generated over the table of cells."""

import toys  # noqa: F401
