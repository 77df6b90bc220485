"""Post-training quantization: observers, k-scaling, reparameterization, scale search, recipes, calibration caches."""
