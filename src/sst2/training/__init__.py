"""The trainer: optimizer, CUDA graphs, and the metrics of steps."""
