"""The user's Keras model as a function of a flat weight vector."""

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import compare, examine, layers
from reptile_tf.as_made import AsMade
from reptile_tf.progress import log

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the **sum** of the cross-entropies of a minibatch, as the original code does.

    An SGD step on a minibatch of 25 is therefore 25 times as long as a step on the mean.

    Args:
      labels: int [batch].
      logits: floatx [batch, classes].

    Returns:
      A floatx scalar.
    """
    # The gradient of the sparse form is a slow scatter where it is deterministic.
    one_hot = tf.one_hot(labels, tf.shape(logits)[-1], dtype=logits.dtype)
    return tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(one_hot, logits))


class Predictions(NamedTuple):
    """An adapted network's results for the query set in both settings; `predictions[transductive]` selects one.

    Attributes:
      one_by_one: each query is classified alone, in a batch with the whole support set.
      transductive: all queries are classified in one batch, so that they share batch-norm statistics.
    """

    one_by_one: Any
    transductive: Any


class Network:
    """A Keras model as a function of a flat weight vector, for one task or for a stack of them.

    The model is not copied. While a call is traced, parts of the vector replace the model's trainable variables, and
    the task's seeds replace those of its random layers. Everything else (frozen weights, moving averages) is read from
    the model. No call changes the model.

    Args:
      model: a built Keras model of any kind, with one input and one output.
      loss: function of the (targets, outputs) of one minibatch that returns a scalar.
      scale: factor by which inputs are multiplied.
      stacked: vectorize over the tasks of a stack, for compilation by XLA. Otherwise a stack has one task.

    Attributes:
      as_made: what the model was when this network was made.
      lock: held by the one thread that may run a compiled program, because programs share variables.
      facts: what a call on a random batch showed about the model.
      trainable: the model's trainable variables.
      size: number of trainable weights.
      dtype: dtype of the trainable variables.
      raw_dtype: dtype to which inputs are cast before scaling.
      is_constrained: whether any trainable variable has a constraint.

    Raises:
      ValueError: the model is not supported, or would compute something else here; the message says what to do.
    """

    def __init__(self, model: keras.Model, loss: Loss = cross_entropy, scale: float = 1.0, stacked: bool = False):
        self.model = model
        self.loss = loss
        self.scale = scale
        self.stacked = stacked
        with layers.ONE_AT_A_TIME:
            self.facts = examine.examine(model, is_classifier=loss is cross_entropy)
        self.trainable = list(model.trainable_variables)
        self.dtype = tf.as_dtype(self.trainable[0].dtype)
        whole = scale == 1 or self.facts.input_dtype.is_floating
        self.raw_dtype = self.facts.input_dtype if whole else self.dtype
        self._shapes = [tuple(v.shape) for v in self.trainable]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        self.size = sum(self._sizes)
        # Keras skips variables without a gradient, and their constraints too.
        pairs = zip(self.trainable, self.facts.connected, strict=True)
        self._constraints = [v.constraint if on else None for v, on in pairs]
        self.is_constrained = any(self._constraints)
        with layers.ONE_AT_A_TIME:
            in_turn = compare.compare(self)
            self.as_made = AsMade(model)
        self.lock = threading.RLock()
        if in_turn:
            log.info(
                f"stacked: these run one task after another, because they have no vectorized form: {', '.join(in_turn)}"
            )

    def unstacked(self) -> "Network":
        """Returns the same network for one task at a time."""
        one = copy.copy(self)
        one.stacked = False
        return one

    def flatten(self, weights: Sequence[np.ndarray | tf.Tensor]) -> tf.Tensor:
        """Concatenates the trainable weights, in the model's order, to floatx [weight]."""
        return tf.concat([tf.reshape(tf.cast(w, self.dtype), [-1]) for w in weights], axis=0)

    def unflatten(self, weights: tf.Tensor) -> list[tf.Tensor]:
        """Splits floatx [weight] into the trainable weights, in the model's order."""
        return [tf.reshape(w, s) for w, s in zip(tf.split(weights, self._sizes), self._shapes, strict=True)]

    def start_seeds(self, seed: tf.Tensor) -> tf.Tensor:
        """Returns the tasks' initial random generator states, int64 [stack, seeds, 2], from seeds int [stack, 2]."""
        # Keras adds one to the second number with each draw, and takes both numbers modulo 2**31 - 2.
        generators = tf.range(len(self.facts.random), dtype=tf.int64)[:, tf.newaxis] * [0x3779B97F, 0]
        return (tf.cast(seed, tf.int64)[:, tf.newaxis] + generators) % (2**31 - 2)

    def constrained(self, weights: tf.Tensor) -> tf.Tensor:
        """Applies the model's constraints to floatx [stack, weight], as Keras does after every step."""
        if not self.is_constrained:
            return weights

        def of_one(weights: tf.Tensor) -> tf.Tensor:
            parts = zip(self._constraints, self.unflatten(weights), strict=True)
            return self.flatten([constraint(part) if constraint else part for constraint, part in parts])

        return self.each(of_one, weights)

    def outputs(self, weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Computes the model's outputs for classification: batch norm uses the given batch, random layers are off.

        Args:
          weights: floatx [stack, weight].
          x: [stack, batch, ...] inputs before scaling.

        Returns:
          Floatx [stack, batch, ...].
        """
        return self.each(lambda w, x: self.call(w, x, None, classifying=True)[0], weights, x)

    def predictions(self, weights: tf.Tensor, support_x: tf.Tensor, queries: tf.Tensor) -> Predictions:
        """Computes the outputs for query sets of adapted tasks, in both settings of the paper (section 6).

        Args:
          weights: floatx [stack, weight], adapted.
          support_x: [stack, sample, ...] inputs before scaling.
          queries: [stack, query, ...] inputs before scaling.

        Returns:
          Floatx [stack, query, ...] for each setting.
        """

        def classify(query: tf.Tensor) -> tf.Tensor:  # [stack, ...]
            return self.outputs(weights, tf.concat([support_x, query[:, tf.newaxis]], axis=1))[:, -1]

        by_query = tf.map_fn(classify, tf.experimental.numpy.swapaxes(queries, 0, 1), fn_output_signature=self.dtype)
        return Predictions(tf.experimental.numpy.swapaxes(by_query, 0, 1), self.outputs(weights, queries))

    def gradient(
        self, weights: tf.Tensor, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Computes the loss gradient of each task.

        Args:
          weights: floatx [stack, weight].
          x: [stack, batch, ...] inputs before scaling.
          y: [stack, batch, ...] targets.
          seeds: int64 [stack, seeds, 2] if the model has random layers.

        Returns:
          The gradient, floatx [stack, weight], and the seeds of the next step.
        """

        def of_one(w: tf.Tensor, x: tf.Tensor, y: tf.Tensor, *seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.GradientTape() as tape:
                tape.watch(w)
                loss, *after = self._total_loss(w, x, y, *seeds)
            return tape.gradient(loss, w, unconnected_gradients=tf.UnconnectedGradients.ZERO), *after

        gradient, *after = self.each(of_one, weights, x, y, *([] if seeds is None else [seeds]))
        return gradient, (after[0] if after else None)

    def losses(self, weights: tf.Tensor, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor | None = None) -> tf.Tensor:
        """Computes the loss of each task, floatx [stack]. The arguments are those of `gradient`."""
        return self.each(lambda *task: self._total_loss(*task)[0], weights, x, y, *([] if seeds is None else [seeds]))

    def _total_loss(self, weights: tf.Tensor, x: tf.Tensor, y: tf.Tensor, *seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def loss_of(outputs: tf.Tensor) -> tf.Tensor:
            loss = tf.convert_to_tensor(self.loss(y, outputs))
            if loss.shape.rank:
                raise ValueError(f"the loss must be a scalar, not {loss.shape}: sum it over the minibatch")
            return loss

        _, losses, *after = self.call(weights, x, *(seeds or [None]), loss_of=loss_of)
        return tf.add_n([tf.cast(loss, self.dtype) for loss in losses]), *after

    def call(
        self,
        weights: tf.Tensor,
        x: tf.Tensor,
        seeds: tf.Tensor | None,
        *,
        classifying: bool = False,
        only: Callable[[keras.Layer], bool] = lambda layer: True,
        loss_of: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> list:
        """Calls the model with one task's weights.

        Args:
          weights: floatx [weight].
          x: [batch, ...] inputs before scaling.
          seeds: int64 [seeds, 2] of the random layers; None leaves the model's own.
          classifying: see `layers.standing_in`.
          only: see `layers.standing_in`.
          loss_of: function of the outputs, called while the model has the task's weights, so that it may read them.

        Returns:
          A list of the outputs; a list of losses: that of `loss_of`, if given, then those that the model adds
          (regularizers, for example); and, if seeds were given, the seeds of the next call.
        """
        values = list(zip(self.trainable, self.unflatten(weights), strict=True))
        if seeds is not None:
            values += zip(self.facts.random, tf.unstack(seeds), strict=True)
        with (
            layers.standing_in(self.model, stacked=self.stacked, classifying=classifying, only=only),
            keras.StatelessScope(state_mapping=values, collect_losses=True) as scope,
        ):
            outputs = self.model(self.scaled(x), training=True)
            losses = ([loss_of(outputs)] if loss_of else []) + self.model.losses
        after = [] if seeds is None else [tf.stack([scope.get_current_value(state) for state in self.facts.random])]
        if classifying:
            outputs = tf.cast(outputs, self.dtype)
        return [outputs, losses, *after]

    def activation_bytes(self, samples: int) -> int:
        """Returns the bytes of all values in one task's forward pass on `samples` samples; fusion keeps fewer."""
        weights = tf.TensorSpec([self.size], self.dtype)
        x = tf.TensorSpec([samples, *(axis or examine.FREE_AXIS for axis in self.facts.input_shape)], self.raw_dtype)
        call = tf.function(lambda weights, x: self.call(weights, x, None)[0], autograph=False)
        graph = call.get_concrete_function(weights, x).graph
        outputs = [tensor for operation in graph.get_operations() for tensor in operation.outputs]
        floats = [t for t in outputs if t.dtype.is_floating and t.shape.is_fully_defined()]
        return sum(t.dtype.size * int(np.prod(t.shape)) for t in floats)

    @functools.cached_property
    def not_differentiable_twice(self) -> list[str]:
        """The result of `compare.not_differentiable_twice`, which traces the model, computed once."""
        return compare.not_differentiable_twice(self)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Holds the lock; raises ValueError if the model or an optimizer was changed since the network was made."""
        with self.lock:
            self.as_made.check()
            yield

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Does the same as `unchanged`, for a body that runs compiled programs.

        Raises:
          ValueError: also, in one line, if TensorFlow cannot trace the code, or XLA cannot compile it (if stacked).
        """
        try:
            with self.unchanged():
                yield
        except tf.errors.OperatorNotAllowedInGraphError as error:
            raise ValueError(
                "the loss or the meta-gradient has an if or a for over a tensor, which is not known when it is "
                "compiled: use keras.ops.where, or keras.ops.cond and keras.ops.fori_loop"
            ) from error
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            if isinstance(error, ValueError) and "\n" not in str(error):
                raise
            raise ValueError(examine.in_one_line(error)) from error
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if not self.stacked:
                raise
            raise ValueError(compare.not_compiled(error)) from error

    def scaled(self, x: tf.Tensor) -> tf.Tensor:
        """Returns inputs multiplied by `scale`, in the dtype of the model's input."""
        x = tf.cast(x, self.raw_dtype)
        scaled = x if self.scale == 1 else x * tf.constant(self.scale, self.raw_dtype)
        return tf.cast(scaled, self.facts.input_dtype)

    def each(self, function: Callable, *stacks: tf.Tensor) -> Any:
        """Applies a function of one task's tensors to every task: tensors [stack, ...] to results [stack, ...]."""
        if self.stacked:
            with compare.loops_noted():  # the constructor has reported them
                return tf.vectorized_map(lambda rows: function(*rows), stacks, fallback_to_while_loop=True)
        results = function(*(tf.squeeze(stack, 0) for stack in stacks))
        return tf.nest.map_structure(lambda result: result[tf.newaxis], results)
