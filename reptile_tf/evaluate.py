"""Few-shot accuracy: adapt to the support set, classify the query set, over many tasks."""

import math
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from reptile_tf.inner_loop import InnerLoop, Lane, Tasks
from reptile_tf.meta import MetaLearner


class EvalTasks(NamedTuple):
    """Few-shot problems with held-out queries.

    Attributes:
      support: the pool that is adapted to and its minibatches.
      query_x: [task, query, ...] inputs to classify.
      query_y: int32 [task, query], their labels.
    """

    support: Tasks
    query_x: np.ndarray | tf.Tensor
    query_y: np.ndarray | tf.Tensor


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

    Args:
      learner: read at every call, never changed.
      transductive: classify all queries of a task in one batch, so that they share batch-norm statistics. Else each query
        is classified in a batch with the whole support set, alone of its kind.
      tasks: how many tasks run side by side; by default two per core, or 64 in one stack.
    """

    def __init__(self, learner: MetaLearner, transductive: bool = False, tasks: int = 0):
        self.tasks = tasks or (64 if learner.network.stacked else 2 * os.cpu_count())
        self._learner = learner
        self._transductive = transductive
        self._inner = InnerLoop(learner.network, learner.inner_optimizer, self.tasks, learner.weight_decay)
        self._compiled = tf.function(self._logits, jit_compile=learner.network.stacked)

    def logits(self, batch: EvalTasks) -> np.ndarray:
        """The logits of every query after adaptation, floatx [task, query, class]; takes `self.tasks` tasks."""
        return self._compiled(batch.support, batch.query_x).numpy()

    def accuracy(self, batches: Iterable[EvalTasks]) -> np.ndarray:
        """The share of right answers in each task of `batches`, float [task]."""
        right = [(self.logits(batch).argmax(-1) == batch.query_y).mean(-1) for batch in batches]
        return np.concatenate(right)

    def _logits(self, support: Tasks, query_x: tf.Tensor) -> tf.Tensor:
        # The queries travel to the lanes as one more field of the share.
        def adapt_and_classify(lane: Lane, share: tuple[Tasks, tf.Tensor]) -> tf.Tensor:
            pool, queries = share
            lane.adapt(pool, pool.minibatches)
            return lane.outputs(queries) if self._transductive else one_by_one(lane, pool.x, queries)

        def one_by_one(lane: Lane, support_x: tf.Tensor, queries: tf.Tensor) -> tf.Tensor:
            def classify(query):  # [stack, ...]
                return lane.outputs(tf.concat([support_x, query[:, tf.newaxis]], axis=1))[:, -1]

            by_query = tf.map_fn(
                classify, tf.experimental.numpy.swapaxes(queries, 0, 1), fn_output_signature=lane.weights.dtype
            )
            return tf.transpose(by_query, [1, 0, 2])

        return self._inner.map(adapt_and_classify, (support, query_x), self._learner.phi, self._learner.inner_state)
