"""Membership inference, and the distance to the decision boundary."""
