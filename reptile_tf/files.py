"""Writes files atomically, and detects damaged ones."""

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
    """Raised if a file cannot be written. An earlier file at its path is unchanged."""


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a temporary file, which replaces `path` once it is written and on disk.

    Until then an earlier file at `path` is unchanged. If the body raises, the temporary file is removed.

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
        raise WriteError(f"cannot write {path}: {reason}; fix that, or choose another folder") from error


def is_leftover(path: pathlib.Path) -> bool:
    """Returns whether `path` has the name of a temporary file of `replacing`, which a killed process leaves behind."""
    return re.fullmatch(r"\..*\.\d+\.part(\.[^.]*)?", path.name) is not None


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path` atomically; raises WriteError as `replacing` does."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def new_array(path: pathlib.Path, shape: tuple[int, ...], dtype: Any = np.uint8) -> np.memmap:
    """Creates a memory-mapped .npy file of zeros; raises OSError if there is no space for it.

    The zeros are written, because writing to a map without disk space would kill the process. (A file system that
    compresses or copies on write may still run out of space.)
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "rb+") as file:
        for place in range(array.offset, array.offset + array.nbytes, _BLOCK):
            file.seek(place)
            file.write(bytes(min(_BLOCK, array.offset + array.nbytes - place)))
    return array


def sealed(content: dict[str, Any]) -> str:
    """Returns a JSON object as text that contains its SHA-256, which `unsealed` checks."""
    return json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n"


def unsealed(text: str) -> dict[str, Any]:
    """Returns the object in a text of `sealed`; raises ValueError if the text was changed."""
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
