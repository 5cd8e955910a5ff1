"""Sweeps: many cells planned, run anywhere, chosen on held-out clips."""
