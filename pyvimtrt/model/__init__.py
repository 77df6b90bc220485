"""Vision Mamba: configurations (no torch needed), the PyTorch model, checkpoints."""
