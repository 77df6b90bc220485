"""Files for other systems: the fp32 model as plain ONNX."""
