"""`pyvimtrt score`: classifies any number of images into Parquet, on one machine or, through Ray, on many."""
