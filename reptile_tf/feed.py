"""What training hands to the learner: tasks drawn ahead, by numbers of images where these lie on a GPU."""

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

# Bounds of one compiled call: meta-iterations, bytes of their tasks, seconds (a signal is answered after it).
MOST, BYTES, SECONDS = 128, 2**22, 1.0  # more bytes are mostly filling: copied, not used
SHARE = 0.25  # of a GPU's memory that images may take


def images_on_gpu(classes: ImageClasses) -> tuple[tf.Tensor | None, ImageClasses]:
    """All images of the classes on the GPU, if there is one, and classes of their numbers (see `numbered`).

    Without a GPU, or if they would take too much of its memory: None, and the classes as they are.
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
    """The tasks of the meta-iterations to come, drawn ahead in a thread of its own, and how many a call takes.

    Args:
      draw: the tasks of a meta-iteration.
      first: number of the first meta-iteration.
      last: the number after the last one.
      stops: numbers of meta-iterations that bound those of a call.

    Attributes:
      room: the most that a call takes.
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
        """The tasks of the next meta-iterations: of as many as were a second's work at the rate of the latest call."""
        taken = [self._drawn.popleft().result() for _ in range(min(at_most, self._next))]
        self._draw_ahead(len(taken))
        return taken

    def took(self, count: int, seconds: float) -> None:
        """To be called after each call. The first compiles, and tells nothing of the rate."""
        self._calls += 1
        if self._calls > 1:
            self._next = max(1, min(self.room, int(count * SECONDS / seconds)))

    def _draw_ahead(self, count: int) -> None:
        self._drawn.extend(self._thread.submit(self._draw, number) for number in itertools.islice(self._numbers, count))
