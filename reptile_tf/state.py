"""The variables that training changes, by name."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


class NotFiniteError(ArithmeticError):
    """A meta-iteration or an adaptation that produced non-finite values.

    Attributes:
      where: what is not finite.
      done: how many meta-iterations of the same call came before it.
    """

    def __init__(self, where: list[str], done: int = 0):
        super().__init__(", ".join(where))
        self.where = where
        self.done = done


class State(dict[str, tf.Variable]):
    """Variables by name: "phi", "inner/0", "inner/1", …, "outer/0", …, in this order.

    Args:
      phi: the initialization.
      inner: of the inner optimizer.
      outer: of the outer optimizer.
    """

    def __init__(self, phi: tf.Variable, inner: Sequence[tf.Variable], outer: Sequence[tf.Variable]):
        super().__init__(phi=phi)
        self.update({f"inner/{i}": variable for i, variable in enumerate(inner)})
        self.update({f"outer/{i}": variable for i, variable in enumerate(outer)})

    def snapshot(self) -> list[tf.Tensor]:
        """The values as they are now."""
        return [tf.identity(variable) for variable in self.values()]

    def roll_back_unless_finite(self, before: Sequence[tf.Tensor], norm: tf.Tensor) -> tf.Tensor:
        """Sets everything to a snapshot unless `norm` and all variables are finite: bool [1 + variables], which are."""
        finite = [tf.reduce_all(tf.math.is_finite(tf.cast(v, norm.dtype))) for v in (norm, *self.values())]
        for variable, old in zip(self.values(), before, strict=True):
            variable.assign(tf.where(tf.reduce_all(finite), variable, old))
        return tf.stack(finite)

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies, by name; a later change does not touch them."""
        return {name: variable.numpy().copy() for name, variable in self.items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Sets what `arrays` gave; raises ValueError if names or shapes are of another network or optimizer."""
        theirs = {name: value.shape for name, value in arrays.items()}
        ours = {name: tuple(variable.shape) for name, variable in self.items()}
        if theirs != ours:
            raise ValueError(f"the state is of another network or optimizer: it has {theirs}, not {ours}")
        for name, variable in self.items():
            variable.assign(arrays[name])
