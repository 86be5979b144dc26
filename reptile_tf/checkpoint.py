"""The folder of a run: its configuration, its newest checkpoints, and everything the run leaves behind.

A checkpoint is one .npz of plain arrays (read without pickle) that appears whole or not at all.
"""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from reptile_tf import files
from reptile_tf.errors import UserError
from reptile_tf.settings import Settings, flag

KEEP = 2


class Checkpoint(NamedTuple):
    """What a run needs to go on.

    Attributes:
      iteration: meta-iterations done; the sampling state, too, since tasks are numbered by it.
      seconds: spent training so far.
      state: the learner's (`MetaLearner.state`).
      history: float64 [task, 3], the looks at held-out classes so far: meta-iteration, seconds of training, accuracy.
    """

    iteration: int
    seconds: float
    state: dict[str, np.ndarray]
    history: np.ndarray


class RunFolder:
    """A folder with config.json, checkpoint-ITERATION.npz and a run's results.

    Args:
      path: made by `claim` if it does not exist.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self._config_path = self.path / "config.json"

    def config(self) -> dict[str, Any]:
        """What `claim` wrote: {"benchmark": name, "settings": {…}, "split": {set of classes: [names]}}.

        Raises:
          UserError: there is none, or it cannot be read.
        """
        try:
            config = json.loads(self._config_path.read_text())
            config["benchmark"], config["settings"], config["split"]
        except FileNotFoundError as error:
            raise UserError(
                f"no run in {self.path}: it has no config.json; name its folder with --checkpoint"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read {self._config_path}: {error!r}") from error
        return config

    def claim(self, config: dict[str, Any]) -> None:
        """Makes the folder this run's, or finds that it already is.

        Raises:
          UserError: it is another run's, holds something else, or cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = sorted(p.name for p in self.path.iterdir() if not files.is_leftover(p))
        except OSError as error:
            raise UserError(f"cannot use {self.path} as --checkpoint: {error.strerror}") from error
        if not os.access(self.path, os.W_OK):
            raise UserError(f"cannot use {self.path} as --checkpoint: it cannot be written to")
        if self._config_path.name in found:
            differences = _differences(self.config(), config)
            if differences:
                raise UserError(
                    f"{self.path} holds a run with other settings: {'; '.join(differences)}. "
                    "Choose another --checkpoint, or the same settings to go on with it"
                )
            return
        if found:
            raise UserError(f"{self.path} is not a run's folder (it holds {found[0]}); choose another --checkpoint")
        files.write_text(self._config_path, json.dumps(config, indent=1) + "\n")

    def save(self, checkpoint: Checkpoint) -> None:
        """Adds a checkpoint and drops all but the newest few; raises UserError if the disk does not take it."""
        path = self._checkpoint_path(checkpoint.iteration)
        with files.replacing(path) as part:
            np.savez(
                part,
                iteration=checkpoint.iteration,
                seconds=checkpoint.seconds,
                history=checkpoint.history,
                **{f"state/{name}": value for name, value in checkpoint.state.items()},
            )
        for old in self.iterations()[:-KEEP]:
            self._checkpoint_path(old).unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint, or None before the first.

        Raises:
          UserError: it cannot be read.
        """
        iterations = self.iterations()
        if not iterations:
            return None
        path = self._checkpoint_path(iterations[-1])
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                state = {n.removeprefix("state/"): arrays[n] for n in arrays.files if n.startswith("state/")}
                return Checkpoint(int(arrays["iteration"]), float(arrays["seconds"]), state, arrays["history"])
        except files.NPZ_ERRORS as error:
            raise UserError(f"cannot read {path} ({error}); delete it to go on from the one before") from error

    def iterations(self) -> list[int]:
        """The meta-iterations that have a checkpoint, in order."""
        names = [re.fullmatch(r"checkpoint-(\d+)\.npz", p.name) for p in self.path.glob("checkpoint-*.npz")]
        return sorted(int(name[1]) for name in names if name)

    def _checkpoint_path(self, iteration: int) -> pathlib.Path:
        return self.path / f"checkpoint-{iteration:07}.npz"


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What differs between two configurations, in the user's words."""
    if theirs["benchmark"] != ours["benchmark"]:
        return [f"{theirs['benchmark']} there, {ours['benchmark']} here"]
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}  # of what is newer than the run
    names = sorted(theirs["settings"].keys() | ours["settings"].keys())
    pairs = {name: [c["settings"].get(name, defaults.get(name)) for c in (theirs, ours)] for name in names}
    differing = [f"{flag(name)} {a} there, {b} here" for name, (a, b) in pairs.items() if a != b]
    if not differing and theirs["split"] != ours["split"]:
        differing = ["the images there are of other classes than the ones here"]
    return differing
