"""Small nets, and the papers' own."""
