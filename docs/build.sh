#!/usr/bin/env bash
# Builds the site into docs/_build/html; a warning is an error. Needs: pip install ".[docs]"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHONPATH=. python -m sphinx -b html -W --keep-going docs docs/_build/html "$@"
echo "Open docs/_build/html/index.html"
