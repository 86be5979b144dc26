"""Prepares image files in the same way as a learner's training images."""

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from reptile_tf.data import decode, drawings, listing
from reptile_tf.errors import UserError
from reptile_tf.fetch.image_files import visible
from reptile_tf.origin import TWO_VALUES

if TYPE_CHECKING:
    from reptile_tf.meta import MetaLearner

Paths = str | os.PathLike | Sequence[str | os.PathLike]


def images(paths: Paths, like: "MetaLearner") -> np.ndarray:
    """Reads image files with the size, channels and pixel values of a learner's training images.

    For a learner of binary drawings, such as Omniglot's, each photograph or scan is converted to a binary drawing (see
    `data.drawings`). For other learners an image is only resized and converted.

    Args:
      paths: a file, several files, or a folder of images, which are read in the order of their names.
      like: the learner.

    Returns:
      uint8 [image, height, width, channel], for `learner.adapt` and for the adapted classifier.

    Raises:
      UserError: a file is missing, is not an image, or shows no drawing; or the learner does not know how its training
        images were prepared.
    """
    shape = _shape(like)
    return np.stack([_prepared(file, shape, like) for file in files(paths)])


def examples(path: str | os.PathLike, like: "MetaLearner") -> tuple[np.ndarray, np.ndarray]:
    """Reads the support set in `path/CLASS/IMAGE`, or in a table (see `data.listing`), as `images` does.

    Args:
      path: the folder or table.
      like: the learner.

    Returns:
      The images, uint8 [image, height, width, channel], and their labels, str [image], for `learner.adapt`.

    Raises:
      UserError: as in `images`; or there are fewer than two class folders.
    """
    found = example_files(path)
    labels = [label for label, of_class in found.items() for _ in of_class]
    return images([file for of_class in found.values() for file in of_class], like), np.array(labels)


def example_files(path: str | os.PathLike) -> dict[str, list[pathlib.Path]]:
    """Returns the image files of each class of `path/CLASS/IMAGE`, sorted; raises UserError as `examples` does."""
    found = {label: [pathlib.Path(e.path) for e in entries] for label, entries in listing.of(path).classes.items()}
    if len(found) < 2:
        raise UserError(f"{path} has one class folder, {next(iter(found))}: give examples of at least two classes")
    return found


def files(paths: Paths) -> list[pathlib.Path]:
    """Returns the image files that `paths` (a file, several files, or a folder) name; raises UserError if none."""
    if not isinstance(paths, str | os.PathLike):
        return [file for path in paths for file in files(path)]
    path = pathlib.Path(paths)
    if path.is_dir():
        try:
            found = [
                pathlib.Path(e.path) for e in visible(path) if e.name.lower().endswith(decode.SUFFIXES) and e.is_file()
            ]
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; fix that") from error
        if not found:
            raise UserError(f"no images in {path}; put some there")
        return found
    if not path.exists():
        raise UserError(f"no file or folder {path}; name an image, or a folder of images")
    return [path]


def _shape(learner: "MetaLearner") -> tuple[int, int, int]:
    """Returns a learner's height, width and channels; raises UserError if files cannot be prepared for it."""
    shape = tuple(learner.network.facts.input_shape)
    if len(shape) != 3 or None in shape or shape[-1] not in (1, 3):
        raise UserError(f"the learner takes inputs of {shape}, for which files cannot be prepared: give arrays")
    if learner.origin.white is None:
        raise UserError(
            "the learner does not say what its training images were like: give arrays prepared as they were"
        )
    if learner.origin.white == TWO_VALUES and (shape[0] != shape[1] or shape[2] != 1):
        raise UserError(f"the learner takes drawings of {shape}, for which files cannot be prepared: give arrays")
    height, width, channels = (int(axis) for axis in shape if axis is not None)
    return height, width, channels


def _prepared(file: pathlib.Path, shape: tuple[int, int, int], learner: "MetaLearner") -> np.ndarray:
    """Prepares one image, uint8 [height, width, channel]."""
    height, width, channels = shape
    if learner.origin.white == TWO_VALUES:
        drawn = drawings.prepared(decode.read(file, None, 1)[..., 0], height, str(file))
        return (drawn if learner.origin.paper else 1 - drawn)[..., np.newaxis]
    return decode.read(file, (height, width), channels)
