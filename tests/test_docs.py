"""The documentation: its code runs, its equations are those of the cells, its tests exist.

Sphinx is needed by the last test alone, which builds everything.
"""

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import SHIPPED_CELLS

import fastgru
from fastgru import io, training
from fastgru.kernels.cells import CELLS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not (DOCS / "conf.py").exists():
    pytest.skip("this source tree has no documentation", allow_module_level=True)

# Pages whose code runs as it stands; the others are for contributors, or hold none.
PAGES = [DOCS / "index.md", DOCS / "coming_from.md", *sorted((DOCS / "guide").glob("*.md"))]
GALLERY = sorted((DOCS / "gallery").glob("*.py"))


def load(name: str) -> Any:
    """A module of the folder of the documentation."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ABOUT = load("equations").ABOUT


def run(*args: str | Path, cwd: Path = ROOT, timeout: int = 300) -> str:
    """Output of Python, with this very fastgru, which must not fail."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, *map(str, args)],
        env=os.environ | {"PYTHONPATH": path, "MPLBACKEND": "Agg"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# --- code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    if page.stem == "threads":
        pytest.importorskip("joblib")
    count = len(load("run_blocks").blocks(page.read_text("utf-8")))
    out = run(DOCS / "run_blocks.py", page, cwd=tmp_path)
    assert out.splitlines()[-1].endswith(f": {count} blocks")


def test_every_page_of_the_guide_has_code() -> None:
    for page in PAGES:
        if page != DOCS / "guide" / "index.md":
            assert load("run_blocks").blocks(page.read_text("utf-8")), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_block_of_code_is_left_out(page: Path) -> None:
    """What is not run are commands, which have no language, and what Sphinx acts on."""
    kinds = re.findall(r"^\s*```+(.*)$", page.read_text("utf-8"), re.MULTILINE)
    opened = [kind.strip() for kind in kinds[::2]]
    assert not [k for k in opened if k not in ("", "python", "pycon") and not k.startswith("{")]


def public_functions(module: Any) -> list[Any]:
    """Functions that a module exports."""
    return [f for name in module.__all__ if inspect.isfunction(f := getattr(module, name))]


def test_examples_of_docstrings_run() -> None:
    modules = ["fastgru", *(f"fastgru.{name}" for name in ("cell", "config", "ops", "packed"))]
    modules += sorted({f.__module__ for f in public_functions(io)})
    modules += [f"fastgru.training.{name}" for name in ("ensemble", "losses", "model")]
    modules += [f"fastgru.training.{name}" for name in ("fit", "optimizers", "schedules", "tree")]
    program = (
        "import doctest, importlib\n"
        f"for name in {[*modules, 'fastgru.params']}:\n"
        "    found = doctest.testmod(importlib.import_module(name))\n"
        "    assert found.attempted and not found.failed, (name, found)\n"
    )
    run("-c", program)


def test_public_functions_have_examples() -> None:
    functions = [f for module in (fastgru, io, training) for f in public_functions(module)]
    assert functions
    missing = [f.__name__ for f in functions if "Examples\n" not in (f.__doc__ or "")]
    assert not missing


def test_the_reference_names_everything_public() -> None:
    for module, page in ((fastgru, "fastgru.rst"), (fastgru.cell, "cell.rst"), (io, "io.rst"),
                         (training, "training.rst")):  # fmt: skip
        text = (DOCS / "reference" / page).read_text("utf-8")
        missing = [name for name in module.__all__ if not re.search(rf"\b{name}\b", text)]
        assert not missing


# --- cells ----------------------------------------------------------------------------------------


def test_every_cell_has_its_equations() -> None:
    assert sorted(ABOUT) == sorted(SHIPPED_CELLS)


def test_the_page_of_cells_names_every_weight() -> None:
    page = run(DOCS / "make_cells.py")
    for name in SHIPPED_CELLS:
        section = page.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
        assert all(f"| `{weight.name}_l0` |" in section for weight in CELLS[name].weights), name
        assert all(f"{gate}_t &=" in section for gate in CELLS[name].gates), name


def as_python(tex: str) -> str:
    """A line of TeX as Python: products by matrices as ``@``, others as ``*``."""
    for pattern, by in (
        (r"\\mathrm\{BN\}\(W_(\w) x_t\)", r"bn_\1"),
        (r"\\mathrm\{(\w+)\}\(", r"\1("),
        (r"\\frac\{(.*?)\}\{(.*?)\}", r"(\1) / (\2)"),
        (r"\\(tanh|log)", r"\1"),
        (r"\\sigma", "sigmoid"),
        (r"\\tilde (\w)_t", r"\1_tilde"),
        (r"\\odot|\\,", "*"),
        (r"10\^\{-11\}", "1e-11"),
        (r"_\{t-1\}", "_before"),
        (r"_\{(\w+)\}", r"_\1"),
        (r"\b([WU]_\w) ", r"\1 @ "),
    ):
        tex = re.sub(pattern, by, tex)
    assert "\\" not in tex, tex
    return tex


LETTERS = {
    "weight_ih": "W_",
    "weight_hh": "U_",
    "bias": "b_",
    "bias_ih": "b_i",
    "bias_hh": "b_h",
    "diag_hh": "u_",
    "peephole": "p_",
}


@pytest.mark.parametrize("cell", SHIPPED_CELLS)
def test_equations_compute_what_the_cell_does(cell: str) -> None:
    """The TeX of a cell, taken as a program, gives the state that `step` gives."""
    I, H, table = 3, 4, CELLS[cell]
    rng = np.random.default_rng(0)
    params = fastgru.init_params(I, H, cell=cell, dtype="float64", rng=0)
    # Variances are positive, and biases are not 0.
    params = params.map(lambda w: rng.uniform(0.1, 1, w.shape) if w.ndim == 1 else w * 2)
    arrays = dict(params.layers[0][0].items())
    x, attention = rng.normal(size=I), rng.uniform(size=1)
    state = tuple(rng.uniform(0.1, 0.9, H) for _ in table.states)

    names: dict[str, Any] = {"x_t": x, "a_t": attention}
    names |= {f"{name}_before": member for name, member in zip(table.states, state, strict=True)}
    for weight in table.weights:
        prefix = f"{weight.kind} " if "norm" in weight.kind else LETTERS[weight.name]
        for gate, rows in zip(weight.gates, np.split(arrays[weight.name], len(weight.gates)),
                              strict=True):  # fmt: skip
            names[prefix + gate] = rows
    if table.norm:
        for gate in table.gates:
            scale, shift, mean, variance = (
                names[f"norm {part} {gate}"] for part in ("scale", "shift", "mean", "variance")
            )
            centred = names[f"W_{gate}"] @ x - mean
            names[f"bn_{gate}"] = scale * centred / np.sqrt(variance + table.norm.eps) + shift

    def layer_norm(*parts: Any) -> Any:
        sums = np.concatenate(parts)
        return np.split((sums - sums.mean()) / np.sqrt(sums.var() + 1e-5), len(parts))

    names |= {
        "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
        "tanh": np.tanh,
        "log": np.log,
        "ReLU": lambda a: np.maximum(a, 0),
        "LN": layer_norm,
        "g": lambda a: np.where(a >= 0, a + 0.5, 1 / (1 + np.exp(-a))),
    }
    for line in ABOUT[cell].tex.split("\\\\\n"):
        left, equals, right = line.partition("&=")
        if equals:  # the others define a function
            exec(f"{as_python(left.strip())} = {as_python(right.strip())}", names)

    given = {"attention": attention} if table.step_inputs else {}
    h = tuple(member[None] for member in state)
    _, after = fastgru.step(x, params, h if len(h) > 1 else h[0], **given)
    members = after if isinstance(after, tuple) else (after,)
    for name, member in zip(table.states, members, strict=True):
        np.testing.assert_allclose(names[f"{name}_t"], member[0], rtol=1e-12, atol=1e-13)


# --- promises -------------------------------------------------------------------------------------


def functions_in(path: Path) -> set[str]:
    """Names of the functions in a file."""
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_guarantees_name_tests_that_exist() -> None:
    text = (DOCS / "guarantees.md").read_text("utf-8")
    named = re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", text)
    assert len(named) > 40
    missing = [name for name in named if name[1] not in functions_in(ROOT / "tests" / name[0])]
    assert not missing


def test_every_promise_has_its_tests() -> None:
    page = (DOCS / "guarantees.md").read_text("utf-8")
    promised = page.partition("## What is promised")[2].partition("\n## ")[0]
    titles = re.findall(r"^- \*\*(.+?)\*\*", promised, re.MULTILINE)
    assert titles
    assert not [title for title in titles if f"| **{title}**" not in page]


# --- the site -------------------------------------------------------------------------------------


FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\b(?:src|srcset)\s*=\s*[\"']?(?:https?:)?//"
    r"|<link\b[^>]*?\bhref\s*=\s*[\"']?(?:https?:)?//"
    r"|(?:url\(|@import)\s*[\"']?(?:https?:)?//",
    re.IGNORECASE,
)


def test_what_is_fetched_is_found() -> None:
    for text in ('<script src="https://a.b/c.js">', '<link rel="x" href="//a.b">', "url(http://a)"):
        assert FETCHED.search(text)
    assert not FETCHED.search('<a href="https://numba.pydata.org"> <img src="a.png">')


def test_no_source_fetches_from_elsewhere() -> None:
    assert "://" not in (DOCS / "conf.py").read_text("utf-8")
    sources = [p for kind in ("*.md", "*.rst", "*.css", "*.py") for p in DOCS.glob(f"**/{kind}")]
    here = [p for p in sources if not {"_build", "auto_gallery"} & {*p.parts}]
    assert here
    assert not [p.name for p in here if FETCHED.search(p.read_text("utf-8"))]


def test_examples_have_seeds() -> None:
    for path in GALLERY:
        text = path.read_text("utf-8")
        assert "default_rng()" not in text
        assert "np.random.seed" not in text


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    for needed in ("sphinx", "numpydoc", "myst_parser", "sphinx_gallery", "pydata_sphinx_theme"):
        pytest.importorskip(needed, reason='the extra "docs" is not installed')
    run("-m", "sphinx", "-b", "html", "-W", "--keep-going", "-d", tmp_path / "doctrees",
        DOCS, tmp_path / "html", timeout=600)  # fmt: skip
    built = [p for kind in ("*.html", "*.css") for p in (tmp_path / "html").glob(f"**/{kind}")]
    assert len([p for p in built if p.suffix == ".html"]) > 25
    assert not [p.name for p in built if FETCHED.search(p.read_text("utf-8"))]
    assert "<math" in (tmp_path / "html" / "cells.html").read_text("utf-8")
    assert "sphx_glr_plot_co2_001.png" in (tmp_path / "html" / "index.html").read_text("utf-8")
