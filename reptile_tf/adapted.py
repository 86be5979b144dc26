"""A learner's network after adaptation to the support set of one task."""

import contextlib
import copy
import json
import os
import pathlib
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import checks, files, heads, layers
from reptile_tf.data.image_classes import check_numbers
from reptile_tf.errors import UserError
from reptile_tf.examine import PlainCall, random_batch, same
from reptile_tf.inner_loop import Adaptation, InnerLoop, excluded_from_decay
from reptile_tf.network import Network, Predictions, cross_entropy
from reptile_tf.origin import Origin
from reptile_tf.progress import log
from reptile_tf.state import NotFiniteError
from reptile_tf.tasks import EVALUATION, Tasks, deal_minibatches, generator, seed_of

if TYPE_CHECKING:
    from reptile_tf.meta import MetaLearner


class Support(NamedTuple):
    """A checked support set.

    Attributes:
      x: [sample, ...] inputs before scaling.
      y: int32 [sample] class indices from 0; with a custom loss, the targets [sample, ...].
      labels: [class] the user's labels, sorted; None with a custom loss.
      outputs: number of outputs that the network needs: its own, or the number of classes if that is larger.
    """

    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray | None
    outputs: int

    @classmethod
    def of(cls, learner: "MetaLearner", x: np.ndarray, y: np.ndarray | Sequence) -> "Support":
        """Checks a support set; arguments and errors are those of `MetaLearner.adapt`."""
        network = learner.network
        x, targets = np.asarray(x), np.asarray(y)
        outputs = network.facts.output_shape[-1]
        if not len(x):
            raise ValueError("adapt needs a sample of each class")
        checks.inputs(network, x.shape[1:])
        learner.origin.check(x)
        if learner.origin.seems_inverted(x):
            log.warning(
                "most pixels of the examples are ink: were they inverted? rt.images(paths, like=learner) prepares files"
            )
        if network.loss is not cross_entropy:
            return cls(x, targets, None, outputs)
        labels, numbers = np.unique(checks.names(targets, len(x), outputs), return_inverse=True)
        if len(labels) < 2:
            raise ValueError(f"all labels are {labels[0]}: give examples of at least two classes")
        return cls(x, numbers.astype(np.int32), labels, max(len(labels), outputs))


class Adapter:
    """Adapts a learner to one task at a time, with programs compiled once for support sets of any size.

    Args:
      learner: the learner, read at every call and never changed.
      outputs: number of outputs of the adapted network. `heads` explains how a larger number is reached.
    """

    def __init__(self, learner: "MetaLearner", outputs: int):
        network = learner.network
        if outputs == network.facts.output_shape[-1]:
            self.network = network.unstacked()
        else:
            self.network = Network(heads.resized(learner.model, outputs), network.loss, network.scale)
        self._learner = learner
        excluded = excluded_from_decay(learner.inner_optimizer, network.trainable)
        self._inner = InnerLoop(
            self.network, learner.inner_optimizer, weight_decay=learner.weight_decay, excluded=excluded
        )
        self._programs: dict[tuple, tf.types.experimental.PolymorphicFunction] = {}
        self._inputs = tf.TensorSpec([1, None, *self.network.facts.input_shape], self.network.raw_dtype)
        weights = tf.TensorSpec([1, None], self.network.dtype)
        self.predictions = tf.function(
            self.network.predictions, autograph=False, input_signature=[weights, self._inputs, self._inputs]
        )

    def adapt(self, support: Support, steps: int, batch: int, replacement: bool, seed: int) -> "Adapted":
        """Adapts to a checked support set; arguments and errors are those of `MetaLearner.adapt`."""
        if batch < 1 or steps < 0 or seed < 0:
            raise ValueError("adapt needs a batch of at least 1, and steps and seed of at least 0")
        x, y = support.x, support.y
        rng = generator(seed, EVALUATION, 0, 0)
        dealt = deal_minibatches(len(x), batch, steps, replacement, rng)
        seeds = seed_of(rng)[np.newaxis] if self.network.facts.random else ()
        task = checks.tasks(self.network, Tasks(x[np.newaxis], y[np.newaxis], dealt[np.newaxis], seed=seeds))
        x = x.astype(self.network.raw_dtype.as_numpy_dtype)
        with self.running():
            self._copy_frozen()
            start = heads.start(self._learner, self.network)
            weights = self._program(task)(task._replace(x=x[np.newaxis]), *start)[0].numpy()
        if not np.isfinite(weights).all():
            raise NotFiniteError(["adapted weights"])
        return Adapted(self, weights, x, support.labels, self._learner.origin)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Does what `Network.compiling` does, for the learner's network too: the body runs a program of either."""
        with self._learner.network.unchanged(), self.network.compiling():
            yield

    def _copy_frozen(self) -> None:
        """Copies the learner's present frozen weights into a model of its own, if it has one."""
        ours, theirs = self.network.model, self._learner.model
        if ours is not theirs:
            for copied, weight in zip(ours.non_trainable_weights, theirs.non_trainable_weights, strict=True):
                copied.assign(weight)

    def _program(self, task: Tasks) -> tf.types.experimental.PolymorphicFunction:
        """Returns the program that adapts from a result of `heads.start`, compiled for targets of this kind."""
        kind = task.y.dtype, task.y.shape[2:]
        if kind not in self._programs:
            signature = Tasks(
                self._inputs,
                tf.TensorSpec([1, None, *task.y.shape[2:]], task.y.dtype),
                tf.TensorSpec([1, None, None], tf.int32),
                seed=tf.TensorSpec([1, 2], tf.int32) if self.network.facts.random else (),
            )
            phi = tf.TensorSpec([self.network.size], self.network.dtype)
            state = [tf.TensorSpec(v.shape, v.dtype) for v in self._inner.initial_state()]
            self._programs[kind] = tf.function(
                self._adapted_weights, autograph=False, input_signature=[signature, phi, state]
            )
        return self._programs[kind]

    def _adapted_weights(self, task: Tasks, phi: tf.Tensor, state: list[tf.Tensor]) -> tf.Tensor:
        def adapted(adaptation: Adaptation, task: Tasks) -> tf.Tensor:
            return adaptation.adapt(task, task.minibatches)

        return self._inner.run(adapted, task, phi, state)[0]


class Adapted:
    """An adapted network, made by `MetaLearner.adapt`, that classifies new inputs as the paper's evaluation does.

    Attributes:
      labels: [class] the support set's labels, sorted; None with a custom loss.
      weights: floatx [weight], the network's trainable weights after adaptation.
      origin: the learner's `origin`.
    """

    def __init__(
        self, adapter: Adapter, weights: np.ndarray, support_x: np.ndarray, labels: np.ndarray | None, origin: Origin
    ):
        self._adapter = adapter
        self._support_x = support_x
        self.labels = labels
        self.weights = weights
        self.origin = origin

    def outputs(self, x: np.ndarray, *, transductive: bool = False) -> np.ndarray:
        """Computes the network's outputs (logits) for new inputs.

        Args:
          x: [query, ...] inputs before scaling, as for `adapt`.
          transductive: classify all queries in one batch, so that they share batch-norm statistics. Otherwise each
            query is classified in a batch with the whole support set.

        Returns:
          Floatx [query, class], in the order of `labels`.

        Raises:
          ValueError: the inputs are not finite numbers, or differ in shape from the training images or, if these are
            uint8, in range; or the learner's model or optimizer was changed since it was made.
        """
        return self.predictions(x)[bool(transductive)]

    def predictions(self, x: np.ndarray) -> Predictions:
        """Computes `outputs` in both settings in one call; arguments and errors are the same."""
        network = self._adapter.network
        x = np.asarray(x)
        checks.inputs(network, x.shape[1:])
        check_numbers(x, "inputs")
        self.origin.check(x)
        x = x.astype(network.raw_dtype.as_numpy_dtype)
        stacks = (array[np.newaxis] for array in (self.weights, self._support_x, x))
        used = None if self.labels is None else len(self.labels)
        with self._adapter.running():
            return Predictions(*(outputs[0].numpy()[..., :used] for outputs in self._adapter.predictions(*stacks)))

    def predict(self, x: np.ndarray, *, transductive: bool = False) -> np.ndarray:
        """Returns the label of the largest output for each input, [query]; arguments and errors as in `outputs`.

        With a custom loss, returns the index of the largest output, int64.
        """
        best = self.outputs(x, transductive=transductive).argmax(-1)
        return best if self.labels is None else self.labels[best]

    def probabilities(self, x: np.ndarray, *, transductive: bool = False) -> np.ndarray:
        """Returns the softmax of `outputs`, floatx [query, class]; arguments and errors are the same."""
        return tf.nn.softmax(self.outputs(x, transductive=transductive)).numpy()

    def model(self) -> keras.Model:
        """Returns an independent Keras model with the adapted weights, whose `predict` needs no support set.

        The model takes scaled inputs and returns one logit for each of `labels`. The moving averages of its batch norms
        are the support set's statistics; with training=True it uses the statistics of the batch, as the evaluation
        does. If Keras cannot rebuild the learner's model, the new model shares its layers and cannot be saved. If the
        learner's model does not end in a dense layer, unused outputs may follow those of `labels`.
        """
        network = self._adapter.network
        with self._adapter.running():
            model = _copy(network)
            for variable, value in zip(model.trainable_variables, network.unflatten(self.weights), strict=True):
                variable.assign(value)
            _set_moving_averages(model, network, network.scaled(tf.constant(self._support_x)))
        if self.labels is not None and len(self.labels) < network.facts.output_shape[-1]:
            with contextlib.suppress(ValueError):  # no dense layer at its end
                model = heads.resized(model, len(self.labels))
        return model

    def save(self, path: str | os.PathLike) -> None:
        """Writes `model()` to a .keras file, which Keras and, if the model can be exported, the browser demo open.

        The file also contains classifier.json, with the labels, the scale of the inputs and the format of the images.

        Args:
          path: path of the file, which must end in .keras.

        Raises:
          ValueError: the path does not end in .keras, or Keras cannot rebuild the learner's model.
          UserError: the file cannot be written.
        """
        from reptile_tf import tfjs

        if pathlib.Path(path).suffix != ".keras":
            raise ValueError(f"the name of a saved classifier must end in .keras, not {str(path)!r}")
        model = self.model()
        if isinstance(model, _WithOwnWeights):
            raise ValueError("Keras cannot rebuild the learner's model: keep the support set, and adapt to it again")
        labels = None if self.labels is None else self.labels.tolist()
        said = {"labels": labels, "scale": self._adapter.network.scale} | self.origin.pixels()
        with files.replacing(pathlib.Path(path)) as part:
            model.save(part)
            with zipfile.ZipFile(part, "a") as archive:
                archive.writestr(zipfile.ZipInfo("classifier.json"), json.dumps(said))
            try:
                tfjs.add_to(part, model)
            except UserError as error:
                log.info(f"{path} does not open in the browser demo: {error}")


def _copy(network: Network) -> keras.Model:
    """Returns an independent model with the same layers and weights as the network's model."""
    model = network.model
    kinds = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    try:
        with warnings.catch_warnings(), keras.saving.custom_object_scope(kinds):
            warnings.simplefilter("ignore")  # Keras warns of lambdas, which are unsafe only if they come from a file
            other = copy.deepcopy(model)
        for copied, variable in zip(other.variables, model.variables, strict=True):
            copied.assign(variable)  # includes seeds of random layers
        x = random_batch(model, network.facts.input_shape)
        with layers.ONE_AT_A_TIME:
            same_outputs = same(PlainCall(other, x).outputs, PlainCall(model, x).outputs, 1e-5)
    except Exception:  # a user's layer, one without get_config for example, may raise anything
        return _WithOwnWeights(model)
    return other if same_outputs else _WithOwnWeights(model)


class _WithOwnWeights(keras.Model):
    """A model that calls the layers of another model with its own weights."""

    def __init__(self, model: keras.Model):
        super().__init__(name=model.name)
        self._by = lambda: model  # hidden from Keras, which would otherwise track that model's weights
        trainable, weights = ({id(v) for v in some} for some in (model.trainable_variables, model.weights))
        own = []
        for v in model.variables:
            named = {"dtype": v.dtype, "name": v.path.replace("/", "_"), "trainable": id(v) in trainable}
            # The states of random generators are variables, but not weights.
            is_weight = id(v) in weights
            own.append(self.add_weight(shape=v.shape, **named) if is_weight else keras.Variable(v.numpy(), **named))
            own[-1].assign(v)
        self._own = lambda: own  # hidden from Keras, which would otherwise track them twice
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
    """Sets the moving averages of all trainable batch norms to the support set's statistics."""
    by = model if not isinstance(model, _WithOwnWeights) else network.model  # the model that holds the layers
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
