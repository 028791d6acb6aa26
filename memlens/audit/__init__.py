"""Audit of labelled images: reading, duplicates, suspected labels, the report."""
