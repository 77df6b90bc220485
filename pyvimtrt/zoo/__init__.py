"""The bundled demo model: a small Vision Mamba for Fashion-MNIST, its labels, calibration cache and sample images."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
DEMO_MODEL = "vim_demo_fashion_mnist"
DEMO_WEIGHTS = FOLDER / "vim_demo_fashion_mnist.safetensors"
DEMO_CALIBRATION = FOLDER / "vim_demo_fashion_mnist.calib.safetensors"
DEMO_SAMPLES = FOLDER / "samples"
DEMO_MEAN = (0.2860,)  # of Fashion-MNIST's training images, pixels in 0..1
DEMO_STD = (0.3530,)
DEMO_LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
