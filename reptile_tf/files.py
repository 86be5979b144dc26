"""Files that appear whole or not at all, and show when they are damaged."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from reptile_tf.errors import UserError

_BLOCK = 16 << 20  # bytes


class WriteError(UserError):
    """A file that could not be written; what was there before is as it was."""


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path of a file to write, which takes the place of `path` once it is written and on disk.

    Until then an older file at `path` stays as it is; if the body raises, nothing is left behind.

    Raises:
      WriteError: the folder cannot be written to, or the disk is full.
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
        reason = error.strerror or error
        raise WriteError(f"cannot write {path}: {reason}; put that right, or choose another folder") from error


def is_leftover(path: pathlib.Path) -> bool:
    """Whether `path` is named as `replacing` names a file that is being written: what a killed process leaves."""
    return re.fullmatch(r"\..*\.\d+\.part(\.[^.]*)?", path.name) is not None


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces the file at `path` by `text` (UTF-8), whole or not at all; raises WriteError as `replacing` does."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def new_array(path: pathlib.Path, shape: tuple[int, ...], dtype: Any = np.uint8) -> np.memmap:
    """A new .npy file of zeros, mapped into memory; raises OSError if there is no space for it.

    The zeros are written, since a map over space that is not there would kill the process once the disk is full. (File
    systems that compress or copy on write may still not have it.)
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "rb+") as file:
        for place in range(array.offset, array.offset + array.nbytes, _BLOCK):
            file.seek(place)
            file.write(bytes(min(_BLOCK, array.offset + array.nbytes - place)))
    return array


def sealed(content: dict[str, Any]) -> str:
    """A JSON object as text that holds its own SHA-256, for `unsealed` to check."""
    return json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n"


def unsealed(text: str) -> dict[str, Any]:
    """What `sealed` was given; raises ValueError if the text is not just as it was."""
    try:
        content = json.loads(text)
        whole = content.pop("sha256") == _digest(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError("it is damaged, or of an earlier version")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
