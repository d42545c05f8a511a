"""The command line, run as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fastgru


def fastgru_command(
    *args: str | Path, cwd: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m fastgru`` with this very fastgru, in a folder where it may leave files."""
    folders = [str(folder) for folder in (path, Path(fastgru.__file__).parents[1]) if folder]
    return subprocess.run(
        [sys.executable, "-m", "fastgru", *args],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=300,
    )
