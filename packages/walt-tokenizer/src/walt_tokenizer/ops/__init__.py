"""Kernels with a plain reference beside them."""
