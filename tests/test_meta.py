"""Tests of the algorithm: results worked out by hand, and the identities that define it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import relative

from reptile_tf import tasks
from reptile_tf.evaluate import Evaluator
from reptile_tf.meta import MetaLearner
from reptile_tf.meta_gradients import foml, maml, partial_sum, reptile
from reptile_tf.network import Network, cross_entropy
from reptile_tf.tasks import Tasks

TRAINING = {"way": 3, "shots": 4, "batch": 5, "steps": 3, "seed": 0, "count": 4}


def sgd(rate=0.01):
    return keras.optimizers.SGD(rate)


def adam():
    return keras.optimizers.Adam(1e-3, beta_1=0.0, epsilon=1e-8)


def learner(model, inner, **options):
    return MetaLearner(model, inner, keras.optimizers.SGD(), **({"meta_batch": 4} | options))


def after(model, inner, glyphs, iterations=2, **options):
    """Returns phi and the inner state after some meta-iterations on glyphs."""
    one = learner(model, inner, **options)
    for i in range(iterations):
        one.step(
            tasks.training_tasks(glyphs, iteration=i, query=options.get("meta_gradient") in (foml, maml), **TRAINING),
            0.5,
        )
    return one.state()


# --- by hand -----------------------------------------------------------------------------------------------------


def quadratic(meta_gradient, meta_batch=2, **options):
    """A learner with loss (w - c)² / 2 and phi = 1; a task consists of its c."""
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[1.0]])
    return MetaLearner(
        model,
        options.pop("inner", sgd(0.5)),
        options.pop("outer", keras.optimizers.SGD()),
        meta_gradient=meta_gradient,
        meta_batch=meta_batch,
        loss=lambda y, w: tf.reduce_sum((w - y) ** 2) / 2,
        **options,
    )


def centred(*centres, steps=2, query=False):
    x = np.ones([len(centres), 1, 1], np.float32)
    y = np.array(centres, np.float32).reshape(-1, 1, 1)
    minibatches = np.zeros([len(centres), steps, 1], np.int32)
    return Tasks(x, y, minibatches[:, :-1], minibatches[:, -1:]) if query else Tasks(x, y, minibatches)


def test_reptile_on_a_quadratic():
    # c = 3: w = 1, 2, 2.5. c = -1: w = 1, 0, -0.5. mean(phi - W) = ((1 - 2.5) + (1 + 0.5)) / 2 = 0; so c = 5 for one:
    # c = 5: w = 1, 3, 4. mean(phi - W) = ((1 - 4) + (1 + 0.5)) / 2 = -0.75. phi = 1 + 0.4 · 0.75 = 1.3.
    one = quadratic(reptile)
    assert one.step(centred(5, -1), 0.4) == pytest.approx(0.75)
    assert one.phi.numpy() == pytest.approx([1.3])
    # Again from 1.3: c = 5: 1.3, 3.15, 4.075. c = -1: 1.3, 0.15, -0.425. phi + 0.4 · (1.825 - 1.3) = 1.51.
    one.step(centred(5, -1), 0.4)
    assert one.phi.numpy() == pytest.approx([1.51])


def test_first_order_maml_on_a_quadratic():
    # c = 5: w = 1, 3, 4, the last step moves by 1. c = -1: 1, 0, -0.5, by -0.5. phi = 1 + 0.4 · 0.25.
    one = quadratic(foml)
    one.step(centred(5, -1, query=True), 0.4)
    assert one.phi.numpy() == pytest.approx([1.1])


def test_maml_on_a_quadratic():
    # A step: w = phi + 0.5 · (c - phi), so dw/dphi = 0.5. After one step of two the last loss has the gradient
    # (w - c) · 0.5: for c = 5 it is (3 - 5) · 0.5 = -1, for c = -1 (0 + 1) · 0.5 = 0.5. phi = 1 + 0.4 · 0.25.
    one = quadratic(maml)
    one.step(centred(5, -1, query=True), 0.4)
    assert one.phi.numpy() == pytest.approx([1.1])
    # Of four steps, three come before: (1 + 0.875 · 4 - 5) · 0.125 and (1 - 0.875 · 2 + 1) · 0.125.
    assert quadratic(maml).meta_gradients(centred(5, -1, steps=4, query=True)) == pytest.approx(
        np.array([[-0.0625], [0.03125]])
    )


def test_maml_multiplies_by_the_weight_decay_too():
    # phi = 1 → 0.8 → 0.8 + 0.5 · 4.2 = 2.9; dw/dphi = 0.8 · 0.5; (2.9 - 5) · 0.4 = -0.84.
    one = quadratic(maml, meta_batch=1, weight_decay=0.8)
    assert one.meta_gradients(centred(5, query=True)) == pytest.approx(np.array([[-0.84]]))


@pytest.mark.parametrize(
    ("terms", "expected"), [([1], -2.0), ([2], -1.0), ([1, 2], -3.0), ([3], -0.5), ([1, 3], -2.5), ([1, 2, 3], -3.5)]
)
def test_partial_sums_on_a_quadratic(terms, expected):
    # c = 5: w = 1, 3, 4, 4.5: the steps are 2, 1 and 0.5.
    one = quadratic(partial_sum(terms), meta_batch=1)
    assert one.meta_gradients(centred(5, steps=3)) == pytest.approx(np.array([[expected]]))
    assert one.phi.numpy() == pytest.approx([1.0])  # phi is unchanged


def test_weight_decay_multiplies_the_weights_before_every_step():
    # w = 1 → 0.8 → (0.8 + 5) / 2 = 2.9 → 2.32 → 3.66; phi = 1 + 1 · 2.66.
    one = quadratic(reptile, meta_batch=1, weight_decay=0.8)
    one.step(centred(5), 1.0)
    assert one.phi.numpy() == pytest.approx([3.66])


def test_adam_as_outer_optimizer_steps_by_its_rate():
    # Adam's first step is the sign of the meta-gradient times the rate (except for epsilon).
    one = quadratic(reptile, outer=keras.optimizers.Adam())
    one.step(centred(5, -1), 0.01)
    assert one.phi.numpy() == pytest.approx([1.01], abs=1e-6)


def test_adams_moments_run_on_sequential_and_are_averaged_side_by_side():
    # beta_1 = 0, beta_2 = 0.75, gradients of the first step -4 and 2: v = 0.25 g².
    inner = keras.optimizers.Adam(1e-9, beta_1=0.0, beta_2=0.75)
    for sequential, moment, count in ((False, (0.25 * 16 + 0.25 * 4) / 2, 1), (True, 0.75 * (0.25 * 16) + 0.25 * 4, 2)):
        one = quadratic(reptile, inner=inner, sequential=sequential)
        one.step(centred(5, -1, steps=1), 0.0)
        state = {tuple(v.shape): v.numpy() for v in one.inner_state}  # the second moment is the last one of shape [1]
        assert state[()] == count
        assert state[(1,)] == pytest.approx([moment])


# --- identities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequential", [False, True])
def test_meta_step_zero_leaves_phi_as_it_is(small_model, glyphs, sequential):
    one = learner(small_model(), adam(), sequential=sequential)
    before = one.state()
    assert one.step(tasks.training_tasks(glyphs, iteration=0, **TRAINING), 0.0) > 0
    np.testing.assert_array_equal(one.state()["phi"], before["phi"])
    assert (one.state()["inner/2"] != before["inner/2"]).any()


def test_one_sgd_step_is_joint_training(float64, small_model, glyphs):
    """For k = 1, phi takes an SGD step on the tasks' mean loss, which stock Keras computes here."""
    model, rate, meta_step = small_model(), 0.01, 0.5
    batch = tasks.training_tasks(glyphs, iteration=0, **(TRAINING | {"steps": 1}))
    before = [v.numpy() for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        loss = 0.0
        for x, y, (samples,) in zip(batch.x, batch.y, batch.minibatches, strict=True):
            logits = model(x[samples].astype(float), training=True)
            loss += keras.ops.sum(keras.losses.sparse_categorical_crossentropy(y[samples], logits, from_logits=True))
        loss /= len(batch.y)
    gradients = tape.gradient(loss, model.trainable_variables)
    expected = np.concatenate([np.ravel(w - meta_step * rate * g) for w, g in zip(before, gradients, strict=True)])
    one = learner(small_model(), sgd(rate))
    start = one.state()["phi"]
    one.step(batch, meta_step)
    assert relative(one.state()["phi"], expected, start) < 1e-7  # Keras stores the rate in float32


def test_first_order_maml_with_sgd_is_the_last_gradient(float64, small_model, glyphs):
    one = learner(small_model(), sgd(0.01), meta_gradient=foml)
    phi = one.phi.numpy()
    batch = tasks.training_tasks(glyphs, iteration=0, query=True, **TRAINING)
    network, last = Network(small_model(), cross_entropy), []
    for x, y, minibatches, (query,) in zip(*batch[:4], strict=True):
        w = tf.constant(phi)[tf.newaxis]
        for samples in minibatches:
            w -= 0.01 * network.gradient(w, x[samples][np.newaxis], y[samples][np.newaxis])[0]
        last.append(0.01 * network.gradient(w, x[query][np.newaxis], y[query][np.newaxis])[0][0])
    one.step(batch, 0.5)
    assert relative(one.phi.numpy(), phi - 0.5 * np.mean(last, 0), phi) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [False, True])
def test_maml_is_the_derivative_that_finite_differences_give(float64, small_model, glyphs, stacked):
    """The derivative is taken through batch norm, convolutions and two SGD steps, along random directions."""
    batch = tasks.training_tasks(glyphs, iteration=0, query=True, **(TRAINING | {"count": 2}))
    # A difference of 1e-5 crosses few of ReLU's kinks; softplus has none.
    model = keras.models.clone_model(
        small_model(),
        clone_function=lambda layer: (
            keras.layers.Activation("softplus")
            if isinstance(layer, keras.layers.ReLU)
            else layer.__class__.from_config(layer.get_config())
        ),
    )
    one = learner(model, sgd(0.01), meta_gradient=maml, meta_batch=2, stacked=stacked)
    phi, network = one.phi.numpy(), Network(model, cross_entropy)

    def query_losses(weights):
        """Computes the tasks' query losses with the first-order inner loop."""
        losses = []
        for x, y, minibatches, (query,) in zip(*batch[:4], strict=True):
            w = tf.constant(weights)[tf.newaxis]
            for samples in minibatches:
                w -= 0.01 * network.gradient(w, x[samples][np.newaxis], y[samples][np.newaxis])[0]
            losses.append(network.losses(w, x[query][np.newaxis], y[query][np.newaxis])[0])
        return np.array(losses)

    gradients = one.meta_gradients(batch)
    rng, step = np.random.default_rng(0), 1e-5
    for _ in range(3):
        direction = rng.standard_normal(len(phi))
        expected = (query_losses(phi + step * direction) - query_losses(phi - step * direction)) / (2 * step)
        np.testing.assert_allclose(gradients @ direction, expected, rtol=1e-6)
    first_order = learner(model, sgd(0.01), meta_gradient=foml, meta_batch=2, stacked=stacked).meta_gradients(batch)
    assert relative(first_order / 0.01, gradients, np.zeros_like(gradients)) > 0.05  # so the second order matters


@pytest.mark.slow
def test_maml_through_the_kernels_of_float32(glyphs, request):
    """Compares fused batch norm, which has no float64 version, and max-pooling after it with the form tested above."""

    def gradients(phi=None, meta_gradient=maml):
        model = keras.Sequential([keras.layers.Input((28, 28, 1))])
        for _ in range(2):
            model.add(keras.layers.Conv2D(4, 3, padding="same"))
            model.add(keras.layers.BatchNormalization())
            model.add(keras.layers.MaxPooling2D(2))
            model.add(keras.layers.ReLU())
        model.add(keras.layers.Flatten())
        model.add(keras.layers.Dense(3))
        one = learner(model, sgd(0.01), meta_gradient=meta_gradient)
        one.phi.assign(one.phi if phi is None else phi)
        return one.meta_gradients(batch), one.phi.numpy()

    batch = tasks.training_tasks(glyphs, iteration=0, query=True, **TRAINING)
    ours, phi = gradients()
    request.getfixturevalue("float64")
    expected, _ = gradients(phi.astype(float))
    assert relative(ours, expected, np.zeros_like(expected)) < 1e-2
    first_order = gradients(phi.astype(float), foml)[0] / 0.01
    assert relative(first_order, expected, np.zeros_like(expected)) > 0.1  # so the second order matters


@pytest.mark.slow
def test_partial_sums_are_reptile_and_first_order_maml(float64, small_model, glyphs):
    batch = tasks.training_tasks(glyphs, iteration=0, **TRAINING)
    apart = batch._replace(minibatches=batch.minibatches[:, :-1], query=batch.minibatches[:, -1:])
    for terms, meta_gradient, tasks_ in ([1, 2, 3], reptile, batch), ([3], foml, apart):
        ours = learner(small_model(), sgd(), meta_gradient=partial_sum(terms)).meta_gradients(batch)
        expected = learner(small_model(), sgd(), meta_gradient=meta_gradient).meta_gradients(tasks_)
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-15)


def test_a_step_follows_the_mean_of_the_meta_gradients(small_model, glyphs):
    batch = tasks.training_tasks(glyphs, iteration=0, **TRAINING)
    one = learner(small_model(), adam())
    before, gradients = one.state(), one.meta_gradients(batch)
    for name, value in one.state().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    one.step(batch, 0.5)
    np.testing.assert_allclose(one.phi.numpy(), before["phi"] - 0.5 * gradients.mean(0), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("meta_gradient", [reptile, foml, maml])
def test_side_by_side_equals_sequential_with_sgd(float64, small_model, glyphs, meta_gradient):
    options = {"meta_gradient": meta_gradient}
    start = learner(small_model(), sgd()).state()["phi"]
    sequential = after(small_model(), sgd(), glyphs, sequential=True, **options)
    side = after(small_model(), sgd(), glyphs, **options)
    assert relative(side["phi"], sequential["phi"], start) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [False, True])
def test_one_stacked_program_equals_branches(float64, small_model, glyphs, sequential):
    start = learner(small_model(), adam()).state()
    branches = after(small_model(), adam(), glyphs, sequential=sequential)
    stacked = after(small_model(), adam(), glyphs, sequential=sequential, stacked=True)
    assert relative(stacked["phi"], branches["phi"], start["phi"]) < 1e-5  # Adam magnifies the rounding of zeros
    assert stacked["inner/0"] == branches["inner/0"] == (24 if sequential else 6)


class Subclassed(keras.Model):
    """A subclassed model, whose structure Keras does not know."""

    def __init__(self, model):
        super().__init__()
        self.inside = model.layers

    def call(self, x, training=None):
        for layer in self.inside:
            x = layer(x, training=training) if isinstance(layer, keras.layers.BatchNormalization) else layer(x)
        return x


def test_functional_and_subclassed_models_are_as_good_as_sequential(float64, small_model, glyphs):
    expected = after(small_model(), sgd(), glyphs)["phi"]
    start = learner(small_model(), sgd()).state()["phi"]
    functional = keras.Model(*(lambda m: (m.inputs, m.outputs))(small_model()))
    subclassed = Subclassed(small_model())
    subclassed(np.zeros((1, 28, 28, 1)))
    for model in (functional, subclassed):
        assert relative(after(model, sgd(), glyphs)["phi"], expected, start) < 1e-9


def test_compiled_equals_eager(float64, small_model, glyphs, request):
    compiled = after(small_model(), sgd(), glyphs)
    start = learner(small_model(), sgd()).state()["phi"]
    request.getfixturevalue("eagerly")
    assert relative(after(small_model(), sgd(), glyphs)["phi"], compiled["phi"], start) < 1e-9


def test_the_sum_of_the_losses_counts_not_their_mean(float64, small_model, glyphs):
    """With every sample twice in a minibatch, an SGD step is twice as long."""
    batch = tasks.training_tasks(glyphs, iteration=0, **(TRAINING | {"steps": 1}))
    steps = []
    for minibatches in (batch.minibatches, np.tile(batch.minibatches, 2)):
        one = learner(small_model(), sgd(1e-4))
        before = one.state()["phi"]
        one.step(batch._replace(minibatches=minibatches), 1.0)
        steps.append(one.state()["phi"] - before)
    np.testing.assert_allclose(steps[1], 2 * steps[0], rtol=1e-6, atol=1e-15)


def test_a_meta_iteration_is_traced_once(small_model, glyphs):
    one = learner(small_model(), adam())
    for i in range(4):
        one.step(tasks.training_tasks(glyphs, iteration=i, **TRAINING), 1 - i / 4)
    assert one._meta_iterations.experimental_get_tracing_count() == 1


def test_adapting_to_support_sets_of_any_size_is_compiled_once(small_model, glyphs):
    one = learner(small_model(), adam())
    for size, steps in ((4, 2), (6, 3), (9, 1)):
        labels = np.arange(size) % 3
        few = one.adapt(
            glyphs.images[:size], labels if size == 4 else list(map(float, labels)), steps=steps, batch=size // 2
        )
        few.predict(glyphs.images[:size])
    (adapter,) = one._adapters.values()
    (program,) = adapter._programs.values()
    assert program.experimental_get_tracing_count() == 1
    assert adapter.predictions.experimental_get_tracing_count() == 1


# --- state -------------------------------------------------------------------------------------------------------


def test_a_restored_learner_goes_on_bit_for_bit(small_model, glyphs):
    outer = keras.optimizers.Adam()
    one, other = (MetaLearner(small_model(), adam(), outer, meta_batch=4) for _ in range(2))
    batches = [tasks.training_tasks(glyphs, iteration=i, **TRAINING) for i in range(4)]
    for i, batch in enumerate(batches):
        if i == 2:
            kept = one.state()
        one.step(batch, 0.01)
    other.restore(kept)
    for batch in batches[2:]:
        other.step(batch, 0.01)
    for name, value in one.state().items():
        np.testing.assert_array_equal(other.state()[name], value, err_msg=name)


def test_the_state_of_another_network_is_refused(small_model):
    with pytest.raises(ValueError, match="another network"):
        learner(small_model(5), adam()).restore(learner(small_model(3), adam()).state())


def test_the_model_receives_phi(small_model, glyphs):
    model = small_model()
    one = learner(model, adam())
    one.step(tasks.training_tasks(glyphs, iteration=0, **TRAINING), 1.0)
    trained = np.concatenate([v.numpy().ravel() for v in one.update_model().trainable_variables])
    np.testing.assert_array_equal(trained, one.phi.numpy())
    assert one.model is model


# --- rejected arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner",
    [
        keras.optimizers.Adam(clipnorm=1.0),
        keras.optimizers.SGD(use_ema=True),
        keras.optimizers.Lamb(),
        keras.optimizers.Adafactor(),
        keras.optimizers.Muon(),
    ],
    ids=lambda o: o.name,
)
def test_an_optimizer_that_mixes_weights_is_refused(small_model, inner):
    with pytest.raises(ValueError, match="elementwise"):
        learner(small_model(), inner)


def test_an_outer_optimizer_with_a_schedule_of_its_own_is_refused(small_model):
    outer = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10))
    with pytest.raises(ValueError, match="give it no schedule"):
        MetaLearner(small_model(), sgd(), outer)


def test_first_order_maml_needs_a_last_minibatch_apart(small_model, glyphs):
    batch = tasks.training_tasks(glyphs, iteration=0, **TRAINING)
    with pytest.raises(ValueError, match="draw tasks with query=True"):
        learner(small_model(), sgd(), meta_gradient=foml).step(batch, 0.1)


def test_a_decision_by_a_tensor_is_refused_in_one_line(small_model, glyphs):
    """Python's own if and for are not converted to graph operations."""
    batch = tasks.training_tasks(glyphs, iteration=0, **TRAINING)

    def loss(labels, logits):
        return tf.reduce_sum(logits) if tf.reduce_sum(logits) > 0 else cross_entropy(labels, logits)

    def steps(phi, inner, tasks):
        for step in tf.range(2):
            after = inner.adapt(tasks, tasks.minibatches[:, step : step + 1])
        return phi - after

    for one in learner(small_model(), sgd(), loss=loss), learner(small_model(), sgd(), meta_gradient=steps):
        with pytest.raises(ValueError, match=r"has an if or a for over a tensor.*use keras.ops.where") as error:
            one.step(batch, 0.1)
        assert "\n" not in str(error.value)


def test_what_a_meta_gradient_raises_comes_in_one_line(small_model, glyphs):
    batch = tasks.training_tasks(glyphs, iteration=0, **TRAINING)
    one = learner(small_model(), sgd(), meta_gradient=lambda phi, inner, tasks: phi.numpy())
    with pytest.raises(ValueError, match=r"^AttributeError: .*numpy") as error:
        one.step(batch, 0.1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("axis", "found"), [(0, r"\[WEIGHTS\]"), (None, "NoneType")])
def test_a_meta_gradient_must_have_a_row_per_task(axis, found, stacked, small_model, glyphs):
    batch = tasks.training_tasks(glyphs, iteration=0, **TRAINING)

    def meta_gradient(phi, inner, tasks):
        rows = phi[tf.newaxis] - inner.adapt(tasks, tasks.minibatches)
        return None if axis is None else tf.reduce_mean(rows, axis)

    one = learner(small_model(), sgd(), meta_gradient=meta_gradient, stacked=stacked)
    weights = one.network.size
    message = (
        rf"must return a tensor of one row per task, \[\d, {weights}\], not {found.replace('WEIGHTS', str(weights))}$"
    )
    with pytest.raises(ValueError, match=message):
        one.step(batch, 0.1)


@pytest.mark.parametrize("options", [{}, {"sequential": True}, {"stacked": True}], ids=str)
def test_a_learning_rate_that_is_changed_holds_from_then_on(float64, small_model, glyphs, options):
    first, second = (tasks.training_tasks(glyphs, iteration=i, **TRAINING) for i in range(2))
    evaluation = tasks.evaluation_tasks(glyphs, way=3, shots=2, batch=4, steps=2, seed=0, count=2)
    support = evaluation.support.x[0], evaluation.support.y[0]
    changed = learner(small_model(), keras.optimizers.Adam(1e-3, beta_1=0.0), **options)
    changed.step(first, 0.5)
    expected = learner(small_model(), keras.optimizers.Adam(1e-2, beta_1=0.0), **options)
    expected.restore(changed.state())
    evaluator = Evaluator(changed, at_most=2)
    before = [evaluator.logits(evaluation), changed.adapt(*support, steps=2).outputs(support[0])]  # compiles both
    changed.inner_optimizer.learning_rate = 1e-2
    after = [evaluator.logits(evaluation), changed.adapt(*support, steps=2).outputs(support[0])]
    wanted = [Evaluator(expected, at_most=2).logits(evaluation), expected.adapt(*support, steps=2).outputs(support[0])]
    for ours, others, earlier in zip(after, wanted, before, strict=True):
        np.testing.assert_array_equal(ours, others)
        assert np.abs(np.subtract(ours, earlier)).max() > 1e-3
    for one in changed, expected:
        one.step(second, 0.5)
    for name, value in changed.state().items():
        np.testing.assert_array_equal(value, expected.state()[name], err_msg=name)


@pytest.mark.parametrize(
    ("name", "value"), [("weight_decay", 0.5), ("meta_gradient", foml), ("meta_batch", 1), ("phi", 0.0)]
)
def test_a_setting_that_is_assigned_later_is_refused(small_model, name, value):
    one = learner(small_model(), keras.optimizers.SGD(0.1))
    before = getattr(one, name)
    with pytest.raises(AttributeError, match=f"^{name} cannot be changed once the learner is made: make a new MetaL"):
        setattr(one, name, value)
    assert getattr(one, name) is before


def test_an_inner_optimizer_may_have_a_schedule(small_model, glyphs):
    """The schedule counts steps over all tasks, as Adam does."""
    batch = tasks.training_tasks(glyphs, iteration=0, **TRAINING)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1e-2, 0.0])
    moved = [learner(small_model(), sgd(rate)).step(batch, 0.1) for rate in (schedule, 1e-2)]
    assert 0 < moved[0] < moved[1]


def test_maml_needs_plain_sgd_and_a_batch_norm_that_it_can_differentiate(small_model, glyphs):
    batch = tasks.training_tasks(glyphs, iteration=0, query=True, **TRAINING)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    for options in ({"momentum": 0.9}, {"clipvalue": 1.0}, {"learning_rate": schedule}, None):
        inner = adam() if options is None else keras.optimizers.SGD(**({"learning_rate": 0.01} | options))
        with pytest.raises(ValueError, match="must be plain SGD"):
            learner(small_model(), inner, meta_gradient=maml).step(batch, 0.1)
    of_ones_own = keras.layers.Lambda(
        lambda x: x / (1 + tf.nn.moments(x, [1, 2], keepdims=True)[1]), name="of_ones_own"
    )
    for layer in keras.layers.LayerNormalization(name="layer_norm"), of_ones_own:
        inside = [keras.layers.Dense(2), layer, keras.layers.Flatten(), keras.layers.Dense(3)]
        model = keras.Sequential([keras.layers.Input((28, 28, 1)), *inside])
        with pytest.raises(ValueError, match=f"cannot differentiate twice through tf.nn.moments in {layer.name}:"):
            learner(model, sgd(), meta_gradient=maml).step(batch, 0.1)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="no weights yet"):
        learner(keras.Sequential([keras.layers.Dense(2)]), sgd())
