"""The algorithm: the inner loop yields a meta-gradient, and the outer step applies it.

Reptile, batched (paper, algorithms 1 and 2):

    for each meta-iteration:
      for each task of the meta-batch:
        W = phi after k optimizer steps on minibatches of the task
      phi <- phi - eps * mean(phi - W)

The last line is a step of plain SGD with learning rate eps, so any stock Keras optimizer may take its place. The other
algorithms only replace phi - W by another meta-gradient (see `meta_gradients`).
"""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import checks, fixed_weights
from reptile_tf.adapted import Adapted, Adapter, Support
from reptile_tf.distributed.cluster import ALONE, Cluster
from reptile_tf.inner_loop import Adaptation, InnerLoop, copy_of
from reptile_tf.meta_gradients import MetaGradient, reptile
from reptile_tf.network import Loss, Network, cross_entropy
from reptile_tf.origin import Origin
from reptile_tf.state import NotFiniteError, State
from reptile_tf.tasks import Tasks

if TYPE_CHECKING:
    from reptile_tf.evaluate import Evaluator


class MetaLearner:
    """Learns an initialization phi, and holds the state of both optimizers.

    The k inner steps compute what a plain Keras loop computes with GradientTape and the inner optimizer's `apply` on
    the model itself. The constructor rejects any model or optimizer for which this would not hold.

    Args:
      model: a built Keras model with one input and one output. Its weights are the initial phi; `update_model` writes
        the learned phi back. Non-trainable variables never change, and every step reads them from the model. Once the
        learner is made, it refuses to run if layers were added, frozen or unfrozen, or if a setting of a layer or an
        optimizer was changed.
      inner_optimizer: elementwise stock Keras optimizer of the inner loop. Training never resets its moments: they
        carry over from task to task. The paper uses Adam with beta_1 = 0. A number assigned to its learning rate later
        holds from the next step on.
      outer_optimizer: elementwise stock Keras optimizer that applies the meta-gradient. Every step sets its learning
        rate. Plain SGD is the paper's interpolation.
      meta_gradient: `reptile`, `foml`, `maml`, a `partial_sum`, or a function with the same signature.
      meta_batch: number of tasks per meta-iteration.
      sequential: run the tasks one after another and pass the inner optimizer's state on, as the original code does.
        Otherwise the tasks run side by side: all start from the same state, and the final states are averaged.
      stacked: compile one XLA program over all tasks (for a GPU), instead of one graph branch per task (for a CPU).
      weight_decay: factor by which all weights are multiplied before every inner step (1 means no decay).
      scale: factor by which inputs are multiplied.
      loss: function of the (targets, outputs) of one minibatch that returns a scalar.
      cluster: the workers that share each meta-batch. Every worker must construct the same learner.

    Attributes:
      phi: floatx variable [weight].
      inner_state: variables of the inner optimizer, each [weight] or scalar.
      origin: how the run adapts to new tasks, and how its images were prepared. `load` and `meta_train` set it.
      evaluators: the evaluators used so far, by the number of tasks that each takes (see `Evaluator.of`).
      share: (first, count) of the tasks of the meta-batch that this worker's `step` takes. A worker with count 0 still
        takes one task, with weight 0 in the mean, so that all workers run the same program.

    Raises:
      ValueError: the model or an optimizer is not supported; the message says why, and what to do.
    """

    _is_made = False

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
        if meta_batch < 1 or not scale or not math.isfinite(scale):
            raise ValueError("meta_batch must be at least 1, and scale a number other than 0")
        if not callable(loss) or not callable(meta_gradient):
            raise ValueError("loss and meta_gradient must be functions")
        checks.outer_optimizer(outer_optimizer)
        self.model = model
        self.network = Network(model, loss, scale, stacked)  # also examines the model
        checks.inner_optimizer(inner_optimizer, self.network)
        self.network.as_made.add(inner_optimizer, "inner")
        self.network.as_made.add(outer_optimizer, "outer")
        self.inner_optimizer, self.outer_optimizer = inner_optimizer, outer_optimizer
        self.weight_decay, self.meta_batch, self.sequential = float(weight_decay), meta_batch, sequential
        self.cluster = cluster
        self.share = cluster.share(meta_batch)
        self._weight = self.share[1] / meta_batch  # this worker's weight in the means
        self.meta_gradient = meta_gradient
        self.origin = Origin()
        self.evaluators: dict[int, Evaluator] = {}
        self._adapters: dict[int, Adapter] = {}
        side_by_side = max(self.share[1], 1)
        self._count = None if sequential else side_by_side
        self._inner = InnerLoop(
            self.network, inner_optimizer, side_by_side, weight_decay=self.weight_decay, sequential=sequential
        )
        self.phi = tf.Variable(self.network.flatten(model.trainable_variables), name="phi")
        self.inner_state = [tf.Variable(value) for value in self._inner.initial_state()]
        self._outer = copy_of(outer_optimizer, 0.0)  # every step sets it
        self._outer.build([self.phi])
        outer_state = [v.value for v in self._outer.variables if v is not self._outer._learning_rate]
        self._state = State(self.phi, self.inner_state, outer_state)
        self._compile()
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises AttributeError for what compiled programs would not follow: its attributes, except `origin`."""
        if self._is_made and name in vars(self) and name != "origin":
            raise AttributeError(f"{name} cannot be changed once the learner is made: make a new MetaLearner")
        super().__setattr__(name, value)

    @property
    def scale(self) -> float:
        """The factor by which inputs are multiplied before the model sees them."""
        return self.network.scale

    def step(self, tasks: Tasks, meta_step: float) -> float:
        """Runs one meta-iteration.

        Args:
          tasks: the tasks of the meta-batch, or this worker's share of them (see `share`).
          meta_step: the outer optimizer's learning rate (the paper's eps).

        Returns:
          The norm of the meta-gradient. All workers return the same value.

        Raises:
          NotFiniteError: the meta-gradient, a weight or a moment is not finite. The learner is left unchanged.
          ValueError: the inputs do not have the model's input shape, the model has no output for a label, or the model
            or an optimizer was changed since the learner was made.
          UserError: another worker has stopped.
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
        """Runs several meta-iterations in one compiled call, bit for bit equal to as many calls of `step`.

        Args:
          batches: the tasks of each meta-iteration.
          meta_steps: the outer learning rate of each meta-iteration.
          room: number of meta-iterations that the compiled program holds. A call with fewer batches is padded, and
            compiles nothing new.
          images: [image, ...] all images, sent to the GPU once. The `x` of the tasks are then integer indices
            [task, sample] into them. Without `images`, `x` are the inputs themselves.

        Returns:
          The norm of the last meta-gradient.

        Raises:
          NotFiniteError: as in `step`; its `done` counts the meta-iterations before the failed one, which are kept.
          ValueError: as in `step`.
          UserError: as in `step`.
        """
        if not batches or len(batches) != len(meta_steps):
            raise ValueError(f"{len(batches)} batches need as many meta-steps, and at least one, not {len(meta_steps)}")
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
        """Runs the first `count` meta-iterations of `batches` [iteration, ...], and stops after a non-finite one.

        Returns:
          The number of meta-iterations started; the norm and the finite flags of the last one (see `_outer_step`).
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
        total = self.cluster.sum(local)  # the identity with one worker
        return self._outer_step(total, counts, meta_step)

    def _adapt(self, tasks: Tasks) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Adapts to this worker's tasks, without changing the learner.

        Returns:
          This worker's part of the mean meta-gradient and of each mean moment, floatx [(1 + moments) * weight], and the
          inner optimizer's step counts, which are the same on all workers.
        """
        gradients, state = self._inner.run(self._meta_gradients_of, tasks, self.phi, self.inner_state)
        moments = [value for value in state if value.shape.rank]
        mean = tf.concat([tf.reduce_mean(gradients, 0), *moments], 0)
        return self._weight * mean, [value for value in state if not value.shape.rank]

    def _outer_step(
        self, total: tf.Tensor, counts: list[tf.Tensor], meta_step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Applies the mean meta-gradient with the outer optimizer; rolls back if any value is not finite.

        Returns:
          The norm of the meta-gradient, and finite flags for it and each variable of the state: bool [1 + variables].
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
        """Estimates from above the bytes of memory of a meta-iteration with minibatches of `samples` samples.

        Counts, for each task, the weights, a copy of them, their gradient and moments, and all values of a forward pass
        with their gradients. XLA fuses many of these, so the program needs less.
        """
        of_weights = (3 + len(self.inner_state)) * self.network.size * self.network.dtype.size
        return max(self.share[1], 1) * (of_weights + 2 * self.network.activation_bytes(samples))

    def meta_gradients(self, tasks: Tasks) -> np.ndarray:
        """The meta-gradient of each task, floatx [task, weight], of as many tasks as `step` takes; changes nothing."""
        tasks = checks.tasks(self.network, tasks, self._count)
        with self.network.compiling():
            return self._compiled_gradients(tasks).numpy()

    def _meta_gradients_of(self, inner: Adaptation, tasks: Tasks) -> tf.Tensor:
        rows = self.meta_gradient(self.phi.value(), inner, tasks)
        wanted = [tasks.x.shape[0], self.network.size]
        if not tf.is_tensor(rows) or not rows.shape.is_compatible_with(wanted):
            found = list(rows.shape) if tf.is_tensor(rows) else type(rows).__name__
            raise ValueError(f"the meta-gradient must return a tensor of one row per task, {wanted}, not {found}")
        return rows

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
        y: np.ndarray | Sequence,
        *,
        steps: int | None = None,
        batch: int | None = None,
        replacement: bool | None = None,
        seed: int = 0,
    ) -> Adapted:
        """Adapts to one new task, starting from phi and the trained moments. The learner does not change.

        Arguments left at None take the evaluation settings of the learner's run (see `origin`); a learner without a
        run takes 50 steps on minibatches of 5.

        Args:
          x: [sample, ...] inputs of the support set before scaling, for example uint8 images.
          y: [sample] labels, integers or names, of at least two classes. With a custom loss, the targets it expects.
          steps: number of inner steps.
          batch: number of samples in a minibatch.
          replacement: draw each minibatch independently of the others, instead of dealing out a shuffled support set.
          seed: seed of the minibatches and of random layers.

        Returns:
          The adapted classifier.

        Raises:
          NotFiniteError: the adapted weights are not finite.
          ValueError: the inputs differ in shape from the training images or, if these are uint8, in range; all labels
            are of one class; there are more classes than outputs, and the model does not end in a dense layer; or the
            model or an optimizer was changed since the learner was made.
        """
        task = Support.of(self, x, y)
        origin = self.origin
        with self.network.unchanged():
            if task.outputs not in self._adapters:
                self._adapters[task.outputs] = Adapter(self, task.outputs)
            return self._adapters[task.outputs].adapt(
                task,
                origin.steps if steps is None else steps,
                origin.batch if batch is None else batch,
                origin.replacement if replacement is None else replacement,
                seed,
            )

    def update_model(self) -> keras.Model:
        """Writes phi into the model's weights and returns the model."""
        with self.network.lock:
            for variable, value in zip(self.network.trainable, self.network.unflatten(self.phi), strict=True):
                variable.assign(value)
        return self.model

    def state(self) -> dict[str, np.ndarray]:
        """Returns copies, by name, of everything that training changes, and of the model's other weights.

        Training changes phi and the state of both optimizers. The other weights are named "fixed/0", "fixed/1", ….
        """
        with self.network.lock:
            return self._state.arrays() | fixed_weights.arrays(self.model)

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Sets the learner to a result of `state`, and the model's weights that are not trained.

        Raises:
          ValueError: names or shapes differ from those of this network and these optimizers; the statistics of a
            Normalization layer differ; or the model or an optimizer was changed since the learner was made.
        """
        with self.network.compiling():
            trained = {name: value for name, value in state.items() if not fixed_weights.is_one(name)}
            self._state.check(trained)
            fixed_weights.restore(self.model, state)
            self._state.restore(trained)

    def __reduce__(self) -> NoReturn:
        """Raises TypeError: compiled programs can be neither copied nor pickled."""
        raise TypeError("a learner cannot be copied: keep state(), and restore() it into a new MetaLearner")
