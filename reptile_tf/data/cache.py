"""Decoded images kept beside their source, so that the next start takes a moment and maps them into memory.

All processes of a machine share them, and nothing is read that no task asks for. A store is two files: the images, a
.npy, and a manifest that says what they are of and is written last, so that there is never a wrong pair.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from reptile_tf import files
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.progress import say

_FORMAT = 2  # raise it whenever the files' layout, or what the decoders produce, changes


class Prepared(NamedTuple):
    """Decoded images.

    Attributes:
      images: uint8 [image, height, width, channel].
      counts: how many images each class has, by name, in the order of the images.
      skipped: the source files left out, relative to the source's folder.
    """

    images: np.ndarray
    counts: dict[str, int]
    skipped: list[str]

    def classes(self, scale: float = 1.0) -> ImageClasses:
        """The images by class."""
        counts = np.array(list(self.counts.values()), np.int64)
        return ImageClasses(self.images, np.cumsum(counts) - counts, counts, tuple(self.counts), scale)


def fingerprint(root: pathlib.Path, sources: Iterable[os.DirEntry], note: str) -> str:
    """Digests what a store depends on: relative path, size and time of change of every source file, and `note`.

    Args:
      root: the folder that the paths are relative to, so that moving all of it keeps the store valid.
      sources: the source files, in any order.
      note: whatever else the decoded images depend on, such as their size.

    Returns:
      64 hexadecimal digits.
    """
    prefix = len(os.path.join(root, ""))
    lines = []
    for file in sources:
        stat = file.stat()
        lines.append(f"{file.path[prefix:]}\0{stat.st_size}\0{stat.st_mtime_ns}\n")
    text = f"{_FORMAT}\0{note}\n" + "".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def prepared(
    manifest: pathlib.Path,
    key: str,
    shape: tuple[int, ...],
    decode: Callable[[np.ndarray], tuple[dict, list[str]]],
    *,
    verify: bool = False,
    required: bool = True,
) -> Prepared:
    """The decoded images of a source: from the store if it was made under `key`, else decoded into a new one.

    A damaged store is made anew, with a warning. Of several processes at once one decodes, and the others wait for it.

    Args:
      manifest: the path of the manifest, PLACE.json; the images are beside it.
      key: the `fingerprint` of the source.
      shape: of the images if none is left out.
      decode: fills uint8 [image, height, width, channel] from the front; returns `Prepared.counts` and `skipped`.
      verify: read all images at every start and compare them with their checksum.
      required: whether a store that cannot be written is an error; else the images are held in memory, with a warning.

    Raises:
      UserError: the store cannot be written, or there is no space for it; or what `decode` raises.
    """
    found = _read(manifest, key, verify)
    if found is None:
        with _alone(manifest) as waited:
            found = _read(manifest, key, verify) if waited else None
            if found is None:
                try:
                    _write(manifest, key, shape, decode)
                except files.WriteError as error:
                    if required:
                        raise
                    say(f"warning: every start will decode the images anew: {error}")
                    images = np.empty(shape, np.uint8)
                    return Prepared(images, *decode(images))
                found = _read(manifest, key, verify=False)
    if found is None:
        raise UserError(f"{manifest} was changed by something else as soon as it was written; run this again")
    return found


def _read(manifest: pathlib.Path, key: str, verify: bool) -> Prepared | None:
    """What is stored if it was made under `key` and is whole."""
    try:
        stored = files.unsealed(manifest.read_text())
        if stored["key"] != key:
            say(f"the images in {manifest.parent} have changed: preparing them again")
            return None
        images = np.load(_images_path(manifest, key), mmap_mode="r", allow_pickle=False)
        count = sum(stored["counts"].values())
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) < count:
            raise ValueError(f"it is of {count} images, and there is {images.dtype} {images.shape}")
        if verify and hashlib.sha256(images).hexdigest() != stored["images sha256"]:
            raise ValueError("the images' checksum is wrong")
    except FileNotFoundError:
        return None
    except (*files.NPZ_ERRORS, TypeError) as error:
        say(f"warning: {manifest} or its images are damaged ({error}): preparing them again")
        return None
    # np.asarray: a plain array on the same map, so that what is indexed out of it is one, too.
    return Prepared(np.asarray(images[:count]), stored["counts"], stored["skipped"])


def _write(manifest: pathlib.Path, key: str, shape: tuple[int, ...], decode: Callable) -> None:
    store = _images_path(manifest, key)
    with files.replacing(store) as part:
        images = files.new_array(part, shape)
        counts, skipped = decode(images)
        images.flush()
        digest = hashlib.sha256(images).hexdigest()
        del images
    stored = {"key": key, "images sha256": digest, "counts": counts, "skipped": skipped}
    files.write_text(manifest, files.sealed(stored))
    for old in manifest.parent.glob(f"{manifest.stem}-*.npy"):
        if old != store:
            old.unlink(missing_ok=True)


def _images_path(manifest: pathlib.Path, key: str) -> pathlib.Path:
    return manifest.with_name(f"{manifest.stem}-{key[:12]}.npy")


@contextlib.contextmanager
def _alone(manifest: pathlib.Path) -> Iterator[bool]:
    """Waits until no other process prepares this store, and removes what a killed one left half written.

    Yields whether it had to wait.
    """
    folder = os.open(manifest.parent, os.O_RDONLY)
    try:
        waited = False
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            say(f"another process prepares the images in {manifest.parent}: waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        for path in manifest.parent.glob(f".{manifest.stem}*"):
            if files.is_leftover(path):
                path.unlink(missing_ok=True)
        yield waited
    finally:
        os.close(folder)
