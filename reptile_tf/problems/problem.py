"""What a problem has to say of itself."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import keras

    from reptile_tf.data import ImageClasses
    from reptile_tf.settings import Settings

Sets = dict[str, "ImageClasses"]


class Problem(abc.ABC):
    """A data set, how it is split, and a network for it.

    Attributes:
      name: the module's name, which is also in configurations and results.
      presets: settings by name, for `--preset` and `Settings.preset`; no two problems may share a name.
      defaults: settings whose defaults differ from those of `Settings`.
      lacks: names of settings that mean nothing here; there are no flags for them.
      onednn: whether oneDNN's convolutions are faster here, which TensorFlow does not choose by itself on AMD's
        processors. TF_ENABLE_ONEDNN_OPTS has to be set when TensorFlow is first imported.
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
        """A new model, from images to one logit per way."""

    @abc.abstractmethod
    def load(self, settings: "Settings") -> tuple["ImageClasses", str]:
        """All classes, and what to call them in results; raises UserError if they cannot be loaded."""

    @abc.abstractmethod
    def split(self, classes: "ImageClasses", settings: "Settings") -> Sets:
        """The sets of classes: "train", "test" and perhaps "val" to validate on; raises UserError if it cannot be."""

    def for_training(self, classes: "ImageClasses", settings: "Settings") -> "ImageClasses":
        """What is made of the training classes before tasks are drawn from them: turned and mirrored images."""
        if settings.rotations:
            classes = classes.with_rotations()
        return classes.with_flips() if settings.flips else classes
