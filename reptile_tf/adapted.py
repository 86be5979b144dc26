"""A learner's network after it has learned one task from a few examples."""

import copy
import warnings
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import checks, layers
from reptile_tf.examine import PlainCall, random_batch, same
from reptile_tf.inner_loop import Adaptation, InnerLoop
from reptile_tf.network import Network
from reptile_tf.state import NotFiniteError
from reptile_tf.tasks import EVALUATION, Tasks, deal_minibatches, generator, seed_of

if TYPE_CHECKING:
    from reptile_tf.meta import MetaLearner


class Adapter:
    """Adapts a learner to one task at a time, by programs that are compiled once for support sets of any size.

    Args:
      learner: read at every call, never changed.
    """

    def __init__(self, learner: "MetaLearner"):
        self.network = learner.network.unstacked()
        self._learner = learner
        self._inner = InnerLoop(self.network, learner.inner_optimizer, weight_decay=learner.weight_decay)
        self._programs: dict[tuple, tf.types.experimental.PolymorphicFunction] = {}
        self._inputs = tf.TensorSpec([1, None, *self.network.facts.input_shape], self.network.raw_dtype)
        weights = tf.TensorSpec([1, None], self.network.dtype)
        self.predictions = tf.function(self.network.predictions, input_signature=[weights, self._inputs, self._inputs])

    def adapt(self, x: np.ndarray, y: np.ndarray, steps: int, batch: int, seed: int) -> "Adapted":
        """See `MetaLearner.adapt`."""
        x, y = np.asarray(x), np.asarray(y)
        if not len(x) or batch < 1 or steps < 0 or seed < 0:
            raise ValueError("adapt needs a sample, batch of at least 1, and steps and seed of at least 0")
        rng = generator(seed, EVALUATION, 0, 0)
        dealt = deal_minibatches(len(x), batch, steps, False, rng)
        seeds = seed_of(rng)[np.newaxis] if self.network.facts.random else ()
        task = checks.tasks(self.network, Tasks(x[np.newaxis], y[np.newaxis], dealt[np.newaxis], seed=seeds))
        x = x.astype(self.network.raw_dtype.as_numpy_dtype)
        with self.network.compiling():
            weights = self._program(task)(task._replace(x=x[np.newaxis]))[0].numpy()
        if not np.isfinite(weights).all():
            raise NotFiniteError(["adapted weights"])
        return Adapted(self, weights, x)

    def _program(self, task: Tasks) -> tf.types.experimental.PolymorphicFunction:
        """The compiled adaptation to a task of targets of this kind."""
        kind = task.y.dtype, task.y.shape[2:]
        if kind not in self._programs:
            signature = Tasks(
                self._inputs,
                tf.TensorSpec([1, None, *task.y.shape[2:]], task.y.dtype),
                tf.TensorSpec([1, None, None], tf.int32),
                seed=tf.TensorSpec([1, 2], tf.int32) if self.network.facts.random else (),
            )
            self._programs[kind] = tf.function(self._adapted_weights, input_signature=[signature])
        return self._programs[kind]

    def _adapted_weights(self, task: Tasks) -> tf.Tensor:
        def adapted(adaptation: Adaptation, task: Tasks) -> tf.Tensor:
            return adaptation.adapt(task, task.minibatches)

        return self._inner.run(adapted, task, self._learner.phi, self._learner.inner_state)[0]


class Adapted:
    """What `MetaLearner.adapt` gives: it classifies new inputs as the paper's evaluation does.

    Attributes:
      weights: floatx [weight], the network's trainable weights after the adaptation.
    """

    def __init__(self, adapter: Adapter, weights: np.ndarray, support_x: np.ndarray):
        self._adapter = adapter
        self._support_x = support_x
        self.weights = weights

    def outputs(self, x: np.ndarray, *, transductive: bool = False) -> np.ndarray:
        """The network's outputs (logits) for new inputs, floatx [query, ...].

        Args:
          x: [query, ...] before scaling, as `adapt` takes them.
          transductive: classify all of them in one batch, so that they share batch-norm statistics; else each in a
            batch with the whole support set.

        Raises:
          ValueError: inputs of another shape than the model's.
        """
        network = self._adapter.network
        checks.inputs(network, np.shape(x)[1:])
        x = np.asarray(x, network.raw_dtype.as_numpy_dtype)
        stacks = (array[np.newaxis] for array in (self.weights, self._support_x, x))
        return self._adapter.predictions(*stacks)[transductive][0].numpy()

    def predict(self, x: np.ndarray, *, transductive: bool = False) -> np.ndarray:
        """The labels of new inputs, int [query]: of the largest output each. Arguments and errors: see `outputs`."""
        return self.outputs(x, transductive=transductive).argmax(-1)

    def model(self) -> keras.Model:
        """A Keras model with weights of its own, the adapted ones, whose ordinary `predict` needs no support set.

        It takes inputs after scaling. The moving averages of its batch norms are the statistics of the support set;
        called with training=True it uses the batch at hand, as the evaluation does. Where Keras cannot rebuild the
        learner's model, this one computes by its layers, and cannot be saved.
        """
        network = self._adapter.network
        model = _copy(network)
        for variable, value in zip(model.trainable_variables, network.unflatten(self.weights), strict=True):
            variable.assign(value)
        _set_moving_averages(model, network, network.scaled(tf.constant(self._support_x)))
        return model


def _copy(network: Network) -> keras.Model:
    """A model with the same layers and weights, independent of the network's."""
    model = network.model
    kinds = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    try:
        with warnings.catch_warnings(), keras.saving.custom_object_scope(kinds):
            warnings.simplefilter("ignore")  # of lambdas, which Keras takes for unsafe where they come from a file
            other = copy.deepcopy(model)
        for copied, variable in zip(other.variables, model.variables, strict=True):
            copied.assign(variable)  # seeds of random layers, too
        x = random_batch(model, network.facts.input_shape)
        same_outputs = same(PlainCall(other, x).outputs, PlainCall(model, x).outputs, 1e-5)
    except Exception:  # layers without get_config and the like: anything may be raised
        return _WithOwnWeights(model)
    return other if same_outputs else _WithOwnWeights(model)


class _WithOwnWeights(keras.Model):
    """A model that computes by another's layers, with weights of its own."""

    def __init__(self, model: keras.Model):
        super().__init__(name=model.name)
        self._by = lambda: model  # which Keras does not track: its weights are not this one's
        trainable, weights = ({id(v) for v in some} for some in (model.trainable_variables, model.weights))
        own = []
        for v in model.variables:
            named = {"dtype": v.dtype, "name": v.path.replace("/", "_"), "trainable": id(v) in trainable}
            # The states of random generators are no weights.
            is_weight = id(v) in weights
            own.append(self.add_weight(shape=v.shape, **named) if is_weight else keras.Variable(v.numpy(), **named))
            own[-1].assign(v)
        self._own = lambda: own  # in which Keras finds none of them again
        self.built = True

    def call(self, inputs, training=False):
        model = self._by()
        given = [tf.convert_to_tensor(own.value) for own in self._own()]
        with keras.StatelessScope(state_mapping=list(zip(model.variables, given, strict=True))) as scope:
            outputs = model(inputs, training=training)
        for variable, own, before in zip(model.variables, self._own(), given, strict=True):
            if (after := scope.get_current_value(variable)) is not before:
                own.assign(after)
        return outputs


def _set_moving_averages(model: keras.Model, network: Network, support_x: tf.Tensor) -> None:
    """Makes the support set's statistics the moving averages of all batch norms that adapt."""
    by = model if not isinstance(model, _WithOwnWeights) else network.model  # whose layers compute
    norms = [one for one in by._flatten_layers() if isinstance(one, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    with layers.standing_in(by, classifying=True, only=lambda layer: bool(layer._seed_generators)):
        try:
            for norm in norms:
                norm.momentum = 0.0
            model(support_x, training=True)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
