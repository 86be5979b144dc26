"""Tests that the inner loop's own layers compute the same as the stock ones."""

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
    expected = stock(x) - stock.bias
    np.testing.assert_allclose(
        layers.patches_times_kernel(x, stock.kernel, stock.strides, padding), expected, atol=1e-12
    )


def computed(model, x, only=lambda layer: True, **options):
    """Returns a model's outputs and its weights' gradients, with or without the inner loop's own layers."""
    with (
        tf.GradientTape() as tape,
        layers.standing_in(model, only=only, **options),
        keras.StatelessScope([(v, tf.convert_to_tensor(v.value)) for v in model.trainable_variables]),
    ):
        y = model(x, training=True)
    gradients = tape.gradient(y**3, [v.value for v in model.trainable_variables], unconnected_gradients="zero")
    return [np.asarray(array) for array in (y, *gradients)]


def none(layer):
    return False


def random_weights(model):
    rng = np.random.default_rng(0)
    model.set_weights([np.abs(w + rng.normal(size=w.shape)) + 0.1 for w in model.get_weights()])
    return model


@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"axis": 1}])
@pytest.mark.parametrize("stacked", [False, True])
def test_batch_norm_has_the_stock_outputs_and_gradients(epsilon, options, stacked):
    """This includes small variances, for which epsilon matters."""
    norm = keras.layers.BatchNormalization(epsilon=epsilon, **options)
    model = random_weights(keras.Sequential([keras.layers.Input((4, 4, 8)), keras.layers.ReLU(), norm]))
    for spread in (3, 0.02):
        x = tf.constant(np.random.default_rng(0).normal(2, spread, (5, 4, 4, 8)), tf.float32)
        expected, ours = computed(model, x, none), computed(model, x, stacked=stacked)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(b).max() / 100)


def conv_and_norm(inside=None, **norm):
    model = keras.Sequential([keras.layers.Input((6, 6, 2)), keras.layers.Conv2D(4, 3, name="first")])
    model.add(keras.layers.BatchNormalization(**norm))
    model.add(keras.layers.Conv2D(3, 3, name="last"))
    return random_weights(model)


def test_a_bias_in_front_of_a_batch_norm_is_left_out_without_a_change(float64):
    model, x = conv_and_norm(), np.random.default_rng(0).normal(size=(5, 6, 6, 2))
    assert [layer.name for layer in layers.idle_biases(model)] == ["first"]
    expected, ours = computed(model, x, none), computed(model, x)
    assert (ours[2] == 0).all()
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def frozen_norm():
    model = conv_and_norm()
    model.layers[1].trainable = False
    return model


def norm_at_inference():
    inside = conv_and_norm()
    x = keras.layers.Input((6, 6, 2))
    return keras.Model(x, inside(x, training=False))


def norm_of_another_axis():
    return conv_and_norm(axis=1)


def features_before_the_norm():
    """Builds a model that uses a convolution without the norm that follows it in its original model."""
    whole = conv_and_norm()
    inside = keras.Model(whole.inputs, whole.layers[0].output)
    return keras.Sequential([keras.layers.Input((6, 6, 2)), inside, keras.layers.Flatten(), keras.layers.Dense(2)])


def two_followers():
    x = keras.layers.Input((6, 6, 2))
    conv = keras.layers.Conv2D(4, 3)(x)
    return random_weights(keras.Model(x, keras.layers.Add()([conv, keras.layers.BatchNormalization()(conv)])))


@pytest.mark.parametrize(
    "make", [frozen_norm, norm_at_inference, norm_of_another_axis, features_before_the_norm, two_followers]
)
@pytest.mark.parametrize("stacked", [False, True])
def test_a_bias_that_counts_stays(float64, make, stacked):
    model, x = make(), np.random.default_rng(0).normal(size=(5, 6, 6, 2))
    for a, b in zip(computed(model, x, stacked=stacked), computed(model, x, none), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_a_model_is_as_it_was_afterwards():
    model = conv_and_norm()
    own = model.layers[0].call = lambda inputs: inputs[:, 1:-1, 1:-1, :1] * [[[[1.0, 2.0, 3.0, 4.0]]]]
    before = [dict(layer.__dict__) for layer in model.layers]
    with layers.standing_in(model, stacked=True):
        assert model.layers[0].__dict__["call"] is not own
    assert [dict(layer.__dict__) for layer in model.layers] == before


def test_pooling_follows_the_norm_in_mini_imagenets_network():
    kinds = [type(layer).__name__ for layer in models.miniimagenet(5).layers]
    assert kinds == ["Conv2D", "BatchNormalization", "MaxPooling2D", "ReLU"] * 4 + ["Flatten", "Dense"]


@pytest.mark.parametrize(("network", "parameters"), [(models.omniglot, 113_221), (models.miniimagenet, 34_661)])
def test_the_papers_networks_have_its_number_of_weights(network, parameters):
    """The numbers are computed by hand: conv 9·in·out + out, norm 2·out, dense in·5 + 5."""
    model = network(5)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == parameters


def test_a_saved_network_loads_without_this_package(tmp_path):
    model = models.omniglot(5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    x = np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x, training=True), model(x, training=True))
    assert not [layer for layer in loaded.layers if not type(layer).__module__.startswith("keras.")]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("pool", "strides", "size"), [(2, 2, 8), (2, 2, 7), (3, 2, 7), ((1, 3), (2, 1), 6)])
def test_pooling_by_slices_has_the_stock_outputs_and_gradients_ties_and_odd_sizes_included(
    padding, pool, strides, size
):
    model = keras.Sequential(
        [
            keras.layers.Input((size, size + 1, 2)),
            keras.layers.DepthwiseConv2D(1, use_bias=False, depthwise_initializer="ones"),
            keras.layers.MaxPooling2D(pool, strides, padding),
        ]
    )
    x = np.random.default_rng(0).integers(-1, 2, (5, size, size + 1, 2)).astype(np.float32)  # few values: many ties
    ours, expected = computed(model, x, stacked=True), computed(model, x, none)
    np.testing.assert_array_equal(ours[0], expected[0])
    gradients = []
    for only in (None, none):
        inputs = tf.constant(x)
        with tf.GradientTape() as tape, layers.standing_in(model, stacked=True, **({"only": only} if only else {})):
            tape.watch(inputs)
            value = tf.reduce_sum(model.layers[-1](inputs) * np.random.default_rng(1).integers(1, 9, ours[0].shape))
        gradients.append(tape.gradient(value, inputs).numpy())
    np.testing.assert_array_equal(*gradients)
