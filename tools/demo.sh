#!/usr/bin/env bash
# From a fresh clone to a classified image: environment, build, the bundled model's int8 engine, its answers, its
# accuracy.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
echo "== environment and build (a minute or two)"
make_environment ""
echo "== pyvimtrt build --int8"
"$VENV/bin/pyvimtrt" build --int8
echo "== pyvimtrt infer"
"$VENV/bin/pyvimtrt" infer engines/vim_demo_fashion_mnist.onnx pyvimtrt/zoo/samples/100[0-3]_*.png --topk 2
echo "== pyvimtrt eval, on the 1,000 test images that come with the clone"
"$VENV/bin/pyvimtrt" eval engines/vim_demo_fashion_mnist.onnx tests/data/fashion_mnist_1000.npz
