#!/usr/bin/env bash
# Everything CI runs, from a fresh clone: environment, build, lint, types, all tests.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
echo "== environment and build"
make_environment "[torch,dev]"
echo "== lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
echo "== types"
"$VENV/bin/mypy"
echo "== tests of the installed package"
# -P keeps the checkout's pyvimtrt/, which has no compiled module, off the path: the installed package is what is tested.
exec "$VENV/bin/python" -P -m pytest
