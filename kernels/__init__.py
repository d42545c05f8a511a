"""Compiled recurrences, one subpackage per kind of hardware; `cells` holds the equations.

Nothing here imports the package around it. Numba is loaded by the subpackages alone, so the table
of cells can be read without it.
"""
