"""The inner loop: k steps of a stock Keras optimizer on each task of a meta-batch.

All weights of the network form one flat vector. For an elementwise optimizer this is the same computation with a
fraction of the operations. phi - W becomes one subtraction, and several tasks are the rows of one matrix.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from reptile_tf.network import Network
from reptile_tf.tasks import Tasks


class Adaptation:
    """The inner loop on one stack of tasks that step together.

    Args:
      network: the network to adapt.
      optimizer: a stock elementwise Keras optimizer, which is copied. A new value of its learning rate holds here too.
      stack: number of tasks.
      weight_decay: factor by which all weights are multiplied before every step (1 means no decay).
      excluded: see `InnerLoop`.

    Attributes:
      weights: floatx variable [stack, weight], the tasks' current weights.
      state: the optimizer's variables except its learning rate: moments [stack, weight] and scalar step counts.
    """

    def __init__(
        self, network: Network, optimizer: keras.Optimizer, stack: int, weight_decay: float, excluded: Sequence[int]
    ):
        self._network = network
        self._weight_decay = weight_decay
        self._is_plain_sgd = has_only(optimizer, keras.optimizers.SGD)
        self._optimizer = copy_of(optimizer, _rate_of(optimizer))
        self._decayed = self._take_over_decay(optimizer, excluded)
        self._passed_over = _passed_over(network)
        self.weights = tf.Variable(tf.zeros([stack, network.size], network.dtype))
        self._optimizer.build([self.weights])
        self.state = [v.value for v in self._optimizer.variables if v is not self._optimizer._learning_rate]
        self._seeds = (
            tf.Variable(tf.zeros([stack, len(network.facts.random), 2], tf.int64)) if network.facts.random else None
        )

    def start(self, weights: tf.Tensor, state: Sequence[tf.Tensor], seed: tf.Tensor | tuple[()]) -> None:
        """Sets every task of the stack to the start of its adaptation.

        Args:
          weights: floatx [weight], the initialization.
          state: the optimizer's state, each [weight] or scalar.
          seed: int [stack, 2], the seed of each task's random layers; () if the network has none.
        """
        self.weights.assign(tf.broadcast_to(weights, self.weights.shape))
        for slot, value in zip(self.state, state, strict=True):
            slot.assign(tf.broadcast_to(value, slot.shape))
        if self._seeds is not None:
            self._seeds.assign(self._network.start_seeds(seed))

    def adapt(self, tasks: Tasks, minibatches: tf.Tensor) -> tf.Tensor:
        """Takes one optimizer step on each minibatch, starting from the tasks' current weights and state.

        Args:
          tasks: [stack, ...] each.
          minibatches: int32 [stack, step, sample], indices into the tasks' samples.

        Returns:
          The weights after the last step, floatx [stack, weight].
        """
        if minibatches.shape[1] == 0:  # XLA cannot compile a loop of no steps
            return self.weights.value()
        steps = tf.shape(minibatches)[1]

        def one(step: tf.Tensor) -> tuple[tf.Tensor]:
            if self._weight_decay != 1:
                self.weights.assign(self.weights * tf.constant(self._weight_decay, self.weights.dtype))
            gradient = self._gradient(self.weights.value(), tasks, minibatches[:, step])
            if self._decayed is not None:
                rate = tf.cast(self._optimizer.learning_rate, self.weights.dtype)
                self.weights.assign_sub(self.weights * self._decayed * rate)
            before = None if self._passed_over is None else self.weights.value()
            self._optimizer.apply([gradient], [self.weights])
            if self._passed_over is not None:
                self.weights.assign(tf.where(self._passed_over, before, self.weights))
            if self._network.is_constrained:
                self.weights.assign(self._network.constrained(self.weights.value()))
            return (step + 1,)

        tf.while_loop(lambda step: step < steps, one, [tf.constant(0)])
        return self.weights.value()

    def sgd_step(self, weights: tf.Tensor, tasks: Tasks, samples: tf.Tensor) -> tf.Tensor:
        """Computes one differentiable step of plain SGD; no gradient passes through an optimizer's assignment.

        Args:
          weights: floatx [stack, weight] before the step. `self.weights` is neither read nor changed.
          tasks: [stack, ...] each.
          samples: int32 [stack, sample], the minibatch.

        Returns:
          The weights after the step, floatx [stack, weight].

        Raises:
          ValueError: the optimizer is not plain SGD, or second derivatives of the network would be wrong.
        """
        if not self._is_plain_sgd:
            raise ValueError("MAML differentiates through the inner steps, which must be plain SGD")
        if names := self._network.not_differentiable_twice:
            raise ValueError(
                f"MAML cannot differentiate twice through tf.nn.moments in {', '.join(names)}: take the variance of "
                "the deviations, or use BatchNormalization in float32 or float64"
            )
        if self._weight_decay != 1:
            weights *= tf.constant(self._weight_decay, weights.dtype)
        rate = tf.cast(self._optimizer.learning_rate, weights.dtype)
        return self._network.constrained(weights - rate * self._gradient(weights, tasks, samples))

    def losses(self, weights: tf.Tensor, tasks: Tasks, samples: tf.Tensor) -> tf.Tensor:
        """Returns each task's loss, floatx [stack], at weights [stack, weight] on minibatch int32 [stack, sample]."""
        return self._network.losses(weights, *_samples(tasks, samples), self._seeds)

    def outputs(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the outputs, floatx [stack, batch, ...], of the adapted tasks for inputs [stack, batch, ...]."""
        return self._network.outputs(self.weights.value(), x)

    def _gradient(self, weights: tf.Tensor, tasks: Tasks, samples: tf.Tensor) -> tf.Tensor:
        """Returns the loss gradient, floatx [stack, weight], and advances the random layers' seeds."""
        gradient, seeds = self._network.gradient(weights, *_samples(tasks, samples), self._seeds)
        if self._seeds is not None:
            self._seeds.assign(seeds)
        return gradient

    def _take_over_decay(self, optimizer: keras.Optimizer, excluded: Sequence[int]) -> tf.Tensor | None:
        """Takes the weight decay over from the optimizer if it does not decay all variables.

        Keras leaves out whole variables: those that are excluded, and those without a gradient. The optimizer here sees
        one flat vector and cannot tell variables apart, so its own decay is switched off then.

        Returns:
          The decay of each weight, floatx [weight], or None if the optimizer's own decay is right.
        """
        variables, connected = self._network.trainable, self._network.facts.connected
        decays = [on and i not in excluded for i, on in enumerate(connected)]
        if not optimizer.weight_decay or all(decays):
            return None
        self._optimizer.weight_decay = None
        return self._network.flatten(
            [tf.fill(v.shape, d * optimizer.weight_decay) for v, d in zip(variables, decays, strict=True)]
        )


def excluded_from_decay(optimizer: keras.Optimizer, variables: Sequence[keras.Variable]) -> list[int]:
    """Returns the indices of the variables that the user has excluded from an optimizer's weight decay."""
    return [i for i, variable in enumerate(variables) if not optimizer._use_weight_decay(variable)]


def copy_of(optimizer: keras.Optimizer, learning_rate: Any) -> keras.Optimizer:
    """Returns a new optimizer of the same class and settings but for the learning rate, without state."""
    return type(optimizer)(**optimizer.get_config() | {"learning_rate": learning_rate})


def _rate_of(optimizer: keras.Optimizer) -> Any:
    """Returns an optimizer's learning rate for its copies: the same schedule, or a function of its current value."""
    rate = optimizer._learning_rate
    return (lambda: optimizer.learning_rate) if isinstance(rate, keras.Variable) else rate


def _passed_over(network: Network) -> tf.Tensor | None:
    """Returns the mask, bool [weight], of weights without a gradient, or None if all have one.

    Keras skips variables without a gradient. In the flat vector their gradient is zero, and some optimizers change a
    weight even on a zero gradient.
    """
    if all(network.facts.connected):
        return None
    pairs = zip(network.trainable, network.facts.connected, strict=True)
    return network.flatten([tf.fill(v.shape, float(not on)) for v, on in pairs]) > 0


def has_only(optimizer: keras.Optimizer, kind: type[keras.Optimizer], **settings: Any) -> bool:
    """Returns whether an optimizer is of a class, with a number as learning rate and no other settings than these."""
    config = optimizer.get_config()
    if type(optimizer) is not kind or not isinstance(config["learning_rate"], float):
        return False
    return config == kind(config["learning_rate"], name=config["name"], **settings).get_config()


def _samples(tasks: Tasks, samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the inputs and targets, [stack, sample, ...] each, of a minibatch of indices int32 [stack, sample]."""
    return tf.gather(tasks.x, samples, batch_dims=1), tf.gather(tasks.y, samples, batch_dims=1)


class InnerLoop:
    """The inner loop on several tasks, side by side (stacked, or in branches of one graph) or one after another.

    Args:
      network: the network to adapt. With `network.stacked` all tasks form one stack; otherwise each task is a branch of
        the graph, and the branches share the cores of a CPU.
      optimizer: a stock elementwise Keras optimizer, which is copied.
      tasks: number of tasks that run side by side.
      weight_decay: factor by which all weights are multiplied before every step (1 means no decay).
      sequential: run any number of tasks one after another instead, and pass on the optimizer's state, not the weights.
      excluded: indices of the trainable variables that the optimizer excludes from its weight decay; None to ask it.
    """

    def __init__(
        self,
        network: Network,
        optimizer: keras.Optimizer,
        tasks: int = 1,
        *,
        weight_decay: float = 1.0,
        sequential: bool = False,
        excluded: Sequence[int] | None = None,
    ):
        if excluded is None:
            excluded = excluded_from_decay(optimizer, network.trainable)
        self._sequential = sequential
        self._stack = tasks if network.stacked and not sequential else 1
        count = 1 if sequential else tasks // self._stack
        self._adaptations = [Adaptation(network, optimizer, self._stack, weight_decay, excluded) for _ in range(count)]

    def initial_state(self) -> list[tf.Tensor]:
        """Returns the state of an optimizer before its first step, each [weight] or scalar."""
        return [slot[0] if slot.shape.rank else slot.value() for slot in self._adaptations[0].state]

    def run(
        self,
        function: Callable[..., tf.Tensor],
        tasks: Tasks,
        weights: tf.Tensor,
        state: Sequence[tf.Tensor],
        *more: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Applies a function to an adaptation of every task that starts from `weights` and `state`.

        Args:
          function: takes an `Adaptation`, its part of the tasks and its part of each of `more`, and returns one floatx
            row per task.
          tasks: [task, ...] each.
          weights: floatx [weight], the initialization.
          state: the optimizer's state, each [weight] or scalar.
          more: further arguments of the function, [task, ...] each.

        Returns:
          The function's results, [task, ...], and the optimizer's final state: the mean over tasks that ran in
          parallel (step counts are equal), or the last task's if they ran one after another.
        """
        if self._sequential:
            return self._one_after_another(function, tasks, weights, state, *more)
        results = []
        for i, adaptation in enumerate(self._adaptations):
            first = i * self._stack
            share, *others = tf.nest.map_structure(lambda a, at=first: a[at : at + self._stack], [tasks, *more])
            adaptation.start(weights, state, share.seed)
            results.append(function(adaptation, share, *others))
        states = zip(*(adaptation.state for adaptation in self._adaptations), strict=True)
        return tf.concat(results, axis=0), [
            tf.reduce_mean(tf.concat(slots, 0), 0) if slots[0].shape.rank else slots[0].value() for slots in states
        ]

    def _one_after_another(self, function, tasks, weights, state, *more):
        (adaptation,) = self._adaptations
        for slot, value in zip(adaptation.state, state, strict=True):
            slot.assign(tf.broadcast_to(value, slot.shape))

        def one(i: tf.Tensor) -> tf.Tensor:
            share, *others = tf.nest.map_structure(lambda a: tf.gather(a, [i]), [tasks, *more])
            passed_on = [slot[0] if slot.shape.rank else slot.value() for slot in adaptation.state]
            adaptation.start(weights, passed_on, share.seed)
            return function(adaptation, share, *others)[0]

        results = tf.map_fn(one, tf.range(tf.shape(tasks.y)[0]), fn_output_signature=weights.dtype)
        return results, [slot[0] if slot.shape.rank else slot.value() for slot in adaptation.state]
