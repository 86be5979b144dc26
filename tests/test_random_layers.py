"""Tests of dropout and similar layers: random masks from the run's seed while adapting, none when classifying."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from reptile_tf import Settings, meta_test, meta_train, tasks
from reptile_tf.checkpoint import RunFolder
from reptile_tf.data import ImageClasses
from reptile_tf.evaluate import Evaluator
from reptile_tf.meta import MetaLearner
from reptile_tf.meta_gradients import foml, maml, partial_sum
from reptile_tf.tasks import Tasks

L = keras.layers
MODES = [{}, {"sequential": True}, {"stacked": True}]
TRAINING = {"way": 3, "shots": 4, "batch": 5, "steps": 3, "seed": 0}


def dropping(rate=0.5):
    keras.utils.set_random_seed(1)
    layers = [L.Conv2D(4, 3, strides=2), L.BatchNormalization(), L.Dropout(rate), L.Flatten(), L.Dense(3)]
    return keras.Sequential([L.Input((28, 28, 1)), L.GaussianNoise(rate), *layers])


def learner(model, meta_batch=2, **options):
    return MetaLearner(model, keras.optimizers.Adam(1e-2), keras.optimizers.SGD(), meta_batch=meta_batch, **options)


def drawn(glyphs, count=2, **options):
    return tasks.training_tasks(glyphs, iteration=0, count=count, **(TRAINING | options))


def identity(ways=8):
    """Builds a learner whose weights change exactly where inputs are not dropped."""
    model = keras.Sequential([L.Input((ways,)), L.Dropout(0.5), L.Dense(1, use_bias=False, kernel_initializer="zeros")])
    return MetaLearner(
        model, keras.optimizers.SGD(1.0), keras.optimizers.SGD(), meta_batch=2, loss=lambda y, out: tf.reduce_sum(out)
    )


@pytest.mark.slow
def test_masks_differ_from_step_to_step_and_task_to_task():
    """With inputs of one, a step changes each weight by -2, or by nothing if its input is dropped."""
    one, steps = identity(64), 20
    seeds = np.array([[1, 2], [3, 4]], np.int32)
    ones = Tasks(np.ones([2, 1, 64]), np.ones([2, 1]), np.zeros([2, steps, 1], np.int32), seed=seeds)
    moved = -one.meta_gradients(ones)
    masks = []
    for step in range(steps):
        before = -one.meta_gradients(ones._replace(minibatches=ones.minibatches[:, :step])) if step else 0 * moved
        masks.append(-one.meta_gradients(ones._replace(minibatches=ones.minibatches[:, : step + 1])) - before)
    masks = np.stack(masks)  # [step, task, weight]
    assert set(np.unique(masks)) == {-2.0, 0.0}
    assert len(np.unique(masks.reshape(2 * steps, 64), axis=0)) == 2 * steps
    assert 0.4 < (masks != 0).mean() < 0.6
    same = ones._replace(seed=np.array([[1, 2], [1, 2]], np.int32))
    np.testing.assert_array_equal(*one.meta_gradients(same))


def test_two_layers_of_one_model_have_masks_of_their_own():
    layers = [L.Input((64,)), L.Dropout(0.5), L.Dropout(0.5)]
    network = learner(keras.Sequential([*layers, L.Dense(2)])).network
    first, second = network.start_seeds(tf.constant([[5, 6]]))[0].numpy()
    assert tuple(first) != tuple(second)


@pytest.mark.slow
@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_tasks_result_does_not_depend_on_who_else_runs(glyphs, options):
    if "sequential" in options:  # Adam's state is passed on
        one = MetaLearner(dropping(), keras.optimizers.SGD(0.01), keras.optimizers.SGD(), **options)
    else:
        one = learner(dropping(), **options)
    both, swapped = drawn(glyphs), tf.nest.map_structure(lambda a: a[::-1], drawn(glyphs))
    np.testing.assert_allclose(one.meta_gradients(both), one.meta_gradients(swapped)[::-1], atol=1e-6)
    alone = learner(dropping(), meta_batch=1, **options)
    if "sequential" not in options:
        first = tf.nest.map_structure(lambda a: a[:1], both)
        np.testing.assert_allclose(alone.meta_gradients(first), one.meta_gradients(both)[:1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", MODES, ids=str)
def test_the_same_tasks_give_the_same_bits(glyphs, options):
    states = []
    for _ in range(2):
        one = learner(dropping(), **options)
        one.step(drawn(glyphs), 0.5)
        states.append(one.state())
    for name, value in states[0].items():
        np.testing.assert_array_equal(states[1][name], value, err_msg=name)
    other = drawn(glyphs)
    one.step(other._replace(seed=other.seed + 1), 0.5)  # other seeds give other masks
    again = learner(dropping(), **options)
    again.restore(states[0])
    again.step(other, 0.5)
    assert (again.state()["phi"] != one.state()["phi"]).any()


@pytest.mark.slow
@pytest.mark.parametrize("meta_gradient", [foml, maml, partial_sum([1, 3])], ids=["foml", "maml", "partial sum"])
def test_all_algorithms_take_random_layers(glyphs, meta_gradient):
    one = MetaLearner(
        dropping(), keras.optimizers.SGD(0.01), keras.optimizers.SGD(), meta_batch=2, meta_gradient=meta_gradient
    )
    batch = drawn(glyphs, query=meta_gradient in (foml, maml))
    other = batch._replace(seed=batch.seed + 1)
    assert np.abs(one.meta_gradients(batch) - one.meta_gradients(other)).max() > 1e-4


@pytest.mark.parametrize("options", MODES, ids=str)
def test_classifying_drops_nothing_but_norms_by_the_batch(float64, glyphs, options):
    """Compares, without adaptation, with the same weights in a model without random layers."""
    stock = dropping(0.0)
    model = dropping(0.9)
    model.set_weights([w if w.dtype != np.int64 else np.array([1, 0]) for w in stock.get_weights()])
    batch = tasks.evaluation_tasks(glyphs, way=3, shots=2, batch=4, steps=1, seed=0, count=1)
    batch = batch._replace(support=batch.support._replace(minibatches=batch.support.minibatches[:, :0]))
    logits = Evaluator(learner(model, 1, **options), at_most=1).logits(batch)
    x = batch.query_x[0].astype(float)
    np.testing.assert_allclose(logits.transductive[0], stock(x, training=True), atol=1e-9)
    beside = [stock(np.concatenate([batch.support.x[0].astype(float), q[np.newaxis]]), training=True)[-1] for q in x]
    np.testing.assert_allclose(logits.one_by_one[0], beside, atol=1e-9)


def test_a_dropout_of_zero_asks_for_no_seeds():
    model = keras.Sequential([L.Input((4, 3)), L.LSTM(2, dropout=0.0), L.Dropout(0.0), L.Dense(3)])
    one = learner(model)
    assert not one.network.facts.random
    one.step(Tasks(np.ones([2, 2, 4, 3]), np.zeros([2, 2]), np.zeros([2, 1, 2], np.int32)), 0.1)


def test_random_layers_without_seeds_are_refused(glyphs):
    with pytest.raises(ValueError, match="has random layers: give the tasks a seed, integers .task, 2."):
        learner(dropping()).step(drawn(glyphs)._replace(seed=()), 0.1)


SETTINGS = Settings(
    classes=3, shots=1, train_shots=4, inner_batch=5, inner_iters=2, meta_batch=2, meta_iters=6, save_interval=2,
    eval_interval=2, eval_tasks=2, eval_iters=2, eval_samples=4,
)  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(glyphs, tmp_path, monkeypatch, one_by_one):
    def run(folder):
        return meta_train(dropping(), glyphs, SETTINGS, held_out=glyphs, folder=RunFolder(folder)).state()

    whole, steps, calls = run(tmp_path / "whole"), MetaLearner.steps, []

    def failing(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return steps(self, *arguments, **options)

    monkeypatch.setattr(MetaLearner, "steps", failing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken")
    for name, value in run(tmp_path / "broken").items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


@pytest.mark.slow
def test_a_network_of_keras_applications_runs():
    rng = np.random.default_rng(0)
    classes = ImageClasses.from_groups(
        {str(i): rng.integers(0, 255, (6, 32, 32, 3)).astype(np.uint8) for i in range(6)}, scale=1 / 255
    )
    inside = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    model = keras.Sequential([L.Input((32, 32, 3)), inside, L.Dense(3)])
    settings = Settings(
        classes=3, shots=1, train_shots=4, inner_batch=6, inner_iters=1, meta_iters=1, eval_samples=2, eval_iters=1,
        sequential=True,
    )  # fmt: skip
    assert np.isfinite(meta_test(meta_train(model, classes, settings), classes, settings).accuracy)
