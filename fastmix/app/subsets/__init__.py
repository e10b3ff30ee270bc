"""Subsets of the training images, chosen by the spread of their loss: behind ``python -m fastmix subsample``."""
