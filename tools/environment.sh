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

# Whether the cross compiler and the emulator for 64-bit ARM are there, or could be installed.
have_aarch64() {
  local packages="g++-aarch64-linux-gnu qemu-user"
  if command -v aarch64-linux-gnu-g++ > /dev/null && command -v qemu-aarch64 > /dev/null; then return 0; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    # shellcheck disable=SC2086 # two words
    apt-get install -y -qq --no-install-recommends $packages > /dev/null 2>&1 ||
      { apt-get update -qq > /dev/null 2>&1 && apt-get install -y -qq --no-install-recommends $packages > /dev/null 2>&1; } || true
  fi
  command -v aarch64-linux-gnu-g++ > /dev/null && command -v qemu-aarch64 > /dev/null
}

# Says what is missing to build the TensorRT plugins.
check_cuda() {
  if ! command -v nvcc > /dev/null; then
    echo "error: nvcc is missing; install the CUDA toolkit (12.6 or newer; no GPU is needed), or leave it out: tools/test.sh --without-cuda" >&2
    return 2
  fi
}
