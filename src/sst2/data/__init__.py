"""From files, the hub or the embedded sample to batches: reading, splits, tokenization, order, packing."""
