"""N-way K-shot tasks as index arrays, from a counter-based generator.

Task i of meta-iteration t depends only on the seed, t and i. A run that is resumed, or divided among machines,
therefore draws the same tasks as an uninterrupted run on one machine.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.progress import log

# Independent streams of random numbers, one for each purpose.
TRAINING, MONITORING, EVALUATION = range(3)


class Tasks(NamedTuple):
    """Few-shot tasks, each a pool of samples and the minibatches drawn from it.

    Attributes:
      x: [task, sample, ...] inputs before scaling, for example uint8 images.
      y: [task, sample] targets; int32 labels for a classifier.
      minibatches: int32 [task, step, sample in minibatch], indices into the pool.
      query: int32 [task, 1, sample in minibatch], the query minibatch of MAML and first-order MAML. It is the last of
        the k minibatches, which `minibatches` then excludes. () for other algorithms.
      seed: int32 [task, 2], the seed of each task's random layers; () if the network has none.
    """

    x: np.ndarray
    y: np.ndarray
    minibatches: np.ndarray
    query: np.ndarray | tuple[()] = ()
    seed: np.ndarray | tuple[()] = ()


class EvalTasks(NamedTuple):
    """Few-shot tasks with a query set for evaluation.

    Attributes:
      support: the support sets and their minibatches.
      query_x: [task, query, ...] inputs of the query sets, before scaling.
      query_y: int32 [task, query], labels of the query sets.
      classes: int32 [task, way], the index of the class that each label stands for; () if there are no classes.
    """

    support: Tasks
    query_x: np.ndarray
    query_y: np.ndarray
    classes: np.ndarray | tuple[()] = ()


def generator(seed: int, stream: int, iteration: int, task: int) -> np.random.Generator:
    """Returns the random number generator of one task. `iteration` and `task` are integers from 0 to 2**64 - 1."""
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, stream], np.uint64), counter=[0, 0, task, iteration])
    )


def seed_of(rng: np.random.Generator) -> np.ndarray:
    """Draws the seed of a task's random layers, int32 [2]. It is the last draw of a task."""
    return rng.integers(2**31 - 2, size=2, dtype=np.int32)


def check_enough(classes: ImageClasses, way: int, images: int, purpose: str) -> np.ndarray:
    """Returns the indices, int [class], of the classes with fewer than `images` images, too few for `purpose`.

    Raises:
      UserError: fewer than `way` classes remain without them.
    """
    small = np.flatnonzero(classes.counts < images)
    left = len(classes) - len(small)
    if left < way:
        few = ""
        if len(small):
            least = int(np.argmin(classes.counts))
            few = (
                f" with the {images} images that {purpose} needs of each (--shots and one to classify, or "
                f"--train-shots); {classes.names[least]} has {classes.counts[least]}"
            )
        raise UserError(
            f"{way} ways need {way} classes for {purpose}, but there are {left}{few}; lower --classes"
            + (" or the shots, or add images" if few else "")
        )
    return small


def with_enough(classes: ImageClasses, way: int, images: int, purpose: str) -> ImageClasses:
    """Returns the classes with at least `images` images, from which tasks for `purpose` can be drawn.

    A log line counts the classes left out. If there are none, the result is `classes` itself.

    Raises:
      UserError: fewer than `way` classes remain.
    """
    small = check_enough(classes, way, images, purpose)
    if not len(small):
        return classes
    log.info(
        f"{len(small)} of {len(classes)} classes have fewer than {images} images and are left out of {purpose}, such "
        f"as {classes.names[small[0]]} with {classes.counts[small[0]]}"
    )
    return classes.subset(np.flatnonzero(classes.counts >= images))


def draw_images(classes: ImageClasses, way: int, shots: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws `way` classes and `shots` images of each, both without replacement.

    Returns:
      int [way], the indices of the classes drawn, where the i-th class gets label i; and their images
      [way, shots, ...].
    """
    chosen = _choices([len(classes)], way, rng)[0]
    return chosen, classes.of_classes(chosen, _choices(classes.counts[chosen].tolist(), shots, rng))


def _choices(populations: Sequence[int], size: int, rng: np.random.Generator) -> np.ndarray:
    """What `rng.choice(n, size, replace=False)` gives for each population n in turn: int [population, size].

    A call of `choice` takes longer than its random numbers. These are therefore drawn for all populations at once, and
    used as NumPy uses them: Floyd's algorithm for a sample, then a shuffle of it.
    """
    if size > 50:  # NumPy has another algorithm for large samples
        return np.stack([rng.choice(n, size, replace=False) for n in populations])
    drawn = rng.integers(0, np.concatenate([_highest(n, size) for n in populations]), endpoint=True).tolist()
    samples = []
    for i, n in enumerate(populations):
        numbers = iter(drawn[i * (2 * size - 1) :])
        sample: list[int] = []
        for last, number in zip(range(n - size, n), numbers):  # noqa: B905  (the others shuffle)
            sample.append(last if number in sample else number)
        for at in range(size - 1, 0, -1):
            other = next(numbers)
            sample[at], sample[other] = sample[other], sample[at]
        samples.append(sample)
    return np.array(samples)


@functools.lru_cache
def _highest(n: int, size: int) -> np.ndarray:
    """The highest value that each random number of a sample may have: those of the sample, then of its shuffle."""
    if size > n:
        raise ValueError(f"{size} cannot be drawn from {n} without replacement")
    return np.array([*range(n - size, n), *range(size - 1, 0, -1)])


def deal_minibatches(samples: int, size: int, steps: int, replacement: bool, rng: np.random.Generator) -> np.ndarray:
    """Draws minibatches from a pool as the original code does.

    Without `replacement` the pool is shuffled and dealt out in order, and shuffled again when it runs out. Every
    minibatch has `size` samples, and one that spans two shuffles may repeat a sample. With `replacement` the
    minibatches are independent, and no minibatch repeats a sample.

    Returns:
      int32 [steps, size], indices below `samples`.

    Raises:
      ValueError: `replacement` is set and a minibatch is larger than the pool.
    """
    if replacement:
        if size > samples:
            raise ValueError(f"a minibatch of {size} cannot be drawn from {samples} samples")
        dealt = [rng.choice(samples, size, replace=False) for _ in range(steps)]
    else:
        shuffles = -(-steps * size // samples)
        dealt = [rng.permutation(samples) for _ in range(shuffles)]
    return np.concatenate([*dealt, []])[: steps * size].reshape(steps, size).astype(np.int32)


def training_tasks(
    classes: ImageClasses,
    *,
    way: int,
    shots: int,
    batch: int,
    steps: int,
    replacement: bool = False,
    query: bool = False,
    query_shots: int = 0,
    seed: int,
    iteration: int,
    first: int = 0,
    count: int,
) -> Tasks:
    """Draws tasks `first` to `first + count - 1` of one meta-iteration.

    Args:
      classes: classes to draw from; each needs at least `shots` samples.
      way: number of classes in a task.
      shots: number of samples of each class.
      batch: number of samples in a minibatch.
      steps: number of minibatches in a task, k.
      replacement: see `deal_minibatches`.
      query: use the last minibatch as the query minibatch, for MAML and first-order MAML.
      query_shots: if not 0, set this many samples of each class aside, and use all of them as the query minibatch.
      seed: seed of the run.
      iteration: index of the meta-iteration, from 0.
      first: index of the first task.
      count: number of tasks: the meta-batch, or a worker's share of it.

    Returns:
      Tasks with samples [count, way * shots, ...], uint8 [..., height, width, channel] for images.

    Raises:
      ValueError: no sample of a class would be left to train on; or there are too few classes or samples to draw.
    """
    if not 0 <= query_shots < shots:
        raise ValueError(f"query_shots must be from 0 to {shots - 1}, because a class has {shots} samples in a task")
    query = query or bool(query_shots)
    images, minibatches, queries, seeds = [], [], [], []
    # Image s of class c is sample c * shots + s of the pool; the last `query_shots` of each class are set aside.
    pool = np.arange(way * shots, dtype=np.int32).reshape(way, shots)
    used, aside = pool[:, : shots - query_shots].ravel(), pool[:, shots - query_shots :].ravel()
    for task in range(first, first + count):
        rng = generator(seed, TRAINING, iteration, task)
        images.append(_pool(draw_images(classes, way, shots, rng)[1]))
        dealt = used[deal_minibatches(used.size, batch, steps - bool(query_shots), replacement, rng)]
        if query_shots:
            queries.append(aside[np.newaxis])
        elif query:
            dealt, last = dealt[:-1], dealt[-1:]
            queries.append(last)
        minibatches.append(dealt)
        seeds.append(seed_of(rng))
    labels = np.tile(np.repeat(np.arange(way, dtype=np.int32), shots), (count, 1))
    return Tasks(np.stack(images), labels, np.stack(minibatches), np.stack(queries) if query else (), np.stack(seeds))


def evaluation_tasks(
    classes: ImageClasses,
    *,
    way: int,
    shots: int,
    batch: int,
    steps: int,
    replacement: bool = False,
    seed: int,
    stream: int = EVALUATION,
    iteration: int = 0,
    first: int = 0,
    count: int,
) -> EvalTasks:
    """Draws evaluation tasks `first` to `first + count - 1`, with `shots` support samples and one query per class.

    Args:
      classes: classes to draw from; each needs at least `shots` + 1 samples.
      way: number of classes in a task.
      shots: number of support samples of each class.
      batch: number of samples in a minibatch of the adaptation.
      steps: number of minibatches of the adaptation.
      replacement: see `deal_minibatches`.
      seed: seed of the run.
      stream: EVALUATION, or MONITORING for validation during training.
      iteration: number of finished meta-iterations, for MONITORING.
      first: index of the first task.
      count: number of tasks.

    Returns:
      EvalTasks with support samples [count, way * shots, ...] and queries [count, way, ...], uint8 for images.
    """
    support, query, minibatches, seeds, of = [], [], [], [], []
    for task in range(first, first + count):
        rng = generator(seed, stream, iteration, task)
        chosen, drawn = draw_images(classes, way, shots + 1, rng)
        of.append(chosen)
        query.append(drawn[:, -1])
        support.append(_pool(drawn[:, :-1]))
        minibatches.append(deal_minibatches(way * shots, batch, steps, replacement, rng))
        seeds.append(seed_of(rng))
    label = np.arange(way, dtype=np.int32)
    labels = np.tile(np.repeat(label, shots), (count, 1))
    pool = Tasks(np.stack(support), labels, np.stack(minibatches), seed=np.stack(seeds))
    return EvalTasks(pool, np.stack(query), np.tile(label, (count, 1)), np.stack(of).astype(np.int32))


def _pool(images: np.ndarray) -> np.ndarray:
    """Reshapes [way, shots, ...] to [sample, ...], class after class."""
    return images.reshape(-1, *images.shape[2:])
