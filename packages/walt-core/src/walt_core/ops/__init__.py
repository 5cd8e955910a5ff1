"""Attention and window operations."""
