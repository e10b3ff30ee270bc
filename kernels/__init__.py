"""Triton kernels, installed as `fastmix.kernels`."""
