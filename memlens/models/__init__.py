"""Small networks and the papers' networks."""
