"""Comparing engines and models: how far answers lie apart and which tensors it costs; the options of
`polygraphy run`.
"""
