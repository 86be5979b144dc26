"""Tests that what would give wrong numbers is refused: tasks, images and numbers that do not fit, exports."""

import keras
import numpy as np
import pytest
from dense import RNG, SGD, TASKS, L, X, Y, learner, network

import reptile_tf as rt
from reptile_tf import tasks, tfjs
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Evaluator


def test_tasks_that_do_not_fit_an_evaluation_are_refused():
    groups = {i: RNG.normal(size=(20, 4)).astype(np.float32) for i in range(8)}
    classes = rt.ImageClasses.from_groups(groups)
    with pytest.raises(
        ValueError, match="of 6 classes needs as many outputs, and the network has 3: set classes to at"
    ):
        rt.meta_test(learner(), classes, rt.Settings(classes=6, shots=1))
    evaluator = Evaluator(learner(), at_most=2)
    drawing = {"way": 3, "shots": 2, "batch": 3, "steps": 2, "seed": 0}
    with pytest.raises(ValueError, match="2 tasks run side by side, so give 2, not 4"):
        evaluator.logits(tasks.evaluation_tasks(classes, count=4, **drawing))
    with pytest.raises(ValueError, match="labels must be from 0 to 2, because the network has 3 outputs"):
        evaluator.logits(tasks.evaluation_tasks(classes, count=2, **drawing | {"way": 6}))
    with pytest.raises(ValueError, match="at_most must be at least 1, not 0"):
        Evaluator(learner(), at_most=0)


def test_classes_that_are_prepared_in_another_way_are_refused():
    groups = {i: RNG.integers(0, 256, (20, 4), np.uint8) for i in range(8)}
    whole = rt.ImageClasses.from_groups(groups, scale=1 / 255)
    unit = rt.ImageClasses.from_groups({i: (group / 255).astype(np.float32) for i, group in groups.items()})
    settings = rt.Settings(
        classes=3, shots=1, train_shots=2, inner_iters=2, inner_batch=3, meta_batch=1, meta_iters=1, eval_samples=2
    )
    of_bytes, of_floats = (rt.meta_train(network(), classes, settings) for classes in (whole, unit))
    rt.meta_test(of_bytes, whole, settings)
    rt.meta_test(of_bytes, rt.ImageClasses.from_groups(groups), settings)  # the scale is the learner's
    last_is_empty = rt.ImageClasses.from_groups(groups | {"none": np.zeros([0, 4], np.uint8)})
    rt.meta_test(of_bytes, last_is_empty, settings)
    with pytest.raises(ValueError, match="which the learner itself scales: multiply them by 255"):
        rt.meta_test(of_bytes, unit, settings)
    with pytest.raises(
        ValueError, match="to be multiplied by 0.00392157, but those trained on by 1: prepare both alike"
    ):
        rt.meta_test(of_floats, whole, settings)
    for train, held_out in ((whole, unit), (unit, whole)):
        with pytest.raises(ValueError, match="which the learner itself scales|prepare both alike"):
            rt.meta_train(network(), train, settings, held_out=held_out)


def test_a_sampler_may_fill_the_same_arrays_again():
    def sampler(arrays):
        def draw(*, iteration, first, count):
            x = np.random.default_rng(iteration).normal(size=(count, 12, 4)).astype(np.float32)
            given = arrays(x.shape)
            given[...] = x
            return TASKS._replace(x=given)

        return draw

    buffer = np.zeros([1, 12, 4], np.float32)
    settings = rt.Settings(classes=3, meta_batch=1, meta_iters=20)
    phis = [
        rt.meta_train(network(), sampler(arrays), settings).phi.numpy()
        for arrays in (lambda _: buffer, lambda shape: np.zeros(shape, np.float32))
    ]
    np.testing.assert_array_equal(*phis)


def test_numbers_that_do_not_fit_are_refused():
    one = learner()
    few = one.adapt(X, Y)
    classes = rt.ImageClasses.from_groups(dict.fromkeys("abcd", X))
    drawing = {"way": 3, "shots": 3, "batch": 3, "steps": 2, "seed": 0, "iteration": 0, "count": 1}
    turned = rt.ImageClasses.from_groups({name: np.zeros([2, 3, 3, 1], np.uint8) for name in "ab"}).with_rotations()
    for refused, message in (
        (lambda: one.steps([TASKS] * 2, [0.1]), "2 batches need as many meta-steps"),
        (lambda: one.steps([TASKS], [0.1, 0.1]), "1 batches need as many meta-steps"),
        (lambda: one.steps([], []), "at least one"),
        (lambda: one.step(TASKS._replace(minibatches=TASKS.minibatches[0]), 0.1), "minibatches must be indices"),
        (lambda: one.step(TASKS._replace(minibatches=np.tile(TASKS.minibatches, (2, 1, 1))), 0.1), "minibatches must"),
        (lambda: one.step(TASKS._replace(query=np.tile(TASKS.minibatches, (2, 1, 1))), 0.1), "query must be"),
        (lambda: rt.partial_sum([]), "step numbers from 1 on, not"),
        (lambda: rt.partial_sum([0, 1]), "step numbers from 1 on, not"),
        (lambda: learner(meta_gradient=rt.partial_sum([9])).step(TASKS, 0.1), "there is no step 9 to sum: .* 4 inner"),
        (lambda: classes.subset(np.array([True, False, False, True])), "indices must be integers"),
        (lambda: classes.subset([1.9]), "indices must be integers"),
        (lambda: turned.split(2, seed=0), "split first, then add rotations"),
        (lambda: tasks.training_tasks(classes, query_shots=5, **drawing), "query_shots must be from 0 to 2"),
        (lambda: few.predict(np.where(X > 1, np.nan, X)), "inputs must be finite"),
        (lambda: learner(scale=np.nan), "scale a number other than 0"),
        (lambda: learner(loss="mse"), "loss and meta_gradient must be functions"),
        (lambda: rt.MetaLearner(network(), SGD(), "sgd"), "the outer optimizer must be elementwise"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert classes.subset([]).names == ()
    once, from_iterator = (
        learner(meta_gradient=rt.partial_sum(terms)).meta_gradients(TASKS) for terms in ([1, 2], iter([1, 2]))
    )
    np.testing.assert_array_equal(once, from_iterator)


@pytest.mark.parametrize(
    ("inner", "layer", "loss", "message"),
    [
        (SGD(0.1, weight_decay=0.5), {}, None, "the inner optimizer does not export"),
        (SGD(0.1, clipvalue=0.1), {}, None, "the inner optimizer does not export"),
        (
            SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 9, 0.5)),
            {},
            None,
            "the inner optimizer does not export",
        ),
        (keras.optimizers.Adam(0.1, beta_1=0.0, clipvalue=0.1), {}, None, "the inner optimizer does not export"),
        (keras.optimizers.Adam(0.1), {}, None, "the inner optimizer does not export"),
        (SGD(0.1), {"kernel_regularizer": "l2"}, None, "has kernel_regularizer, which does not export"),
        (SGD(0.1), {"bias_constraint": "non_neg"}, None, "has bias_constraint, which does not export"),
        (SGD(0.1), {"activity_regularizer": "l2"}, None, "has activity_regularizer, which does not export"),
        (SGD(0.1), {}, lambda y, outputs: -keras.ops.sum(outputs), "a custom loss does not export"),
    ],
)
def test_what_the_browser_computes_in_another_way_is_not_exported(inner, layer, loss, message, tmp_path):
    model = keras.Sequential([L.Input((4, 4, 1)), L.Flatten(), L.Dense(3, **layer)])
    one = rt.MetaLearner(model, inner, SGD(), **({"loss": loss} if loss else {}))
    with pytest.raises(UserError, match=message):
        tfjs.export(one, tmp_path / "out")
    assert not (tmp_path / "out").exists()
