"""A small network of dense layers, and a task for it, for tests of learners as programs use them."""

import keras
import numpy as np

import reptile_tf as rt
from reptile_tf import tasks

L = keras.layers
SGD = keras.optimizers.SGD
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3
TASKS = tasks.Tasks(X[None], Y[None], RNG.integers(0, 12, (1, 4, 3), np.int32))
FOUR = np.arange(12) % 4  # labels of more classes than the network has outputs


def network(*more):
    keras.utils.set_random_seed(0)
    return keras.Sequential([L.Input((4,)), *more, L.Dense(6, "tanh"), L.BatchNormalization(), L.Dense(3)])


def learner(model=None, inner=None, **options):
    return rt.MetaLearner(model or network(), inner or SGD(0.1), SGD(), **options)
