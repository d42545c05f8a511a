"""Ctrl-C while the first call still imports Numba: later calls work all the same."""

import pytest
from programs import python

# The host's own use of Numba.
HOST = """
@numba.njit(parallel=True)
def count(n):
    total = 0
    for _ in numba.prange(n):
        total += 1
    return total
"""
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
{host}
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
    lines = python(PROGRAM.format(module=module, then="", host=HOST)).splitlines()
    assert lines == ["interrupted", "(1, 4, 2)", "100"]


def test_an_interrupted_subpackage_leaves_a_complete_numba_alone() -> None:
    lines = python(
        f"""
import sys
import numba, numpy as np, fastgru
{HOST}
# As after Ctrl-C in the import of a subpackage that nobody needs here.
sys.modules["numba.of_somebody.part"] = sys
before = sys.modules["numba.core.types"]
print(fastgru.forward(np.ones((1, 4, 2), "float32"), fastgru.init_params(2, 3))[0].shape)
print(count(100), sys.modules["numba.core.types"] is before)
"""
    ).splitlines()
    assert lines == ["(1, 4, 3)", "100 True"]


def test_several_threads_make_the_first_call() -> None:
    """Each waits until Numba is imported."""
    lines = python(
        """
import threading
import numpy as np
import fastgru

params = fastgru.init_params(2, 3)
found = []

def work():
    found.append(fastgru.forward(np.ones((1, 4, 2), "float32"), params)[0].shape)

workers = [threading.Thread(target=work) for _ in range(4)]
[w.start() for w in workers], [w.join() for w in workers]
print(found)
"""
    ).splitlines()
    assert lines == [str([(1, 4, 3)] * 4)]


def test_where_numba_cannot_be_imported_again() -> None:
    program = PROGRAM.format(module="numba.core.types.abstract", then=AGAIN, host="")
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
