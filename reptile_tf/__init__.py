"""Reptile (Nichol, Achiam, Schulman 2018) for TensorFlow 2 and Keras 3.

The names below are imported on first use, so that a script's --help does not wait for TensorFlow.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Accuracy": "evaluate",
    "Evaluator": "evaluate",
    "ImageClasses": "data",
    "MetaLearner": "meta",
    "RunFolder": "checkpoint",
    "Settings": "settings",
    "UserError": "errors",
    "foml": "meta_gradients",
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


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"reptile_tf.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"reptile_tf.{name}")
    raise AttributeError(f"module 'reptile_tf' has no attribute {name!r}")
