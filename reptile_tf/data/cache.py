"""Stores decoded images beside their source, so that the next start only maps them into memory.

All processes of a machine share the mapped pages, and only images that a task uses are read. A store consists of two
files: the images, a .npy, and a manifest that identifies them. The manifest is written last, so the two always match.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from reptile_tf import files
from reptile_tf.data import decode as decoder
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.progress import log

_FORMAT = 3  # raise it whenever the files' layout changes, or the pixels of a source that `data.decode` does not read
_KEY = "-[0-9a-f]{12}"  # in the name of the images' file


class Prepared(NamedTuple):
    """Decoded images.

    Attributes:
      images: uint8 [image, height, width, channel].
      counts: number of images of each class, by name, in the order of the images.
      found: further facts about the source, as JSON types.
    """

    images: np.ndarray
    counts: dict[str, int]
    found: dict[str, Any]

    def classes(self, scale: float = 1.0) -> ImageClasses:
        """Returns the images by class."""
        counts = np.array(list(self.counts.values()), np.int64)
        return ImageClasses(self.images, np.cumsum(counts) - counts, counts, tuple(self.counts), scale)


def fingerprint(root: pathlib.Path, sources: Iterable[Any], note: str) -> str:
    """Digests whatever a store depends on: each file's path, size and modification time, `note`, and the decoder.

    Args:
      root: the folder that the paths are relative to, so that a store stays valid when the whole folder moves.
      sources: the source files, in any order: os.DirEntry, or objects with `path` and `stat()` like it.
      note: whatever else the decoded images depend on, such as their size.

    Returns:
      64 hexadecimal digits.
    """
    prefix = len(os.path.join(root, ""))
    lines = []
    for file in sources:
        stat = file.stat()
        lines.append(f"{file.path[prefix:]}\0{stat.st_size}\0{stat.st_mtime_ns}\n")
    text = f"{_FORMAT}\0{decoder.VERSION}\0{note}\n" + "".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def prepared(
    manifest: pathlib.Path,
    key: str,
    shape: tuple[int, ...],
    decode: Callable[[np.ndarray], tuple[dict[str, int], dict[str, Any]]],
    *,
    verify: bool = False,
    required: bool = True,
    dtype: np.dtype | type = np.uint8,
) -> Prepared:
    """Returns the decoded images of a source, from the store if its key matches, otherwise decoded into a new store.

    A damaged store is replaced, with a warning. If several processes start at once, one decodes and the others wait.

    Args:
      manifest: the path of the manifest, PLACE.json; the images are beside it.
      key: the `fingerprint` of the source.
      shape: shape of all images together if none is left out.
      decode: fills uint8 [image, height, width, channel] from the front; returns `Prepared.counts` and `found`.
      verify: read all images at every start and compare them with their checksum.
      required: raise an error if the store cannot be written. Otherwise log a warning and hold the images in memory.
      dtype: dtype of the images.

    Raises:
      UserError: the store cannot be written, or there is no space for it; also any error of `decode`.
    """
    found = _read(manifest, key, shape, dtype, verify)
    if found is None:
        with _alone(manifest) as waited:
            found = _read(manifest, key, shape, dtype, verify) if waited else None
            if found is None:
                try:
                    _write(manifest, key, shape, dtype, decode)
                except files.WriteError as error:
                    if required:
                        raise
                    log.warning(f"the decoded images cannot be kept, so every start decodes them again: {error}")
                    images = np.empty(shape, dtype)
                    return Prepared(images, *decode(images))
                found = _read(manifest, key, shape, dtype, verify=False)
    if found is None:
        raise UserError(f"{manifest} was changed by something else as soon as it was written; run this again")
    return found


def _read(manifest: pathlib.Path, key: str, shape: tuple[int, ...], dtype: Any, verify: bool) -> Prepared | None:
    """Reads the store if its key matches and it is undamaged; returns None otherwise."""
    try:
        stored = files.unsealed(manifest.read_text(encoding="utf-8"))
        if stored["key"] != key:
            log.info(f"the images in {manifest.parent}, or how they are decoded, have changed: preparing them again")
            return None
        images = np.load(_images_path(manifest, key), mmap_mode="r", allow_pickle=False)
        count = sum(stored["counts"].values())
        if images.dtype != dtype or images.shape != shape or count > len(images):
            raise ValueError(f"{count} images of {shape} expected, but {images.dtype} {images.shape} found")
        if verify and hashlib.sha256(images).hexdigest() != stored["images sha256"]:
            raise ValueError("the images' checksum is wrong")
        # np.asarray makes a plain array of the memory map, so that indexing it returns plain arrays.
        return Prepared(np.asarray(images[:count]), stored["counts"], stored["found"])
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy raises many kinds of errors for malformed .npy files
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.EACCES):
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        log.warning(f"{manifest} or its images are damaged ({error}): preparing them again")
        return None


def _write(manifest: pathlib.Path, key: str, shape: tuple[int, ...], dtype: Any, decode: Callable) -> None:
    store = _images_path(manifest, key)
    with files.replacing(store) as part:
        images = files.new_array(part, shape, dtype)
        counts, found = decode(images)
        images.flush()
        digest = hashlib.sha256(images.data).hexdigest()
        del images
    stored = {"key": key, "images sha256": digest, "counts": counts, "found": found}
    try:
        files.write_text(manifest, files.sealed(stored))
    except files.WriteError:
        store.unlink()  # useless without a manifest, and it would take the space of the next store
        raise
    for old in _named(manifest, "", rf"{_KEY}\.npy"):
        if old != store:
            old.unlink(missing_ok=True)


def _images_path(manifest: pathlib.Path, key: str) -> pathlib.Path:
    return manifest.with_name(f"{manifest.stem}-{key[:12]}.npy")


def _named(manifest: pathlib.Path, before: str, after: str) -> list[pathlib.Path]:
    """Lists files beside a manifest whose names are its stem between matches of the patterns `before` and `after`."""
    name = re.compile(before + re.escape(manifest.stem) + after)
    return [path for path in manifest.parent.iterdir() if name.fullmatch(path.name)]


@contextlib.contextmanager
def _alone(manifest: pathlib.Path) -> Iterator[bool]:
    """Locks the store, removes files that a killed process left half written, and yields whether it had to wait."""
    try:
        # Opened for writing, since network file systems lock only such files across hosts.
        lock = open(manifest.with_name(f".{manifest.stem}.lock"), "a")  # noqa: SIM115  (the try covers only this line)
    except OSError:  # the folder cannot be written to, which `_write` will report
        yield False
        return
    with lock:
        waited = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            log.info(f"another process prepares the images in {manifest.parent}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for path in _named(manifest, r"\.", rf"({_KEY})?\..*"):
            if files.is_leftover(path):
                path.unlink(missing_ok=True)
        yield waited
