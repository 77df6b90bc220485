"""Post-training quantization: observers, k-scaling, reparameterization, step search, recipes, the calibration cache."""
