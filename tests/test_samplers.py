"""Tests of training on the user's own tasks, with the user's own loss and callbacks."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import reptile_tf as rt
from reptile_tf import configuration, tasks

SETTINGS = rt.Settings(
    inner_optimizer="sgd", learning_rate=0.02, meta_batch=2, inner_iters=3, meta_iters=7, meta_step=1.0,
    meta_step_final=0.0, eval_interval=3, save_interval=3,
)  # fmt: skip


def squared(y, outputs):
    return tf.reduce_mean((y - outputs) ** 2)


def absolute(y, outputs):
    return tf.reduce_mean(tf.abs(y - outputs))


def lines(slope, *, iteration, first, count):
    """Draws tasks of straight lines with similar slopes: ten points each, and three minibatches of four."""
    of_task = [tasks.generator(0, tasks.TRAINING, iteration, task) for task in range(first, first + count)]
    x = np.stack([rng.normal(size=(10, 1)).astype(np.float32) for rng in of_task])
    y = np.stack([(slope + rng.normal()) * of for rng, of in zip(of_task, x, strict=True)]).astype(np.float32)
    return tasks.Tasks(x, y, np.stack([rng.integers(0, 10, (3, 4), np.int32) for rng in of_task]))


SAMPLER = functools.partial(lines, 2.0)


def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])


def train(folder=None, loss=squared, **options):
    return rt.meta_train(
        model(), SAMPLER, SETTINGS, loss=loss, folder=None if folder is None else rt.RunFolder(folder), **options
    )


def assert_equal(ours, expected):
    for name, value in expected.state().items():
        np.testing.assert_array_equal(ours.state()[name], value, err_msg=name)


@pytest.fixture(scope="module")
def trained():
    return train()


def test_tasks_of_a_sampler_are_stepped_through_one_meta_iteration_after_another(trained):
    plain = rt.MetaLearner(model(), keras.optimizers.SGD(0.02), keras.optimizers.SGD(), meta_batch=2, loss=squared)
    for i in range(7):
        plain.step(SAMPLER(iteration=i, first=0, count=2), 1 - i / 7)
    for name, value in plain.state().items():
        np.testing.assert_allclose(trained.state()[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_callback_is_told_at_intervals_and_may_stop_training_which_resumes(trained, tmp_path):
    told = []

    def listen(iteration, results, learner):
        told.append(iteration)
        assert results.keys() == {"meta_gradient_norm"}
        assert results["meta_gradient_norm"] > 0
        assert isinstance(learner, rt.MetaLearner)
        if told == [3, 6]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", callback=listen)
    assert rt.RunFolder(tmp_path / "run").iterations() == [3]
    resumed = train(tmp_path / "run", callback=listen)
    assert told == [3, 6, 6, 7]
    assert_equal(resumed, trained)


def test_the_callback_hears_of_validation(small_model, glyphs):
    told = {}
    settings = rt.Settings(
        classes=3, shots=1, train_shots=4, inner_iters=2, meta_iters=4, eval_interval=3, eval_tasks=2, eval_iters=1
    )
    rt.meta_train(
        small_model(), glyphs, settings, held_out=glyphs, callback=lambda done, results, _: told.update({done: results})
    )
    assert list(told) == [3, 4]
    for results in told.values():
        assert results.keys() == {"meta_gradient_norm", "accuracy", "running_accuracy"}
        assert 0 <= results["accuracy"] <= 1


def test_a_folder_keeps_the_loss_and_loads_with_no_other(trained, tmp_path):
    folder = tmp_path / "run"
    train(folder)
    assert rt.RunFolder(folder).config()["loss"] == "squared"
    with pytest.raises(rt.UserError, match="loss squared there, absolute here"):
        train(folder, absolute)
    with pytest.raises(rt.UserError, match="the run's loss is squared: give it as load.folder, loss=squared."):
        rt.load(folder)
    with pytest.raises(rt.UserError, match="the run's loss is squared"):
        rt.load(folder, loss=absolute)
    assert_equal(rt.load(folder, loss=squared), trained)


def test_the_default_loss_needs_no_name():
    config = {"problem": "library", "settings": {}}
    assert configuration.loss_of(config, None) is configuration.loss_of({**config, "loss": None}, None)
    with pytest.raises(rt.UserError, match="loss is the default, cross_entropy, not squared: leave loss out"):
        configuration.loss_of(config, squared)


def test_classes_of_any_arrays_are_learned_and_tested_on(tmp_path):
    """The classes are embeddings: points around centres, float32 and unscaled."""
    rng = np.random.default_rng(0)
    groups = {str(i): (rng.normal(size=16) + 0.3 * rng.normal(size=(8, 16))).astype(np.float32) for i in range(30)}
    settings = rt.Settings(
        classes=3, shots=2, train_shots=5, inner_iters=4, learning_rate=0.02, meta_iters=30, meta_batch=2,
        meta_step=1.0, eval_samples=40, eval_iters=10,
    )  # fmt: skip
    classes = rt.ImageClasses.from_groups(groups)
    keras.utils.set_random_seed(0)
    head = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])
    learner = rt.meta_train(head, classes, settings, folder=rt.RunFolder(tmp_path / "run"))
    accuracy = rt.meta_test(learner, classes, settings)
    assert accuracy.accuracy - accuracy.ci95 > 0.8
    assert rt.meta_test(rt.load(tmp_path / "run"), classes, settings) == accuracy
