"""NumPy references of the operators: the numeric contract (docs/numerics.md) in its plainest form, one file each, named
by the operator's stem.
"""
