#!/usr/bin/env bash
# From a fresh clone to a classified image: environment, build, the bundled model's int8 engine, its answers, its
# accuracy.
#
#   bash tools/demo.sh
#
# Takes a minute or two, nearly all of it the environment and the compiler. Needs the network, for pip.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
show_help "$@"
pyvimtrt() {
  echo "\$ pyvimtrt $*"
  "$VENV/bin/pyvimtrt" "$@"
}
echo "== 1 of 4: an environment, ${VIMTRT_VENV:-.venv}, and in it the package, compiled (a minute or two)"
QUIET=no make_environment ""
echo "== 2 of 4: the bundled model's engine, from its weights and its calibration cache"
pyvimtrt build --int8
echo "== 3 of 4: what is on four images it was not trained on; the files' names say what is right"
pyvimtrt infer engines/vim_demo_fashion_mnist.onnx pyvimtrt/zoo/samples/100[1-4]_*.png --topk 2
echo "== 4 of 4: its accuracy on the 1,000 test images that come with the clone"
pyvimtrt eval engines/vim_demo_fashion_mnist.onnx tests/data/fashion_mnist_1000.npz
echo "== done: source ${VIMTRT_VENV:-.venv}/bin/activate, and go on with README.md"
