"""A run's folder, claimed as a run does it."""


def claim(folder, config, saved=True):
    """Claims the `RunFolder`, saves something in it, and lets other processes have it again."""
    with folder.claimed(config):
        if saved:
            (folder.path / "results.json").touch()
