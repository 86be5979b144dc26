"""The weights of a model that training does not change: of frozen layers, moving averages, statistics of inputs.

Folders keep them, because a model that is built again has other ones. States of random generators are not weights.
"""

from collections.abc import Mapping

import keras
import numpy as np

from reptile_tf.state import array_of

PREFIX = "fixed/"


def is_one(name: str) -> bool:
    """Returns whether an item of a learner's state is one of these weights."""
    return name.startswith(PREFIX)


def arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns copies by name: "fixed/0", "fixed/1", …, in the model's order."""
    return {f"{PREFIX}{i}": array_of(weight) for i, weight in enumerate(model.non_trainable_weights)}


def assign(model: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Sets a model's weights to those in a learner's state, before a learner is made of it.

    Raises:
      ValueError: the state is from a model with other weights.
    """
    weights = _given(model, state)
    for weight, value in weights:
        weight.assign(value)
    for layer in model._flatten_layers() if weights else ():
        if hasattr(layer, "finalize_state"):  # a Normalization computes with constants made of its weights
            layer.finalize_state()


def restore(model: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Does the same for the model of a learner; raises ValueError also if compiled programs would not follow."""
    weights = _given(model, state)
    constant = {
        id(weight): layer.name
        for layer in model._flatten_layers()
        if hasattr(layer, "finalize_state")
        for weight in layer.weights
    }
    for weight, value in weights:
        if id(weight) in constant and not np.array_equal(array_of(weight), value):
            raise ValueError(f"layer {constant[id(weight)]} was adapted to other data: adapt it to the same, or load()")
    for weight, value in weights:
        weight.assign(value)


def _given(model: keras.Model, state: Mapping[str, np.ndarray]) -> list[tuple[keras.Variable, np.ndarray]]:
    """Returns pairs of the model's weights and their values; none if the state, of an earlier version, has none."""
    values = {name: value for name, value in state.items() if is_one(name)}
    weights = {f"{PREFIX}{i}": weight for i, weight in enumerate(model.non_trainable_weights)}
    theirs, ours = ({name: tuple(one.shape) for name, one in of.items()} for of in (values, weights))
    if values and theirs != ours:
        raise ValueError(f"the state is from a model with other frozen weights: it has {theirs}, not {ours}")
    return [(weights[name], value) for name, value in values.items()]
