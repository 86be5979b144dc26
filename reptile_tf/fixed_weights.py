"""The weights of a model that training does not change: of frozen layers, moving averages, statistics of inputs.

Folders keep them, because rebuilding the model would initialize them anew. States of random generators are not weights.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from reptile_tf.state import array_of

PREFIX = "fixed/"


def is_one(name: str) -> bool:
    """Returns whether an item of a learner's state is one of these weights."""
    return name.startswith(PREFIX)


def arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns copies by name: "fixed/0", "fixed/1", …, in the model's order."""
    return {name: array_of(weight) for name, weight in _weights(model).items()}


def assign(model: keras.Model, state: Mapping[str, np.ndarray]) -> bool:
    """Sets a model's weights to those in a learner's state, before a learner is made of it.

    Returns:
      Whether the statistics of a Normalization layer have changed, which are constants in compiled programs.

    Raises:
      ValueError: the state is from a model with other weights.
    """
    pairs = _pairs(model, state)
    changed = _other_statistics(model, pairs)
    for weight, value in pairs:
        weight.assign(value)
    for layer in changed:
        layer.finalize_state()
    return bool(changed)


def restore(model: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Sets the weights of a learner's model; raises ValueError as `assign` does, or if statistics differ."""
    pairs = _pairs(model, state)
    if changed := _other_statistics(model, pairs):
        raise ValueError(
            f"layer {changed[0].name} was adapted to other data, or in other batches: adapt it in the same way before "
            "the learner is made"
        )
    for weight, value in pairs:
        weight.assign(value)


def _weights(model: keras.Model) -> dict[str, keras.Variable]:
    return {f"{PREFIX}{i}": weight for i, weight in enumerate(model.non_trainable_weights)}


def _pairs(model: keras.Model, state: Mapping[str, np.ndarray]) -> list[tuple[keras.Variable, np.ndarray]]:
    """Returns the model's weights, each with its value; none if the state, of an earlier version, has none."""
    weights, values = _weights(model), {name: value for name, value in state.items() if is_one(name)}
    ours, theirs = _shapes(weights), _shapes(values)
    if values and theirs != ours:
        raise ValueError(f"the state is from a model with other frozen weights: it has {theirs}, not {ours}")
    return [(weights[name], value) for name, value in values.items()]


def _shapes(items: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(item.shape) for name, item in items.items()}


def _other_statistics(
    model: keras.Model, pairs: list[tuple[keras.Variable, np.ndarray]]
) -> list[keras.layers.Normalization]:
    """Returns the Normalization layers that have a weight with another value than in `pairs`."""
    values = {id(weight): value for weight, value in pairs}
    normalizations = [one for one in model._flatten_layers() if isinstance(one, keras.layers.Normalization)]
    return [
        layer
        for layer in normalizations
        if any(id(w) in values and not np.array_equal(array_of(w), values[id(w)]) for w in layer.weights)
    ]
