"""Mini-ImageNet (Vinyals et al. 2016; the classes of Ravi and Larochelle 2017), and any photographs laid out like it.

The photographs are decoded once, into a store beside them that later starts map into memory: processes of one machine
share it, and nothing is read that no task asks for.
"""

import collections
import json
import os
import pathlib
from typing import Any

import numpy as np

from reptile_tf import files
from reptile_tf.data import cache, folder, image_files
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.data.image_files import SETS
from reptile_tf.errors import UserError
from reptile_tf.progress import say


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
    key = cache.fingerprint(data_dir, every, f"photographs {size} {folder.RESAMPLING} {skip_bad_images}")
    manifest_path = data_dir / f"prepared-{size}.json"
    manifest = _read_manifest(manifest_path, key)
    if manifest is None:
        manifest = _prepare(classes, size, key, skip_bad_images, manifest_path)
    for name in manifest["skipped"]:
        say(f"left out, since it is no image: {data_dir / name}")
    # np.asarray: a plain array on the same map, so that what is indexed out of it is one, too.
    images = np.asarray(np.load(data_dir / manifest["images"], mmap_mode="r", allow_pickle=False))
    counts = np.array(list(manifest["counts"].values()), np.int64)
    return ImageClasses(images, np.cumsum(counts) - counts, counts, tuple(manifest["counts"]), scale=1 / 255)


def is_the_papers(classes: ImageClasses) -> bool:
    """Whether the classes, and how many images each has, are those of the paper's Mini-ImageNet."""
    return image_files.is_the_papers(dict(zip(classes.names, classes.counts.tolist(), strict=True)))


def _read_manifest(path: pathlib.Path, key: str) -> dict[str, Any] | None:
    """The manifest if it was made under `key` and its images are there, whole."""
    try:
        manifest = json.loads(path.read_text())
        if manifest["key"] != key:
            say(f"the photographs in {path.parent} have changed: preparing them again")
            return None
        stored = np.load(path.parent / manifest["images"], mmap_mode="r", allow_pickle=False)
        if len(stored) < sum(manifest["counts"].values()):
            raise ValueError(f"{manifest['images']} is too short")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"{path} or its images are damaged ({error}): preparing the photographs again")
        return None
    return manifest


def _prepare(
    classes: dict[str, list[os.DirEntry]], size: int, key: str, skip_bad_images: bool, path: pathlib.Path
) -> dict[str, Any]:
    """Decodes all images into a new store and writes its manifest last, so that there is never a wrong pair."""
    labels = [name for name, found in classes.items() for _ in found]
    every = [file for found in classes.values() for file in found]
    store = path.with_name(f"{path.stem}-{key[:12]}.npy")
    with files.replacing(store) as part:
        images = np.lib.format.open_memmap(part, "w+", np.uint8, (len(every), size, size, 3))
        bad = set(folder.decode(every, images, skip_bad_images, progress="preparing photographs"))
        sound = [index for index in range(len(every)) if index not in bad]
        for place, index in enumerate(sound):  # close the gaps, in place
            if place != index:
                images[place] = images[index]
        images.flush()
        del images
    counts = dict.fromkeys(classes, 0) | collections.Counter(labels[index] for index in sound)
    manifest = {
        "key": key,
        "images": store.name,
        "counts": counts,
        "skipped": [os.path.relpath(every[index].path, path.parent) for index in sorted(bad)],
    }
    files.write_text(path, json.dumps(manifest, indent=1) + "\n")
    for old in path.parent.glob(f"{path.stem}-*.npy"):
        if old != store:
            old.unlink(missing_ok=True)
    return manifest
