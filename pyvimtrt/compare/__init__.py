"""NVIDIA's Polygraphy meets this package: runners, data, plugins and node references for `polygraphy run`. Needs the extra `compare`."""
