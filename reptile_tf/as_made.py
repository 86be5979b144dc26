"""Whether a learner's model and optimizers are still what the learner was made of.

A compiled program keeps what Python attributes held when it was traced, and some programs are traced later than others.
After a change, training, adaptation and evaluation would differ from each other, so every change is refused.
"""

from typing import Any

import keras

from reptile_tf import layers


class AsMade:
    """What a model and optimizers were when a learner was made of them.

    Noted are which layers and trainable variables the model has, which layers are frozen, and the attributes of Keras's
    own layers and optimizers. Those of a user's own layer are not, because its calls may change them.

    Args:
      model: a built Keras model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._variables = list(model.trainable_variables)
        self._layers = list(model._flatten_layers())
        self._attributes = [_attributes(layer) for layer in self._layers]
        self._optimizers: list[tuple[str, keras.Optimizer, dict[str, Any]]] = []

    def add(self, optimizer: keras.Optimizer, which: str) -> None:
        """Notes the settings of an optimizer; `which` names it in messages: inner or outer."""
        self._optimizers.append((which, optimizer, _settings(optimizer)))

    def check(self) -> None:
        """Raises ValueError if anything noted has been changed; the message says what."""
        with layers.ONE_AT_A_TIME:  # while a model is traced, some of its layers have other attributes
            changed = self._changed()
        if changed:
            raise ValueError(f"{changed} changed since the learner was made: make a new learner")

    def _changed(self) -> str:
        now = list(self._model._flatten_layers())
        if not _same(now, self._layers):
            return "the model's layers have"
        for layer, before in zip(now, self._attributes, strict=True):
            after = _attributes(layer)
            for name in before.keys() | after.keys():
                if before.get(name) is not after.get(name):
                    return f"{name} of layer {layer.name} has"
        if not _same(self._model.trainable_variables, self._variables):
            return "the model's trainable variables have"
        for which, optimizer, before in self._optimizers:
            after = _settings(optimizer)
            if wrong := [name for name in after if before[name] != after[name]]:
                return f"{wrong[0]} of the {which} optimizer has"
        return ""


def _same(some: list, others: list) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _attributes(layer: keras.Layer) -> dict[str, Any]:
    """Returns whether a layer is trainable and, of a layer of Keras's own, its public attributes."""
    if isinstance(layer, keras.Model) or not type(layer).__module__.startswith("keras."):
        return {"trainable": layer.trainable}
    public = {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "name"}
    return public | {"trainable": layer.trainable}


def _settings(optimizer: keras.Optimizer) -> dict[str, Any]:
    """Returns an optimizer's settings by name; of its learning rate, only whether it is a number or which schedule."""
    rate = optimizer._learning_rate
    excluded = (
        getattr(optimizer, "_exclude_from_weight_decay", ()),
        getattr(optimizer, "_exclude_from_weight_decay_pattern", None),
    )
    return optimizer.get_config() | {
        "name": "",
        "learning_rate": None if isinstance(rate, keras.Variable) else id(rate),
        "exclude_from_weight_decay": (frozenset(excluded[0]), excluded[1]),
    }
