"""Decoded 0/1 images kept beside their source, so that the next start takes a moment."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from absl import logging

from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.files import NPZ_ERRORS, replacing

_FORMAT = 1  # raise it whenever the file's layout, or what the decoders produce, changes


def fingerprint(root: pathlib.Path, files: Iterable[os.DirEntry], note: str) -> str:
    """Digests what a cache depends on: relative path, size and time of change of every source file, and `note`.

    Args:
      root: the folder that the paths are relative to, so that moving all of it keeps the cache valid.
      files: the source files, in any order.
      note: whatever else the decoded images depend on, such as their size.

    Returns:
      64 hexadecimal digits.
    """
    prefix = len(os.path.join(root, ""))
    lines = []
    for file in files:
        stat = file.stat()
        lines.append(f"{file.path[prefix:]}\0{stat.st_size}\0{stat.st_mtime_ns}\n")
    text = f"{_FORMAT}\0{note}\n" + "".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def cached(path: pathlib.Path, key: str, build: Callable[[], ImageClasses]) -> ImageClasses:
    """Loads 0/1 images from the cache at `path` if it was written under `key`; else builds them and writes it.

    A damaged cache is rebuilt, and one that cannot be written is done without; both are logged as warnings.

    Args:
      path: the .npz file.
      key: the `fingerprint` of the source.
      build: makes the classes; every pixel must be 0 or 1, and scale 1.

    Returns:
      What `build` returns or returned.
    """
    try:
        classes = _read(path, key)
    except FileNotFoundError:
        classes = None
    except NPZ_ERRORS as error:
        logging.warning("%s is damaged (%s); decoding the images again", path, error)
        classes = None
    if classes is None:
        classes = build()
        try:
            _write(path, key, classes)
        except UserError as error:
            logging.warning("every start will decode the images anew: %s", error)
    return classes


def _read(path: pathlib.Path, key: str) -> ImageClasses | None:
    # Opened here, because np.load leaves a file that is no zip open.
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        if str(file["key"]) != key:
            return None
        shape, counts = file["shape"], file["counts"]
        images = np.unpackbits(file["bits"], count=shape.prod()).reshape(shape)
        return ImageClasses(images, np.cumsum(counts) - counts, counts, tuple(file["names"].tolist()))


def _write(path: pathlib.Path, key: str, classes: ImageClasses) -> None:
    arrays = {
        "key": np.array(key),
        "bits": np.packbits(classes.images),
        "shape": np.array(classes.images.shape),
        "counts": classes.counts,
        "names": np.array(classes.names),
    }
    with replacing(path) as part:
        np.savez(part, **arrays)
