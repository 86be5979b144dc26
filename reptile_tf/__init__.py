"""Reptile (Nichol, Achiam, Schulman 2018) for TensorFlow 2 and Keras 3.

The names below are imported on first use, so that a script's --help does not wait for TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Accuracy": "evaluate",
    "Evaluator": "evaluate",
    "ImageClasses": "data",
    "MetaLearner": "meta",
    "RunFolder": "checkpoint",
    "Settings": "settings",
    "UserError": "errors",
    "examples": "preparing",
    "foml": "meta_gradients",
    "images": "preparing",
    "load": "learners",
    "maml": "meta_gradients",
    "meta_test": "evaluate",
    "meta_train": "train",
    "partial_sum": "meta_gradients",
    "reptile": "meta_gradients",
    "save": "learners",
    "show_progress": "progress",
}
_MODULES = ("data", "models", "tasks")

__all__ = sorted([*_HOMES, *_MODULES])

if TYPE_CHECKING:  # what type checkers and editors see
    from reptile_tf import data as data
    from reptile_tf import models as models
    from reptile_tf import tasks as tasks
    from reptile_tf.checkpoint import RunFolder as RunFolder
    from reptile_tf.data import ImageClasses as ImageClasses
    from reptile_tf.errors import UserError as UserError
    from reptile_tf.evaluate import Accuracy as Accuracy
    from reptile_tf.evaluate import Evaluator as Evaluator
    from reptile_tf.evaluate import meta_test as meta_test
    from reptile_tf.learners import load as load
    from reptile_tf.learners import save as save
    from reptile_tf.meta import MetaLearner as MetaLearner
    from reptile_tf.meta_gradients import foml as foml
    from reptile_tf.meta_gradients import maml as maml
    from reptile_tf.meta_gradients import partial_sum as partial_sum
    from reptile_tf.meta_gradients import reptile as reptile
    from reptile_tf.preparing import examples as examples
    from reptile_tf.preparing import images as images
    from reptile_tf.progress import show_progress as show_progress
    from reptile_tf.settings import Settings as Settings
    from reptile_tf.train import meta_train as meta_train
else:

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(f"reptile_tf.{_HOMES[name]}"), name)
        if name in _MODULES:
            return importlib.import_module(f"reptile_tf.{name}")
        raise AttributeError(f"module 'reptile_tf' has no attribute {name!r}")
