"""Tests of evaluation: tasks start from the same state, nothing changes, queries are classified as in the paper."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from reptile_tf import device, tasks
from reptile_tf.data import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Accuracy, Answers, Evaluator, answers, meta_test
from reptile_tf.meta import MetaLearner
from reptile_tf.network import Predictions
from reptile_tf.settings import Settings
from reptile_tf.state import NotFiniteError
from reptile_tf.train import meta_train

SETTINGS = Settings(classes=3, shots=2, eval_batch=4, eval_iters=3, eval_samples=5, train_shots=4)


@pytest.fixture
def learner(small_model, glyphs):
    """A learner that has been trained briefly, so that its moments are not zero."""
    inner = keras.optimizers.Adam(1e-2, beta_1=0.0, epsilon=1e-8)
    one = MetaLearner(small_model(), inner, keras.optimizers.SGD(), meta_batch=2)
    for i in range(3):
        batch = tasks.training_tasks(glyphs, way=3, shots=4, batch=6, steps=3, seed=0, iteration=i, count=2)
        one.step(batch, 1.0)
    return one


def some(glyphs, count, first=0):
    return tasks.evaluation_tasks(glyphs, **SETTINGS.evaluation_arguments(), first=first, count=count)


def by_task(learner, glyphs, count=SETTINGS.eval_samples, at_most=64):
    """Returns the accuracy on each task, one by one and transductively."""
    evaluator = Evaluator(learner, at_most=at_most)
    draw = functools.partial(tasks.evaluation_tasks, glyphs, **SETTINGS.evaluation_arguments())
    return Predictions(*(of.by_task() for of in answers(learner, draw, count, evaluator=evaluator)))


def with_another_query(batch):
    """Returns the same tasks with another image as their last query."""
    query_x = batch.query_x.copy()
    query_x[:, -1] = 1 - query_x[:, -1]
    return batch._replace(query_x=query_x)


def test_samples_of_another_shape_are_refused(learner):
    other = ImageClasses.from_groups({i: np.zeros((3, 20, 20, 1), np.uint8) for i in range(6)})
    with pytest.raises(ValueError, match=r"the model does not take inputs of \(20, 20, 1\)"):
        meta_test(learner, other, SETTINGS)


def test_training_and_evaluations_of_the_same_settings_compile_one_program(small_model, glyphs):
    settings = dataclasses.replace(SETTINGS, meta_iters=1, eval_tasks=3, eval_samples=3)
    learner = meta_train(small_model(), glyphs, settings, held_out=glyphs)
    first = meta_test(learner, glyphs, settings)
    learner.phi.assign(0.5 * learner.phi)
    second = meta_test(learner, glyphs.subset(range(20)), settings)
    assert first != second
    assert list(learner.evaluators) == [3]
    assert learner.evaluators[3]._compiled.experimental_get_tracing_count() == 1
    again = Evaluator(learner, at_most=3).logits(some(glyphs, 3))
    np.testing.assert_array_equal(again, learner.evaluators[3].logits(some(glyphs, 3)))


def test_evaluation_leaves_every_variable_as_it_was(learner, glyphs):
    before = learner.state()
    weights = [v.numpy() for v in learner.model.variables]
    Evaluator(learner, at_most=2).logits(some(glyphs, 2))
    for name, value in learner.state().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    for variable, value in zip(learner.model.variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_every_task_starts_from_the_same_state(learner, glyphs):
    """A task's logits do not depend on the tasks evaluated before it or beside it."""
    evaluator = Evaluator(learner, at_most=2)
    first = evaluator.logits(some(glyphs, 2))
    evaluator.logits(some(glyphs, 2, first=2))
    np.testing.assert_array_equal(evaluator.logits(some(glyphs, 2)), first)
    alone = Evaluator(learner, at_most=1).logits(some(glyphs, 1))
    for way in (False, True):
        np.testing.assert_allclose(alone[way][0], first[way][0], atol=1e-5)


def test_adaptation_starts_from_the_trained_moments(learner, glyphs):
    trained = Evaluator(learner, at_most=2).logits(some(glyphs, 2)).transductive
    state = learner.state()
    learner.restore(state | {name: np.zeros_like(value) for name, value in state.items() if name.startswith("inner")})
    cold = Evaluator(learner, at_most=2).logits(some(glyphs, 2)).transductive
    assert np.abs(trained - cold).max() > 0.1


def test_a_non_transductive_answer_does_not_depend_on_the_other_queries(learner, glyphs):
    batch = some(glyphs, 2)
    evaluator = Evaluator(learner, at_most=2)
    answers, others = evaluator.logits(batch), evaluator.logits(with_another_query(batch))
    np.testing.assert_array_equal(answers.one_by_one[:, 0], others.one_by_one[:, 0])
    assert np.abs(answers.transductive[:, 0] - others.transductive[:, 0]).max() > 1e-3


def test_the_weight_decay_multiplies_before_every_step_of_an_adaptation():
    """With loss (w - 5)² / 2 and rate 0.5, w = 1 → 0.8 → 2.9 → 2.32 → 3.66, which is the model's output for input 1."""
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[1.0]])
    one = MetaLearner(
        model, keras.optimizers.SGD(0.5), keras.optimizers.SGD(), weight_decay=0.8,
        loss=lambda y, w: tf.reduce_sum((w - y) ** 2) / 2,
    )  # fmt: skip
    x, y = np.ones([1, 1, 1], np.float32), np.full([1, 1, 1], 5.0, np.float32)
    batch = tasks.EvalTasks(tasks.Tasks(x, y, np.zeros([1, 2, 1], np.int32)), x, np.zeros([1, 1], np.int32))
    for outputs in Evaluator(one, at_most=1).logits(batch):
        assert outputs.ravel() == pytest.approx([3.66])
    assert one.adapt(x[0], y[0], steps=2, batch=1).outputs(x[0]).ravel() == pytest.approx([3.66])


@pytest.mark.parametrize("transductive", [False, True])
def test_answers_are_the_stock_models(float64, small_model, glyphs, transductive):
    """Without adaptation they equal the stock model's, on all queries, or on the support set and one query."""
    model = small_model()
    one = MetaLearner(model, keras.optimizers.SGD(0.1), keras.optimizers.SGD())
    batch = some(glyphs, 1)
    batch = batch._replace(support=batch.support._replace(minibatches=batch.support.minibatches[:, :0]))
    support, queries = batch.support.x[0].astype(float), batch.query_x[0].astype(float)
    if transductive:
        expected = model(queries, training=True)
    else:
        expected = [model(np.concatenate([support, q[np.newaxis]]), training=True)[-1] for q in queries]
    np.testing.assert_allclose(Evaluator(one, at_most=1).logits(batch)[transductive][0], expected, atol=1e-9)


@pytest.mark.slow
def test_stacked_equals_branches(float64, small_model, glyphs):
    logits = []
    for stacked in (False, True):
        one = MetaLearner(small_model(), keras.optimizers.SGD(0.01), keras.optimizers.SGD(), stacked=stacked)
        logits.append(Evaluator(one, at_most=2).logits(some(glyphs, 2)))
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-8)


def test_a_count_that_does_not_fill_the_last_batch_counts_each_task_once(learner, glyphs):
    for five, eight in zip(by_task(learner, glyphs, 5, at_most=4), by_task(learner, glyphs, 8, at_most=4), strict=True):
        assert len(five) == 5
        np.testing.assert_array_equal(five, eight[:5])


def test_meta_test_answers_in_the_way_that_the_settings_ask_for(learner, glyphs):
    expected = by_task(learner, glyphs, 12)
    assert expected.one_by_one.mean() != expected.transductive.mean()
    for transductive in (False, True):
        settings = dataclasses.replace(SETTINGS, eval_samples=12, transductive=transductive)
        accuracy = meta_test(learner, glyphs, settings)
        assert accuracy == Accuracy.of(expected[transductive])
        assert accuracy.tasks == 12


def test_the_right_answers_are_counted_in_each_way_by_itself(small_model, glyphs, rehearsed):
    one = MetaLearner(small_model(), keras.optimizers.SGD(0.1), keras.optimizers.SGD())
    settings = dataclasses.replace(SETTINGS, eval_samples=7)
    found = by_task(one, glyphs, 7)
    assert found.one_by_one.tolist() == [1.0] * 7
    assert found.transductive.tolist() == [0.0] * 7
    for transductive in (False, True):
        asked = meta_test(one, glyphs, dataclasses.replace(settings, transductive=transductive))
        assert asked.accuracy == (0.0 if transductive else 1.0)
    for batch in rehearsed[1]:
        assert batch.support.x.shape[1] == 3 * 2
        assert batch.support.minibatches.shape[1:] == (3, 4)


def test_accuracy_of_tasks_and_its_interval():
    accuracy = Accuracy.of(np.array([0.0, 1.0, 1.0, 1.0]))
    assert accuracy.accuracy == 0.75
    assert accuracy.ci95 == pytest.approx(1.96 * 0.5 / 2)  # the sample standard deviation is 0.5
    assert str(accuracy) == "75.00 ± 49.00 % (4 tasks)"
    with_both = accuracy._replace(ci95_classes=0.012)
    assert str(with_both) == "75.00 ± 49.00 % (4 tasks; ± 1.20 % by the choice of classes)"


def drawn_answers(rng, ease, tasks, way=5):
    """Simulates predictions that are correct with each class's given probability, and otherwise a random wrong one."""
    classes = np.stack([rng.choice(len(ease), way, replace=False) for _ in range(tasks)])
    labels = np.tile(np.arange(way), (tasks, 1))
    wrong = (labels + rng.integers(1, way, labels.shape)) % way
    return Answers(classes, labels, np.where(rng.random(labels.shape) < ease[classes], labels, wrong))


def test_the_interval_by_the_choice_of_classes_is_that_of_classes_drawn_anew():
    """A class contributes its ease / way to a task's accuracy, so the mean's standard error is sd(ease) / √classes."""
    rng = np.random.default_rng(0)
    found, means = [], []
    for _ in range(60):
        ease = np.clip(rng.normal(0.8, 0.1, 60), 0, 1)
        accuracy = drawn_answers(rng, ease, 4000).accuracy()
        found.append(accuracy.ci95_classes)
        means.append(accuracy.accuracy)
    expected = 1.96 * 0.095 / np.sqrt(60)  # slightly less than 0.1, because of clipping
    assert np.mean(found) == pytest.approx(expected, rel=0.1)
    assert 1.96 * np.std(means) == pytest.approx(expected, rel=0.25)
    alike = [drawn_answers(rng, np.full(60, 0.8), 4000).accuracy().ci95_classes for _ in range(20)]
    assert alike.count(None) >= 3  # their spread is within what the draw of tasks explains, in about half of them
    assert np.mean([one or 0.0 for one in alike]) < 0.4 * expected


def test_no_interval_by_the_choice_of_classes_is_claimed_from_too_little():
    rng = np.random.default_rng(0)
    ease = rng.uniform(0.5, 1, 60)
    assert drawn_answers(rng, ease, 100).accuracy().ci95_classes is None  # only 8 tasks per class
    assert drawn_answers(rng, ease, 150).accuracy().ci95_classes is not None
    assert drawn_answers(rng, ease[:5], 150).accuracy().ci95_classes is None  # every task contains all classes


def test_pairs_count_who_was_taken_for_whom():
    found = Answers(
        np.array([[4, 1], [1, 2], [4, 1]]), np.array([[0, 1]] * 3), np.array([[0, 0], [0, 1], [1, 0]])
    ).pairs()
    counted = {(int(a), int(b)): (int(times), int(of)) for (a, b), times, of in zip(*found, strict=True)}
    assert counted == {
        (4, 4): (1, 2), (4, 1): (1, 2), (1, 4): (2, 2), (1, 1): (1, 3), (1, 2): (0, 1), (2, 2): (1, 1), (2, 1): (0, 1),
    }  # fmt: skip


def test_too_few_images_for_support_and_query_are_named(learner, glyphs):
    with pytest.raises(UserError, match="there are 0 with the 9 images that evaluation needs"):
        meta_test(learner, glyphs, dataclasses.replace(SETTINGS, shots=8))


def test_adapt_answers_as_the_evaluation_does_and_so_does_its_keras_model(learner, glyphs):
    batch, before = some(glyphs, 1), learner.state()
    dealt = tasks.deal_minibatches(6, 4, 3, False, tasks.generator(7, tasks.EVALUATION, 0, 0))
    batch = batch._replace(support=batch.support._replace(minibatches=dealt[np.newaxis]))
    adapted = learner.adapt(batch.support.x[0], list(batch.support.y[0]), steps=3, batch=4, seed=7)
    expected = Evaluator(learner, at_most=1).logits(batch)
    for transductive in (False, True):
        ours = adapted.outputs(batch.query_x[0], transductive=transductive)
        np.testing.assert_allclose(ours, expected[transductive][0], atol=1e-4)
        np.testing.assert_array_equal(
            adapted.predict(batch.query_x[0], transductive=transductive), ours.argmax(-1), err_msg=str(transductive)
        )
    model = adapted.model()
    logits = model(batch.query_x[0] * learner.network.scale, training=True)
    np.testing.assert_allclose(logits, expected.transductive[0], atol=1e-4)
    for name, value in learner.state().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_look_at_adaptations_that_are_not_finite_ends_training(small_model, glyphs):
    """The single step of a training task and phi stay finite, but the steps of an evaluation do not."""
    settings = dataclasses.replace(
        SETTINGS, inner_optimizer="sgd", learning_rate=1e15, inner_iters=1, meta_step=1e-20, meta_step_final=1e-20,
        eval_iters=5, eval_interval=2, eval_tasks=3, meta_iters=4,
    )  # fmt: skip
    model = small_model()
    with pytest.raises(UserError, match="adaptation to . of 3 tasks produced non-finite values; lower"):
        meta_train(model, glyphs, settings, held_out=glyphs)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_adapted_weights_that_are_not_finite_are_refused(small_model, glyphs):
    one = MetaLearner(small_model(), keras.optimizers.SGD(3e38), keras.optimizers.SGD())
    support = some(glyphs, 1).support
    with pytest.raises(NotFiniteError, match="adapted weights"):
        one.adapt(support.x[0], support.y[0], steps=5)


def test_fewer_tasks_run_at_once_where_memory_runs_out(learner, glyphs, monkeypatch, capsys):
    monkeypatch.setattr(device, "cores", lambda: 4)
    evaluator, adapt, tried = Evaluator(learner, at_most=6), Evaluator._of_part, []
    given = some(glyphs, 6)
    expected = Evaluator(learner, at_most=6).logits(given)

    def scarce(self, batch, start):
        tried.append(self._at_once)
        if self._at_once > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return adapt(self, batch, start)

    monkeypatch.setattr(Evaluator, "_of_part", scarce)
    capsys.readouterr()
    np.testing.assert_allclose(evaluator.logits(given), expected, rtol=1e-4, atol=1e-5)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{n} tasks at once do not fit in memory: evaluating {n // 2} at once" for n in tried if n > 2]
    assert evaluator.tasks % evaluator._at_once == 0
    evaluator.logits(given)
    assert tried[-1] == evaluator._at_once <= 2  # larger numbers are not tried again

    def none(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    monkeypatch.setattr(Evaluator, "_of_part", none)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        evaluator.logits(given)
