"""Mini-ImageNet, or other photographs in the same layout (paper, section 6.1 and table 2)."""

from typing import TYPE_CHECKING, Any, ClassVar

from reptile_tf.fetch.image_files import SETS
from reptile_tf.problems.problem import Problem, Sets
from reptile_tf.settings import Settings

if TYPE_CHECKING:
    import keras

    from reptile_tf.data import ImageClasses


def preset(shots: int) -> dict[str, Any]:
    """Returns the settings of appendix A, table 2. `shots` and the evaluation settings do not affect training."""
    evaluation = {"shots": shots, "classes": 5, "eval_iters": 50, "eval_batch": 5 if shots == 1 else 15}
    inner = {"train_shots": 15, "inner_batch": 10, "inner_iters": 8, "learning_rate": 1e-3}
    outer = {"meta_step": 1.0, "meta_step_final": 0.0, "meta_batch": 5, "meta_iters": 100_000}
    return evaluation | inner | outer


class MiniImageNet(Problem):
    """100 classes of photographs, 84x84, in train, val and test folders."""

    name = "miniimagenet"
    presets: ClassVar = {f"miniimagenet-{shots}shot-5way": preset(shots) for shots in (1, 5)}
    defaults: ClassVar = {"filters": 32}
    lacks = ("source", "split", "size", "channels")
    onednn = True

    def network(self, settings: Settings) -> "keras.Model":
        """Builds the paper's network, for the settings' classes and filters."""
        from reptile_tf import models

        return models.miniimagenet(settings.classes, settings.filters)

    def load(self, settings: Settings) -> tuple["ImageClasses", str]:
        """Loads a folder. Other photographs than the paper's go by another name, so that results are not confused."""
        from reptile_tf.data import miniimagenet

        folder = settings.data_dir or "data/miniimagenet"
        classes = miniimagenet.load(folder, skip_bad_images=settings.skip_bad_images)
        return classes, "miniimagenet" if miniimagenet.is_the_papers(classes) else f"photographs of {folder}"

    def split(self, classes: "ImageClasses", settings: Settings) -> Sets:
        """Splits by the folders train, val and test, whatever the settings."""
        sets = [name.split("/")[0] for name in classes.names]
        return {part: classes.subset([i for i, s in enumerate(sets) if s == part]) for part in SETS}


PROBLEM = MiniImageNet()
