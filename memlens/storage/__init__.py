"""Files that survive kills, locks, the store of finished work, checkpoints of unfinished work."""
