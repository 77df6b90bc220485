#!/usr/bin/env bash
# Everything CI runs, from a fresh clone: environment, build, lint, types, all tests, and the demo in an environment of
# its own.
#
#   tools/test.sh                  all of it; needs nvcc (no GPU)
#   tools/test.sh --without-cuda   on a machine without nvcc: what it builds is left out, and the end says so
#   tools/test.sh --quick          environment, build, and the tests without the marker slow; on any machine
#
# Takes hours on two cores, --quick under one; the forge's workflows end them after 4 hours and after one.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
show_help "$@"
plugins=ON
quick=no
left_out=()
for option in "$@"; do
  case "$option" in
    --without-cuda) plugins=OFF left_out+=(needs_nvcc) ;;
    --quick) quick=yes plugins=OFF ;;
    *) echo "error: unknown option $option; the options are --without-cuda and --quick" >&2; exit 2 ;;
  esac
done
[ "$plugins" = OFF ] || check_cuda
echo "== environment and build, the TensorRT plugins included"
CMAKE_ARGS="-DVIMTRT_TENSORRT=$plugins -DVIMTRT_CUDA=$plugins" make_environment "[torch,dev]"
[ "$quick" = yes ] || bash tools/lint.sh
build_double
"$VENV/bin/python" tools/kernel_coverage.py --reset
if [ "$plugins" = ON ]; then
  echo "== the GPU self-test, a dry run on the CPU double; and the same modules for a GPU, compiled and linked"
  PYTHONSAFEPATH=1 "$VENV/bin/python" tools/gpu_selftest.py --device double --report build/dry_run
  cmake -S . -B build/device -G Ninja -DCMAKE_MAKE_PROGRAM="$(realpath -s "$VENV/bin/ninja")" \
    -DPython_EXECUTABLE="$(realpath -s "$VENV/bin/python")" \
    -DVIMTRT_PYTHON=OFF -DVIMTRT_CUDA_ON_GPU=ON -DCMAKE_CUDA_ARCHITECTURES=90-real > /dev/null
  cmake --build build/device --target _cuda vimtrt_cuda_on_gpu vimtrt_plugins_on_gpu > /dev/null
fi
# Keeps the checkout's pyvimtrt/, which has no compiled module, off the path of pytest and of what it starts: the
# installed package is what is tested.
pytest() { PYTHONSAFEPATH=1 "$VENV/bin/pytest" "$@"; }
# The tests of a markers' expression, on every core: a test file is one process's, as its fixtures are, and files come
# in their order, in which no long one is the last. Threads that wait do so asleep, for the cores are others' too. Then
# those that take the machine to themselves.
run_tests() {
  local failed=0
  OMP_WAIT_POLICY=passive pytest -n "$(nproc)" --dist loadfile --no-loadscope-reorder -m "not alone$1" || failed=1
  pytest -m "alone$1" || failed=1
  return "$failed"
}
if [ "$quick" = yes ]; then
  echo "== quick tests of the installed package"
  pytest -m "not slow"
  echo "quick: left out lint, types, the demo, and the tests that carry the marker slow"
  exit 0
fi
echo "== the CPU engine for 64-bit ARM, which an emulator runs"
if have_aarch64; then
  cmake -S . -B build/aarch64 -G Ninja -DCMAKE_MAKE_PROGRAM="$(realpath -s "$VENV/bin/ninja")" \
    -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake \
    -DVIMTRT_PYTHON=OFF -DVIMTRT_TENSORRT=OFF -DVIMTRT_CUDA=OFF -DVIMTRT_RUN_PROGRAM=ON > /dev/null
  cmake --build build/aarch64 > /dev/null
else
  left_out+=(needs_aarch64)
fi
have_chromium || left_out+=(needs_chromium)
echo "== tests of the installed package"
expression=""
for mark in "${left_out[@]}"; do expression+=" and not $mark"; done
run_tests "$expression"
if [ "$plugins" = ON ]; then
  echo "== line coverage of the kernels and plugins under these tests"
  "$VENV/bin/python" tools/kernel_coverage.py
  echo "== what the compiled kernels take"
  "$VENV/bin/python" tools/kernel_resources.py
fi
echo "== the demo, with the core dependencies alone"
CMAKE_ARGS="-DVIMTRT_TENSORRT=OFF -DVIMTRT_CUDA=OFF" VIMTRT_VENV=build/demo-venv bash tools/demo.sh
if [ "$plugins" = OFF ]; then
  echo "left out for want of nvcc: libvimtrt_plugins.so, the plugins on a CPU, TensorRT engines," \
    "line coverage and resources of the kernels"
fi
if [[ " ${left_out[*]} " = *" needs_chromium "* ]]; then
  echo "left out for want of chromium (apt-get install chromium): the server's page in a browser"
fi
if [[ " ${left_out[*]} " = *" needs_aarch64 "* ]]; then
  echo "left out for want of aarch64-linux-gnu-g++ and qemu-aarch64" \
    "(apt-get install g++-aarch64-linux-gnu qemu-user): the CPU engine of 64-bit ARM"
fi
