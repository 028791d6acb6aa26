"""Record what happens to every sample while any loop trains, and score it."""
