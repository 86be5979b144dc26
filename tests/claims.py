"""A run's folder, claimed as a run does it."""


def claim(folder, config):
    """Claims the `RunFolder` and lets other processes have it again."""
    with folder.claimed(config):
        pass
