"""Omniglot, or the built-in glyphs instead (paper, section 6.1 and table 1)."""

from typing import TYPE_CHECKING, Any, ClassVar

from reptile_tf.errors import UserError
from reptile_tf.problems.problem import Problem, Sets
from reptile_tf.settings import Settings

if TYPE_CHECKING:
    import keras

    from reptile_tf.data import ImageClasses

TRAINING_CHARACTERS = 1200  # of 1,623 (paper, section 6.1); the others are for testing


def _preset(way: int, shots: int) -> dict[str, Any]:
    common: dict[str, Any] = {"shots": shots, "classes": way, "train_shots": 10, "eval_iters": 50}
    common |= {"meta_step": 1.0, "meta_step_final": 0.0, "meta_batch": 5}
    if way == 5:
        inner = {"inner_batch": 10, "inner_iters": 5, "learning_rate": 1e-3, "meta_iters": 100_000, "eval_batch": 5}
    else:
        inner = {"inner_batch": 20, "inner_iters": 10, "learning_rate": 5e-4, "meta_iters": 200_000, "eval_batch": 10}
    return common | inner


class Omniglot(Problem):
    """1,623 characters with 20 drawings each, 28x28."""

    name = "omniglot"
    # Appendix A, table 1. `shots` and the evaluation settings do not affect training.
    presets: ClassVar = {f"omniglot-{shots}shot-{way}way": _preset(way, shots) for way in (5, 20) for shots in (1, 5)}
    defaults: ClassVar = {"rotations": True}  # paper, section 6.1
    lacks = ("size", "channels", "skip_bad_images")
    onednn = True

    def network(self, settings: Settings) -> "keras.Model":
        """Builds the paper's network, for the settings' classes and filters."""
        from reptile_tf import models

        return models.omniglot(settings.classes, settings.filters)

    def load(self, settings: Settings) -> tuple["ImageClasses", str]:
        """Loads the source that `settings.source` names."""
        from reptile_tf.data import glyphs, omniglot

        if settings.source == "glyphs":
            classes = glyphs.load()
        elif settings.source == "tfds":
            classes = omniglot.load_tfds(settings.data_dir or None)
        elif settings.source != "raw":
            raise UserError(f"--source must be raw, tfds or glyphs here, not {settings.source}")
        else:
            classes = omniglot.load_raw(settings.data_dir or "data/omniglot")
        return classes, f"omniglot ({settings.source})"

    def split(self, classes: "ImageClasses", settings: Settings) -> Sets:
        """Chooses 1,200 training characters by the seed; the others are for testing (and validation).

        `settings.split` may be "background" for the data set's own two parts, a file that names the alphabets and
        characters to test on, or shares (see `splits.split_names`).
        """
        from reptile_tf.data import omniglot, splits

        if not settings.split:
            return dict(zip(("train", "test"), classes.split(TRAINING_CHARACTERS, settings.seed), strict=True))
        if settings.split == "background":
            return omniglot.split_by_part(classes)
        return splits.split_classes(classes, **settings.split_arguments())


PROBLEM = Omniglot()
