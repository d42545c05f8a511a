"""Ctrl-C while the first call still imports Numba: later calls work all the same."""

import pytest
from programs import python

PROGRAM = """
import sys
import numpy as np
import fastgru

params = fastgru.init_params(2, 3, rng=0)
x = np.ones((1, 4, 2), "float32")

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
try:
    fastgru.forward(x, params)
except KeyboardInterrupt:
    print("interrupted")
sys.meta_path.pop(0)
{then}
try:
    y, _, saved = fastgru.forward_train(x, params)
    print(fastgru.backward(saved, y).x.shape)
except RuntimeError as error:
    print(error)
import numba

@numba.njit(parallel=True)
def count(n):
    total = 0
    for _ in numba.prange(n):
        total += 1
    return total

print(count(100))
"""
MODULES = [
    "llvmlite.binding.targets",
    "numba.core.types.abstract",
    "numba.core.registry",
    "numba.np.ufunc",
    "numba.cpython.unicode",
]


@pytest.mark.parametrize("module", MODULES)
def test_an_interrupted_import_of_numba(module: str) -> None:
    """At an early place and at late ones; the host's own use of Numba works too."""
    lines = python(PROGRAM.format(module=module, then="")).splitlines()
    assert lines == ["interrupted", "(1, 4, 2)", "100"]


def test_where_numba_cannot_be_imported_again() -> None:
    program = PROGRAM.format(module="numba.core.types.abstract", then=AGAIN)
    lines = python(program.partition("import numba\n")[0]).splitlines()
    assert lines[0] == "interrupted"
    assert "was interrupted" in lines[1]
    assert "start a new process" in lines[1]


AGAIN = """
class Fail:
    def find_spec(self, name, path=None, target=None):
        if name == "numba.core.types.abstract":
            raise AttributeError("half a module")

sys.meta_path.insert(0, Fail())
"""
