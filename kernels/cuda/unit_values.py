"""Values of one unit: tuples for a cell's equations, read from and written to arrays.

An array that holds several values of each unit has the shape (rows, values, H): neighbouring
threads, which have neighbouring units, touch neighbouring memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

from numba.cuda.extending import register_jitable

from ..cells import functions_called


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """An equation that kernels may call, with all the functions that it calls."""
    for called in functions_called([function]):
        register_jitable(called)
    return function


def make_load(members: Sequence[int]) -> Callable[..., Any]:
    """Build ``load(array, row, unit)``: these values of one unit, as a tuple."""
    if not members:

        def load(array, row, unit):
            return ()

    else:
        before, last = make_load(members[:-1]), members[-1]

        def load(array, row, unit):
            # array: (rows, values, H)
            return before(array, row, unit) + (array[row, last, unit],)

    return register_jitable(load)


def make_store(members: Sequence[int], add: bool = False) -> Callable[..., None]:
    """Build ``store(array, row, unit, values)``, which writes or adds these values of a unit."""
    if not members:

        def store(array, row, unit, values):
            return

    else:
        before, last, at = make_store(members[:-1], add), members[-1], len(members) - 1

        if add:

            def store(array, row, unit, values):
                # array: (rows, values, H)
                before(array, row, unit, values)
                array[row, last, unit] += values[at]

        else:

            def store(array, row, unit, values):
                # array: (rows, values, H)
                before(array, row, unit, values)
                array[row, last, unit] = values[at]

    return register_jitable(store)


def make_zeros(count: int) -> Callable[[Any], Any]:
    """Build ``zeros(zero)``: that many zeros."""
    if count == 0:

        def zeros(zero):
            return ()

    else:
        fewer = make_zeros(count - 1)

        def zeros(zero):
            return fewer(zero) + (zero,)

    return register_jitable(zeros)


def make_total(count: int) -> Callable[[Any], Any]:
    """Build ``total(a)``: the sum of a tuple of so many values, at least one."""
    if count == 1:

        def total(a):
            return a[0]

    else:
        before, last = make_total(count - 1), count - 1

        def total(a):
            return before(a) + a[last]

    return register_jitable(total)


def make_sum(count: int) -> Callable[[Any, Any], Any]:
    """Build ``add(a, b)``: the sums of two tuples of so many values."""
    if count == 0:

        def add(a, b):
            return ()

    else:
        before, last = make_sum(count - 1), count - 1

        def add(a, b):
            return before(a, b) + (a[last] + b[last],)

    return register_jitable(add)
