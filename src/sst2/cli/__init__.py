"""The commands, `python -m sst2.NAME`: `launch`, `doctor`, `prefetch`, `compare`, `predict` and `export`."""
