"""The folder of a run: its configuration, its newest checkpoints and its results.

A checkpoint is one .npz file of plain arrays, read without pickle and written atomically. It contains a copy of the
run's configuration. Its zip comment is the SHA-256 of all bytes before it, so that a damaged checkpoint is detected,
reported and skipped.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from reptile_tf import configuration, files
from reptile_tf.errors import UserError
from reptile_tf.progress import log

KEEP = 2
LOCK = ".lock"
_DIGEST = 64  # hex digits


class Checkpoint(NamedTuple):
    """What a run needs to resume.

    Attributes:
      iteration: number of finished meta-iterations. It is also the sampling state, because it numbers the tasks.
      seconds: training time so far.
      state: the learner's state, from `MetaLearner.state`.
      history: float64 [task, 3], the validation tasks so far: meta-iteration, seconds of training, accuracy.
    """

    iteration: int
    seconds: float
    state: dict[str, np.ndarray]
    history: np.ndarray


class RunFolder:
    """A folder with config.json, checkpoint-ITERATION.npz and a run's results.

    Args:
      path: path of the folder; `claimed` creates it if it does not exist.

    Attributes:
      path: path of the folder.
      is_claimed: whether this object has locked the folder (in the body of `claimed`).
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self._config_path = self.path / "config.json"
        self.is_claimed = False
        self._text = ""  # once claimed, the configuration, which every checkpoint copies

    def config(self) -> dict[str, Any]:
        """Reads the configuration that `claimed` wrote (see `configuration.of_run`).

        If config.json is damaged or missing, the copy in the newest undamaged checkpoint is used, with a warning.

        Raises:
          UserError: there is no configuration, or it cannot be read.
        """
        try:
            return configuration.parsed(self._config_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            wrong = "it is missing"
        except (OSError, ValueError) as error:
            wrong = str(error)
        for _, copy in self._whole([]):
            with contextlib.suppress(ValueError):
                config = configuration.parsed(copy)
                log.warning(f"cannot read {self._config_path} ({wrong}); using a checkpoint's copy of it")
                return config
        raise UserError(f"no run in {self.path}: cannot read config.json ({wrong}); name its folder with --checkpoint")

    @contextlib.contextmanager
    def claimed(self, config: dict[str, Any]) -> Iterator[None]:
        """Locks the folder for this run in the body of a `with` statement, and writes the run's configuration.

        Also removes files that a killed process left half written. The operating system releases the lock when its
        process ends.

        Raises:
          UserError: the folder holds another run or other files, cannot be written to, or is locked by another process.
        """
        config = self._checked(config)  # before the lock file is created
        before = self._config_bytes()
        try:
            lock = open(self.path / LOCK, "a+")  # noqa: SIM115  (the body's errors are not this file's)
        except OSError as error:
            raise UserError(f"cannot use {self.path} as --checkpoint: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise UserError(
                    f"{self.path} is in use by {holder}: wait for it, or choose another --checkpoint"
                ) from error
            except OSError as error:
                raise UserError(f"cannot lock {lock.name}: {error.strerror}; choose another --checkpoint") from error
            if self._config_bytes() != before:  # another process has claimed the folder in the meantime
                config = self._checked(config)
            lock.truncate(0)
            print(f"process {os.getpid()} on {os.uname().nodename}", file=lock, flush=True)
            for path in filter(files.is_leftover, self.path.iterdir()):
                if not path.name.startswith(".evaluation-"):  # an evaluation writes these without the lock
                    path.unlink(missing_ok=True)
            self._text = files.sealed(config)
            if self._config_bytes() != self._text.encode():
                files.write_text(self._config_path, self._text)
            self.is_claimed = True
            try:
                yield
            finally:
                self.is_claimed = False

    def _config_bytes(self) -> bytes:
        return self._config_path.read_bytes() if self._config_path.exists() else b""

    def _checked(self, config: dict[str, Any]) -> dict[str, Any]:
        """Returns the configuration, with the oneDNN setting that the folder's run began with if it holds this run.

        Raises:
          UserError: the folder holds another run, or cannot be used for a run.
        """
        if not self._is_a_runs():
            return config
        theirs = self.config()
        if differences := configuration.differences(theirs, config):
            raise UserError(
                f"{self.path} holds a run with other settings: {'; '.join(differences)}. "
                "Choose another --checkpoint, or the same settings to resume it"
            )
        if onednn := config.get("onednn"):
            return config | {"onednn": configuration.begun_with(theirs, onednn)}
        return config

    def _is_a_runs(self) -> bool:
        """Returns whether the folder, created if it does not exist, holds a run; raises UserError as `claimed` does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = sorted(p.name for p in self.path.iterdir() if p.name != LOCK and not files.is_leftover(p))
        except OSError as error:
            raise UserError(f"cannot use {self.path} as --checkpoint: {error.strerror}") from error
        if not os.access(self.path, os.W_OK):
            raise UserError(f"cannot use {self.path} as --checkpoint: it cannot be written to")
        if self._config_path.name in found and set(found) <= {self._config_path.name, "events"}:
            with contextlib.suppress(UserError):  # raised for a config.json that no run has written
                self.config()
                return False  # the earlier run ended before its first checkpoint: another run may use the folder
        if self._config_path.name in found or self.iterations():
            return True
        if found:
            raise UserError(f"{self.path} is not a run's folder (it holds {found[0]}); choose another --checkpoint")
        return False

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint and removes all but the newest ones; raises UserError if it cannot be written."""
        arrays: dict[str, Any] = {f"state/{name}": value for name, value in checkpoint.state.items()}
        arrays |= {"iteration": checkpoint.iteration, "seconds": checkpoint.seconds, "history": checkpoint.history}
        content = io.BytesIO()
        np.savez(content, config=np.frombuffer(self._text.encode(), np.uint8), **arrays)
        with zipfile.ZipFile(content, "a") as archive:
            archive.comment = bytes(_DIGEST)  # reserves the space of the digest
        body = content.getvalue()[:-_DIGEST]
        with files.replacing(self._checkpoint_path(checkpoint.iteration)) as part:
            part.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
        # Any newer checkpoints are damaged, because otherwise the run would have resumed from them.
        for old in [i for i in self.iterations() if i <= checkpoint.iteration][:-KEEP]:
            self._checkpoint_path(old).unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """Reads the newest undamaged checkpoint. A warning names each newer, damaged one.

        Returns:
          The checkpoint, or None if there is none.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        damaged: list[str] = []
        found = next(self._whole(damaged), None)
        if found:
            for each in damaged:
                log.warning(f"cannot read {each}; using the checkpoint of meta-iteration {found[0].iteration}")
            return found[0]
        if damaged:
            raise UserError(
                f"no checkpoint can be read: {', '.join(damaged)}; restore one from a backup, or choose another "
                "--checkpoint to train from the start"
            )
        return None

    def _whole(self, damaged: list[str]) -> Iterator[tuple[Checkpoint, str]]:
        """Yields undamaged checkpoints, newest first, each with its configuration; appends others to `damaged`."""
        for iteration in reversed(self.iterations()):
            path = self._checkpoint_path(iteration)
            try:
                yield _read(path)
            except (OSError, ValueError) as error:
                damaged.append(f"{path} ({error})")

    def iterations(self) -> list[int]:
        """Returns the meta-iterations of all checkpoints, in increasing order."""
        names = [re.fullmatch(r"checkpoint-(\d+)\.npz", p.name) for p in self.path.glob("checkpoint-*.npz")]
        return sorted(int(name[1]) for name in names if name)

    def _checkpoint_path(self, iteration: int) -> pathlib.Path:
        return self.path / f"checkpoint-{iteration:07}.npz"


def _read(path: pathlib.Path) -> tuple[Checkpoint, str]:
    """Reads a checkpoint and its configuration; raises OSError, or ValueError if the file is damaged."""
    content = path.read_bytes()
    if hashlib.sha256(content[:-_DIGEST]).hexdigest().encode() != content[-_DIGEST:]:
        raise ValueError("it is damaged, or from an earlier version: its checksum is wrong")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            state = {n.removeprefix("state/"): arrays[n] for n in arrays.files if n.startswith("state/")}
            one = Checkpoint(int(arrays["iteration"]), float(arrays["seconds"]), state, arrays["history"])
            return one, arrays["config"].tobytes().decode()
    except Exception as error:  # zipfile and NumPy raise many kinds of errors for a damaged .npz
        raise ValueError(f"it is not a checkpoint of this version: {error}") from error
