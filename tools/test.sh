#!/usr/bin/env bash
# Everything CI runs, from a fresh clone: environment, build, lint, types, all tests, and the demo in an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
echo "== environment and build"
make_environment "[torch,dev]"
echo "== lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
find plugins \( -name '*.h' -o -name '*.cpp' \) -print0 | xargs -0 "$VENV/bin/clang-format" --dry-run --Werror
echo "== types"
"$VENV/bin/mypy"
echo "== the CUDA kernels on a CPU, for the tests"
cmake -S . -B build/tests -G Ninja -DCMAKE_MAKE_PROGRAM="$(realpath -s "$VENV/bin/ninja")" -DPython_EXECUTABLE="$(realpath -s "$VENV/bin/python")" \
  -DVIMTRT_PYTHON=OFF -DVIMTRT_CUDA_ON_CPU=ON > /dev/null
cmake --build build/tests --target vimtrt_cuda_on_cpu > /dev/null
echo "== tests of the installed package"
# Keeps the checkout's pyvimtrt/, which has no compiled module, off the path of pytest and of what it starts: the installed package is what is tested.
PYTHONSAFEPATH=1 "$VENV/bin/pytest"
echo "== the demo, with the core dependencies alone"
VIMTRT_VENV=build/demo-venv bash tools/demo.sh
