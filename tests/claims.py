"""Claims a run's folder in the same way as a run."""


def claim(folder, config, saved=True):
    """Claims the `RunFolder`, optionally saves something in it, and releases it."""
    with folder.claimed(config):
        if saved:
            (folder.path / "results.json").touch()
