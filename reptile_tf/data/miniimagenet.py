"""Mini-ImageNet (Vinyals et al. 2016; the classes of Ravi and Larochelle 2017), and any photographs laid out like it.

The photographs are decoded once, into a store beside them (see `cache`).
"""

import collections
import os
import pathlib

import numpy as np

from reptile_tf.data import cache, folder
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.fetch import image_files
from reptile_tf.fetch.image_files import SETS
from reptile_tf.progress import log


def load(data_dir: str | os.PathLike, size: int = 84, skip_bad_images: bool = False) -> ImageClasses:
    """Loads `data_dir/{train,val,test}/CLASS/IMAGE`; from a store in `data_dir` after the first time.

    Args:
      data_dir: the folder; PNG and JPEG files are taken, see `folder.load`.
      size: height and width to resize to, by nearest neighbour (`folder.RESAMPLING`).
      skip_bad_images: leave out files that are no images, and say which, instead of stopping.

    Returns:
      Classes "SET/CLASS": uint8 [image, size, size, 3], memory-mapped, scale 1/255.

    Raises:
      UserError: the folder or a set is missing or empty, a file is no image, or the store cannot be written.
    """
    data_dir = pathlib.Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(f"no photographs at {data_dir}; run: bash fetch_data.sh miniimagenet, or name a --data-dir")
    if not (data_dir / "train").is_dir() and (data_dir / "miniimagenet").is_dir():
        raise UserError(f"no photographs in {data_dir} itself; did you mean --data-dir {data_dir / 'miniimagenet'}?")
    sets = {name: folder.scan(data_dir / name) for name in SETS}
    classes = {f"{name}/{label}": found for name, labels in sets.items() for label, found in labels.items()}
    every = [file for found in classes.values() for file in found]
    labels = [name for name, found in classes.items() for _ in found]
    key = cache.fingerprint(data_dir, every, f"photographs {size} {folder.RESAMPLING} {skip_bad_images}")

    def decode(images: np.ndarray) -> tuple[dict[str, int], list[str]]:
        bad = set(folder.decode(every, images, skip_bad_images, progress="preparing photographs"))
        sound = [index for index in range(len(every)) if index not in bad]
        for place, index in enumerate(sound):  # close the gaps, in place
            if place != index:
                images[place] = images[index]
        counts = dict.fromkeys(classes, 0) | collections.Counter(labels[index] for index in sound)
        return counts, [os.path.relpath(every[index].path, data_dir) for index in sorted(bad)]

    ready = cache.prepared(data_dir / f"prepared-{size}.json", key, (len(every), size, size, 3), decode)
    for name in ready.skipped:
        log.warning(f"left out, since it is no image: {data_dir / name}")
    return ready.classes(scale=1 / 255)


def is_the_papers(classes: ImageClasses) -> bool:
    """Whether the classes, and how many images each has, are those of the paper's Mini-ImageNet."""
    return image_files.is_the_papers(dict(zip(classes.names, classes.counts.tolist(), strict=True)))
