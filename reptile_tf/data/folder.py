"""Loads the user's images from class folders or a table (see `listing`), decoded as viewers show them."""

import collections
import concurrent.futures
import hashlib
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reptile_tf.data import cache, listing
from reptile_tf.data import decode as decoder
from reptile_tf.data.decode import UnreadableError
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.data.listing import Listing
from reptile_tf.errors import UserError
from reptile_tf.progress import Progress, log

_AT_A_TIME = 4096  # files queued for the threads at a time, since each takes some memory


def load(
    path: str | os.PathLike,
    size: int | tuple[int, int] = 84,
    channels: int = 3,
    *,
    split: Callable[[Mapping[str, int]], Mapping[str, Sequence[str]]] | None = None,
    skip_bad_images: bool = False,
    store: bool = False,
) -> ImageClasses:
    """Loads the images of a folder of class folders, or of a table; classes may differ in size.

    `listing` describes the layouts. `decode.read` describes how an image is decoded: stretched by nearest neighbour.
    Files of identical content in two sets are an error; in two classes of one set they only cause a warning.

    Args:
      path: ROOT of ROOT/CLASS/IMAGE or ROOT/{train,val,test}/CLASS/IMAGE, or a table of paths and labels (.csv).
      size: (height, width) to resize to, or one number for both.
      channels: 3 for RGB or 1 for greyscale; other images are converted.
      split: maps the number of images of each class to the names in each set, as `splits.split_names` does, so that the
        sets can be checked for common images. It is called before any image is decoded, and again when it is known how
        many there are. Without it, the sets in the names are checked, if there are any.
      skip_bad_images: leave out files that are not images and log which, instead of raising an error.
      store: keep the decoded images beside their source for the next start, and map them into memory. If the folder
        cannot be written to, log a warning and hold them in memory.

    Returns:
      Classes "CLASS" or "SET/CLASS", with classes and images sorted by name: uint8 [image, height, width, channels],
      scale 1/255.

    Raises:
      UserError: see `listing.of` and `split`; an image cannot be read; or the same image is in two sets.
      ValueError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    found = listing.of(path)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (height, width, channels)
    place = found.root / f"{found.store}{height}x{width}x{channels}.json" if store else None

    def sets(counts: Mapping[str, int]) -> Mapping[str, str]:
        if split is None:
            return listing.sets_of(list(counts))
        return {name: part for part, names in split(counts).items() for name in names}

    sets({name: len(files) for name, files in found.classes.items()})  # fails before decoding, which may take long
    classes, same = prepare(found, shape, place, skip_bad_images=skip_bad_images, required=False)
    check_apart(same, sets(dict(zip(classes.names, classes.counts.tolist(), strict=True))), found.root)
    return classes


def prepare(
    found: Listing,
    shape: tuple[int, int, int],
    place: pathlib.Path | None,
    *,
    as_stored: bool = False,
    skip_bad_images: bool = False,
    required: bool = True,
) -> tuple[ImageClasses, list[dict[str, str]]]:
    """Decodes the listed files on all cores and shows progress, or reads them from their store.

    Args:
      found: the files.
      shape: height, width and channels.
      place: path of the store's manifest; None for no store.
      as_stored: see `decode.read`.
      skip_bad_images: see `load`.
      required: see `cache.prepared`.

    Returns:
      The classes, and for each image that occurs in several classes one of its files per class (see `check_apart`).
    """
    every = [file for files in found.classes.values() for file in files]
    labels = [name for name, files in found.classes.items() for _ in files]

    def fill(images: np.ndarray) -> tuple[dict[str, int], dict[str, Any]]:
        decoded = decode(every, images, skip_bad_images, "preparing images", as_stored=as_stored)
        bad = set(decoded.bad)
        sound = [index for index in range(len(every)) if index not in bad]
        for to, index in enumerate(sound):  # closes the gaps, in place
            if to != index:
                images[to] = images[index]
        paths = [os.path.relpath(file.path, found.root) for file in every]
        owners: dict[bytes, dict[str, str]] = collections.defaultdict(dict)
        for index in sound:
            owners[decoded.digests[index]].setdefault(labels[index], paths[index])
        counts = dict.fromkeys(found.classes, 0) | collections.Counter(labels[index] for index in sound)
        return counts, {
            "skipped": [paths[index] for index in decoded.bad],
            "several": [paths[index] for index in decoded.several],
            "same": [files for files in owners.values() if len(files) > 1],
        }

    if place is None:
        images = np.empty((len(every), *shape), np.uint8)
        counts, notes = fill(images)
        ready = cache.Prepared(images[: sum(counts.values())], counts, notes)
    else:
        note = f"images {shape} {decoder.RESAMPLING} {as_stored} {skip_bad_images} {found.note}"
        key = cache.fingerprint(found.root, every, note)
        ready = cache.prepared(place, key, (len(every), *shape), fill, required=required)
    for name in ready.found["skipped"]:
        log.warning(f"left out, since it is not an image: {found.root / name}")
    if several := ready.found["several"]:
        one = found.root / several[0]
        log.info(f"files with several pictures, of which the first is taken: {len(several)}, such as {one}")
    return ready.classes(scale=1 / 255), ready.found["same"]


def check_apart(same: Sequence[Mapping[str, str]], sets: Mapping[str, str], root: pathlib.Path) -> None:
    """Warns of images that occur in two classes; raises UserError if one occurs in two sets.

    Args:
      same: for each image that occurs in several classes, one of its files per class.
      sets: the set of each class; empty if there are no sets or they are not to be checked.
      root: the folder that the files' paths are relative to.
    """
    crossing = [files for files in same if len({sets[name] for name in files if name in sets}) > 1]
    if crossing:
        one = {sets[name]: file for name, file in crossing[0].items() if name in sets}
        raise UserError(
            f"the same image is in the sets {', '.join(one)}: {', '.join(one.values())} in {root} (1 of "
            f"{len(crossing)} such images); test images must not be trained on: remove all but one of each"
        )
    if same:
        files = list(same[0].values())
        log.warning(f"images in several classes: {len(same)}, such as {' and '.join(files[:2])} in {root}")


class Decoded(NamedTuple):
    """Facts about decoded files.

    Attributes:
      bad: sorted indices of files that are not images.
      several: sorted indices of files with several pictures.
      digests: SHA-256 of each file's content.
    """

    bad: list[int]
    several: list[int]
    digests: list[bytes]


def decode(
    files: Sequence[os.DirEntry | listing.File],
    images: np.ndarray,
    skip_bad_images: bool = False,
    progress: str = "",
    *,
    as_stored: bool = False,
) -> Decoded:
    """Decodes, resizes and converts `files` into `images`, on all cores.

    Args:
      files: the image files.
      images: uint8 [file, height, width, channels], written to; may be memory-mapped.
      skip_bad_images: leave the rows of files that are not images unchanged, instead of raising an error.
      progress: label of the progress line; "" for no progress line.
      as_stored: see `decode.read`.

    Raises:
      UserError: a file is not an image (unless `skip_bad_images`), or cannot be read.
    """
    height, width, channels = images.shape[1:]
    digests = [b""] * len(files)

    def read(index: int) -> tuple[bool, bool]:
        try:
            found = decoder.picture(files[index].path, (height, width), channels, as_stored=as_stored)
        except UserError as error:
            if not skip_bad_images or isinstance(error, UnreadableError):
                raise
            return False, False
        images[index] = found.pixels
        digests[index] = _digest(files[index].path)
        return True, found.several

    # Threads suffice, because decoding releases Python's global lock.
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    bad, several = [], []
    try:
        with Progress(progress, len(files), unit="image", silent=not progress) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # about metadata that does not affect the pixels
            for first in range(0, len(files), _AT_A_TIME):
                which = range(first, min(first + _AT_A_TIME, len(files)))
                for index, (is_sound, has_more) in zip(which, pool.map(read, which), strict=True):
                    bar.advance(1)
                    if not is_sound:
                        bad.append(index)
                    if has_more:
                        several.append(index)
    finally:
        pool.shutdown(cancel_futures=True)
    return Decoded(bad, several, digests)


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}; fix that") from error
