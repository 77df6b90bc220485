"""The model of Triton's Python backend: a network of this package by the CUDA engine. `pyvimtrt export triton` copies
this file into the repository.

Each instance has an engine on the GPU that Triton gives it, or on the CPU for KIND_CPU. The requests of a batch run
together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import pyvimtrt
from pyvimtrt.errors import VimTrtError
from pyvimtrt.graph.network import INPUT_NAME, OUTPUT_NAME


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine."""
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        on_gpu = args["model_instance_kind"] == "GPU"
        device = int(args["model_instance_device_id"]) if on_gpu else None
        self._engine = pyvimtrt.load_engine(file, backend="cuda" if on_gpu else "cpu", device=device)
        most = int(json.loads(args["model_config"])["max_batch_size"])
        config = self._engine.config
        self._engine.run(np.zeros((most, config.channels, config.img, config.img), np.uint8))  # takes the memory

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response for each request; images are int8, pixel - 128."""
        images = [pb_utils.get_input_tensor_by_name(request, INPUT_NAME).as_numpy() for request in requests]
        try:
            pixels = np.concatenate(images).view(np.uint8) ^ np.uint8(128)
            logits = self._engine.run(pixels)
        except VimTrtError as error:
            failed = pb_utils.TritonError(str(error))
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        ends = np.cumsum([len(each) for each in images])[:-1]
        return [pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT_NAME, part)]) for part in np.split(logits, ends)]

    def finalize(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()
