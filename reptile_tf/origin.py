"""What a learner knows of its run besides the weights: how to adapt to new tasks, and how images were prepared."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from reptile_tf.data import ImageClasses
    from reptile_tf.settings import Settings

TWO_VALUES, GREY_LEVELS = 1, 255
MOST_CLASSES = 2000  # `pixels` examines at most this many


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a run adapts and how its images were prepared. The defaults are those of a learner without a run.

    Attributes:
      steps: number of inner steps on a new task.
      batch: number of samples in a minibatch.
      replacement: whether minibatches are drawn independently of each other.
      white: largest pixel value: 1 for drawings of 0 and 1, 255 for photographs; None if unknown.
      paper: background value of drawings, 0 or 1.
      resampling: how images were resized.
    """

    steps: int = 50
    batch: int = 5
    replacement: bool = False
    white: int | None = None
    paper: int = 1
    resampling: str = "nearest"

    @classmethod
    def of_run(cls, settings: "Settings", pixels: dict[str, Any]) -> "Origin":
        """Makes it from a run's evaluation settings, and from the result of `pixels` for its images."""
        return cls(settings.eval_iters, settings.eval_batch, settings.replacement, **pixels)

    def evaluation(self) -> dict[str, Any]:
        """Returns the evaluation settings by name."""
        return {"eval_iters": self.steps, "eval_batch": self.batch, "replacement": self.replacement}

    def pixels(self) -> dict[str, int]:
        """Returns the result of `pixels` for the images; empty if unknown."""
        return {} if self.white is None else {"white": self.white, "paper": self.paper}

    def check(self, x: np.ndarray) -> None:
        """Raises ValueError if the range of inputs differs from that of the training images."""
        if self.white is None or not x.size or x.dtype.kind not in "iufb":
            return
        low, high = x.min(), x.max()
        as_trained = "prepare files by rt.images(paths, like=learner)"
        if not 0 <= low <= high <= self.white:
            raise ValueError(
                f"pixels go from {low:g} to {high:g}, but those trained on from 0 to {self.white}: {as_trained}"
            )
        if self.white == GREY_LEVELS and x.dtype.kind == "f" and 0 < high <= 1:
            raise ValueError(
                f"pixels go up to {high:g}, but those trained on up to 255, which the learner itself scales: "
                f"multiply them by 255, or {as_trained}"
            )

    def seems_inverted(self, x: np.ndarray) -> bool:
        """Returns whether drawings have more ink than paper, which no drawing of Omniglot has."""
        return self.white == TWO_VALUES and x.size > 0 and bool((np.mean(x) >= 0.5) != bool(self.paper))


def pixels(classes: "ImageClasses | None") -> dict[str, int]:
    """Determines `white` and `paper` of uint8 images from one image of each of many classes; {} for other dtypes.

    For drawings of 0 and 1, the more frequent value is the paper.
    """
    if classes is None or classes.images.dtype != np.uint8:
        return {}
    every = range(0, len(classes), 1 + len(classes) // MOST_CLASSES)
    some = np.concatenate([classes.of_class(index, slice(1)) for index in every])  # a class may have no images
    if some.max(initial=0) > TWO_VALUES:
        return {"white": GREY_LEVELS, "paper": 1}
    return {"white": TWO_VALUES, "paper": int(some.mean() >= 0.5)}
