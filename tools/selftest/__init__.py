"""The parts of tools/gpu_selftest.py."""
