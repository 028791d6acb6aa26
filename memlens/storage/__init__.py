"""Atomic files, locks, the cache of finished work, checkpoints of unfinished work."""
