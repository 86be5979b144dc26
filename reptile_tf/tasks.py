"""N-way K-shot tasks as index arrays, from a counter-based generator.

Task i of meta-iteration t depends on the seed, t and i alone. So a run that is resumed, or shared out over machines,
draws the same tasks as one that is not.
"""

from typing import NamedTuple

import numpy as np

from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.progress import log

# Streams of random numbers, so that no two purposes share one.
TRAINING, MONITORING, EVALUATION = range(3)


class Tasks(NamedTuple):
    """Few-shot problems, each a pool of samples and the minibatches to be dealt from it.

    Attributes:
      x: [task, sample, ...] inputs before scaling (uint8 images, say).
      y: [task, sample] targets; int32 labels for a classifier.
      minibatches: int32 [task, step, sample in minibatch], indices into the pool.
      query: int32 [task, 1, sample in minibatch], the query minibatch of MAML, first-order or not: the last of the k,
        which `minibatches` then lacks. Elsewhere () (no array).
      seed: int32 [task, 2], what each task's random layers start from; () where the network has none.
    """

    x: np.ndarray
    y: np.ndarray
    minibatches: np.ndarray
    query: np.ndarray | tuple[()] = ()
    seed: np.ndarray | tuple[()] = ()


class EvalTasks(NamedTuple):
    """Few-shot problems with held-out queries.

    Attributes:
      support: the pool that is adapted to and its minibatches.
      query_x: [task, query, ...] inputs to classify.
      query_y: int32 [task, query], their labels.
      classes: int32 [task, way], the number of the class behind each label; () where there are none.
    """

    support: Tasks
    query_x: np.ndarray
    query_y: np.ndarray
    classes: np.ndarray | tuple[()] = ()


def generator(seed: int, stream: int, iteration: int, task: int) -> np.random.Generator:
    """The random numbers of one task. `iteration` and `task` may be any non-negative integers below 2**64."""
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, stream], np.uint64), counter=[0, 0, task, iteration])
    )


def seed_of(rng: np.random.Generator) -> np.ndarray:
    """What the random layers of a task start from, int32 [2]: the last thing to be drawn for it."""
    return rng.integers(2**31 - 2, size=2, dtype=np.int32)


def check_enough(classes: ImageClasses, way: int, images: int, purpose: str) -> np.ndarray:
    """The numbers of the classes with fewer than `images` images, int [class], which cannot serve for `purpose`.

    Raises:
      UserError: fewer than `way` classes are left without them.
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
    """The classes that tasks of `way` classes with `images` images of each can be drawn from, for `purpose`.

    Classes with fewer images are left out; a log line counts them. Without such the result is `classes` itself.

    Raises:
      UserError: fewer than `way` classes are left.
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
      int [way], the numbers of the classes drawn, the i-th of which has label i; and their images, [way, shots, ...].
    """
    chosen = rng.choice(len(classes), way, replace=False)
    return chosen, np.stack([classes.of_class(c, rng.choice(classes.counts[c], shots, replace=False)) for c in chosen])


def deal_minibatches(samples: int, size: int, steps: int, replacement: bool, rng: np.random.Generator) -> np.ndarray:
    """Minibatches of a pool, as the authors' code deals them.

    Without `replacement` the pool is shuffled and dealt out in order, and shuffled again when it runs out: a minibatch
    can straddle two shuffles, and always has `size` samples. With it every minibatch is drawn by itself, and no sample
    is in the same minibatch twice.

    Returns:
      int32 [steps, size], indices below `samples`.

    Raises:
      ValueError: with replacement, a minibatch larger than the pool.
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
    """Tasks `first` to `first + count - 1` of one meta-iteration.

    Args:
      classes: what to draw from.
      way: classes of a task.
      shots: images of each class.
      batch: samples of a minibatch.
      steps: minibatches of a task, k.
      replacement: see `deal_minibatches`.
      query: keep the last minibatch apart as the query minibatch, for MAML and its first-order form.
      query_shots: with `query`, set so many images of each class aside, and let all of them be the query minibatch.
      seed: of the run.
      iteration: counts meta-iterations from 0.
      first: number of the first task.
      count: how many: the meta-batch, or a worker's share of it.

    Returns:
      Tasks with uint8 [count, way * shots, height, width, channel] images.
    """
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
    """Tasks `first` to `first + count - 1` of an evaluation: `shots` images of each class to adapt to, one to classify.

    Args:
      classes: what to draw from; each class needs `shots` + 1 images.
      way: classes of a task.
      shots: support images of each class.
      batch: samples of a minibatch of the adaptation.
      steps: minibatches of the adaptation.
      replacement: see `deal_minibatches`.
      seed: of the run.
      stream: EVALUATION or MONITORING.
      iteration: the meta-iteration, when monitoring.
      first: number of the first task.
      count: how many.

    Returns:
      EvalTasks with uint8 [count, way * shots, …] support and [count, way, …] query images.
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
    """[way, shots, ...] to [sample, ...], class after class."""
    return images.reshape(-1, *images.shape[2:])
