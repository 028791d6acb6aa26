"""Data sets in memory, by name and in folders, and published scores of their samples."""
