"""Running engines: one `Engine` interface, the CPU engine, the NumPy reference engine, images from files."""
