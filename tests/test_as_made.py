"""Tests that what a learner was made of is what it computes with: changes are refused, and folders keep all of it."""

import copy
import pickle
import threading

import keras
import numpy as np
import pytest
import waiting

import reptile_tf as rt
from reptile_tf import heads, layers, tasks, tfjs
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Evaluator

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3
TASKS = tasks.Tasks(X[None], Y[None], RNG.integers(0, 12, (1, 4, 3), np.int32))
FOUR = np.arange(12) % 4  # more classes than outputs
SGD = keras.optimizers.SGD


def network(*more):
    keras.utils.set_random_seed(0)
    return keras.Sequential([L.Input((4,)), *more, L.Dense(6, "tanh"), L.BatchNormalization(), L.Dense(3)])


def learner(model=None, inner=None, **options):
    return rt.MetaLearner(model or network(), inner or SGD(0.1), SGD(), **options)


def decaying(how, model):
    inner = keras.optimizers.AdamW(0.01, weight_decay=1.0)
    if how == "names":
        inner.exclude_from_weight_decay(var_names=["kernel"])
    elif how == "variables":
        inner.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if v.name == "kernel"])
    return inner


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
        threads[-1].join(0.2)  # not waited for: a thread that did not wait would end by then
    assert all(thread.is_alive() for thread in threads)
    released.set()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found[0], expected)


def normalized():
    layer = L.Normalization()
    layer.adapt(5 + 3 * X)
    return network(layer)


def frozen():
    model = network(L.Dense(4, name="body", kernel_initializer=keras.initializers.GlorotUniform(seed=1)))
    model.get_layer("body").trainable = False
    return model


def averaged():
    model = network()
    model(X, training=True)  # moves the averages
    return model


def half():
    """All weights are bfloat16."""
    keras.utils.set_random_seed(0)
    dense = [L.Dense(units, dtype="bfloat16") for units in (4, 3)]
    dense[0].trainable = False
    return keras.Sequential([L.Input((4,)), *dense])


def binned():
    layer = L.Discretization(num_bins=3, output_mode="one_hot")
    layer.adapt(X)
    return keras.Sequential([L.Input((4,)), layer, L.Flatten(), L.Dense(3)])


MODELS = {"frozen": frozen, "normalized": normalized, "averaged": averaged, "half": half, "binned": binned}


@pytest.mark.parametrize("make", MODELS)
def test_a_folder_keeps_the_weights_that_are_not_trained(make, tmp_path):
    one = learner(MODELS[make]())
    one.step(TASKS, 0.1)
    rt.save(one, tmp_path)
    keras.utils.set_random_seed(1)  # Keras rebuilds other random weights
    loaded = rt.load(tmp_path)
    np.testing.assert_array_equal(loaded.model(X), one.update_model()(X))
    np.testing.assert_array_equal(loaded.adapt(X, Y).outputs(X), one.adapt(X, Y).outputs(X))


@pytest.mark.parametrize("kind", ["frozen", "normalized"])
def test_a_run_that_is_resumed_has_its_own_frozen_weights_again(kind, tmp_path):
    groups = {i: (5 * np.eye(4)[i % 4] + RNG.normal(size=(20, 4))).astype(np.float32) for i in range(8)}
    classes, folder = rt.ImageClasses.from_groups(groups), rt.RunFolder(tmp_path)
    settings = rt.Settings(
        classes=3, shots=1, train_shots=2, inner_iters=2, inner_batch=3, meta_batch=1, meta_iters=2, save_interval=1,
        eval_interval=1,
    )  # fmt: skip

    def interrupt(done, *_):
        if done == 2:
            raise InterruptedError

    whole = rt.meta_train(MODELS[kind](), classes, settings)
    with pytest.raises(InterruptedError):
        rt.meta_train(MODELS[kind](), classes, settings, folder=folder, callback=interrupt)
    other = MODELS[kind]()
    if kind == "frozen":
        other.get_layer("body").kernel.assign(-other.get_layer("body").kernel)
    else:
        other.layers[0].adapt(X)
    resumed = rt.meta_train(other, classes, settings, folder=folder)
    for name, value in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], value, err_msg=name)
    np.testing.assert_array_equal(resumed.model(X), whole.model(X))


def test_a_state_of_another_normalization_is_refused():
    state, other = learner(normalized()).state(), normalized()
    other.layers[0].adapt(X)
    one = learner(other)
    before = one.state()
    with pytest.raises(ValueError, match="was adapted to other data, or in other batches: adapt it in the same way"):
        one.restore(state)
    for name, value in one.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_state_of_an_earlier_version_has_only_what_is_trained():
    one = learner(frozen())
    state = {name: 0 * value for name, value in one.state().items() if not name.startswith("fixed/")}
    fixed = {name: value for name, value in one.state().items() if name.startswith("fixed/")}
    one.restore(state)
    assert not one.phi.numpy().any()
    assert len(fixed) == 4
    for name, value in fixed.items():
        np.testing.assert_array_equal(one.state()[name], value)


@pytest.mark.parametrize("how", ["names", "variables"])
def test_weights_excluded_from_decay_are_so_in_folders_and_with_more_classes(how, tmp_path):
    def adapted(how, labels):
        model = network()
        return learner(model, decaying(how, model)).adapt(X, labels).weights

    for labels in Y, FOUR:
        np.testing.assert_array_equal(adapted(how, labels), adapted("names", labels))
        assert np.abs(adapted(how, labels) - adapted("", labels)).max() > 0.1
    model = network()
    one = learner(model, decaying(how, model))
    rt.save(one, tmp_path)
    np.testing.assert_array_equal(rt.load(tmp_path).meta_gradients(TASKS), one.meta_gradients(TASKS))
    wider = heads.with_outputs(one, 4)
    np.testing.assert_array_equal(wider.adapt(X, FOUR).weights, one.adapt(X, FOUR).weights)


def test_frozen_weights_are_read_from_the_model_with_more_classes_too():
    one = learner(frozen())
    for labels in Y, FOUR:
        one.adapt(X, labels)
    body = one.model.get_layer("body")
    body.kernel.assign(3 * body.kernel)
    for labels in Y, FOUR:
        np.testing.assert_array_equal(one.adapt(X, labels).outputs(X), learner(one.model).adapt(X, labels).outputs(X))
    body.trainable = True
    with pytest.raises(ValueError, match="make a new learner"):
        one.adapt(X, FOUR)


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
