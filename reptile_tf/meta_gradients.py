"""Meta-gradients: what stands for phi - W in Reptile and its relatives, read off the inner loop.

Each is a function of phi, floatx [weight]; an `Adaptation` of a stack of tasks, which stands at phi and goes on with
every call of `adapt`; and those tasks. It gives one row per task, floatx [stack, weight], and is traced into a graph.
U_j(phi) are the weights after j inner steps from phi, k is the number of all steps, and g_j the gradient of the j-th.
"""

from collections.abc import Callable, Collection

import numpy as np
import tensorflow as tf

from reptile_tf.inner_loop import Adaptation
from reptile_tf.tasks import Tasks

MetaGradient = Callable[[tf.Tensor, Adaptation, Tasks], tf.Tensor]


def reptile(phi: tf.Tensor, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
    """phi - U_k(phi) (paper, section 4); with k = 1 it is joint training. Returns [stack, weight]."""
    return phi - inner.adapt(tasks, tasks.minibatches)


def foml(phi: tf.Tensor, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
    """First-order MAML, U_{k-1}(phi) - U_k(phi): what the last minibatch alone does. Returns [stack, weight]."""
    del phi
    query = _query_of(tasks)
    before = inner.adapt(tasks, tasks.minibatches)
    return before - inner.adapt(tasks, query)


def maml(phi: tf.Tensor, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
    """MAML, with its second derivatives: the gradient with respect to phi of the query minibatch's loss.

    The steps before it, all of k but one, are plain SGD (paper, section 5). Returns [stack, weight].
    """
    query = _query_of(tasks)
    with tf.GradientTape() as tape:
        start = tf.broadcast_to(phi, inner.weights.shape)
        tape.watch(start)
        weights = start
        for step in range(tasks.minibatches.shape[1]):  # unrolled: XLA cannot differentiate a loop of unknown length
            weights = inner.sgd_step(weights, tasks, tasks.minibatches[:, step])
        losses = inner.losses(weights, tasks, query[:, 0])
    return tf.convert_to_tensor(tape.gradient(losses, start))  # of a stack of one task it may come as slices


def _query_of(tasks: Tasks) -> np.ndarray:
    if isinstance(tasks.query, tuple):
        raise ValueError("MAML, first-order or not, needs a query minibatch: draw tasks with query=True")
    return tasks.query


def partial_sum(terms: Collection[int]) -> MetaGradient:
    """The meta-gradient that sums what some of the steps do (paper, section 6.1): with SGD inside, lr · Σ g_j.

    Args:
      terms: the numbers j of the steps, from 1 to k. All of them are Reptile, k alone is first-order MAML.
    """

    def meta_gradient(phi: tf.Tensor, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
        total, before = tf.zeros_like(inner.weights), phi
        for step in range(max(terms)):
            after = inner.adapt(tasks, tasks.minibatches[:, step : step + 1])
            if step + 1 in terms:
                total += before - after
            before = after
        return total

    return meta_gradient


BY_NAME: dict[str, MetaGradient] = {"reptile": reptile, "foml": foml, "maml": maml}
