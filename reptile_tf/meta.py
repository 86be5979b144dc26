"""The algorithm: a meta-gradient read off the inner loop, and the outer step that applies it.

Reptile, batched (paper, algorithms 1 and 2):

    for each meta-iteration:
      for each task of the meta-batch:
        W = phi after k optimizer steps on minibatches of the task
      phi <- phi - eps * mean(phi - W)

The last line is a step of plain SGD with learning rate eps, so any stock Keras optimizer may take its place. The other
algorithms differ only in what stands for phi - W (see `meta_gradients`).
"""

import functools
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import checks
from reptile_tf.adapted import Adapted, Adapter, Support
from reptile_tf.distributed.cluster import ALONE, Cluster
from reptile_tf.inner_loop import Adaptation, InnerLoop, copy_of
from reptile_tf.meta_gradients import MetaGradient, reptile
from reptile_tf.network import Loss, Network, cross_entropy
from reptile_tf.origin import Origin
from reptile_tf.state import NotFiniteError, State
from reptile_tf.tasks import Tasks


class MetaLearner:
    """The initialization phi being learned, with the state of both optimizers.

    k inner steps give what the plain Keras loop gives: GradientTape, and the inner optimizer's `apply` on the model
    itself. What would not is refused when the learner is made.

    Args:
      model: a built Keras model of one input and one output, whose weights are the first phi; it receives the result by
        `update_model`. What is not trainable in it stays as it is, and is read from it at every step.
      inner_optimizer: elementwise stock Keras optimizer of the inner loop. In training its moments are never reset:
        they run on from task to task. The paper's is Adam with beta_1 = 0.
      outer_optimizer: elementwise stock Keras optimizer that applies the meta-gradient; its learning rate is set at
        every step. Plain SGD is the paper's interpolation.
      meta_gradient: `reptile`, `foml`, `maml`, a `partial_sum`, or a function like them.
      meta_batch: tasks per meta-iteration.
      sequential: run the tasks one after another, the inner optimizer's state passed on, as the authors' code does.
        Else side by side: all start from the same state, and the states are averaged afterwards.
      stacked: one XLA program over all tasks (for a GPU), instead of one branch of the graph per task (for a CPU).
      weight_decay: factor on all weights before every inner step (1: none).
      scale: what inputs are multiplied by.
      loss: of (targets, outputs) of one minibatch.
      cluster: the workers that share each meta-batch; all make the same learner.

    Attributes:
      phi: floatx variable [weight].
      inner_state: variables, the inner optimizer's state ([weight] or scalar each).
      origin: what its run says of adapting to new tasks and of its images; a run's folder and `meta_train` set it.
      share: first and count of the tasks of a meta-batch that `step` takes here. A worker without a task of its own
        (count 0) takes one all the same, which does not count: it would only wait for the others.

    Raises:
      ValueError: the model or an optimizer does not serve; the message says why, and what to do.
    """

    def __init__(
        self,
        model: keras.Model,
        inner_optimizer: keras.Optimizer,
        outer_optimizer: keras.Optimizer,
        *,
        meta_gradient: MetaGradient = reptile,
        meta_batch: int = 1,
        sequential: bool = False,
        stacked: bool = False,
        weight_decay: float = 1.0,
        scale: float = 1.0,
        loss: Loss = cross_entropy,
        cluster: Cluster = ALONE,
    ):
        if sequential and cluster.count > 1:
            raise ValueError("sequential tasks run on one worker only: the state is passed on from each to the next")
        if meta_batch < 1 or not scale:
            raise ValueError("meta_batch must be at least 1, and scale must not be 0")
        checks.outer_optimizer(outer_optimizer)
        self.model = model
        self.network = Network(model, loss, scale, stacked)  # which examines the model
        checks.inner_optimizer(inner_optimizer, self.network)
        self.inner_optimizer, self.outer_optimizer = inner_optimizer, outer_optimizer
        self.weight_decay, self.meta_batch, self.sequential = weight_decay, meta_batch, sequential
        self.cluster = cluster
        self.share = cluster.share(meta_batch)
        self._weight = self.share[1] / meta_batch  # of this worker in the sums
        self.meta_gradient = meta_gradient
        self.origin = Origin()
        self._adapters: dict[int, Adapter] = {}
        side_by_side = max(self.share[1], 1)
        self._count = None if sequential else side_by_side
        self._inner = InnerLoop(
            self.network, inner_optimizer, side_by_side, weight_decay=weight_decay, sequential=sequential
        )
        self.phi = tf.Variable(self.network.flatten(model.trainable_variables), name="phi")
        self.inner_state = [tf.Variable(value) for value in self._inner.initial_state()]
        self._outer = copy_of(outer_optimizer)
        self._outer.build([self.phi])
        outer_state = [v.value for v in self._outer.variables if v is not self._outer._learning_rate]
        self._state = State(self.phi, self.inner_state, outer_state)
        self._compile()

    def step(self, tasks: Tasks, meta_step: float) -> float:
        """One meta-iteration.

        Args:
          tasks: as many as the meta-batch, or this worker's (see `share`).
          meta_step: the outer optimizer's learning rate (the paper's eps).

        Returns:
          The norm of the meta-gradient; the same on all workers.

        Raises:
          NotFiniteError: the meta-gradient, a weight or a moment is not finite. The learner stays as it was.
          ValueError: inputs of another shape than the model's, or labels that it has no output for.
          UserError: another worker is gone.
        """
        return self.steps([tasks], [meta_step])

    def steps(
        self,
        batches: Sequence[Tasks],
        meta_steps: Sequence[float],
        *,
        room: int = 1,
        images: tf.Tensor | None = None,
    ) -> float:
        """Several meta-iterations in one compiled call; they give what `step` after `step` gives, bit for bit.

        Args:
          batches: the tasks of each meta-iteration.
          meta_steps: the learning rate of each.
          room: for how many the program is compiled. Fewer are filled up, and compile nothing new.
          images: [image, ...], of which the `x` of the tasks, integers [task, sample], are numbers; on a GPU they need
            not be sent there every time. Without them `x` are the inputs themselves.

        Returns:
          The norm of the last meta-gradient.

        Raises:
          As `step` does; a NotFiniteError says how many meta-iterations came before, which are done.
        """
        count, room = len(batches), max(room, len(batches))
        checked = [checks.tasks(self.network, tasks, self._count, images) for tasks in batches]
        filled = tf.nest.map_structure(lambda *arrays: np.stack(arrays), *checked, *checked[-1:] * (room - count))
        rates = tf.constant([*meta_steps, *[0.0] * (room - count)], self.phi.dtype)
        with self.network.compiling():
            done, norm, finite = self._meta_iterations(
                filled, rates, tf.constant(count), () if images is None else images
            )
        if not finite.numpy().all():
            names = ("meta-gradient", *self._state)
            wrong = [name for name, fine in zip(names, finite.numpy(), strict=True) if not fine]
            raise NotFiniteError(wrong, int(done) - 1)
        return float(norm)

    def _meta_iterations(
        self, batches: Tasks, meta_steps: tf.Tensor, count: tf.Tensor, images: tf.Tensor | tuple[()]
    ) -> tuple[tf.Tensor, ...]:
        """The first `count` of [iteration, ...] each, but none after one that is not finite.

        Returns:
          How many were begun; the last one's norm, and what was finite in it (see `_outer_step`).
        """

        def one(done: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            tasks = tf.nest.map_structure(lambda of_all: of_all[done], batches)
            if not isinstance(images, tuple):
                tasks = tasks._replace(x=tf.gather(images, tasks.x))
            return done + 1, *self._meta_iteration(tasks, meta_steps[done])

        none = tf.constant(0), tf.zeros([], self.phi.dtype), tf.ones([1 + len(self._state)], tf.bool)
        return tf.while_loop(lambda done, _, finite: (done < count) & tf.reduce_all(finite), one, none)

    def _meta_iteration(self, tasks: Tasks, meta_step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        local, counts = self._adapt(tasks)  # k inner steps on each of this worker's tasks
        total = self.cluster.sum(local)  # the identity where there is one worker
        return self._outer_step(total, counts, meta_step)

    def _adapt(self, tasks: Tasks) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """This worker's part of the mean meta-gradient and of each mean moment, [(1 + moments) * weight]; the counts.

        Nothing of the learner changes. Counts are the same on all workers.
        """
        gradients, state = self._inner.run(self._meta_gradients_of, tasks, self.phi, self.inner_state)
        moments = [value for value in state if value.shape.rank]
        mean = tf.concat([tf.reduce_mean(gradients, 0), *moments], 0)
        return self._weight * mean, [value for value in state if not value.shape.rank]

    def _outer_step(
        self, total: tf.Tensor, counts: list[tf.Tensor], meta_step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The outer optimizer steps on the mean meta-gradient; nothing changes if anything is not finite.

        Returns:
          The norm of the meta-gradient, and whether it and each variable of the state are finite: bool [1 + variables].
        """
        before = self._state.snapshot()
        gradient, *moments = tf.split(total, total.shape[0] // self.phi.shape[0])
        self._outer.learning_rate.assign(meta_step)
        self._outer.apply([gradient], [self.phi])
        if self.network.is_constrained:
            self.phi.assign(self.network.constrained(self.phi[tf.newaxis])[0])
        next_moment, next_count = iter(moments), iter(counts)
        for variable in self.inner_state:
            variable.assign(next(next_moment if variable.shape.rank else next_count))
        norm = tf.norm(gradient)
        return norm, self._state.roll_back_unless_finite(before, norm)

    def step_bytes(self, samples: int) -> int:
        """A high estimate of the bytes that a meta-iteration takes, by minibatches of so many samples.

        Of each task its weights, their gradient, moments and copy, and all values of a forward pass with their
        gradients; XLA fuses many of these.
        """
        of_weights = (3 + len(self.inner_state)) * self.network.size * self.network.dtype.size
        return max(self.share[1], 1) * (of_weights + 2 * self.network.activation_bytes(samples))

    def meta_gradients(self, tasks: Tasks) -> np.ndarray:
        """The meta-gradient of each task, floatx [task, weight], of as many tasks as `step` takes; changes nothing."""
        tasks = checks.tasks(self.network, tasks, self._count)
        with self.network.compiling():
            return self._compiled_gradients(tasks).numpy()

    def _meta_gradients_of(self, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
        return self.meta_gradient(self.phi.value(), inner, tasks)

    def _compile(self) -> None:
        """Makes compiled functions of the methods above: one where there is one worker, two around the exchange."""
        # Nothing is left to AutoGraph, anywhere: rewriting these functions' source would take a quarter of the start.
        compiled = functools.partial(tf.function, autograph=False, jit_compile=self.network.stacked)
        if self.cluster.count == 1:
            self._meta_iterations = compiled(self._meta_iterations)  # type: ignore[method-assign]
        else:
            self._adapt = compiled(self._adapt)  # type: ignore[method-assign]
            self._outer_step = compiled(self._outer_step)  # type: ignore[method-assign]
        self._compiled_gradients = compiled(
            lambda tasks: self._inner.run(self._meta_gradients_of, tasks, self.phi, self.inner_state)[0]
        )

    def adapt(
        self,
        x: np.ndarray,
        y: Sequence,
        *,
        steps: int | None = None,
        batch: int | None = None,
        replacement: bool | None = None,
        seed: int = 0,
    ) -> Adapted:
        """Learns one new task from phi and the trained moments; the learner stays as it is.

        What is None is as in the evaluation of the learner's run (see `origin`), or else 50 steps on minibatches of 5.

        Args:
          x: [sample, ...] the support set's inputs before scaling (uint8 images, say).
          y: [sample] their labels: whole numbers or names, of any number of classes from 2. With a loss of one's own,
            the targets that it takes.
          steps: inner optimizer steps.
          batch: samples of a minibatch, dealt as in training.
          replacement: draw each minibatch by itself.
          seed: of the dealing, and of random layers.

        Returns:
          What classifies new inputs.

        Raises:
          NotFiniteError: the adapted weights are not finite.
          ValueError: inputs of another shape or range than the training images'; labels of a single class; more
            classes than outputs, where the model does not end in a dense layer.
        """
        task = Support.of(self, x, y)
        if task.outputs not in self._adapters:
            self._adapters[task.outputs] = Adapter(self, task.outputs)
        origin = self.origin
        return self._adapters[task.outputs].adapt(
            task,
            origin.steps if steps is None else steps,
            origin.batch if batch is None else batch,
            origin.replacement if replacement is None else replacement,
            seed,
        )

    def update_model(self) -> keras.Model:
        """Writes phi into the model's weights and returns the model."""
        for variable, value in zip(self.network.trainable, self.network.unflatten(self.phi), strict=True):
            variable.assign(value)
        return self.model

    def state(self) -> dict[str, np.ndarray]:
        """All that training changes, by name: phi and both optimizers' state. A later change does not touch it."""
        return self._state.arrays()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Sets what `state` gave; raises ValueError if it is of another network or optimizer."""
        self._state.restore(state)
