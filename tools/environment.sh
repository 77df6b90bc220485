# Sourced by demo.sh and test.sh: makes the virtual environment .venv, checks the prerequisites and installs this package with the given extras.
# VIMTRT_VENV names another folder for it.

make_environment() {
  local extras="$1" tool
  for tool in python3 g++ cmake; do
    if ! command -v "$tool" > /dev/null; then
      echo "error: $tool is missing; on Debian or Ubuntu: apt-get install python3 python3-venv python3-dev g++ cmake" >&2
      return 2
    fi
  done
  VENV="${VIMTRT_VENV:-.venv}"
  [ -x "$VENV/bin/python" ] || python3 -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check ".$extras"
}

# Says what is missing to build the TensorRT plugins.
check_cuda() {
  if ! command -v nvcc > /dev/null; then
    echo "error: nvcc is missing; install the CUDA toolkit (12.6 or newer; no GPU is needed), or leave it out: tools/test.sh --without-cuda" >&2
    return 2
  fi
}
