"""Where a run's numbers go: TensorBoard, metrics.jsonl, other trackers, environment.json."""
