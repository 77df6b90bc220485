#!/usr/bin/env bash
# Everything CI runs, from a fresh clone: environment, build, lint, types, all tests, and the demo in an environment of its own.
#
#   tools/test.sh                  all of it; needs nvcc (no GPU)
#   tools/test.sh --without-cuda   on a machine without nvcc: the plugin library and what tests it are left out, and the end says so
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
plugins=ON
marked=()
case "${1:-}" in
  "") check_cuda ;;
  --without-cuda) plugins=OFF marked=(-m "not needs_nvcc") ;;
  *) echo "error: unknown option $1; the one option is --without-cuda" >&2; exit 2 ;;
esac
echo "== environment and build, the TensorRT plugins included"
CMAKE_ARGS="-DVIMTRT_TENSORRT=$plugins" make_environment "[torch,dev]"
echo "== lint"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
find plugins tests \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \) -print0 | xargs -0 "$VENV/bin/clang-format" --dry-run --Werror
echo "== types"
"$VENV/bin/mypy"
echo "== the CUDA kernels and the plugins on a CPU, for the tests"
cmake -S . -B build/tests -G Ninja -DCMAKE_MAKE_PROGRAM="$(realpath -s "$VENV/bin/ninja")" -DPython_EXECUTABLE="$(realpath -s "$VENV/bin/python")" \
  -DVIMTRT_PYTHON=OFF -DVIMTRT_CUDA_ON_CPU=ON > /dev/null
cmake --build build/tests > /dev/null
"$VENV/bin/python" tools/kernel_coverage.py --reset
echo "== tests of the installed package"
# Keeps the checkout's pyvimtrt/, which has no compiled module, off the path of pytest and of what it starts: the installed package is what is tested.
PYTHONSAFEPATH=1 "$VENV/bin/pytest" "${marked[@]}"
if [ "$plugins" = ON ]; then
  echo "== line coverage of the kernels and plugins under these tests"
  "$VENV/bin/python" tools/kernel_coverage.py
  echo "== what the compiled kernels take"
  "$VENV/bin/python" tools/kernel_resources.py
fi
echo "== the demo, with the core dependencies alone"
CMAKE_ARGS="-DVIMTRT_TENSORRT=OFF" VIMTRT_VENV=build/demo-venv bash tools/demo.sh
if [ "$plugins" = OFF ]; then
  echo "left out for want of nvcc: libvimtrt_plugins.so, the plugins on a CPU, TensorRT engines, line coverage and resources of the kernels"
fi
