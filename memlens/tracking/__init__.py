"""Record per-sample signals in any training loop, and score every sample."""
