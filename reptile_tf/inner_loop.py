"""The inner loop: k steps of a stock Keras optimizer on each task of a meta-batch.

All weights of the network are handled as one flat vector. For an elementwise optimizer that is the same computation
with a fraction of the operations, phi - W becomes one subtraction, and several tasks are rows of one matrix.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import layers
from reptile_tf.tasks import Tasks

# Stock optimizers that treat every weight by itself, as a flat vector of all weights needs. (LAMB, Muon and Adafactor
# do not; schedule-free AdamW keeps weights in its state.)
ELEMENTWISE = (
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Nadam,
    keras.optimizers.Adamax,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
    keras.optimizers.Adadelta,
    keras.optimizers.Lion,
    keras.optimizers.Ftrl,
)

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The **sum** of the cross-entropies of a minibatch: int [batch], floatx [batch, classes] to a scalar.

    A sum, as in the authors' code: an SGD step on a minibatch of 25 is 25 times a step on its mean.
    """
    # Not the sparse form, whose deterministic version scatters its gradient.
    one_hot = tf.one_hot(labels, tf.shape(logits)[-1], dtype=logits.dtype)
    return tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(one_hot, logits))


class Network:
    """A Keras model as a function of a flat weight vector, for one task or for a stack of them.

    Args:
      model: a built Keras model; batch norm always uses the statistics of the batch at hand.
      loss: of (targets, outputs) of one minibatch, a scalar.
      scale: what inputs are multiplied by.
      stacked: vectorize over the tasks of a stack, to be compiled by XLA; else stacks have one task.

    Raises:
      ValueError: the model is not built, or has random layers, whose seeds would not advance from step to step.
    """

    def __init__(self, model: keras.Model, loss: Loss, scale: float = 1.0, stacked: bool = False):
        if not model.built or not model.trainable_variables:
            raise ValueError("the model has no weights yet: give it an Input layer or call it once")
        random = [v.path for v in model.non_trainable_variables if "seed_generator" in v.path]
        if random:
            raise ValueError(f"layers with random behaviour (dropout, …) are not supported: {', '.join(random)}")
        self.stacked = stacked
        self.scale = scale
        self.dtype = model.trainable_variables[0].dtype
        self._loss = loss
        self._model = layers.inner_loop_copy(model, stacked)
        self._shapes = [tuple(v.shape) for v in model.trainable_variables]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        # Moving averages and the like: read by no forward pass in training mode, and never changed.
        self._untrained = [v.numpy() for v in model.non_trainable_variables]
        self.size = sum(self._sizes)
        self._ways = 0  # how many outputs, once they have been counted

    def check_labels(self, x: tuple[int, ...], y: np.ndarray) -> None:
        """Raises ValueError for labels that the cross-entropy would make nothing of; other losses take any target.

        Args:
          x: the shape of one input.
          y: the labels.
        """
        if self._loss is not cross_entropy:
            return
        if not self._ways:
            self._ways = self._apply(tf.zeros([self.size], self.dtype), tf.zeros([1, *x]))[0].shape[-1]
        low, high = np.min(y), np.max(y)
        if low < 0 or high >= self._ways:
            raise ValueError(
                f"labels must be from 0 to {self._ways - 1}, as the network has {self._ways} outputs: these go from "
                f"{low} to {high}"
            )

    def flatten(self, weights: Sequence[np.ndarray | tf.Tensor]) -> tf.Tensor:
        """Joins the trainable weights, in the model's order, to one floatx [weight]."""
        return tf.concat([tf.reshape(tf.cast(w, self.dtype), [-1]) for w in weights], axis=0)

    def unflatten(self, weights: tf.Tensor) -> list[tf.Tensor]:
        """Parts floatx [weight] into the trainable weights, in the model's order."""
        return [tf.reshape(w, s) for w, s in zip(tf.split(weights, self._sizes), self._shapes, strict=True)]

    def outputs(self, weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """The model's outputs: floatx [stack, weight], [stack, batch, ...] to [stack, batch, ...]."""
        return self._each(lambda w, x: self._apply(w, x)[0], weights, x)

    def gradient(self, weights: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The loss gradient of each task: [stack, weight], [stack, batch, ...], [stack, batch] to [stack, weight]."""
        return self._each(self._gradient, weights, x, y)

    def losses(self, weights: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The loss of each task: [stack, weight], [stack, batch, ...], [stack, batch] to [stack]."""
        return self._each(self._total_loss, weights, x, y)

    def not_differentiable_twice(self) -> list[str]:
        """The layers through which the gradient of `gradient` would be wrong (see `layers`)."""
        return layers.not_differentiable_twice(self._model)

    def _apply(self, weights, x):
        x = tf.cast(x, self.dtype) * tf.constant(self.scale, self.dtype)
        outputs, _, penalties = self._model.stateless_call(
            self.unflatten(weights), self._untrained, x, training=True, return_losses=True
        )
        return outputs, penalties

    def _gradient(self, weights, x, y):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = self._total_loss(weights, x, y)
        return tape.gradient(loss, weights)

    def _total_loss(self, weights, x, y):
        outputs, penalties = self._apply(weights, x)
        return tf.add_n([self._loss(y, outputs), *penalties])

    def _each(self, function, *stacks):
        if self.stacked:
            return tf.vectorized_map(lambda rows: function(*rows), stacks, fallback_to_while_loop=False)
        return function(*(tf.squeeze(stack, 0) for stack in stacks))[tf.newaxis]


class Lane:
    """Scratch weights and optimizer of the tasks of one stack, which step together.

    Attributes:
      weights: floatx variable [stack, weight].
      state: the optimizer's variables but for its learning rate: [stack, weight] each (moments), or scalar (counts).
    """

    def __init__(self, network: Network, optimizer: keras.Optimizer, stack: int, weight_decay: float):
        self._network = network
        self._weight_decay = weight_decay
        self._is_plain_sgd = _is_plain_sgd(optimizer)
        self._optimizer = type(optimizer).from_config(optimizer.get_config())
        self.weights = tf.Variable(tf.zeros([stack, network.size], network.dtype))
        self._optimizer.build([self.weights])
        self.state = [v.value for v in self._optimizer.variables if v is not self._optimizer._learning_rate]

    def start(self, weights: tf.Tensor, state: Sequence[tf.Tensor]) -> None:
        """Sets every task of the stack to `weights` [weight] and the optimizer to `state` ([weight] or scalar each)."""
        self.weights.assign(tf.broadcast_to(weights, self.weights.shape))
        for slot, value in zip(self.state, state, strict=True):
            slot.assign(tf.broadcast_to(value, slot.shape))

    def adapt(self, tasks: Tasks, minibatches: tf.Tensor) -> tf.Tensor:
        """Takes one optimizer step on each minibatch, from where the lane stands.

        Args:
          tasks: [stack, ...], whose pools the minibatches index.
          minibatches: int32 [stack, step, sample].

        Returns:
          The weights after the last step, floatx [stack, weight].
        """
        for step in tf.range(tf.shape(minibatches)[1]):
            if self._weight_decay != 1:
                self.weights.assign(self.weights * tf.constant(self._weight_decay, self.weights.dtype))
            x, y = _samples(tasks, minibatches[:, step])
            self._optimizer.apply([self._network.gradient(self.weights.value(), x, y)], [self.weights])
        return self.weights.value()

    def sgd_step(self, weights: tf.Tensor, tasks: Tasks, samples: tf.Tensor) -> tf.Tensor:
        """One step of plain SGD as a function, through which a gradient passes; an optimizer's step is an assignment.

        Args:
          weights: floatx [stack, weight] to step from; the lane's own are neither read nor changed.
          tasks: [stack, ...].
          samples: int32 [stack, sample], the minibatch.

        Returns:
          floatx [stack, weight].

        Raises:
          ValueError: the optimizer is no plain SGD, or second derivatives of the network would be wrong.
        """
        if not self._is_plain_sgd:
            raise ValueError("MAML differentiates through the inner steps, which must be plain SGD (--sgd)")
        if names := self._network.not_differentiable_twice():
            raise ValueError(
                f"MAML cannot differentiate twice through {', '.join(names)}: use batch norm in a flat functional model"
            )
        if self._weight_decay != 1:
            weights *= tf.constant(self._weight_decay, weights.dtype)
        rate = tf.cast(self._optimizer.learning_rate, weights.dtype)
        return weights - rate * self._network.gradient(weights, *_samples(tasks, samples))

    def losses(self, weights: tf.Tensor, tasks: Tasks, samples: tf.Tensor) -> tf.Tensor:
        """The loss at `weights` on a minibatch: [stack, weight], tasks and int32 [stack, sample] to [stack]."""
        return self._network.losses(weights, *_samples(tasks, samples))

    def outputs(self, x: tf.Tensor) -> tf.Tensor:
        """The network's outputs with the lane's weights: [stack, batch, ...] to [stack, batch, ...]."""
        return self._network.outputs(self.weights.value(), x)


def _is_plain_sgd(optimizer: keras.Optimizer) -> bool:
    """Whether an optimizer is SGD of a constant rate, with nothing else to it."""
    config = optimizer.get_config()
    if type(optimizer) is not keras.optimizers.SGD or not isinstance(config["learning_rate"], float):
        return False
    return config == keras.optimizers.SGD(config["learning_rate"], name=config["name"]).get_config()


def _samples(tasks: Tasks, samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Inputs and targets of a minibatch, int32 [stack, sample]: [stack, sample, ...] each."""
    return tf.gather(tasks.x, samples, batch_dims=1), tf.gather(tasks.y, samples, batch_dims=1)


class InnerLoop:
    """Tasks side by side: in one stack, or in independent lanes of one graph that share the CPU's cores.

    Args:
      network: what to adapt; `network.stacked` chooses between one stack and lanes of one task each.
      optimizer: a stock elementwise Keras optimizer, taken as a pattern (it is not touched).
      tasks: how many tasks run side by side.
      weight_decay: the factor on all weights before every step (1: none).

    Raises:
      ValueError: the optimizer does not treat every weight by itself, so that it would mix layers or tasks.
    """

    def __init__(self, network: Network, optimizer: keras.Optimizer, tasks: int, weight_decay: float = 1.0):
        if type(optimizer) not in ELEMENTWISE:
            names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
            raise ValueError(f"the inner optimizer must be elementwise: one of {names}, not {optimizer.name}")
        for setting in ("clipnorm", "global_clipnorm", "use_ema", "gradient_accumulation_steps"):
            if getattr(optimizer, setting):
                raise ValueError(f"the inner optimizer must be elementwise: unset {setting}")
        stack = tasks if network.stacked else 1
        self.lanes = [Lane(network, optimizer, stack, weight_decay) for _ in range(tasks // stack)]

    def initial_state(self) -> list[tf.Tensor]:
        """The state of an optimizer that has not stepped: [weight] or scalar each."""
        return [slot[0] if slot.shape.rank else slot.value() for slot in self.lanes[0].state]

    def map(
        self,
        function: Callable[[Lane, Tasks], tf.Tensor],
        tasks: Tasks,
        weights: tf.Tensor,
        state: Sequence[tf.Tensor],
    ) -> tf.Tensor:
        """Runs `function` on every lane and its share of the tasks, each starting from `weights` and `state`.

        Returns:
          The results, [task, ...].
        """
        results = []
        for i, lane in enumerate(self.lanes):
            lane.start(weights, state)
            stack = lane.weights.shape[0]
            share = tf.nest.map_structure(lambda a, at=i * stack, n=stack: a[at : at + n], tasks)
            results.append(function(lane, share))
        return tf.concat(results, axis=0)

    def merged_state(self) -> list[tf.Tensor]:
        """The optimizer states of all tasks made one: moments averaged, counts (equal everywhere) taken over."""
        merged = []
        for slots in zip(*(lane.state for lane in self.lanes), strict=True):
            merged.append(tf.reduce_mean(tf.concat(slots, 0), 0) if slots[0].shape.rank else slots[0].value())
        return merged
