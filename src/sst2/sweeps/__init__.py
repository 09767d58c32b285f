"""Sweeps: many runs of other settings, and the best of them against a baseline on fresh seeds."""
