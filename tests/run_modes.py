"""Trains and evaluates in each mode, deterministically as in a run, and fails if the modes differ.

All pairs of networks, algorithms and optimizers occur. This is a script of its own, because TensorFlow can be made
deterministic only for a whole process.
"""

import sys

from reptile_tf import backend

backend.import_quietly()

import keras
import numpy as np

from reptile_tf import device, tasks
from reptile_tf.data import ImageClasses
from reptile_tf.evaluate import Evaluator
from reptile_tf.meta import MetaLearner
from reptile_tf.meta_gradients import foml, maml, partial_sum, reptile

SGD, ADAM = keras.optimizers.SGD, keras.optimizers.Adam
WAY, TASKS = 2, 2
# Any two values of network, algorithm, inner optimizer, outer optimizer and sequential occur together in some row.
# MAML's inner optimizer is SGD. Each row runs in branches and stacked.
ROWS = [
    ("omniglot", reptile, ADAM, SGD, False),
    ("miniimagenet", reptile, SGD, ADAM, True),
    ("miniimagenet", foml, ADAM, SGD, False),
    ("omniglot", foml, SGD, ADAM, True),
    ("miniimagenet", partial_sum((2,)), ADAM, ADAM, True),
    ("omniglot", partial_sum((2,)), SGD, SGD, False),
    ("miniimagenet", maml, SGD, ADAM, False),
    ("omniglot", maml, SGD, SGD, True),
]


def small(network):
    """Builds a network like those of `reptile_tf.models`, but of two blocks: XLA compiles it in a third of the time."""
    pools, layers = network == "miniimagenet", keras.layers
    model = keras.Sequential([layers.Input((12, 12, 3) if pools else (9, 9, 1))])
    for _ in range(2):
        model.add(layers.Conv2D(2, 3, strides=1 if pools else 2, padding="same"))
        model.add(layers.BatchNormalization())
        if pools:
            model.add(layers.MaxPooling2D(2, 2, padding="same"))
        model.add(layers.ReLU())
    model.add(layers.Flatten())
    model.add(layers.Dense(WAY))
    return model


def photographs(shape):
    rng = np.random.default_rng(0)
    return ImageClasses.from_groups({str(i): rng.integers(0, 256, (4, *shape), np.uint8) for i in range(4)}, 1 / 255)


def results(network, gradient, inner, outer, sequential, stacked):
    """Returns phi after two meta-iterations in one call, and the logits of two tasks that Reptile adapts to."""
    keras.utils.set_random_seed(0)
    model = small(network)
    classes = photographs(model.input_shape[1:])
    learner = MetaLearner(
        model, inner(1e-2), outer(), meta_gradient=gradient, meta_batch=TASKS, sequential=sequential, stacked=stacked,
        scale=classes.scale,
    )  # fmt: skip
    drawing = {"way": WAY, "shots": 2, "batch": 2, "seed": 0, "count": TASKS}
    query = gradient in (foml, maml)
    batches = [tasks.training_tasks(classes, steps=2, query=query, iteration=i, **drawing) for i in range(2)]
    learner.steps(batches, [0.5, 0.25])
    found = {"phi": learner.phi.numpy()}
    if gradient is reptile:
        logits = Evaluator(learner, at_most=TASKS).logits(tasks.evaluation_tasks(classes, steps=2, **drawing))
        found["logits"] = np.stack(logits)
    return found


if __name__ == "__main__":
    device.configure(TASKS)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    compared = 0
    for row in ROWS:
        expected, ours = (results(*row, stacked) for stacked in (False, True))
        for name, value in expected.items():
            difference = np.linalg.norm(ours[name] - value) / np.linalg.norm(value)
            compared += 1
            if not difference <= 1e-9:
                sys.exit(f"{row}: {name} differs by {difference}")
    print(compared, "compared")
