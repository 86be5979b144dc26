"""The variables that training changes, by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class NotFiniteError(ArithmeticError):
    """Raised when a meta-iteration or an adaptation has produced non-finite values.

    Attributes:
      where: names of the non-finite values.
      done: number of meta-iterations that the same call finished before.
    """

    def __init__(self, where: list[str], done: int = 0):
        super().__init__(", ".join(where))
        self.where = where
        self.done = done


def array_of(variable: Any) -> np.ndarray:
    """Returns a copy of a variable's value; of bfloat16, which .npz files cannot hold, as float32."""
    value = variable.numpy()
    return value.astype(np.float32) if value.dtype.kind == "V" else value.copy()


class State(dict[str, tf.Variable]):
    """Variables by name: "phi", "inner/0", "inner/1", …, "outer/0", …, in this order.

    Args:
      phi: the initialization, [weight].
      inner: variables of the inner optimizer, each [weight] or scalar.
      outer: variables of the outer optimizer, each [weight] or scalar.
    """

    def __init__(self, phi: tf.Variable, inner: Sequence[tf.Variable], outer: Sequence[tf.Variable]):
        super().__init__(phi=phi)
        self.update({f"inner/{i}": variable for i, variable in enumerate(inner)})
        self.update({f"outer/{i}": variable for i, variable in enumerate(outer)})

    def snapshot(self) -> list[tf.Tensor]:
        """Returns the current values."""
        return [tf.identity(variable) for variable in self.values()]

    def roll_back_unless_finite(self, before: Sequence[tf.Tensor], norm: tf.Tensor) -> tf.Tensor:
        """Restores a snapshot unless `norm` and all variables are finite; returns which are, bool [1 + variables]."""
        finite = [tf.reduce_all(tf.math.is_finite(tf.cast(v, norm.dtype))) for v in (norm, *self.values())]
        for variable, old in zip(self.values(), before, strict=True):
            variable.assign(tf.where(tf.reduce_all(finite), variable, old))
        return tf.stack(finite)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns copies of the values by name."""
        return {name: array_of(variable) for name, variable in self.items()}

    def check(self, arrays: dict[str, np.ndarray]) -> None:
        """Raises ValueError unless names and shapes are those of these variables."""
        theirs = {name: value.shape for name, value in arrays.items()}
        ours = {name: tuple(variable.shape) for name, variable in self.items()}
        if theirs != ours:
            raise ValueError(f"the state is from another network or optimizer: it has {theirs}, not {ours}")

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Sets the variables to a result of `arrays` that has passed `check`."""
        for name, variable in self.items():
            variable.assign(tf.cast(arrays[name], variable.dtype))
