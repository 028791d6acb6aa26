"""A checkpoint that stands for a kill: it saves after every epoch, and ends the training."""

from memlens.storage.checkpoints import TrainingCheckpoint


class Killed(Exception):
    """Stands for a kill between two epochs."""


class Mortal(TrainingCheckpoint):
    """Saves after every epoch, and dies after the given number of them."""

    def __init__(self, path, lives):
        super().__init__(path)
        self.lives = lives

    def is_due(self):
        return True

    def save(self, state):
        super().save(state)
        self.lives -= 1
        if not self.lives:
            raise Killed
