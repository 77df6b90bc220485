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

# Whether commands are there, or could be installed: have "COMMAND..." "DEBIAN PACKAGE...".
have() {
  local commands="$1" packages="$2"
  if all_there "$commands"; then return 0; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    # shellcheck disable=SC2086 # words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages > /dev/null 2>&1 ||
      { apt-get update -qq > /dev/null 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages > /dev/null 2>&1; } || true
  fi
  all_there "$commands"
}

all_there() {
  local name
  for name in $1; do command -v "$name" > /dev/null || return 1; done
}

# The cross compiler and the emulator for 64-bit ARM.
have_aarch64() { have "aarch64-linux-gnu-g++ qemu-aarch64" "g++-aarch64-linux-gnu qemu-user"; }

# The browser in which the server's page is tested.
have_chromium() { have chromium chromium; }

# Says what is missing to build the TensorRT plugins.
check_cuda() {
  if ! command -v nvcc > /dev/null; then
    echo "error: nvcc is missing; install the CUDA toolkit (12.6 or newer; no GPU is needed), or leave it out: tools/test.sh --without-cuda" >&2
    return 2
  fi
}
