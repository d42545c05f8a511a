"""Runs the Python on a page: ``python docs/run_blocks.py docs/guide/forward.md``.

Blocks of a page are one program, in order. Those marked ``python`` are run, those marked ``pycon``
must print what stands there. No block of these two kinds is left out.
"""

import doctest
import re
import sys
import types
from pathlib import Path

FENCE = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line number, kind and code of each block."""
    found = FENCE.finditer(text)
    return [(text.count("\n", 0, m.start()) + 1, m.group(1), m.group(2)) for m in found]


def run(path: Path) -> int:
    """Run the blocks of a page; returns how many there are."""
    # A module, so that functions on the page can be found by what compiles or pickles them.
    module = types.ModuleType("page")
    sys.modules["page"] = module
    names = vars(module)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = blocks(path.read_text("utf-8"))
    for line, kind, code in found:
        if kind == "python":
            exec(compile("\n" * line + code, str(path), "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(code, names, path.name, str(path), line)
        test.globs = names  # not the copy that it made
        runner.run(test, clear_globs=False)
        if runner.summarize(verbose=False).failed:
            raise SystemExit(1)
    return len(found)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"{argument}: {run(Path(argument))} blocks")
