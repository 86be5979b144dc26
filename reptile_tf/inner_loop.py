"""The inner loop: k steps of a stock Keras optimizer on each task of a meta-batch.

All weights of the network are handled as one flat vector. For an elementwise optimizer that is the same computation
with a fraction of the operations, phi - W becomes one subtraction, and several tasks are rows of one matrix.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from reptile_tf.network import Network
from reptile_tf.tasks import Tasks


class Adaptation:
    """The inner loop on one stack of tasks, which step together: their weights, the optimizer's state, their seeds.

    Attributes:
      weights: floatx variable [stack, weight].
      state: the optimizer's variables but for its learning rate: [stack, weight] each (moments), or scalar (counts).
    """

    def __init__(self, network: Network, optimizer: keras.Optimizer, stack: int, weight_decay: float):
        self._network = network
        self._weight_decay = weight_decay
        self._is_plain_sgd = _is_plain_sgd(optimizer)
        self._optimizer = copy_of(optimizer)
        self._decayed = self._take_over_decay(optimizer)
        self._passed_over = _passed_over(network)
        self.weights = tf.Variable(tf.zeros([stack, network.size], network.dtype))
        self._optimizer.build([self.weights])
        self.state = [v.value for v in self._optimizer.variables if v is not self._optimizer._learning_rate]
        self._seeds = (
            tf.Variable(tf.zeros([stack, len(network.facts.random), 2], tf.int64)) if network.facts.random else None
        )

    def start(self, weights: tf.Tensor, state: Sequence[tf.Tensor], seed: tf.Tensor | tuple[()]) -> None:
        """Starts every task of the stack.

        Args:
          weights: floatx [weight].
          state: of the optimizer, [weight] or scalar each.
          seed: int [stack, 2], of each task's random layers; () if the network has none.
        """
        self.weights.assign(tf.broadcast_to(weights, self.weights.shape))
        for slot, value in zip(self.state, state, strict=True):
            slot.assign(tf.broadcast_to(value, slot.shape))
        if self._seeds is not None:
            self._seeds.assign(self._network.start_seeds(seed))

    def adapt(self, tasks: Tasks, minibatches: tf.Tensor) -> tf.Tensor:
        """Takes one optimizer step on each minibatch, from where the tasks stand.

        Args:
          tasks: [stack, ...], whose pools the minibatches index.
          minibatches: int32 [stack, step, sample].

        Returns:
          The weights after the last step, floatx [stack, weight].
        """
        if minibatches.shape[1] == 0:  # of which XLA compiles no loop
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
        """One step of plain SGD as a function, through which a gradient passes; an optimizer's step is an assignment.

        Args:
          weights: floatx [stack, weight] to step from; the adaptation's own are neither read nor changed.
          tasks: [stack, ...].
          samples: int32 [stack, sample], the minibatch.

        Returns:
          floatx [stack, weight].

        Raises:
          ValueError: the optimizer is no plain SGD, or second derivatives of the network would be wrong.
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
        """The loss at `weights` on a minibatch: [stack, weight], tasks and int32 [stack, sample] to [stack]."""
        return self._network.losses(weights, *_samples(tasks, samples), self._seeds)

    def outputs(self, x: tf.Tensor) -> tf.Tensor:
        """The network's outputs with the tasks' weights: [stack, batch, ...] to [stack, batch, ...]."""
        return self._network.outputs(self.weights.value(), x)

    def _gradient(self, weights: tf.Tensor, tasks: Tasks, samples: tf.Tensor) -> tf.Tensor:
        """The loss gradient, [stack, weight]; the random layers' seeds go on."""
        gradient, seeds = self._network.gradient(weights, *_samples(tasks, samples), self._seeds)
        if self._seeds is not None:
            self._seeds.assign(seeds)
        return gradient

    def _take_over_decay(self, optimizer: keras.Optimizer) -> tf.Tensor | None:
        """The optimizer's weight decay for each weight, [weight], if it leaves out some variables; else None.

        Keras leaves out whole variables: the excluded, and those without a gradient. The optimizer here sees one
        vector, so that it decays none by itself then.
        """
        variables, connected = self._network.trainable, self._network.facts.connected
        decays = [on and optimizer._use_weight_decay(v) for v, on in zip(variables, connected, strict=True)]
        if not optimizer.weight_decay or all(decays):
            return None
        self._optimizer.weight_decay = None
        return self._network.flatten(
            [tf.fill(v.shape, d * optimizer.weight_decay) for v, d in zip(variables, decays, strict=True)]
        )


def copy_of(optimizer: keras.Optimizer) -> keras.Optimizer:
    """A stock optimizer that has not stepped, with the settings of another."""
    config = optimizer.get_config()
    if not isinstance(optimizer._learning_rate, keras.Variable):
        config["learning_rate"] = optimizer._learning_rate  # a schedule: the same object, which Keras may not rebuild
    return type(optimizer)(**config)


def _passed_over(network: Network) -> tf.Tensor | None:
    """Bool [weight], those without a gradient, if there are any.

    Keras passes over their variables; here the gradient is zero, by which some optimizers move.
    """
    if all(network.facts.connected):
        return None
    pairs = zip(network.trainable, network.facts.connected, strict=True)
    return network.flatten([tf.fill(v.shape, float(not on)) for v, on in pairs]) > 0


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
    """The inner loop on several tasks: side by side (stacked, or in branches of one graph) or one after another.

    Args:
      network: what to adapt. `network.stacked` chooses between one stack of all tasks, and branches of one task each,
        which share the cores of a CPU.
      optimizer: a stock elementwise Keras optimizer, taken as a pattern (it is not touched).
      tasks: how many tasks run side by side.
      weight_decay: the factor on all weights before every step (1: none).
      sequential: run any number of tasks one after another instead, the optimizer's state (not the weights) passed on.
    """

    def __init__(
        self,
        network: Network,
        optimizer: keras.Optimizer,
        tasks: int = 1,
        *,
        weight_decay: float = 1.0,
        sequential: bool = False,
    ):
        self._sequential = sequential
        self._stack = tasks if network.stacked and not sequential else 1
        count = 1 if sequential else tasks // self._stack
        self._adaptations = [Adaptation(network, optimizer, self._stack, weight_decay) for _ in range(count)]

    def initial_state(self) -> list[tf.Tensor]:
        """The state of an optimizer that has not stepped: [weight] or scalar each."""
        return [slot[0] if slot.shape.rank else slot.value() for slot in self._adaptations[0].state]

    def run(
        self,
        function: Callable[..., tf.Tensor],
        tasks: Tasks,
        weights: tf.Tensor,
        state: Sequence[tf.Tensor],
        *more: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Adapts to every task from `weights` and `state`.

        Args:
          function: of an `Adaptation`, its share of the tasks and of `more`; gives one floatx row per task.
          tasks: [task, ...].
          weights: floatx [weight].
          state: the optimizer's, [weight] or scalar each.
          more: [task, ...] each.

        Returns:
          The results, [task, ...], and the optimizer's state afterwards: averaged over tasks that ran side by side
          (counts are the same in all), that of the last task where they ran one after another.
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
