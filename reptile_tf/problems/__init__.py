"""The problems that can be learned: one module each, with everything specific to that problem.

To add a problem, add a module with the problem's name that defines PROBLEM, an instance of `Problem`, and a run script
like run_omniglot.py. The modules import TensorFlow, Keras and NumPy inside functions, to keep `--help` fast.
"""

import importlib
import pkgutil

from reptile_tf.problems.problem import Problem, Sets

__all__ = ["Problem", "Sets", "find", "names"]


def names() -> list[str]:
    """Returns the names of all problems."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "problem")


def find(name: str) -> Problem:
    """Returns the problem with this name; raises KeyError if it does not exist."""
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name}").PROBLEM
