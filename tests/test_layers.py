"""The inner loop's own layers compute what the stock ones do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from reptile_tf import layers, models


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("kernel", "strides", "size"), [(3, 2, 28), (3, 2, 7), (3, 1, 8), ((2, 5), (3, 2), 11), (1, 1, 4)]
)
def test_a_convolution_by_matmul_is_a_convolution(float64, padding, kernel, strides, size):
    stock = keras.layers.Conv2D(6, kernel, strides, padding)
    x = np.random.default_rng(0).normal(size=(3, size, size + 1, 2))
    expected = stock(x)
    ours = layers.MatmulConv2D.from_config(stock.get_config())
    ours.build(x.shape)
    ours.set_weights(stock.get_weights())
    np.testing.assert_allclose(ours(x), expected, atol=1e-12)


def test_fused_batch_norm_has_the_stock_outputs_and_gradients():
    stock = keras.layers.BatchNormalization()
    x = tf.constant(np.random.default_rng(0).normal(2, 3, (5, 4, 4, 8)), tf.float32)
    stock.build(x.shape)
    stock.gamma.assign(np.linspace(0.5, 2, 8))
    stock.beta.assign(np.linspace(-1, 1, 8))
    fused = layers.FusedBatchNormalization.from_config(stock.get_config())
    fused.build(x.shape)
    fused.set_weights(stock.get_weights())
    results = []
    for layer in (stock, fused):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y**3)
        results.append([y, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])])
    for expected, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max() / 100)


def test_a_bias_in_front_of_a_batch_norm_is_left_out_without_a_change(float64):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, name="first"),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(3, 3, name="last"),
        ]
    )
    copy = layers.inner_loop_copy(model, stacked=False)
    assert [type(copy.get_layer(name)) for name in ("first", "last")] == [layers.UnbiasedConv2D, keras.layers.Conv2D]
    copy.set_weights([np.random.default_rng(i).normal(size=w.shape) for i, w in enumerate(copy.get_weights())])
    model.set_weights(copy.get_weights())
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 2))
    results = []
    for one in (model, copy):
        with tf.GradientTape() as tape:
            y = one(x, training=True)
            loss = tf.reduce_sum(y**3)
        weights = [variable.value for variable in one.trainable_variables]
        results.append([y, *tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)])
    for expected, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("network", [models.omniglot, models.miniimagenet])
def test_the_inner_loop_copy_has_the_models_weights_in_order(network, stacked):
    model = network(5)
    copy = layers.inner_loop_copy(model, stacked)
    expected = [(v.path, v.shape) for v in model.trainable_variables]
    assert [(v.path, v.shape) for v in copy.trainable_variables] == expected
    kind = layers.MatmulConv2D if stacked else layers.FusedBatchNormalization
    assert sum(type(layer) is kind for layer in copy.layers) == 4


def test_what_does_not_fit_stays_as_it_is():
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 4)),
            keras.layers.Conv2D(4, 3, groups=2),
            keras.layers.Conv2D(4, 3, dilation_rate=2, activation="relu"),
            keras.layers.BatchNormalization(trainable=False),
        ]
    )
    for stacked in (False, True):
        assert [type(layer) for layer in layers.inner_loop_copy(model, stacked).layers] == [
            type(layer) for layer in model.layers
        ]


@pytest.mark.parametrize(("network", "parameters"), [(models.omniglot, 113_221), (models.miniimagenet, 34_661)])
def test_the_papers_networks_have_its_number_of_weights(network, parameters):
    """By hand: conv 9·in·out + out, norm 2·out, dense in·5 + 5."""
    model = network(5)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == parameters


def test_a_saved_network_loads_without_this_package(tmp_path):
    model = models.omniglot(5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    x = np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x, training=True), model(x, training=True))
    assert not [layer for layer in loaded.layers if not type(layer).__module__.startswith("keras.")]
