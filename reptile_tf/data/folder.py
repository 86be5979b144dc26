"""Photographs in one folder per class, such as Mini-ImageNet's train, val and test folders."""

import concurrent.futures
import os
import pathlib

import numpy as np
from PIL import Image

from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg")  # in any case
_MODES = {1: "L", 3: "RGB"}


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
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"no folder {path}; name one that holds a folder of images for each class")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UserError(f"no class folders in {path}; put the images of each class into a folder of its own there")
    files = [sorted(file for file in folder.iterdir() if _is_image(file)) for folder in folders]
    for folder, found in zip(folders, files, strict=True):
        if not found:
            raise UserError(f"no PNG or JPEG images in {folder}; put some there or remove it")

    counts = np.array([len(found) for found in files], np.int64)
    images = np.empty((counts.sum(), size, size, channels), np.uint8)

    def read(index: int, file: pathlib.Path) -> None:
        images[index] = _read(file, size, channels)

    # Threads, because decoding JPEG leaves Python's lock; they fill one array, because the set may be gigabytes.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        every = [file for found in files for file in found]
        for _ in pool.map(read, range(len(every)), every):
            pass
    names = tuple(folder.name for folder in folders)
    return ImageClasses(images, np.cumsum(counts) - counts, counts, names, scale=1 / 255)


def _is_image(file: pathlib.Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()


def _read(file: pathlib.Path, size: int, channels: int) -> np.ndarray:
    """One image: uint8 [size, size, channels]."""
    try:
        with Image.open(file) as image:
            # Before the conversion, which it commutes with: there are fewer pixels to convert.
            small = image.resize((size, size), Image.Resampling.NEAREST)
            return np.asarray(small.convert(_MODES[channels])).reshape(size, size, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all of Pillow's ways to say it
        raise UserError(f"cannot read {file} as an image ({error}); replace or remove it") from error
