"""Makes classes of arrays, from a function of other classes' samples or from a data set of (sample, label) pairs."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from reptile_tf.data import cache
from reptile_tf.data import decode as decoder
from reptile_tf.data.image_classes import ImageClasses, check_numbers
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
      ValueError: `batch` is below 1; there are no samples; or the function does not return one result per sample, all
        of the same shape and dtype, or returns values that are not finite numbers, or bfloat16 for a store.
      UserError: the store cannot be written.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    if not classes.counts.sum():
        raise ValueError("there are no samples to map")

    def batches() -> Iterator[np.ndarray]:
        for index in range(len(classes)):
            for start in range(0, int(classes.counts[index]), batch):
                yield classes.of_class(index, slice(start, start + batch))

    def result(samples: np.ndarray) -> np.ndarray:
        made = np.asarray(function(samples))
        if made.shape[:1] != samples.shape[:1]:
            raise ValueError(f"the function must give a result for each of {len(samples)} samples, not {made.shape}")
        check_numbers(made, "the function's results")
        return made

    first = result(next(batches()))
    if store is not None and first.dtype.kind == "V":
        raise ValueError(f"{first.dtype} cannot be stored: let the function give float32")
    total = int(classes.counts.sum())

    def fill(results: np.ndarray) -> tuple[dict[str, int], dict[str, Any]]:
        done = 0
        with Progress("mapping samples", total, unit="sample") as bar:
            for samples in batches():
                made = result(samples)
                if made.dtype != first.dtype or made.shape[1:] != first.shape[1:]:
                    raise ValueError(
                        f"the function's results must be alike: {made.dtype} {made.shape[1:]} comes after "
                        f"{first.dtype} {first.shape[1:]}"
                    )
                results[done : done + len(samples)] = made
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
      dataset: pairs (x, y), such as an unbatched tf.data.Dataset. All x have the same shape, and all y are integers, or
        all are strings.
      names: names of the classes with labels 0, 1, …, all different; by default the labels themselves.
      scale: factor by which samples are multiplied for the network, such as 1/255 for images of 0 to 255.

    Raises:
      ValueError: the data set is empty or batched, or its elements are not pairs of a sample and a label; samples
        differ in shape or are not finite numbers; labels are neither all integers nor all strings; a label
        has no name; or two labels have the same name.
    """
    if names is not None and len(set(names)) < len(names):
        raise ValueError("two labels have the same name")
    groups: dict[int | str, list[np.ndarray]] = {}
    kind = None
    for pair in dataset:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(
                "the data set must give pairs of a sample and its label: turn its elements into them by map()"
            )
        x, label = np.asarray(pair[0]), _label(np.asarray(pair[1]))
        if x.dtype.kind == "O":
            raise ValueError("samples must be dense arrays of one shape: turn them into these by map()")
        if kind not in (None, type(label)):
            raise ValueError(f"labels must be all integers or all strings, but {label!r} is among others")
        kind = type(label)
        if names is not None and not (isinstance(label, int) and 0 <= label < len(names)):
            raise ValueError(f"label {label!r} has no name: names are given for labels 0 to {len(names) - 1}")
        groups.setdefault(label, []).append(x)
    if not groups:
        raise ValueError("the data set is empty")
    shapes = {x.shape for group in groups.values() for x in group}
    if len(shapes) > 1:
        raise ValueError(f"samples must be of one shape, but they are of {sorted(shapes)[:3]}: resize them with map()")
    return ImageClasses.from_groups(
        {str(label) if names is None else names[int(label)]: np.stack(groups[label]) for label in sorted(groups)},
        scale=scale,
    )


def _label(label: np.ndarray) -> int | str:
    """Returns a label of a data set as an integer or a string; raises ValueError if it is neither."""
    if label.ndim:
        raise ValueError(
            f"each sample needs one label, but this one has labels of shape {label.shape}: call unbatch() on a batched "
            "data set, and argmax() on one-hot labels"
        )
    value = label.item()
    if isinstance(value, bytes | str):
        return value.decode() if isinstance(value, bytes) else value
    if label.dtype.kind in "iub":
        return int(value)
    raise ValueError(f"labels must be integers or strings, not {value!r} ({label.dtype})")


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
      UserError: TensorFlow Datasets is not installed or cannot provide the data set, or it has images without a label,
        or of a type that `decode.of_pixels` does not convert.
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

        try:
            return from_dataset(prepared(), label.names, scale=1 / 255)
        except ValueError as error:  # for example, some images have no label
            raise UserError(f"the data set {name} cannot be used: {error}") from error
