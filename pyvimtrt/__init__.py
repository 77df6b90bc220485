"""Vision Mamba in int8: one numeric contract, run by engines for CPUs and NVIDIA GPUs, and by TensorRT plugins.

    import pyvimtrt
    engine = pyvimtrt.load_engine("engines/vim_demo_fashion_mnist.onnx")
    logits = engine.run(images)              # uint8 [B, C, H, W] -> float32 [B, classes]
    predictions = engine.classify(["a.png"]) # paths, bytes, PIL images or uint8 arrays
    pixels = pyvimtrt.load_image("a.png", engine.config)

The other calls are `load_model`, `calibrate`, `synthesize` and `build`; each imports what it needs when it is called,
so importing the package loads neither torch nor tensorrt.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvimtrt.api import WeightsFile, build, calibrate, load_model, synthesize
    from pyvimtrt.backends.load import load_engine
    from pyvimtrt.data.images import load_image
    from pyvimtrt.runtime.engine import Engine

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "WeightsFile",
    "__version__",
    "build",
    "calibrate",
    "load_engine",
    "load_image",
    "load_model",
    "synthesize",
]

# Read by OpenMP when it loads, here and in torch. Waiting threads give up their core soon: with the default, calls on a
# machine whose cores are busy with something else take many times longer, because workers spin through whole time
# slices. A value the user set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

_LAZY = {
    "Engine": "pyvimtrt.runtime.engine",
    "load_engine": "pyvimtrt.backends.load",
    "load_image": "pyvimtrt.data.images",
    "build": "pyvimtrt.api",
    "calibrate": "pyvimtrt.api",
    "load_model": "pyvimtrt.api",
    "synthesize": "pyvimtrt.api",
    "WeightsFile": "pyvimtrt.model.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pyvimtrt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what the package offers, what is imported when it is used included."""
    return sorted(__all__)
