"""The meta-gradients of Reptile and related algorithms, computed by the inner loop.

A meta-gradient is a function of three arguments: phi, floatx [weight]; an `Adaptation` of a stack of tasks, which
starts at phi and continues with every call of `adapt`; and the tasks. It returns one row per task, floatx
[stack, weight], and is traced into a graph. U_j(phi) denotes the weights after j inner steps from phi, k the number of
inner steps, and g_j the gradient at step j.
"""

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from reptile_tf.inner_loop import Adaptation
from reptile_tf.tasks import Tasks

MetaGradient = Callable[[tf.Tensor, Adaptation, Tasks], tf.Tensor]


def reptile(phi: tf.Tensor, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
    """Returns phi - U_k(phi), floatx [stack, weight] (paper, section 4). With k = 1 this is joint training."""
    return phi - inner.adapt(tasks, tasks.minibatches)


def foml(phi: tf.Tensor, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
    """Returns U_{k-1}(phi) - U_k(phi), floatx [stack, weight]: first-order MAML, the change by the last minibatch.

    Raises:
      ValueError: the tasks have no query minibatch.
    """
    del phi
    query = _query_of(tasks)
    before = inner.adapt(tasks, tasks.minibatches)
    return before - inner.adapt(tasks, query)


def maml(phi: tf.Tensor, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
    """Returns the gradient of the query minibatch's loss with respect to phi, floatx [stack, weight].

    This is MAML with second derivatives (paper, section 5). The loss is taken after k - 1 steps of plain SGD.

    Raises:
      ValueError: the tasks have no query minibatch, the inner optimizer is not plain SGD, or second derivatives of the
        network would be wrong.
    """
    query = _query_of(tasks)
    with tf.GradientTape() as tape:
        start = tf.broadcast_to(phi, inner.weights.shape)
        tape.watch(start)
        weights = start
        for step in range(tasks.minibatches.shape[1]):  # unrolled: XLA cannot differentiate a loop of unknown length
            weights = inner.sgd_step(weights, tasks, tasks.minibatches[:, step])
        losses = inner.losses(weights, tasks, query[:, 0])
    return tf.convert_to_tensor(tape.gradient(losses, start))  # may be tf.IndexedSlices for a stack of one task


def _query_of(tasks: Tasks) -> np.ndarray:
    if isinstance(tasks.query, tuple):
        raise ValueError("MAML, first-order or not, needs a query minibatch: draw tasks with query=True")
    return tasks.query


def partial_sum(terms: Iterable[int]) -> MetaGradient:
    """Returns a meta-gradient that sums the changes U_{j-1}(phi) - U_j(phi) of some steps (paper, section 6.1).

    With SGD as the inner optimizer it is the learning rate times the sum of the g_j.

    Args:
      terms: the step numbers j, from 1 to k. All of them give Reptile, k alone gives first-order MAML.

    Raises:
      ValueError: there is no step number, or one is less than 1; when called: one is more than k.
    """
    terms = frozenset(terms)
    if not terms or min(terms) < 1:
        raise ValueError(f"terms must be step numbers from 1 on, not {sorted(terms)}")

    def meta_gradient(phi: tf.Tensor, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
        if max(terms) > (steps := tasks.minibatches.shape[1]):
            raise ValueError(f"there is no step {max(terms)} to sum: the tasks have {steps} inner steps")
        total, before = tf.zeros_like(inner.weights), phi
        for step in range(max(terms)):
            after = inner.adapt(tasks, tasks.minibatches[:, step : step + 1])
            if step + 1 in terms:
                total += before - after
            before = after
        return total

    return meta_gradient


BY_NAME: dict[str, MetaGradient] = {"reptile": reptile, "foml": foml, "maml": maml}
