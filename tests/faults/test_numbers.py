"""Tests that values that are not finite, and degenerate data, are detected and named, and the last state is kept."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_meta import centred, quadratic

from reptile_tf import MetaLearner, Settings, UserError, meta_test, meta_train, tasks
from reptile_tf.checkpoint import RunFolder
from reptile_tf.meta_gradients import foml, maml, partial_sum, reptile
from reptile_tf.network import cross_entropy
from reptile_tf.state import NotFiniteError

SETTINGS = Settings(
    classes=3, shots=1, train_shots=4, inner_batch=5, inner_iters=3, meta_batch=2, meta_iters=11, save_interval=4,
    eval_samples=4, eval_iters=2,
)  # fmt: skip
CONFIG = {"problem": "test", "settings": {}, "split": {}}


def batch(glyphs, iteration=0, **options):
    return tasks.training_tasks(glyphs, iteration=iteration, **(SETTINGS.training_arguments() | options))


def learner(model, **options):
    inner = options.pop("inner", keras.optimizers.Adam(1e-2, beta_1=0.0))
    outer = options.pop("outer", keras.optimizers.SGD())
    return MetaLearner(model, inner, outer, **({"meta_batch": 2} | options))


def assert_same(ours, expected):
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def poisoned(value):
    """Returns a classification loss that is `value` times as large if a minibatch begins with label 1."""

    def loss(labels, outputs):
        return cross_entropy(labels, outputs) * tf.where(labels[0] == 1, tf.constant(value, outputs.dtype), 1)

    return loss


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sequential": True},
        {"stacked": True},
        {"outer": keras.optimizers.Adam()},
        {"meta_gradient": partial_sum([1, 3])},
        {"meta_gradient": foml},
        {"meta_gradient": maml, "inner": keras.optimizers.SGD(1e-2)},
    ],
    ids=["side by side", "sequential", "stacked", "outer Adam", "partial sum", "first-order MAML", "MAML"],
)
def test_a_loss_that_is_not_finite_changes_nothing(small_model, glyphs, value, options):
    one = learner(small_model(), loss=poisoned(value), **options)
    apart = {"query": options.get("meta_gradient") in (foml, maml)}
    good = batch(glyphs, **apart)
    good = good._replace(y=np.zeros_like(good.y))
    one.step(good, 0.1)
    before = one.state()
    with pytest.raises(NotFiniteError) as caught:
        one.step(good._replace(y=np.ones_like(good.y)), 0.1)
    assert caught.value.where
    assert_same(one.state(), before)
    one.step(good, 0.1)  # training can continue
    assert all(np.isfinite(each).all() for each in one.state().values())


def test_moments_that_overflow_are_noticed_though_the_weights_are_finite(small_model, glyphs):
    """A gradient of 1e25 has an infinite square, after which Adam would silently stop moving."""
    one = learner(small_model(), loss=poisoned(1e25), inner=keras.optimizers.Adam(1e-2, beta_1=0.0))
    ones = batch(glyphs)
    with pytest.raises(NotFiniteError, match="inner/"):
        one.step(ones._replace(y=np.ones_like(ones.y)), 0.1)


def only(name, one, batch, meta_step):
    """Asserts that a step reports only `name` as not finite, and changes nothing."""
    before = one.state()
    with pytest.raises(NotFiniteError) as caught:
        one.step(batch, meta_step)
    assert caught.value.where == [name]
    assert_same(one.state(), before)


def test_weights_alone_that_are_not_finite_are_noticed():
    """The mean of the meta-gradients is -0.75."""
    only("phi", quadratic(reptile), centred(5, -1), np.inf)


def test_a_moment_of_the_inner_optimizer_alone_is_noticed():
    """The square of 1e25 is infinite, and Adam steps by 1e25 / ∞ = 0."""
    inner = keras.optimizers.Adam(1e-2, beta_1=0.0)
    only("inner/2", quadratic(reptile, inner=inner), centred(1e25, 1e25, steps=1), 0.1)


def test_a_moment_of_the_outer_optimizer_alone_is_noticed():
    """Adagrad adds up squares of 1e19; the sum of three is still finite."""
    one = quadratic(reptile, outer=keras.optimizers.Adagrad())
    for _ in range(3):
        one.step(centred(2e19, 2e19, steps=1), 0.0)
    only("outer/1", one, centred(2e19, 2e19, steps=1), 0.0)


@pytest.mark.parametrize(
    ("always", "then"),
    [({"inner_optimizer": "sgd"}, {"learning_rate": 1e30}), ({}, {"meta_step": 1e38, "meta_step_final": 1e38})],
    ids=["inner SGD", "meta-step"],
)
def test_weights_that_explode_stop_the_run_and_the_last_good_state_is_kept(small_model, glyphs, tmp_path, always, then):
    folder, model = RunFolder(tmp_path / "run"), small_model()
    good = dataclasses.replace(SETTINGS, meta_iters=4, **always)
    with folder.claimed(CONFIG):
        kept = meta_train(model, glyphs, good, folder=folder).state()
    with (
        folder.claimed(CONFIG),
        pytest.raises(
            UserError,
            match=rf"numbers are not finite at meta-iteration [56] \(.*\): .* 4, is kept in {folder.path}; lower",
        ),
    ):
        meta_train(model, glyphs, dataclasses.replace(good, meta_iters=11, **then), folder=folder)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert_same(folder.load().state, kept)


def same_image(glyphs, which):
    """Returns the glyphs with all images of the classes `which` equal."""
    images = glyphs.images.copy()
    for index in which:
        start, count = glyphs.starts[index], glyphs.counts[index]
        images[start : start + count] = images[start]
    return dataclasses.replace(glyphs, images=images)


def test_a_class_of_identical_images_is_named_and_trains(small_model, glyphs, capsys):
    trained = meta_train(small_model(), same_image(glyphs, [7]), SETTINGS)
    expected = f"warning: all images of a class are the same in 1 of 40, such as {glyphs.names[7]}"
    assert capsys.readouterr().out.splitlines()[0] == expected
    assert all(np.isfinite(value).all() for value in trained.state().values())
    meta_train(small_model(), glyphs, SETTINGS)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [False, True])
def test_batches_without_variance_stay_finite(small_model, glyphs, stacked, capsys):
    """Batch norm divides by the square root of the variance, which is zero, plus epsilon."""
    blank = dataclasses.replace(glyphs, images=np.zeros_like(glyphs.images))
    trained = meta_train(small_model(), blank, SETTINGS, stacked=stacked)
    assert "are the same in 40 of 40, such as " in capsys.readouterr().out
    assert all(np.isfinite(value).all() for value in trained.state().values())
    assert 0 <= meta_test(trained, blank, SETTINGS).accuracy <= 1


@pytest.mark.parametrize("label", [-1, 3, 10**6])
def test_labels_beyond_the_ways_are_refused(small_model, glyphs, label):
    """One-hot encoding would turn them into zeros, and the loss would ignore them."""
    one = learner(small_model(3), meta_gradient=reptile)
    before, wrong = one.state(), batch(glyphs)
    wrong.y[1, 2] = label
    message = f"labels must be from 0 to 2, .* 3 outputs, but these are from {min(label, 0)} to {max(label, 2)}"
    for use in (lambda: one.step(wrong, 0.1), lambda: one.meta_gradients(wrong)):
        with pytest.raises(ValueError, match=message):
            use()
    assert_same(one.state(), before)
