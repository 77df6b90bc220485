# Sourced by demo.sh, develop.sh and test.sh: checks the prerequisites, makes the virtual environment .venv and installs
# this package with the given extras.
# VIMTRT_VENV names another folder for it.

# Prints the comment at the script's beginning, and ends, where the first argument asks for help.
show_help() {
  case "${1:-}" in
    -h | --help)
      sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p;}}' "tools/$(basename "$0")"
      exit 0
      ;;
  esac
}

# With QUIET=no pip says what it does.
make_environment() {
  make_empty_environment
  local quiet=(--quiet)
  [ "${QUIET:-yes}" = yes ] || quiet=()
  "$VENV/bin/python" -m pip install "${quiet[@]}" --disable-pip-version-check ".$1"
}

make_empty_environment() {
  local tool
  for tool in python3 g++ cmake; do
    if ! command -v "$tool" > /dev/null; then
      echo "error: $tool is missing; on Debian or Ubuntu: apt-get install python3 python3-venv python3-dev g++ cmake" \
        >&2
      return 2
    fi
  done
  VENV="${VIMTRT_VENV:-.venv}"
  [ -x "$VENV/bin/python" ] || python3 -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
}

# The CUDA kernels and the plugins on a CPU, which tests run (build/tests).
build_double() {
  echo "== the CUDA kernels and the plugins on a CPU, for the tests"
  cmake -S . -B build/tests -G Ninja -DCMAKE_MAKE_PROGRAM="$(realpath -s "$VENV/bin/ninja")" \
    -DPython_EXECUTABLE="$(realpath -s "$VENV/bin/python")" \
    -DVIMTRT_PYTHON=OFF -DVIMTRT_CUDA_ON_CPU=ON > /dev/null
  cmake --build build/tests > /dev/null
}

# Whether commands are there, or could be installed: have "COMMAND..." "DEBIAN PACKAGE...".
have() {
  local commands="$1" packages="$2"
  if all_there "$commands"; then return 0; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    # shellcheck disable=SC2086 # words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages > /dev/null 2>&1 ||
      { apt-get update -qq > /dev/null 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends $packages > /dev/null 2>&1; } || true
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
    echo "error: nvcc is missing; install the CUDA toolkit (12.6 or newer; no GPU is needed)," \
      "or leave it out: tools/test.sh --without-cuda" >&2
    return 2
  fi
}
