"""Prepares the tasks of training: draws them ahead of time, and keeps the images on a GPU."""

import collections
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from reptile_tf import device
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.progress import log
from reptile_tf.tasks import Tasks

# Upper bounds of one compiled call: meta-iterations, bytes of their tasks, and seconds. Signals are handled between
# calls. A short call is padded, so larger tasks would mostly be copied for nothing.
MOST, BYTES, SECONDS = 128, 2**22, 1.0
SHARE = 0.25  # the fraction of a GPU's memory that images may take


def images_on_gpu(classes: ImageClasses) -> tuple[tf.Tensor | None, ImageClasses]:
    """Copies all images of the classes to the GPU.

    Returns:
      The images [image, ...] on the GPU, and classes of their indices (see `ImageClasses.numbered`). Without a GPU, or
      if the images would take too much of its memory: None, and the classes unchanged.
    """
    if not (memory := device.gpu_memory()):
        return None, classes
    size = int(classes.counts.sum()) * int(np.prod(classes.images.shape[1:]))
    if size > SHARE * memory:
        log.info(
            f"the training images ({size / 1e9:.1f} GB) are sent to the GPU task by task: it has {memory / 1e9:.1f} GB"
        )
        return None, classes
    images, numbered = classes.numbered()
    with tf.device("GPU:0"):
        on_gpu = tf.identity(tf.constant(images))
    log.info(f"the training images ({size / 1e9:.2f} GB) are on the GPU")
    return on_gpu, numbered


class Feed:
    """Draws the tasks of future meta-iterations in a thread, and determines how many meta-iterations a call takes.

    Args:
      draw: returns the tasks of a meta-iteration.
      first: index of the first meta-iteration.
      last: index after that of the last meta-iteration.
      stops: upper bounds on the number of meta-iterations in a call.

    Attributes:
      room: maximum number of meta-iterations in a call.
    """

    def __init__(self, draw: Callable[[int], Tasks], first: int, last: int, *stops: int):
        self._thread = ThreadPoolExecutor(1)
        self._draw = draw
        self._numbers = iter(range(first, last))
        self._drawn: collections.deque[Future[Tasks]] = collections.deque()
        self._draw_ahead(1)
        size = sum(np.asarray(array).nbytes for array in self._drawn[0].result())
        self.room = max(1, min(MOST, BYTES // size, *stops))
        self._draw_ahead(2 * self.room - 1)
        self._calls, self._next = 0, 1

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, at_most: int) -> list[Tasks]:
        """Returns the tasks of the next meta-iterations: about one second's work, at most `at_most`."""
        taken = [self._drawn.popleft().result() for _ in range(min(at_most, self._next))]
        self._draw_ahead(len(taken))
        return taken

    def took(self, count: int, seconds: float) -> None:
        """Records the duration of a compiled call. The first is ignored, because it includes compilation."""
        self._calls += 1
        if self._calls > 1:
            self._next = max(1, min(self.room, int(count * SECONDS / seconds)))

    def _draw_ahead(self, count: int) -> None:
        self._drawn.extend(self._thread.submit(self._draw, number) for number in itertools.islice(self._numbers, count))
