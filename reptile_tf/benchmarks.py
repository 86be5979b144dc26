"""The paper's benchmarks: a data set each, how it is split, and its network."""

import dataclasses
from collections.abc import Callable

import keras

from reptile_tf import models
from reptile_tf.data import ImageClasses, glyphs, miniimagenet, omniglot
from reptile_tf.settings import Settings

Sets = dict[str, ImageClasses]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set with its network.

    Attributes:
      name: of the benchmark, in configurations and results.
      network: from ways and filters to the model.
      load: from settings to all images, and what to call them in results.
      split: from all images and a seed to the sets of classes, "train" and "test" among them.
      for_training: what is made of the training classes before tasks are drawn from them.
      held_out: the set of classes to validate on while training.
      scale: of its images (`ImageClasses.scale`).
    """

    name: str
    network: Callable[[int, int], keras.Model]
    load: Callable[[Settings], tuple[ImageClasses, str]]
    split: Callable[[ImageClasses, int], Sets]
    for_training: Callable[[ImageClasses], ImageClasses]
    held_out: str
    scale: float


def _load_omniglot(settings: Settings) -> tuple[ImageClasses, str]:
    if settings.source == "glyphs":
        images = glyphs.load()
    elif settings.source == "tfds":
        images = omniglot.load_tfds(settings.data_dir or None)
    else:
        images = omniglot.load_raw(settings.data_dir or "data/omniglot")
    return images, f"omniglot ({settings.source})"


OMNIGLOT_TRAINING_CHARACTERS = 1200  # of 1,623 (paper, section 6.1); the rest are for testing


def _split_omniglot(images: ImageClasses, seed: int) -> Sets:
    return dict(zip(("train", "test"), images.split(OMNIGLOT_TRAINING_CHARACTERS, seed), strict=True))


def _load_miniimagenet(settings: Settings) -> tuple[ImageClasses, str]:
    folder = settings.data_dir or "data/miniimagenet"
    images = miniimagenet.load(folder, skip_bad_images=settings.skip_bad_images)
    # Figures from other photographs are never to be taken for the paper's.
    return images, "miniimagenet" if miniimagenet.is_the_papers(images) else f"photographs of {folder}"


def _split_miniimagenet(images: ImageClasses, seed: int) -> Sets:
    del seed  # the split is given
    sets = [name.split("/")[0] for name in images.names]
    return {part: images.subset([i for i, s in enumerate(sets) if s == part]) for part in miniimagenet.SETS}


BENCHMARKS = {
    "omniglot": Benchmark(
        name="omniglot",
        network=models.omniglot,
        load=_load_omniglot,
        split=_split_omniglot,
        for_training=ImageClasses.with_rotations,
        held_out="test",
        scale=1.0,
    ),
    "miniimagenet": Benchmark(
        name="miniimagenet",
        network=models.miniimagenet,
        load=_load_miniimagenet,
        split=_split_miniimagenet,
        for_training=lambda classes: classes,
        held_out="val",
        scale=1 / 255,
    ),
}
