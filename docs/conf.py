"""Sphinx's configuration: everything that the pages need is on the site itself."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import fastgru  # noqa: E402

project = "fastgru"
author = "The fastgru developers"
copyright = "the fastgru developers; BSD-3-Clause"
version = release = fastgru.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "dashboard_scripts",
    "gallery",
    "auto_gallery/**.ipynb",
    "auto_gallery/**.py*",
]
default_role = "py:obj"  # in docstrings, names stand between single backticks
highlight_language = "none"
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say it
numpydoc_show_class_members = False
numpydoc_validation_checks = {
    "GL03",  # blank lines
    "GL08",  # no docstring
    "SS01",  # no summary
    "PR01",  # parameters that are not described
    "PR02",  # parameters that there are not
    "PR03",  # in another order
    "PR04",  # without a type
    "RT01",  # no section on what is returned
}
numpydoc_validation_exclude = {
    # Of these a line says all, or their attributes are described, as nobody but fastgru makes them.
    r"fastgru\.cell\.(sigmoid|tanh|exp|log|relu|is_positive|one_like|zero_like|constant_like)$",
    r"fastgru\.(Gradients|Saved|demo\.Problem|demo\.Result|io\.Layer)$",
    r"fastgru\.training\.(Ensemble|Fitted|History|Progress)$",
}

html_theme = "pydata_sphinx_theme"
html_title = "fastgru"
html_math_renderer = "mathml"  # the browser's own: no script, no font
html_favicon = "_static/logo.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_static_path = ["_static"]
html_css_files = ["fastgru.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 8,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {
    page: [] for page in ("index", "cells", "coming_from", "guarantees", "performance")
}

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(__init__|hard_lstm)\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "download_all_examples": False,
    "matplotlib_animations": False,
    "plot_gallery": True,
}


def write_pages(app: Any) -> None:
    """The pages that are made from what stands elsewhere."""
    import make_cells
    import make_performance

    write(HERE / "cells.md", make_cells.page())
    write(HERE / "performance.md", make_performance.page())
    for name, source in (("benchmarks", "benchmarks/README.md"), ("changelog", "CHANGELOG.md")):
        write(HERE / f"{name}.md", of_the_site((HERE.parent / source).read_text("utf-8")))


def write(path: Path, text: str) -> None:
    """A file, unless it is there already: what does not change is not read again."""
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def of_the_site(text: str) -> str:
    """Markdown whose links to other files of the repository lead to their pages here."""
    text = re.sub(r"\]\((?:\.\./)?benchmarks/README\.md(#[^)]*)?\)", r"](benchmarks.md\1)", text)
    return re.sub(r"\]\((?:\.\./)?docs/([a-z]+\.md)(#[^)]*)?\)", r"](\1\2)", text)


def source_read(app: Any, name: str, content: list[str]) -> None:
    """Links of the pages that are read on GitHub, too."""
    if name in ("architecture", "experiments"):
        content[0] = of_the_site(content[0])


def add_dashboard(app: Any, exception: Exception | None) -> None:
    """asv's pages, beside the others."""
    import dashboard

    if exception is None and app.builder.format == "html":
        dashboard.publish(Path(app.outdir) / "asv")


def visit_math(self: Any, node: Any) -> None:
    """Mathematics within a line, as MathML."""
    from docutils import nodes
    from docutils.utils.math.latex2mathml import tex2mathml

    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: Any) -> None:
    """The same on lines of its own."""
    from docutils import nodes
    from docutils.utils.math.latex2mathml import tex2mathml

    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    # Before the gallery's, and before Sphinx looks which pages there are.
    app.connect("builder-inited", write_pages, priority=1)
    app.connect("source-read", source_read)
    app.connect("build-finished", add_dashboard)


for needed in ("numba", "matplotlib"):
    if importlib.util.find_spec(needed) is None:
        raise ModuleNotFoundError(f'{needed} is missing: pip install ".[docs]"')
