"""Few-shot accuracy: adapt to the support set, classify the query set, over many tasks."""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from reptile_tf import device, tasks
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.inner_loop import Adaptation, InnerLoop
from reptile_tf.meta import MetaLearner
from reptile_tf.network import Predictions
from reptile_tf.progress import Progress, log
from reptile_tf.settings import Settings
from reptile_tf.tasks import EvalTasks, Tasks


class Accuracy(NamedTuple):
    """Mean accuracy over tasks, from 0 to 1, with the half-width of its 95 % confidence interval."""

    accuracy: float
    ci95: float
    tasks: int

    @classmethod
    def of(cls, per_task: np.ndarray) -> "Accuracy":
        """From the share of right answers in each task, float [task]; the interval is 1.96 standard errors."""
        spread = per_task.std(ddof=1) if len(per_task) > 1 else math.nan
        return cls(float(per_task.mean()), float(1.96 * spread / math.sqrt(len(per_task))), len(per_task))

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.2f} ± {100 * self.ci95:.2f} % ({self.tasks:,} tasks)"


class Evaluator:
    """Adapts to tasks from a learner's phi and trained moments, and leaves no trace in the learner.

    One adaptation serves both ways of classifying, which cost little beside it.

    Args:
      learner: read at every call, never changed.
      at_most: bounds how many tasks run side by side, which is two per core up to 16, or 64 in one stack; all workers
        of a cluster take as many as the chief.

    Raises:
      UserError: another worker is gone.
    """

    def __init__(self, learner: MetaLearner, at_most: int = 64):
        here = min(at_most, 64 if learner.network.stacked else min(16, 2 * device.cores()))
        (self.tasks,) = map(int, learner.cluster.from_chief([np.array(here)]))  # cores differ, blocks must not
        self._learner = learner
        self._run_at_once(self.tasks)

    def _run_at_once(self, count: int) -> None:
        learner, self._at_once = self._learner, count
        self._inner = InnerLoop(learner.network, learner.inner_optimizer, count, weight_decay=learner.weight_decay)
        self._compiled = tf.function(self._logits, jit_compile=learner.network.stacked)

    def logits(self, batch: EvalTasks) -> Predictions:
        """The logits of every query after adaptation, floatx [task, query, class] each; takes `self.tasks` tasks.

        Where they do not fit the memory together, fewer run at once, from then on; a line says so.

        Raises:
          tf.errors.ResourceExhaustedError: not even one fits.
        """
        while True:
            starts = range(0, self.tasks, self._at_once)
            try:
                with self._learner.network.compiling():
                    return Predictions(*np.concatenate([self._of_part(batch, start) for start in starts], axis=1))
            except tf.errors.ResourceExhaustedError:
                if self._at_once == 1:
                    raise
                halves = [n for n in range(1, self._at_once // 2 + 1) if self.tasks % n == 0]
                log.info(f"{self._at_once} tasks at once are too many for the memory: evaluating {halves[-1]}")
                self._run_at_once(halves[-1])

    def _of_part(self, batch: EvalTasks, start: int) -> np.ndarray:
        part = tf.nest.map_structure(lambda array: array[start : start + self._at_once], batch)
        return self._compiled(part.support, part.query_x).numpy()

    def _logits(self, support: Tasks, query_x: tf.Tensor) -> tf.Tensor:
        network = self._learner.network

        def adapt_and_classify(adaptation: Adaptation, support: Tasks, queries: tf.Tensor) -> tf.Tensor:
            weights = adaptation.adapt(support, support.minibatches)
            return tf.stack(network.predictions(weights, support.x, queries), axis=1)

        logits, _ = self._inner.run(adapt_and_classify, support, self._learner.phi, self._learner.inner_state, query_x)
        return tf.transpose(logits, [1, 0, 2, 3])


def meta_test(learner: MetaLearner, classes: ImageClasses, settings: Settings, **options) -> Accuracy:
    """Few-shot accuracy over `settings.eval_samples` tasks, in the way that `settings.transductive` says.

    Arguments and errors are those of `accuracy_by_task`.
    """
    return meta_test_in_both_ways(learner, classes, settings, **options)[settings.transductive]


def meta_test_in_both_ways(learner: MetaLearner, classes: ImageClasses, settings: Settings, **options) -> Predictions:
    """`meta_test` in both ways, from the same adaptations: an `Accuracy` each."""
    return Predictions(*map(Accuracy.of, accuracy_by_task(learner, classes, settings, **options)))


def accuracy_by_task(
    learner: MetaLearner,
    classes: ImageClasses,
    settings: Settings,
    *,
    count: int = 0,
    stream: int = tasks.EVALUATION,
    iteration: int = 0,
    evaluator: Evaluator | None = None,
    progress: str = "",
) -> Predictions:
    """The accuracy on each of many few-shot tasks, which the learner's cluster shares.

    Args:
      learner: what to adapt; it is left as it is.
      classes: what tasks are drawn from.
      settings: ways, shots, and the evaluation's settings.
      count: how many tasks; by default `settings.eval_samples`.
      stream: of random numbers, see `tasks`.
      iteration: the meta-iteration, when monitoring.
      evaluator: one made before, which saves compiling another.
      progress: what to call this in a progress line; without it there is none.

    Returns:
      float64 [count] each, the share of queries that are classified rightly.

    Raises:
      UserError: too few classes, or a class with too few images; an adaptation that is not finite; another worker is
        gone.
    """
    tasks.check_enough(classes, settings.classes, settings.shots + 1, "evaluation")
    evaluator = evaluator or Evaluator(learner)
    count = count or settings.eval_samples
    cluster = learner.cluster
    right = np.zeros([2, count])
    with Progress(progress, count, unit="task", silent=not progress) as bar:
        for first in range(0, count, evaluator.tasks * cluster.count):
            done = min(first + evaluator.tasks * cluster.count, count)
            # The compiled program takes a fixed number of tasks: the last batch is filled up, and the rest not counted.
            # A worker with none to count takes some all the same: the others would not wait while it compiles later.
            mine = min(first + evaluator.tasks * cluster.index, done)
            batch = tasks.evaluation_tasks(
                classes,
                **settings.evaluation_arguments(),
                stream=stream,
                iteration=iteration,
                first=mine,
                count=evaluator.tasks,
            )
            counted = min(evaluator.tasks, done - mine)
            for of_way, logits in zip(right, evaluator.logits(batch), strict=True):
                accuracies = (logits.argmax(-1) == batch.query_y).mean(-1)
                accuracies[~np.isfinite(logits).all((1, 2))] = np.nan  # whose argmax would be right by chance
                of_way[mine : mine + counted] = accuracies[:counted]
            if cluster.count > 1:  # zeros elsewhere
                right[:, first:done] = cluster.sum(tf.constant(right[:, first:done])).numpy()
            if wrong := int(np.isnan(right[:, :done]).any(0).sum()):
                raise UserError(
                    f"adaptation to {wrong} of {done} tasks produced non-finite values; lower --learning-rate"
                )
            bar.advance(done - first, str(Accuracy.of(right[int(settings.transductive), :done])))
    return Predictions(*right)
