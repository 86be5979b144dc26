"""The algorithm: a meta-gradient read off the inner loop, and the outer step that applies it.

Reptile, batched (paper, algorithms 1 and 2):

    for each meta-iteration:
      for each task of the meta-batch:
        W = phi after k optimizer steps on minibatches of the task
      phi <- phi - eps * mean(phi - W)

The last line is a step of plain SGD with learning rate eps, so any stock Keras optimizer may take its place. The other
algorithms differ only in what stands for phi - W.
"""

import functools
from collections.abc import Callable, Collection

import keras
import numpy as np
import tensorflow as tf

from reptile_tf.cluster import ALONE, Cluster
from reptile_tf.inner_loop import InnerLoop, Lane, Loss, Network, cross_entropy
from reptile_tf.tasks import EVALUATION, Tasks, deal_minibatches, generator

MetaGradient = Callable[[tf.Tensor, Lane, Tasks], tf.Tensor]


class NotFiniteError(ArithmeticError):
    """A meta-iteration that gave infinities or what is not a number; `args[0]` lists where."""


def reptile(phi: tf.Tensor, lane: Lane, tasks: Tasks) -> tf.Tensor:
    """phi - U_k(phi) (paper, section 4); with k = 1 it is joint training. Returns [stack, weight]."""
    return phi - lane.adapt(tasks, tasks.minibatches)


def foml(phi: tf.Tensor, lane: Lane, tasks: Tasks) -> tf.Tensor:
    """First-order MAML, U_{k-1}(phi) - U_k(phi): what the last minibatch alone does. Returns [stack, weight]."""
    del phi
    _check_tail(tasks)
    before = lane.adapt(tasks, tasks.minibatches)
    return before - lane.adapt(tasks, tasks.tail)


def maml(phi: tf.Tensor, lane: Lane, tasks: Tasks) -> tf.Tensor:
    """MAML, with its second derivatives: the gradient with respect to phi of the last minibatch's loss after the steps.

    The steps before it, all of k but one, are plain SGD (paper, section 5). Returns [stack, weight].
    """
    _check_tail(tasks)
    with tf.GradientTape() as tape:
        start = tf.broadcast_to(phi, lane.weights.shape)
        tape.watch(start)
        weights = start
        for step in range(tasks.minibatches.shape[1]):  # unrolled: XLA cannot differentiate a loop of unknown length
            weights = lane.sgd_step(weights, tasks, tasks.minibatches[:, step])
        losses = lane.losses(weights, tasks, tasks.tail[:, 0])
    return tape.gradient(losses, start)


def partial_sum(terms: Collection[int]) -> MetaGradient:
    """The meta-gradient that sums what some of the steps do (paper, section 6.1): with SGD inside, lr · Σ g_j.

    Args:
      terms: the numbers j of the steps, from 1 to k. All of them are Reptile, k alone is first-order MAML.
    """

    def meta_gradient(phi: tf.Tensor, lane: Lane, tasks: Tasks) -> tf.Tensor:
        total, before = tf.zeros_like(lane.weights), phi
        for step in range(max(terms)):
            after = lane.adapt(tasks, tasks.minibatches[:, step : step + 1])
            if step + 1 in terms:
                total += before - after
            before = after
        return total

    return meta_gradient


def _check_tail(tasks: Tasks) -> None:
    if isinstance(tasks.tail, tuple):
        raise ValueError("MAML, first-order or not, needs a last minibatch apart: draw tasks with foml=True")


class MetaLearner:
    """The initialization phi being learned, with the state of both optimizers.

    Args:
      model: a built Keras model, whose weights are the first phi; it receives the result by `update_model`.
      inner_optimizer: elementwise stock Keras optimizer of the inner loop. In training its moments are never reset:
        they run on from task to task. The paper's is Adam with beta_1 = 0.
      outer_optimizer: stock Keras optimizer that applies the meta-gradient, which it sees as one flat vector; its
        learning rate is set at every step. Plain SGD is the paper's interpolation.
      meta_gradient: `reptile`, `foml`, `maml`, a `partial_sum`, or a function like them.
      meta_batch: tasks per meta-iteration.
      in_turn: run the tasks one after another, the inner optimizer's state passed on, as the authors' code does. Else
        side by side: all start from the same state, and the states are averaged afterwards.
      stacked: one XLA program over all tasks (for a GPU), instead of one branch of the graph per task (for a CPU).
      weight_decay: factor on all weights before every inner step (1: none).
      scale: what inputs are multiplied by.
      loss: of (targets, outputs) of one minibatch.
      cluster: the workers that share each meta-batch; all make the same learner.

    Attributes:
      phi: floatx variable [weight].
      inner_state: variables, the inner optimizer's state ([weight] or scalar each).
      share: first and count of the tasks of a meta-batch that `step` takes here. A worker without a task of its own
        (count 0) takes one all the same, which does not count: it would only wait for the others.

    Raises:
      ValueError: the model or the inner optimizer does not serve; the message says why.
    """

    def __init__(
        self,
        model: keras.Model,
        inner_optimizer: keras.Optimizer,
        outer_optimizer: keras.Optimizer,
        *,
        meta_gradient: MetaGradient = reptile,
        meta_batch: int = 1,
        in_turn: bool = False,
        stacked: bool = False,
        weight_decay: float = 1.0,
        scale: float = 1.0,
        loss: Loss = cross_entropy,
        cluster: Cluster = ALONE,
    ):
        self.model = model
        self.cluster = cluster
        self.share = cluster.share(meta_batch)
        self.network = Network(model, loss, scale, stacked)
        self.phi = tf.Variable(self.network.flatten(model.trainable_variables), name="phi")
        self.inner_optimizer = inner_optimizer
        self.weight_decay = weight_decay
        self._meta_gradient = meta_gradient
        self._in_turn = in_turn
        self._weight = self.share[1] / meta_batch  # of this worker in the sums
        self._stacked = stacked
        self._inner = InnerLoop(self.network, inner_optimizer, 1 if in_turn else max(self.share[1], 1), weight_decay)
        self.inner_state = [tf.Variable(value) for value in self._inner.initial_state()]
        self._outer = type(outer_optimizer).from_config(outer_optimizer.get_config())
        if isinstance(self._outer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            raise ValueError("the outer optimizer's learning rate is the meta-step of each step: give it no schedule")
        self._outer.build([self.phi])
        self._compiled_step = tf.function(self._step, jit_compile=stacked)
        self._compiled_contribution = tf.function(self._contribution, jit_compile=stacked)
        self._compiled_outer_step = tf.function(self._outer_step, jit_compile=stacked)
        self._compiled_gradients = tf.function(self._gradients, jit_compile=stacked)

    def step(self, tasks: Tasks, meta_step: float) -> float:
        """One meta-iteration: one compiled call, or two with an exchange between them where there are several workers.

        Args:
          tasks: as many as the meta-batch, or this worker's (see `share`).
          meta_step: the outer optimizer's learning rate (the paper's eps).

        Returns:
          The norm of the meta-gradient; the same on all workers.

        Raises:
          NotFiniteError: the meta-gradient, a weight or a moment is not finite. The learner stays as it was.
          ValueError: a label that the network has no output for; several workers, but tasks are to run in turn.
          UserError: another worker is gone.
        """
        self.network.check_labels(tasks.x.shape[2:], tasks.y)
        rate = tf.constant(meta_step, self.phi.dtype)
        if self.cluster.count == 1:
            norm, finite = self._compiled_step(tasks, rate)
        elif self._in_turn:
            raise ValueError("tasks run in turn on one worker only: the state is passed on from each to the next")
        else:
            means = self.cluster.sum(self._compiled_contribution(tasks))
            norm, finite = self._compiled_outer_step(means, rate)
        if not finite.numpy().all():
            names = ("meta-gradient", *self._variables())
            raise NotFiniteError([name for name, fine in zip(names, finite.numpy(), strict=True) if not fine])
        return float(norm)

    def _step(self, tasks: Tasks, meta_step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if not self._in_turn:
            return self._outer_step(self._contribution(tasks), meta_step)
        before = self._values()
        return self._apply(self._gradient_in_turn(tasks), meta_step, before)

    def _contribution(self, tasks: Tasks) -> tf.Tensor:
        """This worker's part of the mean meta-gradient and of the mean of each moment, [(1 + moments) * weight]."""
        gradient = tf.reduce_mean(self._gradients(tasks), axis=0)
        moments = [value for value in self._inner.merged_state() if value.shape.rank]
        return self._weight * tf.concat([gradient, *moments], axis=0)

    def _outer_step(self, means: tf.Tensor, meta_step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The outer step on what `_contribution` gave, summed over the workers."""
        before = self._values()
        gradient, *moments = tf.split(means, means.shape[0] // self.phi.shape[0])
        moments = iter(moments)  # counts are equal everywhere
        self._keep_state([next(moments) if value.shape.rank else value for value in self._inner.merged_state()])
        return self._apply(gradient, meta_step, before)

    def _apply(self, gradient: tf.Tensor, meta_step: tf.Tensor, before: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Lets the outer optimizer step, or takes everything back to `before` if anything is not finite."""
        self._outer.learning_rate.assign(meta_step)
        self._outer.apply([gradient], [self.phi])
        norm, variables = tf.norm(gradient), self._variables().values()
        finite = tf.stack([tf.reduce_all(tf.math.is_finite(tf.cast(v, norm.dtype))) for v in (norm, *variables)])
        for variable, old in zip(variables, before, strict=True):
            variable.assign(tf.where(tf.reduce_all(finite), variable, old))
        return norm, finite

    def _values(self) -> list[tf.Tensor]:
        return [tf.identity(variable) for variable in self._variables().values()]

    def meta_gradients(self, tasks: Tasks) -> np.ndarray:
        """The meta-gradient of each task, floatx [task, weight]; the learner stays as it is.

        Args:
          tasks: as many as `step` takes, or one if they are to run in turn.
        """
        self.network.check_labels(tasks.x.shape[2:], tasks.y)
        return self._compiled_gradients(tasks).numpy()

    def _gradients(self, tasks: Tasks) -> tf.Tensor:
        phi = self.phi.value()
        return self._inner.map(lambda lane, share: self._meta_gradient(phi, lane, share), tasks, phi, self.inner_state)

    def _gradient_in_turn(self, tasks: Tasks) -> tf.Tensor:
        total = tf.zeros_like(self.phi)
        for i in tf.range(tf.shape(tasks.y)[0]):
            total += self._gradients(tf.nest.map_structure(lambda a, i=i: tf.gather(a, [i]), tasks))[0]
            self._keep_state(self._inner.merged_state())
        return total / tf.cast(tf.shape(tasks.y)[0], total.dtype)

    def _keep_state(self, state: list[tf.Tensor]) -> None:
        for slot, value in zip(self.inner_state, state, strict=True):
            slot.assign(value)

    def adapt(self, x: np.ndarray, y: np.ndarray, *, steps: int = 50, batch: int = 5, seed: int = 0) -> keras.Model:
        """Learns one new task from phi and the trained moments; the learner stays as it is.

        Args:
          x: [sample, ...] the support set's inputs before scaling (uint8 images, say).
          y: [sample] their targets; int labels from 0 for a classifier.
          steps: inner optimizer steps.
          batch: samples of a minibatch, dealt as in training.
          seed: of the dealing.

        Returns:
          A copy of the model with the adapted weights. It takes inputs times `network.scale`; call it with
          training=True, on all queries together (transductive) or on the support set and one query.

        Raises:
          NotFiniteError: the adapted weights are not finite.
          ValueError: a label that the network has no output for.
        """
        self.network.check_labels(np.shape(x)[1:], y)
        dealt = deal_minibatches(len(x), batch, steps, False, generator(seed, EVALUATION, 0, 0))
        task = Tasks(*(np.asarray(part)[np.newaxis] for part in (x, y, dealt)))
        weights = self._compiled_adapt(task)[0]
        if not np.isfinite(weights).all():
            raise NotFiniteError(["adapted weights"])
        adapted = keras.models.clone_model(self.model)
        for variable, value in zip(adapted.trainable_variables, self.network.unflatten(weights), strict=True):
            variable.assign(value)
        return adapted

    @functools.cached_property
    def _compiled_adapt(self) -> Callable[[Tasks], tf.Tensor]:
        inner = InnerLoop(self.network, self.inner_optimizer, 1, self.weight_decay)

        def adapt(task):
            return inner.map(lambda lane, share: lane.adapt(share, share.minibatches), task, self.phi, self.inner_state)

        return tf.function(adapt, jit_compile=self._stacked)

    def update_model(self) -> keras.Model:
        """Writes phi into the model's weights and returns the model."""
        for variable, value in zip(self.model.trainable_variables, self.network.unflatten(self.phi), strict=True):
            variable.assign(value)
        return self.model

    def state(self) -> dict[str, np.ndarray]:
        """All that training changes, by name: phi and both optimizers' state. A later change does not touch it."""
        return {name: variable.numpy().copy() for name, variable in self._variables().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Sets what `state` gave.

        Raises:
          ValueError: the names or shapes are those of another network or optimizer.
        """
        variables = self._variables()
        theirs = {name: value.shape for name, value in state.items()}
        ours = {name: tuple(variable.shape) for name, variable in variables.items()}
        if theirs != ours:
            raise ValueError(f"the state is of another network or optimizer: it has {theirs}, not {ours}")
        for name, variable in variables.items():
            variable.assign(state[name])

    def _variables(self) -> dict[str, tf.Variable]:
        outer = [v.value for v in self._outer.variables if v is not self._outer._learning_rate]
        named = {"phi": self.phi}
        named |= {f"inner/{i}": variable for i, variable in enumerate(self.inner_state)}
        named |= {f"outer/{i}": variable for i, variable in enumerate(outer)}
        return named
