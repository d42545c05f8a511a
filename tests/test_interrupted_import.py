"""Ctrl-C while the first call still imports Numba: later calls say what happened."""

from programs import python

PROGRAM = """
import sys
import numpy as np
import fastgru

params = fastgru.init_params(2, 3)
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
for _ in range(2):
    try:
        print(fastgru.forward(x, params)[0].shape)
    except RuntimeError as error:
        print(error)
"""


def test_an_import_of_numba_that_was_interrupted() -> None:
    """Numba does not recover; a new process does."""
    for module in ("numba.np.ufunc", "numba.core.typing.templates"):
        lines = python(PROGRAM.format(module=module)).splitlines()
        assert lines[0] == "interrupted"
        for line in lines[1:]:
            # Some places leave Numba whole.
            assert line == "(1, 4, 3)" or (
                "an earlier import of Numba in this process was interrupted" in line
                and "start a new process" in line
            )
        assert len(lines) == 3
