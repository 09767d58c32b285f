"""What an evaluation yields: metrics, predictions, intervals and tests, tables of errors."""
