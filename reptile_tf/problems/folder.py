"""The user's own images, in folders or in a table. Classes are split by name."""

import functools
from typing import TYPE_CHECKING, Any, ClassVar

from reptile_tf.errors import UserError
from reptile_tf.problems.miniimagenet import preset
from reptile_tf.problems.problem import Problem, Sets
from reptile_tf.settings import Settings

if TYPE_CHECKING:
    import keras

    from reptile_tf.data import ImageClasses

# Takes a minute or two on two cores. Needs at least ten classes of twenty images.
QUICK: dict[str, Any] = {
    "size": 48,
    "shots": 5,
    "train_shots": 10,
    "inner_batch": 10,
    "inner_iters": 5,
    "meta_step": 1.0,
    "meta_step_final": 0.0,
    "meta_batch": 5,
    "meta_iters": 200,
    "eval_batch": 10,
    "eval_iters": 20,
    "eval_samples": 60,
    "eval_interval": 50,
    "save_interval": 100,
}


class Folder(Problem):
    """Classes of any images, in colour or greyscale, resized to a square."""

    name = "folder"
    presets: ClassVar = {"folder-quick": QUICK} | {f"folder-{shots}shot-5way": preset(shots) for shots in (1, 5)}
    defaults: ClassVar = {"filters": 32}
    lacks = ()
    onednn = True

    def network(self, settings: Settings) -> "keras.Model":
        """Builds the paper's network for Mini-ImageNet, for this size and number of channels."""
        from reptile_tf import models

        return models.miniimagenet(settings.classes, settings.filters, settings.size, settings.channels)

    def load(self, settings: Settings) -> tuple["ImageClasses", str]:
        """Loads `data_dir`, with a store of decoded images beside the images, or a data set of TensorFlow Datasets."""
        from reptile_tf.data import arrays, folder, splits

        if settings.source != "raw":
            if not (name := settings.source.partition(":")[2]):
                raise UserError(f"--source must be raw or tfds:NAME here, not {settings.source}")
            return arrays.from_tfds(name, settings.size, settings.channels, settings.data_dir or None), name
        if not settings.data_dir:
            raise UserError("name the folder of your images (or a table of them) with --data-dir")
        split = functools.partial(splits.split_names, **settings.split_arguments())
        classes = folder.load(
            settings.data_dir,
            settings.size,
            settings.channels,
            split=None if settings.pretrained else split,  # a checkpoint has its own split
            skip_bad_images=settings.skip_bad_images,
            store=True,
        )
        return classes, f"images of {settings.data_dir}"

    def split(self, classes: "ImageClasses", settings: Settings) -> Sets:
        """Splits by the sets in the folders or the table, else by `settings.split` (see `splits.split_names`)."""
        from reptile_tf.data import splits

        return splits.split_classes(classes, **settings.split_arguments())


PROBLEM = Folder()
