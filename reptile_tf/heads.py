"""A classifier's output layer for another number of classes than it was trained for.

In training, a task's classes are numbered at random, so any trained output serves any class, and fewer classes take the
first ones. A further output has to differ from the others, or classes would move together, and to lie where the layers
below were trained to look: its weights are a trained output's mirrored at the mean of all of them, and further out the
more outputs there are. (Of two, one is the other's mirror image, so that it begins further out.) Its moments are the
mean.
"""

import warnings
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from reptile_tf.examine import PlainCall, in_one_line, random_batch, same
from reptile_tf.network import Network

if TYPE_CHECKING:
    from reptile_tf.meta import MetaLearner


def with_outputs(learner: "MetaLearner", outputs: int) -> "MetaLearner":
    """A learner like another for more classes, to be adapted and evaluated.

    Args:
      learner: of any number of outputs; it stays as it is.
      outputs: classes to tell apart.

    Returns:
      A learner with a model of its own, whose outer optimizer has not stepped; the one given if its outputs are enough.

    Raises:
      ValueError: more outputs are needed, and the model does not end in a dense layer that is trained.
    """
    if outputs <= learner.network.facts.output_shape[-1]:
        return learner
    wider = type(learner)(
        resized(learner.model, outputs),
        learner.inner_optimizer,
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


def start(learner: "MetaLearner", network: Network) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """A learner's phi and the state of its inner optimizer, [weight] or scalar each, as a resized network has them.

    Args:
      learner: what to start from.
      network: its own, or of a `resized` model.
    """
    theirs = learner.network
    outputs = network.facts.output_shape[-1]
    if outputs == theirs.facts.output_shape[-1]:
        return tf.convert_to_tensor(learner.phi), [tf.convert_to_tensor(value) for value in learner.inner_state]
    phi = _of_outputs(theirs, learner.phi, outputs)
    state = [_of_outputs(theirs, v, outputs, 0) if v.shape.rank else v.value() for v in learner.inner_state]
    return network.flatten(phi), [network.flatten(v) if isinstance(v, list) else v for v in state]


def resized(model: keras.Model, outputs: int) -> keras.Model:
    """A copy of a classifier with another number of outputs; what is new in it begins as the module's docstring says.

    Raises:
      ValueError: the model does not end in a dense layer that is trained, or Keras cannot rebuild it.
    """
    head = _head(model)

    def clone(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config(layer.get_config() | ({"units": outputs} if layer is head else {}))

    kinds = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    try:
        with warnings.catch_warnings(), keras.saving.custom_object_scope(kinds):
            warnings.simplefilter("ignore")  # of lambdas, which Keras takes for unsafe where they come from a file
            other = keras.models.clone_model(model, clone_function=clone)
        for copied, variable in zip(other.variables, model.variables, strict=True):
            of_head = any(variable is v for v in head.trainable_variables)
            copied.assign(_columns(variable.numpy(), outputs) if of_head else variable)
        x = random_batch(model, tuple(model.input_shape[1:]))
        kept = min(outputs, head.units)
        ours, theirs = (PlainCall(one, x).outputs[..., :kept] for one in (other, model))
    except Exception as error:  # layers without get_config and the like: anything may be raised
        raise ValueError(
            f"Keras cannot rebuild the network for {outputs} classes ({in_one_line(error)}): use as many classes as it "
            f"has outputs, {head.units}, or fewer"
        ) from error
    if not same(ours, theirs, 1e-5):
        raise ValueError(
            f"a network for {outputs} classes, as Keras rebuilds it, computes something else: use as many classes as "
            f"it has outputs, {head.units}, or fewer"
        )
    return other


def _head(model: keras.Model) -> keras.layers.Dense:
    """The trained dense layer that gives a model's outputs; raises ValueError if there is none."""
    if isinstance(model, keras.Sequential):
        head = model.layers[-1]
    else:
        head = getattr(getattr(model, "output", None), "_keras_history", [None])[0]
    if type(head) is keras.layers.Dense and head.trainable and len(head.trainable_variables) == 1 + head.use_bias:
        return head
    raise ValueError(
        "only a network whose last layer is a Dense one that is trained takes another number of classes: use as many "
        "classes as it has outputs, or fewer"
    )


def _of_outputs(network: Network, values: tf.Tensor, outputs: int, mirrored: int = 1) -> list[np.ndarray]:
    """Floatx [weight] as the trainable weights of a resized model."""
    of_head = [any(v is w for w in _head(network.model).trainable_variables) for v in network.trainable]
    pairs = zip(network.unflatten(values), of_head, strict=True)
    return [_columns(value.numpy(), outputs, mirrored) if resize else value.numpy() for value, resize in pairs]


def _columns(value: np.ndarray, outputs: int, mirrored: int = 1) -> np.ndarray:
    """A weight of the output layer, or moments of one (`mirrored` is 0): [..., trained] to [..., outputs]."""
    trained = value.shape[-1]
    column = np.arange(outputs)
    far = column // trained * (2 if trained == 2 else 1)
    mean = value.mean(-1, keepdims=True)
    trained_column = value[..., column % trained]
    new = mean - mirrored * far.astype(value.dtype) * (trained_column - mean)
    return np.where(column < trained, trained_column, new)
