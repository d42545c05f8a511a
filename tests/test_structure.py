"""What modules may use of each other: public names, and of the package those above them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastgru"
SUBPACKAGES = "io", "training"
PACKAGE_MODULES = sorted(
    [
        *PACKAGE.glob("*.py"),
        *(path for name in SUBPACKAGES for path in (PACKAGE / name).glob("*.py")),
    ]
)
MODULES = sorted([*PACKAGE_MODULES, *(PACKAGE.parent / "kernels").rglob("*.py")])

# Names that are private by their spelling alone, or of other packages that offer no public ones.
ALLOWED = {
    "_fields": "NamedTuple",
    "_replace": "NamedTuple",
    "_cache": "numba.core.dispatcher.Dispatcher",
    "_is_initialized": "numba.np.ufunc.parallel",
    "_rebuild": "numba.core.compiler.CompileResult",
    "_reduce": "numba.core.compiler.CompileResult",
}

# The modules of the package: each may import those above it alone.
ORDER = (
    "kernels",
    "backends",
    "names",
    "check",
    "params",
    "packed",
    "check_calls",
    "stack",
    "calls",
    "saved",
    "ops",
    "stream",
    "safetensors",
    "archive",
    "files",
    "io",
    "cell",
    "config",
    "__init__",
    "training",
    "demo",
    "__main__",
)

# But for these imports, which are made when a function runs.
LATE = {"config": ["__init__"], "__main__": ["benchmarks"]}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_own(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def defined(tree: ast.Module) -> Iterator[str]:
    """Names of functions, classes, variables and attributes of its own that a module defines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name("self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


def foreign_private(source: str) -> Iterator[str]:
    """Uses of private names that other modules define."""
    tree = ast.parse(source)
    own = {*defined(tree), *ALLOWED}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not is_own(node.value):
            if is_private(node.attr) and node.attr not in own:
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom) and node.level:
            for alias in node.names:
                if is_private(alias.name):
                    yield f"line {node.lineno}: import of {alias.name}"


def imported(path: Path) -> Iterator[str]:
    """Modules and subpackages of the package, other than its own, that a module imports."""
    own = ["fastgru", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = own[: len(own) - node.level + 1] if node.level else []
            full = [*above, *(node.module or "").split(".")]
        elif isinstance(node, ast.Import):
            full = node.names[0].name.split(".")
        else:
            continue
        if full[0] == "fastgru" and full[1:2] != own[1:2]:
            yield ([part for part in full[1:] if part] or ["__init__"])[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_private_names_stay_in_their_module(path: Path) -> None:
    assert list(foreign_private(path.read_text(encoding="utf-8"))) == []


def test_private_names_are_found() -> None:
    program = """
from . import _a
from .b import _c
from numba import _d
class E:
    def __init__(self, other):
        self._f = other._f + other._g
        other._h = self._i._replace(j=vars(other).__len__())
"""
    uses = [use.partition(": ")[2] for use in foreign_private(program)]
    assert sorted(uses) == ["import of _a", "import of _c", "other._g", "other._h"]


@pytest.mark.parametrize("path", PACKAGE_MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_modules_above(path: Path) -> None:
    name = path.stem if path.parent == PACKAGE else path.parent.name
    above = {*ORDER[: ORDER.index(name)], *LATE.get(name, ())}
    assert set(imported(path)) <= above
