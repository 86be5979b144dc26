"""Makes classes of arrays, from a function of other classes' samples or from a data set of (sample, label) pairs."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from reptile_tf.data import cache
from reptile_tf.data import decode as decoder
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.progress import Progress


def mapped(
    classes: ImageClasses,
    function: Callable[[np.ndarray], Any],
    batch: int = 256,
    store: str | os.PathLike | None = None,
) -> ImageClasses:
    """Returns classes that hold a function's results for the samples, with the same names and order, and scale 1.

    Args:
      classes: classes of images or other samples.
      function: maps samples [sample, ...], rotated and mirrored as `classes` says but not scaled, to an array with one
        result per sample, such as the embeddings of a frozen network. No result may depend on the other samples.
      batch: maximum number of samples per call.
      store: path of a store without its suffix: PLACE for PLACE.json and the array beside it. Results are written
        there, and reused as long as the samples and the function's results for the first batch are unchanged. Without a
        store they are held in memory.

    Raises:
      ValueError: the function does not return one result per sample.
      UserError: the store cannot be written.
    """

    def batches() -> Iterator[np.ndarray]:
        for index in range(len(classes)):
            for start in range(0, int(classes.counts[index]), batch):
                yield classes.of_class(index, slice(start, start + batch))

    def result(samples: np.ndarray) -> np.ndarray:
        made = np.asarray(function(samples))
        if made.shape[:1] != samples.shape[:1]:
            raise ValueError(f"the function must give a result for each of {len(samples)} samples, not {made.shape}")
        return made

    first = result(next(batches()))
    total = int(classes.counts.sum())

    def fill(results: np.ndarray) -> tuple[dict[str, int], dict[str, Any]]:
        done = 0
        with Progress("mapping samples", total, unit="sample") as bar:
            for samples in batches():
                results[done : done + len(samples)] = result(samples)
                done += len(samples)
                bar.advance(len(samples))
        return dict(zip(classes.names, classes.counts.tolist(), strict=True)), {}

    shape = (total, *first.shape[1:])
    if store is None:
        results = np.empty(shape, first.dtype)
        return cache.Prepared(results, *fill(results)).classes()
    digest = hashlib.sha256(repr((classes.names, classes.counts.tolist(), batch, first.dtype.str, shape)).encode())
    for samples in batches():
        digest.update(samples.tobytes())
    digest.update(first.tobytes())
    place = pathlib.Path(f"{os.fspath(store)}.json")
    return cache.prepared(place, digest.hexdigest(), shape, fill, dtype=first.dtype).classes()


def from_dataset(
    dataset: Iterable[tuple[Any, Any]], names: Sequence[str] | None = None, scale: float = 1.0
) -> ImageClasses:
    """Groups a data set's samples by label, sorted by label, in memory.

    Args:
      dataset: pairs (x, y), such as an unbatched tf.data.Dataset. All x have the same shape, and y is an integer or a
        string.
      names: names of the classes with labels 0, 1, …; by default the labels themselves.
      scale: factor by which samples are multiplied for the network, such as 1/255 for images of 0 to 255.

    Raises:
      ValueError: the data set is batched or empty, or its samples differ in shape.
    """
    groups: dict[Any, list[np.ndarray]] = {}
    for x, y in dataset:
        x, label = np.asarray(x), np.asarray(y)
        if label.ndim:
            raise ValueError("the data set must give samples one by one, each with its label: call unbatch() on it")
        groups.setdefault(label.item(), []).append(x)
    shapes = {x.shape for group in groups.values() for x in group}
    if len(shapes) != 1:
        found = f"they are of {sorted(shapes)[:3]}" if shapes else "there are none"
        raise ValueError(f"samples must be of one shape, but {found}: resize them with map()")
    return ImageClasses.from_groups(
        {_name(label, names): np.stack(groups[label]) for label in sorted(groups)}, scale=scale
    )


def _name(label: Any, names: Sequence[str] | None) -> str:
    return names[label] if names is not None else label.decode() if isinstance(label, bytes) else str(label)


def from_tfds(
    name: str, size: int, channels: int, data_dir: str | os.PathLike | None = None, split: str = "all"
) -> ImageClasses:
    """Loads a data set of labelled images from TensorFlow Datasets, which downloads it the first time.

    Images are converted and stretched in the same way as files, see `decode.read`.

    Args:
      name: the name for `tfds.load`, such as "cifar10".
      size: height and width to resize to.
      channels: 3 for RGB or 1 for greyscale.
      data_dir: folder where TensorFlow Datasets keeps its data sets; None for its own default.
      split: the part of the data set to load; by default all of it.

    Returns:
      One class per label, with the label's name: uint8 [image, size, size, channels], scale 1/255.

    Raises:
      UserError: TensorFlow Datasets is not installed or cannot provide the data set, or it has no labelled images.
    """
    try:
        import tensorflow_datasets as tfds

        pairs, info = tfds.load(name, split=split, data_dir=data_dir, as_supervised=True, with_info=True)
        image, label = (info.features[key] for key in info.supervised_keys)
    except ImportError as error:  # preparation imports some packages only when it runs
        raise UserError(f"{error}; run: pip install {error.name}, or use another --source") from error
    except Exception as error:  # anything that the library's network, archive and file layers raise
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"TensorFlow Datasets cannot give {name} as images with labels ({line})") from error
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"the data set {name} is of {image} with {label}, not of images with labels")
    with Progress(f"preparing {name}", info.splits.total_num_examples, unit="image") as bar:

        def prepared() -> Iterator[tuple[np.ndarray, int]]:
            for pixels, number in tfds.as_numpy(pairs):
                bar.advance(1)
                yield decoder.of_pixels(pixels, size, channels), number

        return from_dataset(prepared(), label.names, scale=1 / 255)
