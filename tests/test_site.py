"""The built site in a browser: every page without an error, and a dashboard that works.

    docs/build.sh && FASTGRU_SITE=docs/_build/html python -m pytest tests/test_site.py

Needs Chromium, its driver, and selenium; without them, or without a site, the tests are skipped.
"""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

SITE = Path(os.environ.get("FASTGRU_SITE", "no site"))
if not (SITE / "index.html").exists():
    pytest.skip("FASTGRU_SITE names no built site", allow_module_level=True)
for program in ("chromium", "chromedriver"):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = pytest.mark.xdist_group("browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
# Not pages: the theme's templates, and a part of asv's.
NO_PAGES = "_static/", "asv/error.html"
FOUND = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
PAGES = [page for page in FOUND if not page.startswith(NO_PAGES)]
# What is chosen beside the dashboard's graph, as its addresses have it.
CHOSEN = {
    "p-cell": ("'gru'", "'lstm'"),
    "p-backend": ("'numpy'",),
    "p-T,B,I,H": ("'100,32,64,128'",),
    "p-dtype": ("'float32'",),
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the site is served."""
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser without a screen, which reports what its console says."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def errors_of(browser: Any) -> list[str]:
    """What the console of the page says, that is no mere information."""
    told = browser.get_log("browser")
    return [one["message"] for one in told if one["level"] in ("SEVERE", "WARNING")]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_error(browser: Any, address: str, page: str) -> None:
    browser.get(address + page)
    assert browser.title
    assert errors_of(browser) == []


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("asv/")])
def test_a_page_fits_the_window(browser: Any, address: str, page: str, width: int) -> None:
    """Wide tables and formulas scroll by themselves."""
    browser.set_window_size(width, 900)
    browser.get(address + page)
    wide = "return [document.documentElement.scrollWidth, window.innerWidth]"
    needed, given = browser.execute_script(wide)
    assert needed <= given


def drawn(browser: Any) -> dict[str, list[Any]]:
    """The lines of the dashboard's graph, by their labels, when it is there."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = """
        const plot = $('#main-graph').data('plot');
        if (!plot) return null;
        return plot.getData().map(line => [line.label, line.data.filter(p => p && p[1] !== null)]);
    """
    lines = WebDriverWait(browser, 20).until(lambda b: b.execute_script(script))
    return {str(label): points for label, points in lines}


def test_the_dashboard_draws_both_cells_and_switches(browser: Any, address: str) -> None:
    browser.set_window_size(1200, 900)
    found = {}
    for direction in ("forward", "train"):
        browser.get("about:blank")
        chosen = urlencode(CHOSEN | {"p-direction": (f"'{direction}'",)}, doseq=True)
        browser.get(f"{address}asv/index.html#suites.Layer.time_row_step?{chosen}")
        found[direction] = drawn(browser)
        for cell in ("gru", "lstm"):
            lines = [line for label, line in found[direction].items() if f"cell-{cell};" in label]
            assert any(len(line) > 2 for line in lines), cell
        painted = """
            const canvas = document.querySelector('#main-graph canvas');
            const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return image.data.some(value => value > 0);
        """
        assert browser.execute_script(painted)
    assert found["forward"] != found["train"]
    assert errors_of(browser) == []
