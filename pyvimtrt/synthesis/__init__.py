"""Images made from a model's weights alone, to calibrate it without data."""
