"""The quantized network: operator schemas, a NumPy reference of each operator, assembly of the ONNX file."""
