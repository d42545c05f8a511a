"""asv's dashboard as a part of the site, from the results that are kept in the repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = HERE / "dashboard_scripts"
# What asv's page loads from other servers: scripts and style sheets, with the hashes of their text.
ELSEWHERE = re.compile(
    r'(?P<attribute>src|href)="https://[^"]*/(?P<name>[^"/]+)" integrity="[^"]*"'
    r' crossorigin="anonymous"'
)


def publish(folder: Path) -> None:
    """Write the dashboard, which then needs no other server.

    Raises
    ------
    RuntimeError
        If asv fails, which needs the repository's history, or its page is another than expected.
    FileNotFoundError
        If its page asks for a library that is not here.
    """
    config = HERE.parent / "benchmarks" / "asv.conf.json"
    command = [sys.executable, "-m", "asv", "publish", "--config", config, "--html-dir", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"asv publish failed:\n{done.stdout}{done.stderr}")
    page = folder / "index.html"
    text, count = ELSEWHERE.subn(r'\g<attribute>="scripts/\g<name>"', page.read_text("utf-8"))
    if not count or "https://cdn" in text:
        raise RuntimeError(f"{page}: this asv loads its libraries in another way")
    page.write_text(text, "utf-8")
    (folder / "scripts").mkdir(exist_ok=True)
    for name in re.findall(r'"scripts/([^"]+)"', text):
        shutil.copy(SCRIPTS / name, folder / "scripts" / name)
