"""Membership inference attacks, and the distance to the decision boundary."""
