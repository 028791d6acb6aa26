"""Many nets trained together, and the scores that need more than one training."""
