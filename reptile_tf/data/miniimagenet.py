"""Loads Mini-ImageNet (Vinyals et al. 2016; the classes of Ravi and Larochelle 2017) or photographs laid out like it.

The photographs are decoded once, into a store beside them (see `cache`). The paper's images are decoded as its code
does, which ignores EXIF orientation and transparency; all others as viewers show them (see `decode.read`).
"""

import os
import pathlib

from reptile_tf.data import folder, listing
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.fetch import image_files
from reptile_tf.fetch.image_files import SETS


def load(data_dir: str | os.PathLike, size: int = 84, skip_bad_images: bool = False) -> ImageClasses:
    """Loads `data_dir/{train,val,test}/CLASS/IMAGE`, or after the first time the store in `data_dir`.

    Args:
      data_dir: the folder, see `listing`.
      size: height and width to resize to, by nearest neighbour.
      skip_bad_images: leave out files that are not images and log which, instead of raising an error.

    Returns:
      Classes "SET/CLASS": uint8 [image, size, size, 3], memory-mapped, scale 1/255.

    Raises:
      UserError: the folder or a set is missing or empty, a class or an image is in two sets, a file is not an image, or
        the store cannot be written.
    """
    data_dir = pathlib.Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(f"no photographs at {data_dir}; run: bash fetch_data.sh miniimagenet, or name a --data-dir")
    if not (data_dir / "train").is_dir() and (data_dir / "miniimagenet").is_dir():
        raise UserError(f"no photographs in {data_dir} itself; did you mean --data-dir {data_dir / 'miniimagenet'}?")
    for name in SETS:
        if not (data_dir / name).is_dir():
            raise UserError(f"no folder {data_dir / name}; it has to hold a folder of images for each class")
    found = listing.of(data_dir)
    papers = image_files.is_the_papers({name: len(files) for name, files in found.classes.items()})
    place = data_dir / f"{listing.STORE}{size}.json"
    classes, same = folder.prepare(found, (size, size, 3), place, as_stored=papers, skip_bad_images=skip_bad_images)
    # The paper's data set is used as published, even if an image is in two sets.
    folder.check_apart(same, {} if papers else listing.sets_of(classes.names), data_dir)
    return classes


def is_the_papers(classes: ImageClasses) -> bool:
    """Returns whether the classes and their numbers of images are those of the paper's Mini-ImageNet."""
    return image_files.is_the_papers(dict(zip(classes.names, classes.counts.tolist(), strict=True)))
