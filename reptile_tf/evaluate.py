"""Few-shot accuracy: adapt to the support set, classify the query set, over many tasks."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from reptile_tf import checks, device, tasks
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.inner_loop import Adaptation, InnerLoop
from reptile_tf.meta import MetaLearner
from reptile_tf.network import Predictions
from reptile_tf.progress import Progress, log
from reptile_tf.settings import Settings
from reptile_tf.tasks import EvalTasks, Tasks

# Minimum mean number of tasks per class for an estimate of the spread between classes.
TASKS_OF_A_CLASS = 10


class Accuracy(NamedTuple):
    """Mean accuracy over tasks, from 0 to 1, with the half-widths of two 95 % confidence intervals.

    Attributes:
      accuracy: mean accuracy.
      ci95: half-width that reflects the random draw of tasks. More tasks of the same classes narrow it.
      tasks: number of tasks.
      ci95_classes: half-width that reflects the choice of these classes out of all possible ones. Only more classes
        narrow it. None if the tasks cannot show it: fewer than ten tasks per class, all classes in every task, or
        classes that differ by no more than the draw of tasks explains.
    """

    accuracy: float
    ci95: float
    tasks: int
    ci95_classes: float | None = None

    @classmethod
    def of(cls, by_task: np.ndarray) -> "Accuracy":
        """Computes the mean and its interval, 1.96 standard errors, from each task's accuracy, float [task]."""
        spread = by_task.std(ddof=1) if len(by_task) > 1 else math.nan
        return cls(float(by_task.mean()), float(1.96 * spread / math.sqrt(len(by_task))), len(by_task))

    def __str__(self) -> str:
        choice = "" if self.ci95_classes is None else f"; ± {100 * self.ci95_classes:.2f} % by the choice of classes"
        return f"{100 * self.accuracy:.2f} ± {100 * self.ci95:.2f} % ({self.tasks:,} tasks{choice})"


class Answers(NamedTuple):
    """The answers of adapted networks to the queries of many tasks.

    Attributes:
      classes: int [task, way], the index of the class that each label stands for.
      labels: int [task, query], the correct labels.
      answers: int [task, query], the predicted labels.
    """

    classes: np.ndarray
    labels: np.ndarray
    answers: np.ndarray

    def by_task(self) -> np.ndarray:
        """Returns the accuracy on each task, float64 [task]."""
        return (self.answers == self.labels).mean(1)

    def accuracy(self) -> Accuracy:
        """Returns the mean accuracy over tasks, with both intervals."""
        return Accuracy.of(self.by_task())._replace(ci95_classes=self._ci95_classes())

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts how often queries of one class were classified as each class of their task.

        Returns:
          Three int64 arrays over all pairs that occurred: [pair, 2], the class of a query and a class of the same task;
          [pair], the number of queries of the first class classified as the second; [pair], the number of queries of
          the first class in tasks with the second.
        """
        most = int(self.classes.max()) + 1
        true = most * np.take_along_axis(self.classes, self.labels, 1).astype(np.int64)
        met, of = np.unique(true[:, :, np.newaxis] + self.classes[:, np.newaxis], return_counts=True)
        taken, counts = np.unique(true + np.take_along_axis(self.classes, self.answers, 1), return_counts=True)
        times = np.zeros_like(of)
        times[np.searchsorted(met, taken)] = counts
        return np.stack([met // most, met % most], axis=1), times, of

    def _ci95_classes(self) -> float | None:
        """Estimates 1.96 standard errors of the mean accuracy under the choice of classes.

        The mean over tasks is a U-statistic of degree `way` in the classes. By the first term of Hoeffding's
        decomposition its standard error is way · sd(T) / √classes, where T is the mean accuracy of the tasks that
        contain a class. As in an analysis of variance, the variance of T excludes the part due to the draw of tasks.
        """
        tasks, way = self.classes.shape
        accuracies = np.repeat(self.by_task(), way)
        _, index, counts = np.unique(self.classes, return_inverse=True, return_counts=True)
        if len(counts) <= way or tasks * way < TASKS_OF_A_CLASS * len(counts):
            return None
        means = np.bincount(index.ravel(), accuracies) / counts
        between = (counts * (means - accuracies.mean()) ** 2).sum() - (len(counts) - 1) * accuracies.var(ddof=1)
        if between <= 0:
            return None
        variance = between / (counts.sum() - (counts**2).sum() / counts.sum())
        return float(1.96 * way * math.sqrt(variance / len(counts)))


class Evaluator:
    """Adapts to evaluation tasks from a learner's phi and trained moments, without changing the learner.

    Both evaluation settings share one adaptation, because classification is cheap in comparison.

    Args:
      learner: the learner, read at every call and never changed.
      at_most: upper bound on the tasks that run side by side: two per core up to 16, or 64 in one stack. All workers of
        a cluster run as many as the chief.

    Attributes:
      tasks: number of tasks that `logits` takes.

    Raises:
      ValueError: `at_most` is less than 1.
      UserError: another worker has stopped.
    """

    def __init__(self, learner: MetaLearner, at_most: int = 64):
        if at_most < 1:
            raise ValueError(f"at_most must be at least 1, not {at_most}")
        self.tasks = _agreed(learner, at_most)
        self._learner = learner
        self._run_at_once(self.tasks)

    @classmethod
    def of(cls, learner: MetaLearner, count: int) -> "Evaluator":
        """Returns an evaluator for `count` tasks, shared out among the workers.

        The learner keeps it, so that training and several evaluations of the same settings compile one program.

        Raises:
          UserError: another worker has stopped.
        """
        at_once = _agreed(learner, -(-count // learner.cluster.count))
        if at_once not in learner.evaluators:
            learner.evaluators[at_once] = cls(learner, at_once)
        return learner.evaluators[at_once]

    def _run_at_once(self, count: int) -> None:
        learner, self._at_once = self._learner, count
        learner.network.as_made.check()  # the inner loop copies the optimizer
        self._inner = InnerLoop(learner.network, learner.inner_optimizer, count, weight_decay=learner.weight_decay)
        self._compiled = tf.function(self._logits, autograph=False, jit_compile=learner.network.stacked)

    def logits(self, batch: EvalTasks) -> Predictions:
        """Adapts to `self.tasks` tasks and computes the logits of their queries, floatx [task, query, class] each.

        If the tasks do not fit in memory together, fewer run at once from then on, and a log line says so.

        Raises:
          ValueError: there are not `self.tasks` tasks, or they do not fit the network (see `MetaLearner.step`).
          tf.errors.ResourceExhaustedError: a single task does not fit in memory.
        """
        checked = checks.tasks(self._learner.network, batch.support, self.tasks)
        batch = batch._replace(support=checked)
        while True:
            starts = range(0, self.tasks, self._at_once)
            try:
                with self._learner.network.compiling():
                    return Predictions(*np.concatenate([self._of_part(batch, start) for start in starts], axis=1))
            except tf.errors.ResourceExhaustedError:
                if self._at_once == 1:
                    raise
                halves = [n for n in range(1, self._at_once // 2 + 1) if self.tasks % n == 0]
                log.info(f"{self._at_once} tasks at once do not fit in memory: evaluating {halves[-1]} at once")
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


def _agreed(learner: MetaLearner, at_most: int) -> int:
    """Returns the number of tasks that each worker runs side by side, the same on all workers of the cluster."""
    here = min(at_most, 64 if learner.network.stacked else min(16, 2 * device.cores()))
    (of_chief,) = learner.cluster.from_chief([np.array(here)])  # workers may differ in cores
    return int(of_chief)


def meta_test(learner: MetaLearner, classes: ImageClasses, settings: Settings) -> Accuracy:
    """Measures few-shot accuracy over `settings.eval_samples` tasks, transductive if `settings.transductive`.

    Args:
      learner: the learner to evaluate, which does not change.
      classes: classes from which tasks are drawn. Classes with too few images for support and query set are left out.
      settings: number of ways and shots, seed, and the evaluation settings.

    Returns:
      The mean accuracy with its confidence intervals.

    Raises:
      ValueError: the model does not take samples of this shape or, if it learned from uint8 images, of this range, or
        has fewer outputs than a task has classes; or the samples have another scale.
      UserError: there are too few classes, an adaptation is not finite, or another worker has stopped.
    """
    checks.inputs(learner.network, classes.images.shape[1:])
    checks.prepared_alike(learner.origin, learner.scale, classes)
    outputs = learner.network.facts.output_shape[-1]
    if settings.classes > outputs:
        raise ValueError(
            f"a task of {settings.classes} classes needs as many outputs, and the network has {outputs}: set classes "
            "to at most that"
        )
    enough = tasks.with_enough(classes, settings.classes, settings.shots + 1, "evaluation")
    draw = functools.partial(tasks.evaluation_tasks, enough, **settings.evaluation_arguments())
    return answers(learner, draw, settings.eval_samples)[settings.transductive].accuracy()


def answers(
    learner: MetaLearner,
    draw: Callable[..., EvalTasks],
    count: int,
    *,
    evaluator: Evaluator | None = None,
    progress: str = "",
    transductive: bool = False,
) -> Predictions:
    """Adapts the learner to each of many tasks and collects its answers. The workers of its cluster share the tasks.

    Args:
      learner: the learner to evaluate, which does not change.
      draw: called as draw(first=…, count=…), returns tasks `first` to `first + count - 1`.
      count: number of tasks in all.
      evaluator: the evaluator to use; by default `Evaluator.of(learner, count)`.
      progress: title of the progress line; no line is shown without it.
      transductive: which setting's accuracy the progress line shows.

    Returns:
      `Answers` in both settings, the same on all workers.

    Raises:
      UserError: an adaptation is not finite, or another worker has stopped.
    """
    evaluator = evaluator or Evaluator.of(learner, count)
    # The columns are classes, labels, and the answers in both settings.
    cluster, rows = learner.cluster, np.zeros([count, 0], np.int32)
    with Progress(progress, count, unit="task", silent=not progress) as bar:
        for first in range(0, count, evaluator.tasks * cluster.count):
            done = min(first + evaluator.tasks * cluster.count, count)
            # The compiled program takes a fixed number of tasks, so the last batch holds some that are not counted. A
            # worker with no task to count runs the program too: compiling it later would keep the others waiting.
            mine = min(first + evaluator.tasks * cluster.index, done)
            batch = draw(first=mine, count=evaluator.tasks)
            given, way = [], np.shape(batch.classes)[1]
            for logits in evaluator.logits(batch):
                given.append(logits[..., :way].argmax(-1))  # a network for more ways has outputs without a class
                given[-1][~np.isfinite(logits).all((1, 2))] = -1  # the argmax of NaN could be right by chance
            found = np.concatenate([batch.classes, batch.query_y, *given], axis=1)
            if not first:
                rows = np.zeros([count, found.shape[1]], np.int32)
            rows[mine:done][: evaluator.tasks] = found[: done - mine]
            if cluster.count > 1:  # each worker has zeros in the rows of the others
                rows[first:done] = cluster.sum(tf.constant(rows[first:done], tf.float64)).numpy()
            if wrong := int((rows[:done] < 0).any(1).sum()):
                raise UserError(
                    f"adaptation to {wrong} of {done} tasks produced non-finite values; lower --learning-rate"
                )
            classes, labels, *ways = np.split(rows, way + batch.query_y.shape[1] * np.arange(3), axis=1)
            both = Predictions(*(Answers(classes, labels, answers) for answers in ways))
            bar.advance(done - first, str(Accuracy.of(both[transductive].by_task()[:done])))
    return both
