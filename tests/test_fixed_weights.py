"""Tests of the weights that training does not change, and of variables that weight decay does not."""

import keras
import numpy as np
import pytest
from dense import FOUR, RNG, TASKS, L, X, Y, learner, network

import reptile_tf as rt
from reptile_tf import heads


def decaying(how, model):
    inner = keras.optimizers.AdamW(0.01, weight_decay=1.0)
    if how == "names":
        inner.exclude_from_weight_decay(var_names=["kernel"])
    elif how == "variables":
        inner.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if v.name == "kernel"])
    return inner


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
