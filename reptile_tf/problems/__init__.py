"""What is learned: a module each, with all that is particular to a problem.

A new problem is a new module here, named as the problem is and with an instance of `Problem` named PROBLEM, and a run
script like run_omniglot.py. Modules import TensorFlow, Keras and NumPy only where they use them: `--help` reads them.
"""

import importlib
import pkgutil

from reptile_tf.problems.problem import Problem, Sets

__all__ = ["Problem", "Sets", "find", "names"]


def names() -> list[str]:
    """The names of all problems."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "problem")


def find(name: str) -> Problem:
    """The problem of a name; raises KeyError if there is none."""
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name}").PROBLEM
