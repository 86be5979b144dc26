"""Tests that k inner steps match the plain Keras loop, for random models, optimizers and modes."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from plain_loop import SAMPLES, WAYS, Draw, flat, inner_steps
from test_shares import by_threads

from reptile_tf.distributed.cluster import ALONE
from reptile_tf.meta import MetaLearner
from reptile_tf.network import cross_entropy
from reptile_tf.tasks import Tasks

MODES = ["side by side", "sequential", "stacked", "two workers"]
DRAWS = int(os.environ.get("EXACT_DRAWS", 20))
FIRST = int(os.environ.get("EXACT_FIRST", 0))
META_STEP = 0.5


def plain(draw, network, tasks, sequential, phi, weight_decay):
    """Returns the weights after each task's steps, [task, weight], and the gradients' sizes, [task * step, weight]."""
    model, optimizer, after, sizes = draw.model, draw.make_optimizer(), [], []
    for x, y, minibatches, seed in zip(tasks.x, tasks.y, tasks.minibatches, tasks.seed, strict=True):
        if not sequential:
            optimizer = draw.make_optimizer()
        for variable, value in zip(model.trainable_variables, network.unflatten(phi), strict=True):
            variable.assign(value)
        for state, value in zip(network.facts.random, network.start_seeds(seed[np.newaxis])[0], strict=True):
            state.assign(value)
        gradients = inner_steps(model, optimizer, x, y, minibatches, cross_entropy, weight_decay)
        after.append(flat(model.trainable_variables))
        sizes += [np.abs(flat(taken)) for taken in gradients]
    return np.stack(after), np.stack(sizes)


@pytest.mark.parametrize(
    "seed", [pytest.param(FIRST + i, marks=[pytest.mark.slow] * (i >= len(MODES))) for i in range(DRAWS)]
)
def test_inner_steps_are_those_of_the_plain_keras_loop(float64, seed):
    draw = Draw(seed)
    mode = MODES[seed % 4]
    if draw.is_random and mode == "stacked":
        mode = "side by side"  # XLA draws other random numbers
    rng = np.random.default_rng(seed)
    weight_decay = (1.0, 0.9)[seed % 3 == 0]
    tasks = Tasks(
        draw.inputs(),
        rng.integers(0, WAYS, (2, SAMPLES), np.int32),
        rng.integers(0, SAMPLES, (2, 3, 4), np.int32),
        seed=rng.integers(0, 1000, (2, 2), np.int32),
    )
    before = [variable.numpy() for variable in draw.model.variables]

    def learn(cluster):
        learner = MetaLearner(
            draw.model, draw.make_optimizer(), keras.optimizers.SGD(), meta_batch=2, weight_decay=weight_decay,
            sequential=mode == "sequential", stacked=mode == "stacked", cluster=cluster,
        )  # fmt: skip
        first, count = learner.share
        mine = tf.nest.map_structure(lambda array: array[first : first + count], tasks)
        phi = learner.phi.numpy()
        gradients = learner.meta_gradients(mine)
        learner.step(mine, META_STEP)
        return learner, phi - gradients, learner.phi.numpy(), phi

    workers = by_threads(2, learn) if mode == "two workers" else [learn(ALONE)]
    for variable, value in zip(draw.model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=f"{variable.path} has changed")
    learner, _, after, phi = workers[0]
    ours = np.concatenate([worker[1] for worker in workers])
    expected, sizes = plain(draw, learner.network, tasks, mode == "sequential", phi, weight_decay)
    # Gradients that are zero except for rounding: optimizers may turn them into steps, which do not affect the outputs.
    counts = ~((sizes < 1e-9 * sizes.max(1, keepdims=True)) & (sizes > 0)).any(0)
    assert counts.any()
    text = f"{mode}, {draw.optimizer_text}, {sorted(draw.kinds)}"
    np.testing.assert_allclose(ours[:, counts], expected[:, counts], rtol=1e-9, atol=1e-9, err_msg=text)
    moved = phi + META_STEP * (expected.mean(0) - phi)
    np.testing.assert_allclose(learner.network.constrained(after[np.newaxis])[0], after, rtol=1e-6, err_msg=text)
    constrained = learner.network.constrained(tf.constant(moved[np.newaxis]))[0].numpy()
    np.testing.assert_allclose(after[counts], constrained[counts], rtol=1e-9, atol=1e-9, err_msg=text)
    for weights, plain_weights in zip(ours, expected, strict=True):
        x = tf.constant(tasks.x[0])
        outputs = [np.asarray(with_weights(draw.model, w, x)) for w in (weights, plain_weights)]
        np.testing.assert_allclose(*outputs, rtol=1e-8, atol=1e-8, err_msg=text)


def with_weights(model, weights, x):
    """Returns the model's outputs in training mode, with the same seeds for random layers each time."""
    sizes = np.cumsum([int(np.prod(v.shape)) for v in model.trainable_variables])[:-1]
    parts = np.split(weights, sizes)
    values = [(v, tf.reshape(part, v.shape)) for v, part in zip(model.trainable_variables, parts, strict=True)]
    with keras.StatelessScope(state_mapping=values):
        return model(x, training=True)
