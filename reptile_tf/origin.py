"""What a learner's run says beside its weights: how it adapts to new tasks, and what its images were like."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from reptile_tf.data import ImageClasses
    from reptile_tf.settings import Settings

TWO_VALUES, GREY_LEVELS = 1, 255
MOST_CLASSES = 2000  # that are looked at


@dataclasses.dataclass(frozen=True)
class Origin:
    """Of a run; the defaults are for a learner made by itself.

    Attributes:
      steps: inner steps on a new task.
      batch: samples of a minibatch of it.
      replacement: whether each minibatch is drawn by itself.
      white: the largest pixel value: 1 for drawings of 0 and 1, 255 for photographs; None if it is not known.
      paper: of drawings, the value of the background, 0 or 1.
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
        """From a run's evaluation settings, and `pixels` of its images."""
        return cls(settings.eval_iters, settings.eval_batch, settings.replacement, **pixels)

    def evaluation(self) -> dict[str, Any]:
        """The evaluation settings by their names."""
        return {"eval_iters": self.steps, "eval_batch": self.batch, "replacement": self.replacement}

    def pixels(self) -> dict[str, int]:
        """What `pixels` gave of the images; nothing if that is not known."""
        return {} if self.white is None else {"white": self.white, "paper": self.paper}

    def check(self, x: np.ndarray) -> None:
        """Raises ValueError if inputs are of another range than the training images."""
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
        """Whether drawings have more ink than paper, as none of Omniglot's has."""
        return self.white == TWO_VALUES and x.size > 0 and bool((np.mean(x) >= 0.5) != bool(self.paper))


def pixels(classes: "ImageClasses | None") -> dict[str, int]:
    """What an image each of many classes shows of all, if they are uint8: the largest value, 1 or 255, and the paper's.

    Of drawings of 0 and 1 the paper's value is the commoner one.
    """
    if classes is None or classes.images.dtype != np.uint8:
        return {}
    every = range(0, len(classes), 1 + len(classes) // MOST_CLASSES)
    some = np.concatenate([classes.of_class(index, slice(1)) for index in every])  # of a class without images, none
    if some.max(initial=0) > TWO_VALUES:
        return {"white": GREY_LEVELS, "paper": 1}
    return {"white": TWO_VALUES, "paper": int(some.mean() >= 0.5)}
