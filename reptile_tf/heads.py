"""Changes the number of outputs of a trained classifier.

Training assigns labels to a task's classes at random, so any trained output can stand for any class. Fewer classes use
the first outputs. A new output must differ from the others, or their classes would get equal gradients, and its weights
must be of the size for which the layers below were trained. The first new outputs are therefore the trained ones
mirrored at their mean (where there are more than two: of two, one is already the mirror image of the other). All others
lie as far from the mean on average, in directions that are nearly orthogonal. Their moments are the mean.
docs/classify.md has the accuracy that this gives.
"""

import warnings
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import layers
from reptile_tf.examine import PlainCall, in_one_line, random_batch, same
from reptile_tf.inner_loop import copy_of, excluded_from_decay
from reptile_tf.network import Network

if TYPE_CHECKING:
    from reptile_tf.meta import MetaLearner


def with_outputs(learner: "MetaLearner", outputs: int) -> "MetaLearner":
    """Returns a learner with at least `outputs` outputs, for adaptation and evaluation.

    Args:
      learner: a trained learner, which does not change.
      outputs: number of classes to distinguish.

    Returns:
      The given learner if it has enough outputs. Otherwise a new one with a model of its own, a fresh outer optimizer
      and, if variables are excluded from weight decay, a copy of the inner optimizer.

    Raises:
      ValueError: more outputs are needed, and the model does not end in a dense layer that is trained.
    """
    if outputs <= learner.network.facts.output_shape[-1]:
        return learner
    learner.network.as_made.check()
    model = resized(learner.model, outputs)
    wider = type(learner)(
        model,
        _inner_optimizer(learner, model),
        learner.outer_optimizer,
        meta_gradient=learner.meta_gradient,
        meta_batch=learner.meta_batch,
        sequential=learner.sequential,
        stacked=learner.network.stacked,
        weight_decay=learner.weight_decay,
        scale=learner.network.scale,
        loss=learner.network.loss,
        cluster=learner.cluster,
    )
    phi, state = start(learner, wider.network)
    wider.phi.assign(phi)
    for slot, value in zip(wider.inner_state, state, strict=True):
        slot.assign(value)
    wider.origin = learner.origin
    wider.update_model()
    return wider


def _inner_optimizer(learner: "MetaLearner", model: keras.Model) -> keras.Optimizer:
    """The learner's inner optimizer; a copy for a resized model if it excludes variables from its weight decay."""
    optimizer = learner.inner_optimizer
    excluded = excluded_from_decay(optimizer, learner.network.trainable)
    if excluded:
        rate = optimizer._learning_rate
        optimizer = copy_of(optimizer, float(rate) if isinstance(rate, keras.Variable) else rate)
        optimizer.exclude_from_weight_decay([model.trainable_variables[i] for i in excluded])
    return optimizer


def start(learner: "MetaLearner", network: Network) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns a learner's phi and the state of its inner optimizer, converted for a resized network.

    Args:
      learner: the learner to start from.
      network: the learner's network, or a network of a `resized` model.

    Returns:
      phi, floatx [weight], and the state, each [weight] or scalar.
    """
    theirs = learner.network
    outputs = network.facts.output_shape[-1]
    if outputs == theirs.facts.output_shape[-1]:
        return tf.convert_to_tensor(learner.phi), [tf.convert_to_tensor(value) for value in learner.inner_state]
    phi = _of_outputs(theirs, learner.phi, outputs)
    state = [_of_outputs(theirs, v, outputs, moments=True) if v.shape.rank else v.value() for v in learner.inner_state]
    return network.flatten(phi), [network.flatten(v) if isinstance(v, list) else v for v in state]


def resized(model: keras.Model, outputs: int) -> keras.Model:
    """Returns a copy of a classifier with another number of outputs, initialized as the module's docstring describes.

    Raises:
      ValueError: the model does not end in a dense layer that is trained, or Keras cannot rebuild it.
    """
    head = _head(model)

    def clone(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config(layer.get_config() | ({"units": outputs} if layer is head else {}))

    kinds = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    try:
        with warnings.catch_warnings(), keras.saving.custom_object_scope(kinds):
            warnings.simplefilter("ignore")  # Keras warns of lambdas, which are unsafe only if they come from a file
            other = keras.models.clone_model(model, clone_function=clone)
        for copied, variable in zip(other.variables, model.variables, strict=True):
            of_head = any(variable is v for v in head.trainable_variables)
            copied.assign(_columns(variable.numpy(), outputs) if of_head else variable)
        x = random_batch(model, tuple(model.input_shape[1:]))
        kept = min(outputs, head.units)
        with layers.ONE_AT_A_TIME:
            ours, theirs = (PlainCall(one, x).outputs[..., :kept] for one in (other, model))
    except Exception as error:  # a user's layer, one without get_config for example, may raise anything
        raise ValueError(
            f"Keras cannot rebuild the network for {outputs} classes ({in_one_line(error)}): use at most "
            f"{head.units} classes, the number of its outputs"
        ) from error
    if not same(ours, theirs, 1e-5):
        raise ValueError(
            f"the network that Keras rebuilds for {outputs} classes computes something else: use at most "
            f"{head.units} classes, the number of its outputs"
        )
    return other


def _head(model: keras.Model) -> keras.layers.Dense:
    """Returns the trainable dense layer that a model ends in; raises ValueError if it ends in something else."""
    if isinstance(model, keras.Sequential):
        head = model.layers[-1]
    else:
        head = getattr(getattr(model, "output", None), "_keras_history", [None])[0]
    if type(head) is keras.layers.Dense and head.trainable and len(head.trainable_variables) == 1 + head.use_bias:
        return head
    raise ValueError(
        "only a network whose last layer is a trainable Dense layer can get more classes: use at most as many classes "
        "as it has outputs"
    )


def _of_outputs(network: Network, values: tf.Tensor, outputs: int, moments: bool = False) -> list[np.ndarray]:
    """Converts floatx [weight], or its moments, to the trainable weights of a resized model."""
    of_head = [any(v is w for w in _head(network.model).trainable_variables) for v in network.trainable]
    pairs = zip(network.unflatten(values), of_head, strict=True)
    return [_columns(value.numpy(), outputs, moments) if resize else value.numpy() for value, resize in pairs]


def _columns(value: np.ndarray, outputs: int, moments: bool = False) -> np.ndarray:
    """Resizes a weight of the output layer, or its moments: a kernel [feature, trained] or a bias [trained]."""
    trained = value.shape[-1]
    mean = value.mean(-1, keepdims=True)
    deviation = value - mean
    mirrored = trained if trained > 2 and not moments else 0
    others = max(outputs - trained - mirrored, 0)
    direction = np.zeros([*value.shape[:-1], others])
    if value.ndim == 2 and not moments:
        # Waves of the golden angle times 1, 2, …: no two of their frequencies are close.
        feature, wave = np.arange(1, len(value) + 1)[:, np.newaxis], np.arange(1, others + 1)
        direction = np.cos(np.pi * (3 - np.sqrt(5)) * feature * wave)
        direction *= np.sqrt(np.mean(deviation**2) / np.mean(direction**2, 0))
    columns = [value, mean - deviation[..., :mirrored], mean + direction]
    return np.concatenate(columns, -1).astype(value.dtype)[..., :outputs]
