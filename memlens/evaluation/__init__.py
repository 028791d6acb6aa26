"""Similarity with intervals, detection, calibration, and plots."""
