"""What is built from the checkout, and what a user gets by installing it."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREE = ["fastgru", "kernels", "tests", "benchmarks"]
FILES = ["pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"]
# Where the sources of the package lie, and where they are installed.
TREES = {"fastgru": "fastgru", "benchmarks": "fastgru/benchmarks", "kernels": "fastgru/kernels"}
WHERE = """
import fastgru, fastgru.benchmarks.bench as b, fastgru.kernels.cells as c
print(fastgru.__file__, b.__file__, c.__file__)
"""


def run(*command, cwd):
    """Run in a clean environment; returns what was printed, fails with it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


def copy_checkout(target):
    """The sources alone, so that no build writes into the checkout."""
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    target.mkdir()
    for name in filter(lambda name: (ROOT / name).is_dir(), TREE):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, target)
    return target


def make_venv(folder):
    """A virtual environment that has all this one has, except fastgru; returns its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    for packages in map(Path, sys.path):
        if packages.name not in ("site-packages", "dist-packages") or not packages.is_dir():
            continue
        for entry in packages.iterdir():
            link = Path(site.strip(), entry.name)
            if not entry.name.startswith(("fastgru", "__editable__")) and not link.exists():
                link.symlink_to(entry)
    return python


def install(python, *what, cwd):
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, *what, cwd=cwd)


def modules(root):
    """Every module of the package in a source tree: the name it is imported from, and its file."""
    for top, package in TREES.items():
        for path in sorted((root / top).rglob("*.py")):
            inside = path.relative_to(root / top)
            # Not what the symlinks in fastgru/ lead to, nor asv's environments.
            if inside.parts[0] not in (*TREES, ".asv"):
                yield f"{package}/{inside.as_posix()}", path


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Folder of the sdist and of the wheel built from it."""
    folder = tmp_path_factory.mktemp("built")
    copy = copy_checkout(folder / "checkout")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = copy_checkout(folder / "checkout")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", folder, copy, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory, wheel):
    """Python of an environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("installed")
    python = make_venv(folder / "venv")
    install(python, wheel, cwd=folder)
    return python


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = names_in(wheel)
    metadata = wheel.name.rsplit("-", 3)[0] + ".dist-info"
    assert {name.split("/")[0] for name in names} == {"fastgru", metadata}
    assert f"{metadata}/licenses/LICENSE" in names
    assert {"fastgru/py.typed", "fastgru/data/co2.csv", "fastgru/kernels/cells/gru.py"} <= {*names}
    assert [name for name in names if name.endswith(".py")] == sorted(
        name for name, _ in modules(ROOT)
    ), "a package is missing from pyproject.toml"


def test_sdist_holds_every_source_once(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    sources = [path.relative_to(ROOT).as_posix() for _, path in modules(ROOT)]
    tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")]
    assert {*sources, *tests, *FILES, "fastgru/data/co2.csv"} <= {*names}
    twins = ("fastgru/benchmarks", "fastgru/kernels")
    assert not [name for name in names if name.startswith(twins)]


def test_sdist_builds_the_same_wheel(built, wheel):
    assert names_in(next(built.glob("*.whl"))) == names_in(wheel)


def test_wheel_runs(installed, tmp_path):
    assert run(installed, "-c", WHERE, cwd=tmp_path).count("site-packages") == 3
    absent = "import importlib.util as u; print(*map(u.find_spec, ('kernels', 'benchmarks')))"
    assert run(installed, "-c", absent, cwd=tmp_path).strip() == "None None"


@pytest.mark.parametrize("place", ["elsewhere", "checkout"])
def test_command_line_runs(installed, tmp_path, place):
    if place == "checkout" and not (ROOT / "fastgru" / "kernels").is_dir():
        pytest.skip("without its symlink the source tree needs an editable install")
    cwd = tmp_path if place == "elsewhere" else copy_checkout(tmp_path / place)
    assert "fastgru" in run(installed, "-m", "fastgru", "info", cwd=cwd)
    bench = ["bench", "--rounds", "1", "--shape", "2,1,3,4", "--json", tmp_path / "b"]
    assert "GRU/LSTM" in run(installed, "-m", "fastgru", *bench, cwd=cwd)
    assert "GRU/LSTM" in run(installed.with_name("fastgru"), *bench, cwd=cwd)
    assert "fastgru" in run(installed.with_name("fastgru"), "info", cwd=cwd)


@pytest.mark.parametrize("symlinks", [True, False])
def test_editable_install_runs(tmp_path, symlinks):
    copy = copy_checkout(tmp_path / "checkout")
    for name in ("benchmarks", "kernels"):
        link = copy / "fastgru" / name
        if not symlinks and link.is_symlink():  # what git writes where there are no symlinks
            link.unlink()
            link.write_text(f"../{name}")
    python = make_venv(tmp_path / "venv")
    install(python, "-e", copy, cwd=tmp_path)
    assert run(python, "-c", WHERE, cwd=tmp_path).count(str(copy)) == 3


def imports(path):
    """(level, module) of every import in a file; level counts the dots of a relative one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def test_imports_point_one_way():
    """Benchmarks may use all; the package no Numba, and of benchmarks its command line alone."""
    for name, path in modules(ROOT):
        folder = name.removeprefix("fastgru/").split("/")[0]
        if folder == "benchmarks":
            continue
        forbidden = {"fastgru", "kernels"} if folder == "kernels" else {"numba", "llvmlite"}
        depth = len(path.relative_to(ROOT).parts) - 1  # dots that reach the top of its own tree
        for level, module in imports(path):
            parts = module.split(".")
            assert level > 0 or parts[0] not in forbidden, f"{path}: {module}"
            assert level <= depth, f"{path}: climbs out of its package"
            assert "benchmarks" not in parts or path.name == "__main__.py", f"{path}: {module}"
