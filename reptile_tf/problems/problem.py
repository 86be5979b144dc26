"""The base class of all problems."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import keras

    from reptile_tf.data import ImageClasses
    from reptile_tf.settings import Settings

Sets = dict[str, "ImageClasses"]


class Problem(abc.ABC):
    """A data set, its split into sets, and a network for it.

    Attributes:
      name: the module's name, which also appears in configurations and results.
      presets: settings by name, for `--preset` and `Settings.preset`. Names must be unique across problems.
      defaults: settings whose defaults differ from those of `Settings`.
      lacks: names of settings that do not apply to this problem and get no flags.
      onednn: whether oneDNN's convolutions are faster for this problem. TensorFlow does not enable them by default on
        AMD processors, and reads TF_ENABLE_ONEDNN_OPTS only when it is first imported.
      resampling: how images were resized; recorded with the run.
    """

    name: str
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    defaults: ClassVar[dict[str, Any]] = {}
    lacks: tuple[str, ...] = ("source", "split", "size", "channels", "skip_bad_images")
    onednn: bool = False
    resampling: str = "nearest"

    @abc.abstractmethod
    def network(self, settings: "Settings") -> "keras.Model":
        """Builds a new model that maps images to one logit per way."""

    @abc.abstractmethod
    def load(self, settings: "Settings") -> tuple["ImageClasses", str]:
        """Loads all classes; returns them and their name in results. Raises UserError if they cannot be loaded."""

    @abc.abstractmethod
    def split(self, classes: "ImageClasses", settings: "Settings") -> Sets:
        """Splits the classes into "train", "test" and optionally "val" for validation; raises UserError if it fails."""

    def for_training(self, classes: "ImageClasses", settings: "Settings") -> "ImageClasses":
        """Augments the training classes with rotated and mirrored images, before tasks are drawn from them."""
        if settings.rotations:
            classes = classes.with_rotations()
        return classes.with_flips() if settings.flips else classes
