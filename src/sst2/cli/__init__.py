"""The commands, `sst2 NAME`: `launch`, `doctor`, `prefetch`, `sweep`, `compare`, `predict` and `export`."""
