#!/usr/bin/env bash
# Lint, format and types, with the environment that tools/develop.sh or tools/test.sh makes; --fix mends what can be
# mended.
#
# Takes a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
show_help "$@"
bin="${VIMTRT_VENV:-.venv}/bin"
native() { find plugins tests \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \) -print0; }
case "${1:-}" in
  "") ;;
  --fix)
    "$bin/ruff" check --fix .
    "$bin/ruff" format .
    native | xargs -0 "$bin/clang-format" -i
    ;;
  *) echo "error: unknown option $1; the one option is --fix" >&2; exit 2 ;;
esac
echo "== lint"
"$bin/ruff" check .
"$bin/ruff" format --check .
native | xargs -0 "$bin/clang-format" --dry-run --Werror
echo "== types"
"$bin/mypy"
