"""Labelled and unlabelled image sets: a folder per class, .npz, or the IDX files of (Fashion-)MNIST."""
