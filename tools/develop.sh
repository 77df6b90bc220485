#!/usr/bin/env bash
# A checkout to work in: .venv with all that lint and tests take, and the package installed from the checkout itself.
# A change in Python counts at once, one in C++ is compiled by the next import. Without CUDA: the plugin library is
# tools/test.sh's.
#
#   tools/develop.sh && .venv/bin/pytest -m "not slow"
#
# Takes some minutes, most of them the download of PyTorch and the compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
show_help "$@"
make_empty_environment
echo "== the package, from the checkout (build/editable)"
# Later builds take place outside of pip, so what builds must stay: no environment of its own for the build.
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "scikit-build-core>=0.10" "nanobind>=2.4" \
  "ninja>=1.11"
PATH="$(realpath -s "$VENV/bin"):$PATH" CMAKE_ARGS="-DVIMTRT_TENSORRT=OFF -DVIMTRT_CUDA=OFF" \
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
  -C editable.rebuild=true -C editable.verbose=false -C build-dir=build/editable --editable ".[torch,dev]"
build_double
