"""Tests that a learner refuses what was changed since it was made, and that threads may share it."""

import copy
import pickle
import threading

import keras
import numpy as np
import pytest
import waiting
from dense import FOUR, RNG, SGD, TASKS, L, X, Y, learner, network

import reptile_tf as rt
from reptile_tf import layers, tasks
from reptile_tf.evaluate import Evaluator

CHANGES = {
    "trainable of layer": lambda one: setattr(one.model.layers[0], "trainable", False),
    "activation of layer": lambda one: setattr(one.model.layers[1], "activation", keras.activations.relu),
    "rate of layer": lambda one: setattr(one.model.layers[2], "rate", 0.9),
    "mean of layer|variance of layer": lambda one: one.model.layers[0].adapt(5 + 9 * X),
    "the model's layers": lambda one: one.model.add(L.Softmax()),
    "trainable of sequential.*bias": lambda one: setattr(one.model.layers[-1].bias, "trainable", False),
    "clipvalue of the inner": lambda one: setattr(one.inner_optimizer, "clipvalue", 1e-3),
    "beta_1 of the outer": lambda one: setattr(one.outer_optimizer, "beta_1", 0.5),
    "exclude_from_weight_decay of the inner": lambda one: one.inner_optimizer.exclude_from_weight_decay(
        var_names=["kernel"]
    ),
    "learning_rate of the inner": lambda one: setattr(
        one.inner_optimizer, "learning_rate", keras.optimizers.schedules.ExponentialDecay(0.1, 9, 0.5)
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_refused_wherever_it_would_count(what, tmp_path):
    normalization = L.Normalization()
    normalization.adapt(X)
    model = keras.Sequential([L.Input((4,)), normalization, L.Dense(6, "tanh"), L.Dropout(0.1), L.Dense(3)])
    one = rt.MetaLearner(model, keras.optimizers.AdamW(0.1, weight_decay=0.1), keras.optimizers.Adam())
    drawn = TASKS._replace(seed=np.zeros([1, 2], np.int32))
    CHANGES[what](one)
    for use in (
        lambda: one.step(drawn, 0.1),
        lambda: one.meta_gradients(drawn),
        lambda: one.adapt(X, Y),
        lambda: rt.save(one, tmp_path / "kept"),
        lambda: Evaluator(one, 1).logits(tasks.EvalTasks(drawn, X[None], Y[None], Y[None])),
    ):
        with pytest.raises(ValueError, match=f"({what}).* changed since the learner was made: make a new learner$"):
            use()
    assert not (tmp_path / "kept").exists()


def test_a_layer_that_is_frozen_for_a_while_may_be_used_again():
    one = learner()
    one.step(TASKS, 0.1)
    few = one.adapt(X, Y)
    one.model.compile("sgd", "mse")  # changes none of what counts
    before = few.outputs(X)
    one.model.layers[1].trainable = False
    for use in (lambda: one.step(TASKS, 0.1), lambda: few.predict(X)):
        with pytest.raises(ValueError, match="make a new learner"):
            use()
    one.model.layers[1].trainable = True
    np.testing.assert_array_equal(few.outputs(X), before)
    one.step(TASKS, 0.1)


def test_a_change_that_is_undone_leaves_nothing_behind():
    """What a refused call had made for a changed optimizer or model would be used by the next call."""
    groups = {i: RNG.normal(size=(20, 4)).astype(np.float32) for i in range(8)}
    classes = rt.ImageClasses.from_groups(groups)
    drawn = tasks.evaluation_tasks(classes, way=3, shots=2, batch=3, steps=2, seed=0, count=1)
    one, other = learner(), learner()
    uses = [
        lambda one: one.adapt(X, Y).outputs(X),
        lambda one: one.adapt(X, FOUR).outputs(X),
        lambda one: Evaluator.of(one, 1).logits(drawn),
    ]
    for change, undo in (
        (
            lambda: setattr(one.inner_optimizer, "clipvalue", 1e-3),
            lambda: setattr(one.inner_optimizer, "clipvalue", None),
        ),
        (lambda: setattr(one.model, "trainable", False), lambda: setattr(one.model, "trainable", True)),
    ):
        change()
        for use in uses:
            with pytest.raises(ValueError, match="make a new learner"):
                use(one)
        undo()
    one.inner_optimizer.momentum = float("0.0")  # an equal value
    for use in uses:
        np.testing.assert_array_equal(use(one), use(other))


def test_a_learner_that_is_made_while_a_model_is_traced_is_as_good_as_any():
    model = network(L.Dropout(0.5))
    made = []
    thread = threading.Thread(target=lambda: made.append(learner(model)))
    with layers.standing_in(model, classifying=True):  # as another thread does that traces the model
        thread.start()
        thread.join(0.2)
    thread.join()
    made[0].step(TASKS._replace(seed=np.zeros([1, 2], np.int32)), 0.1)


def test_a_subclass_or_a_notebook_may_add_attributes():
    class Noting(rt.MetaLearner):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.history = []

    one = Noting(network(), SGD(0.1), SGD())
    one.note = "the first"
    assert (one.history, one.note) == ([], "the first")


def test_a_layer_of_the_users_own_may_remember_what_it_likes():
    class Counting(L.Layer):
        calls = 0

        def call(self, x):
            self.calls += 1
            self.latest = x
            return 2 * x

    one = learner(network(Counting()))
    for _ in range(2):
        one.step(TASKS, 0.1)
        one.adapt(X, Y).predict(X)


def test_a_learner_is_not_copied_or_pickled():
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"keep state\(\), and restore\(\) it into a new MetaLearner"):
            copied(learner())


def test_threads_may_share_a_learner():
    """A web service adapts to several users' examples at once."""
    one = learner()
    data = [RNG.normal(size=(12, 4)).astype(np.float32) for _ in range(4)]
    alone = [one.adapt(x, Y).outputs(x) for x in data]
    expected = one.meta_gradients(TASKS)
    found = [[] for _ in data]

    def work(i):
        for _ in range(10):
            found[i].append(np.array_equal(one.adapt(data[i], Y).outputs(data[i]), alone[i]))
            found[i].append(np.array_equal(one.meta_gradients(TASKS), expected))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(data))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(each) for each in found] == [20] * 4
    assert all(map(all, found))


def test_calls_wait_for_one_that_runs(monkeypatch):
    one = learner()
    few = one.adapt(X, Y)
    expected = few.weights
    (adapter,) = one._adapters.values()
    program_of, entered, released = adapter._program, threading.Event(), threading.Event()

    def held_up(task):
        def program(*arguments):
            entered.set()
            assert released.wait(waiting.LIMIT)
            return program_of(task)(*arguments)

        return program

    monkeypatch.setattr(adapter, "_program", held_up)
    found = []
    threads = [threading.Thread(target=lambda: found.append(one.adapt(X, Y).weights))]
    threads[0].start()
    assert entered.wait(waiting.LIMIT)
    for use in one.state, one.update_model, lambda: few.outputs(X), lambda: one.meta_gradients(TASKS):
        threads.append(threading.Thread(target=use))
        threads[-1].start()
        threads[-1].join(0.2)  # time enough to end, for one that does not wait
    assert all(thread.is_alive() for thread in threads)
    released.set()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found[0], expected)
