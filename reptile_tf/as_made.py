"""Whether a learner's model and optimizers are still what the learner was made of.

A compiled program keeps what Python attributes held when it was traced, and some programs are traced later than others.
After a change, training, adaptation and evaluation would differ from each other, so every change is refused.
"""

from collections.abc import Iterable
from typing import Any

import keras

from reptile_tf import layers

_EXCLUDED = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")  # each call replaces both

_PLAIN = (bool, int, float, str)


class AsMade:
    """What a model and optimizers were when a learner was made of them.

    Noted are the model's layers, which of them and of its variables are frozen, and the public attributes of Keras's
    own layers and optimizers. Those of a user's own layer are not, because its calls may change them.

    Args:
      model: a built Keras model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._layers = list(model._flatten_layers())
        self._variables = [(variable, variable.trainable) for variable in model.variables]
        # What has attributes, its attributes, and their values then.
        self._noted: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        for layer in self._layers:
            stock = type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.Model)
            public = [name for name in vars(layer) if not name.startswith("_") and name != "name"] if stock else []
            self._note(f"layer {layer.name}", layer, ["_trainable", *public])

    def add(self, optimizer: keras.Optimizer, which: str) -> None:
        """Notes the settings of an optimizer; `which` names it in messages: inner or outer."""
        # A number that is assigned as learning rate leaves the same variable there.
        settings = [name for name in optimizer.get_config() if name in vars(optimizer) and name != "name"]
        self._note(f"the {which} optimizer", optimizer, [*settings, "_learning_rate", *_EXCLUDED])

    def _note(self, what: str, one: object, names: Iterable[str]) -> None:
        self._noted.append((what, vars(one), {name: vars(one).get(name) for name in names}))

    def check(self) -> None:
        """Raises ValueError if anything noted has been changed; the message says what."""
        with layers.ONE_AT_A_TIME:  # while a model is traced, some of its layers have other attributes
            changed = self._changed()
        if changed:
            raise ValueError(f"{changed} changed since the learner was made: make a new learner")

    def _changed(self) -> str:
        now = list(self._model._flatten_layers())
        if len(now) != len(self._layers) or any(a is not b for a, b in zip(now, self._layers, strict=True)):
            return "the model's layers have"
        for what, attributes, before in self._noted:
            for name, value in before.items():
                after = attributes.get(name)
                if after is not value and not (type(value) in _PLAIN and after == value):
                    return f"{name.strip('_')} of {what} has"
        for variable, trainable in self._variables:
            if variable.trainable is not trainable:
                return f"trainable of {variable.path} has"
        return ""
