"""Tests of adapted learners: their predictions, and the Keras models made from them."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from plain_loop import Subclassed

from reptile_tf import RunFolder, Settings, heads, load, meta_train, origin, save, tasks
from reptile_tf.evaluate import Evaluator
from reptile_tf.meta import MetaLearner
from reptile_tf.network import cross_entropy
from reptile_tf.origin import Origin
from reptile_tf.tasks import training_tasks

L = keras.layers
X = np.random.default_rng(0).normal(size=(10, 8, 8, 2)).astype(np.float32)
Y = np.repeat(np.arange(5), 2)


def network():
    """Builds a network whose bias matters once the batch norm uses moving averages."""
    layers = [L.Conv2D(6, 3, bias_initializer="random_normal"), L.BatchNormalization(), L.Dropout(0.2), L.ReLU()]
    return keras.Sequential([L.Input((8, 8, 2)), *layers, L.Flatten(), L.Dense(5)])


def subclassed():
    """A model that Keras cannot rebuild."""
    model = Subclassed(network())
    model(X[:2])
    return model


class Scaling(L.Layer):
    """A layer whose configuration is incomplete."""

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
    if make is network:  # a model with random layers that Keras can rebuild
        own.save(tmp_path / "own.keras")
        read = keras.saving.load_model(tmp_path / "own.keras")
        np.testing.assert_array_equal(read.predict(X, verbose=0), own.predict(X, verbose=0))
    own.set_weights([w + 1 if w.dtype.kind == "f" else w for w in own.get_weights()])
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_loss_may_read_the_weights_of_the_task(float64):
    """An L2 penalty in the loss equals that of a regularizer."""

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
    with pytest.raises(ValueError, match="adapt needs a batch of at least 1, and steps and seed of at least 0"):
        one.adapt(X, Y, **wrong)
    with pytest.raises(ValueError, match="adapt needs a sample of each class"):
        one.adapt(X[:0], Y[:0])


def test_more_or_fewer_tasks_than_the_meta_batch_are_refused(small_model, glyphs):
    one = MetaLearner(small_model(), keras.optimizers.SGD(0.1), keras.optimizers.SGD(), meta_batch=2)
    for count in (1, 3):
        batch = training_tasks(glyphs, way=3, shots=2, batch=2, steps=1, seed=0, iteration=0, count=count)
        with pytest.raises(ValueError, match=f"2 tasks run side by side, so give 2, not {count}"):
            one.step(batch, 0.1)


# --- labels, and how many --------------------------------------------------------------------------------------------


def learner(model=None, **options):
    return MetaLearner(model or network(), keras.optimizers.Adam(0.01), keras.optimizers.SGD(), **options)


@pytest.mark.parametrize(
    "names", [["x", "y", "z", "a", "b"], [7, -1, 3, 2**40, 0], np.array([1.0, 2, 3, 4, 9]), "12345"]
)
def test_labels_come_back_as_they_were_given(names):
    names = np.asarray(list(names))
    few = learner().adapt(X, names[Y], steps=30, batch=10)
    assert few.labels.tolist() == sorted(names.tolist())
    predicted = few.predict(X)
    assert predicted.dtype == names.dtype
    assert (predicted == names[Y]).mean() > 0.89
    np.testing.assert_allclose(few.probabilities(X).sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(few.labels[few.probabilities(X).argmax(-1)], predicted)


def test_two_values_label_two_classes():
    few = learner().adapt(X[:4], Y[:4] > 0, steps=30, batch=4)
    assert few.predict(X[:4]).tolist() == [False, False, True, True]


@pytest.mark.parametrize("count", [2, 3, 7, 10])
@pytest.mark.parametrize("shape", ["sequential", "functional"])
def test_any_number_of_classes_is_learned(count, shape):
    model = network()
    if shape == "functional":
        inputs = L.Input((8, 8, 2))
        model = keras.Model(inputs, L.Dense(5, use_bias=False)(L.Flatten()(L.BatchNormalization()(inputs))))
    one, x, y = learner(model), X[:count], np.arange(count)
    before = one.state()
    few = one.adapt(x, y, steps=60, batch=count)
    assert few.outputs(x).shape == (count, count)
    np.testing.assert_array_equal(few.predict(x), y)
    own = few.model()
    assert own.output_shape == (None, count)
    np.testing.assert_allclose(own.predict(x, verbose=0), few.outputs(x, transductive=True), atol=1e-4)
    for name, value in one.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_with_fewer_classes_all_outputs_are_adapted():
    """The loss includes the outputs that are not in use."""
    one = learner()
    few, start = (one.adapt(X[:4], Y[:4], steps=steps, batch=4) for steps in (7, 0))
    biases = [one.network.unflatten(adapted.weights)[-1].numpy() for adapted in (few, start)]
    assert len(biases[0]) == 5
    assert (biases[0] != biases[1]).all()


def test_more_outputs_are_the_trained_ones_mirrored_at_their_mean_and_then_waves():
    """This matches the browser demo: forWays in demo/src/learner.js."""
    model = keras.Sequential([L.Input((2,)), L.Dense(3)])
    model.set_weights([np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]), np.array([0.0, 3.0, 6.0])])
    one = MetaLearner(model, keras.optimizers.Adam(0.01, beta_1=0.0), keras.optimizers.SGD())
    one.inner_state[2].assign(np.arange(9.0))
    wider = heads.with_outputs(one, 7)
    kernel, bias = wider.model.get_weights()
    wave = np.cos(np.radians(137.50776405) * np.arange(1, 3))
    wave *= np.sqrt(np.mean([4, 1, 9, 1, 1, 4]) / np.mean(wave**2))
    np.testing.assert_allclose(kernel[:, :6], [[1, 2, 6, 5, 4, 0], [0, 0, 3, 2, 2, -1]])
    np.testing.assert_allclose(kernel[:, 6], [3 + wave[0], 1 + wave[1]], rtol=1e-6)
    np.testing.assert_allclose(bias, [0, 3, 6, 6, 3, 0, 3])
    np.testing.assert_array_equal(wider.network.flatten([kernel, bias]), wider.phi)
    moments = [m.numpy() for m in wider.network.unflatten(wider.inner_state[2])]
    np.testing.assert_allclose(moments[0], [[0, 1, 2, 1, 1, 1, 1], [3, 4, 5, 4, 4, 4, 4]])
    np.testing.assert_allclose(moments[1], [6, 7, 8, 7, 7, 7, 7])
    assert heads.with_outputs(one, 3) is one


def test_no_two_of_fifty_outputs_are_alike():
    for trained in (2, 5):
        model = keras.Sequential([L.Input((64,)), L.Dense(trained, use_bias=False)])
        kernel = heads.resized(model, 50).get_weights()[0]
        away = kernel - model.get_weights()[0].mean(-1, keepdims=True)
        away /= np.linalg.norm(away, axis=0)
        alike = away[:, trained:].T @ away
        alike[np.arange(50 - trained), np.arange(trained, 50)] = 0
        assert alike.max() < 0.6


def test_an_evaluation_with_more_classes_answers_as_adapt_does(small_model, glyphs):
    one = MetaLearner(small_model(3), keras.optimizers.Adam(0.01), keras.optimizers.SGD())
    drawn = tasks.evaluation_tasks(glyphs, way=5, shots=1, batch=5, steps=4, seed=0, count=1)
    dealt = tasks.deal_minibatches(5, 5, 4, False, tasks.generator(7, tasks.EVALUATION, 0, 0))
    drawn = drawn._replace(support=drawn.support._replace(minibatches=dealt[np.newaxis]))
    expected = Evaluator(heads.with_outputs(one, 5), at_most=1).logits(drawn)
    few = one.adapt(drawn.support.x[0], drawn.support.y[0], steps=4, batch=5, seed=7)
    for ours, theirs in zip(few.predictions(drawn.query_x[0]), expected, strict=True):
        np.testing.assert_allclose(ours, theirs[0], atol=1e-4)


def test_a_network_without_a_dense_end_takes_no_more_classes():
    model = keras.Sequential([L.Input((8, 8, 2)), L.Conv2D(3, 3), L.GlobalAveragePooling2D()])
    one = learner(model)
    with pytest.raises(ValueError, match="only a network whose last layer is a trainable Dense layer"):
        one.adapt(X, Y)
    few = one.adapt(X[:4], Y[:4], steps=3)  # fewer classes are accepted
    assert few.model().output_shape == (None, 3)
    assert few.outputs(X).shape == (10, 2)


# --- the record in a run's folder ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, glyphs, small_model):
    """A short run through the library, with 11 steps on minibatches of 3 in evaluation."""
    folder = RunFolder(tmp_path_factory.mktemp("adapted") / "run")
    settings = Settings(
        classes=3, shots=1, train_shots=4, inner_batch=6, inner_iters=3, meta_iters=5, eval_iters=11, eval_batch=2,
        replacement=True,
    )  # fmt: skip
    meta_train(small_model(), glyphs, settings, folder=folder)
    return folder.path


def test_adapting_is_as_in_the_runs_evaluation(run, glyphs, tmp_path):
    trained = load(run)
    x = glyphs.images[[0, 8, 16]]
    expected = trained.adapt(x, [0, 1, 2], steps=11, batch=2, replacement=True).weights
    np.testing.assert_array_equal(trained.adapt(x, [0, 1, 2]).weights, expected)
    for change in ({"steps": 10}, {"batch": 3}, {"replacement": False}):
        assert (trained.adapt(x, [0, 1, 2], **change).weights != expected).any(), change
    save(trained, tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert saved.origin == trained.origin
    np.testing.assert_array_equal(saved.adapt(x, [0, 1, 2]).weights, expected)


def test_a_run_of_an_earlier_version_says_it_too():
    omniglot = load(pathlib.Path(__file__).parent.parent / "pretrained" / "omniglot-5way")
    assert omniglot.origin == Origin(steps=50, batch=5, replacement=False, white=1, paper=1)


def test_pixels_of_another_range_are_refused(run, glyphs):
    few = load(run).adapt(glyphs.images[[0, 8, 16]], [0, 1, 2], steps=1)
    line = (
        r"pixels go from 0 to 255, but those trained on from 0 to 1: prepare files by rt.images\(paths, like=learner\)"
    )
    for wrong in (255 * glyphs.images[:3], 255.0 * glyphs.images[:3]):
        with pytest.raises(ValueError, match=line):
            few.predict(wrong)
        with pytest.raises(ValueError, match=line):
            load(run).adapt(wrong, [0, 1, 2])
    photographs = Origin(white=255)
    photographs.check(255 * glyphs.images)
    photographs.check(glyphs.images)  # integers may be a dark photograph
    with pytest.raises(ValueError, match="up to 255, which the learner itself scales: multiply them by 255"):
        photographs.check(glyphs.images.astype(np.float32))
    with pytest.raises(ValueError, match="pixels go from -1 to 1"):
        photographs.check(2.0 * glyphs.images - 1)
    Origin().check(np.full(3, 1e9))  # the origin is unknown, so nothing is checked


def test_inverted_drawings_are_noticed(run, glyphs, capsys):
    trained = load(run)
    trained.adapt(glyphs.images[[0, 8, 16]], [0, 1, 2], steps=0)
    assert "ink" not in capsys.readouterr().out
    trained.adapt(1 - glyphs.images[[0, 8, 16]], [0, 1, 2], steps=0)
    assert "warning: most pixels of the examples are ink: were they inverted?" in capsys.readouterr().out


def test_the_paper_is_the_commoner_value(glyphs):
    assert origin.pixels(glyphs) == {"white": 1, "paper": 1}
    assert origin.pixels(dataclasses.replace(glyphs, images=1 - glyphs.images)) == {"white": 1, "paper": 0}
    assert origin.pixels(dataclasses.replace(glyphs, images=255 * glyphs.images))["white"] == 255


# --- the Keras model is used elsewhere -------------------------------------------------------------------------------


def test_the_model_serves_as_a_saved_model(tmp_path):
    own = learner(network()).adapt(X, Y, steps=10, batch=10).model()
    own.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(X), own.predict(X, verbose=0), atol=1e-5)
