"""Photographs in one folder per class, such as Mini-ImageNet's train, val and test folders."""

import concurrent.futures
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.fetch.image_files import SUFFIXES, visible
from reptile_tf.progress import Progress

_MODES = {1: "L", 3: "RGB"}
RESAMPLING = Image.Resampling.NEAREST  # the paper's: the default of the Pillow that its code was run with


class UnreadableError(UserError):
    """A file that could not be read at all; it may be an image."""


def load(path: str | os.PathLike, size: int = 84, channels: int = 3) -> ImageClasses:
    """Loads `path/CLASS/IMAGE`, classes and images in the order of their names; classes may differ in size.

    Images are stretched to a square by nearest neighbour, as the paper's code did. Transparency is ignored.

    Args:
      path: the folder of class folders; PNG and JPEG files are taken, hidden ones and all others are not.
      size: height and width to resize to.
      channels: 3 for RGB or 1 for greyscale; images of other kinds are converted.

    Returns:
      One class per folder, under its name: uint8 [image, size, size, channels], scale 1/255.

    Raises:
      UserError: the folder is missing, has no class folders, a class has no images, or an image cannot be read.
      ValueError: `channels` is neither 1 nor 3.
    """
    if channels not in _MODES:
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    classes = scan(path)
    counts = np.array([len(found) for found in classes.values()], np.int64)
    images = np.empty((counts.sum(), size, size, channels), np.uint8)
    decode([file for found in classes.values() for file in found], images)
    return ImageClasses(images, np.cumsum(counts) - counts, counts, tuple(classes), scale=1 / 255)


def scan(path: str | os.PathLike) -> dict[str, list[os.DirEntry]]:
    """Lists the image files of each class of `path/CLASS/IMAGE`, both in the order of their names.

    Raises:
      UserError: the folder is missing, has no class folders, or a class has no images.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"no folder {path}; name one that holds a folder of images for each class")
    folders = [entry for entry in visible(path) if entry.is_dir()]
    if not folders:
        raise UserError(f"no class folders in {path}; put the images of each class into a folder of its own there")
    classes = {}
    for folder in folders:
        classes[folder.name] = [e for e in visible(folder) if e.name.lower().endswith(SUFFIXES) and e.is_file()]
        if not classes[folder.name]:
            raise UserError(f"no PNG or JPEG images in {folder.path}; put some there, or move it away")
    return classes


def decode(
    files: Sequence[os.DirEntry], images: np.ndarray, skip_bad_images: bool = False, progress: str = ""
) -> list[int]:
    """Decodes, resizes and converts `files` into `images`, on all cores.

    Args:
      files: PNG or JPEG files.
      images: uint8 [file, size, size, channels], written to; may be memory-mapped.
      skip_bad_images: leave the place of a file that is no image as it is, instead of stopping.
      progress: what to call this in a progress line; without it there is none.

    Returns:
      The indices of the files that are no images, in order.

    Raises:
      UserError: one is no image (unless they are skipped), or cannot be read.
    """

    def read(index: int) -> bool:
        try:
            images[index] = _read(files[index], *images.shape[2:])
        except UserError as error:
            if not skip_bad_images or isinstance(error, UnreadableError):
                raise
            return False
        return True

    # Threads, because decoding JPEG leaves Python's lock.
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    bad = []
    try:
        with Progress(progress, len(files), unit="image", silent=not progress) as bar:
            for index, sound in enumerate(pool.map(read, range(len(files)))):
                bar.advance(1)
                if not sound:
                    bad.append(index)
    finally:
        pool.shutdown(cancel_futures=True)
    return bad


def _read(file: os.DirEntry, size: int, channels: int) -> np.ndarray:
    """One image: uint8 [size, size, channels]."""
    try:
        with Image.open(file.path) as image:
            # Before the conversion, which it commutes with: there are fewer pixels to convert.
            small = image.resize((size, size), RESAMPLING)
            return np.asarray(small.convert(_MODES[channels])).reshape(size, size, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all of Pillow's ways to say it
        if isinstance(error, OSError) and error.errno:  # the machine's, which says nothing of the image
            raise UnreadableError(f"cannot read {file.path}: {error.strerror}; put that right") from error
        raise UserError(f"cannot read {file.path} as an image ({error}); replace it, or move it away") from error
