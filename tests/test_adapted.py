"""What `adapt` gives: its own answers, and a Keras model with weights and statistics of its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from plain_loop import Subclassed

from reptile_tf.meta import MetaLearner
from reptile_tf.network import cross_entropy
from reptile_tf.tasks import training_tasks

L = keras.layers
X = np.random.default_rng(0).normal(size=(10, 8, 8, 2)).astype(np.float32)
Y = np.repeat(np.arange(5), 2)


def network():
    """A bias that counts once the norm has moving averages."""
    layers = [L.Conv2D(6, 3, bias_initializer="random_normal"), L.BatchNormalization(), L.Dropout(0.2), L.ReLU()]
    return keras.Sequential([L.Input((8, 8, 2)), *layers, L.Flatten(), L.Dense(5)])


def subclassed():
    """A model that Keras cannot rebuild."""
    model = Subclassed(network())
    model(X[:2])
    return model


class Scaling(L.Layer):
    """A layer whose configuration says less than there is to it."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {}


def half_described():
    return keras.Sequential([L.Input((8, 8, 2)), Scaling(3.0), network()])


@pytest.mark.parametrize("make", [network, subclassed, half_described])
def test_the_model_answers_as_the_support_set_did(make, tmp_path):
    model = make()
    before = [v.numpy() for v in model.variables]
    few = MetaLearner(model, keras.optimizers.Adam(0.01), keras.optimizers.SGD()).adapt(X, Y, steps=30, batch=10)
    own = few.model()
    np.testing.assert_allclose(own.predict(X, verbose=0), few.outputs(X, transductive=True), atol=1e-4)
    assert (few.predict(X) == Y).mean() > 0.89
    shapes, expected = ([w.shape for w in one.get_weights()] for one in (own, model))
    assert shapes == expected if make is network else sorted(shapes) == sorted(expected)
    if make is network:  # a model of random layers that Keras can rebuild
        own.save(tmp_path / "own.keras")
        read = keras.saving.load_model(tmp_path / "own.keras")
        np.testing.assert_array_equal(read.predict(X, verbose=0), own.predict(X, verbose=0))
    own.set_weights([w + 1 if w.dtype.kind == "f" else w for w in own.get_weights()])
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_loss_may_read_the_weights_of_the_task(float64):
    """An L2 penalty in the loss is the same as one by a regularizer."""

    def weights_after(regularizer, loss):
        keras.utils.set_random_seed(0)
        dense = L.Dense(5, kernel_regularizer=regularizer)
        model = keras.Sequential([L.Input((8, 8, 2)), L.Flatten(), dense])
        one = MetaLearner(model, keras.optimizers.SGD(0.01), keras.optimizers.SGD(), loss=loss(dense))
        return one.adapt(X, Y, steps=5, batch=10).weights

    def penalized(dense):
        return lambda y, logits: cross_entropy(tf.cast(y, tf.int32), logits) + 0.1 * tf.reduce_sum(dense.kernel**2)

    expected = weights_after(keras.regularizers.L2(0.1), lambda dense: cross_entropy)
    np.testing.assert_allclose(weights_after(None, penalized), expected, atol=1e-9)


class Unused(L.Layer):
    """A layer with a weight that its outputs do not depend on."""

    def build(self, shape):
        self.unused = self.add_weight(shape=(3,), initializer="ones", constraint="unit_norm")

    def call(self, x):
        return x


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.Ftrl(0.1), keras.optimizers.AdamW(0.1, weight_decay=0.5)], ids=lambda one: one.name
)
def test_a_weight_without_gradient_is_passed_over_as_keras_does(optimizer):
    model = keras.Sequential([L.Input((8, 8, 2)), Unused(), L.Flatten(), L.Dense(5)])
    few = MetaLearner(model, optimizer, keras.optimizers.SGD()).adapt(X, Y, steps=3)
    np.testing.assert_array_equal(few.weights[:3], 1)
    assert (few.weights[3:] != 0).any()


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"steps": -1}, {"seed": -1}])
def test_adaptations_that_cannot_be_are_refused(wrong):
    one = MetaLearner(network(), keras.optimizers.SGD(0.1), keras.optimizers.SGD())
    with pytest.raises(ValueError, match="adapt needs a sample, batch of at least 1"):
        one.adapt(X, Y, **wrong)
    with pytest.raises(ValueError, match="adapt needs a sample"):
        one.adapt(X[:0], Y[:0])


def test_more_or_fewer_tasks_than_the_meta_batch_are_refused(small_model, glyphs):
    one = MetaLearner(small_model(), keras.optimizers.SGD(0.1), keras.optimizers.SGD(), meta_batch=2)
    for count in (1, 3):
        batch = training_tasks(glyphs, way=3, shots=2, batch=2, steps=1, seed=0, iteration=0, count=count)
        with pytest.raises(ValueError, match=f"2 tasks run side by side, so give 2, not {count}"):
            one.step(batch, 0.1)
