"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator

from reptile_tf.errors import UserError

# What np.load raises, with allow_pickle off, when the bytes are not those of a sound .npz.
NPZ_ERRORS = (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path of a file to write, which takes the place of `path` once it is written and on disk.

    Until then an older file at `path` stays as it is; if the body raises, nothing is left behind.

    Raises:
      UserError: the folder cannot be written to, or the disk is full.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        try:
            yield part
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free the space or choose another folder"
        ) from error


def is_leftover(path: pathlib.Path) -> bool:
    """Whether `path` is named as `replacing` names a file that is being written: what a killed process leaves."""
    return re.fullmatch(r"\..*\.\d+\.part(\.[^.]*)?", path.name) is not None


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces the file at `path` by `text` (UTF-8), whole or not at all; raises UserError as `replacing` does."""
    with replacing(path) as part:
        part.write_text(text)
