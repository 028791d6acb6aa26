"""Your own data: read it, score it, report what looks wrong."""
