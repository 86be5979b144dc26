"""Tests that each model is either exact or rejected at once, in one line that names the layer and says what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from reptile_tf import examine, layers
from reptile_tf.meta import MetaLearner
from reptile_tf.network import Network
from reptile_tf.tasks import Tasks

L, optimizers = keras.layers, keras.optimizers


def seq(*inside, shape=(6, 6, 2)):
    return keras.Sequential([L.Input(shape), *inside, L.Flatten(), L.Dense(3)])


def learner(model, inner=None, outer=None, **options):
    return MetaLearner(model, inner or optimizers.SGD(0.1), outer or optimizers.SGD(), **options)


class Custom(L.Layer):
    """A layer that calls the given function."""

    def __init__(self, function, **attributes):
        super().__init__(name="culprit")
        for name, value in attributes.items():
            setattr(self, name, value)
        self._function = function

    def call(self, x, training=None):
        return self._function(self, x, training)


def numpy_noise(layer, x, training):
    return x + np.random.normal(size=(1, 6, 6, 2))


def stateful_noise(layer, x, training):
    return x + tf.random.normal([1, 6, 6, 2], dtype=x.dtype)


def global_generator(layer, x, training):
    return x + keras.random.normal((1, 6, 6, 2), dtype=x.dtype)


def counting(layer, x, training):
    layer.count.assign_add(1.0)
    return x * layer.count


class Remembering(keras.Model):
    """A model whose call is a compiled function that captures its weights."""

    def __init__(self, built):
        super().__init__()
        self.dense = L.Dense(3)
        if built:
            self.dense.build((None, 5))

    @tf.function
    def call(self, x):
        return self.dense(x)


class Dropping(Remembering):
    """A model with random layers inside."""

    def __init__(self):
        super().__init__(True)
        self.dropout = L.Dropout(0.5)

    def call(self, x, training=None):
        return self.dense(self.dropped(x, training))

    @tf.function
    def dropped(self, x, training):
        return self.dropout(x, training=training)


def sometimes(layer, x, training):
    return keras.ops.cond(keras.ops.mean(x) > 9, lambda: layer.dense(x), lambda: x)


def called(model):
    model(np.ones((4, 5)))
    return model


def built_dense():
    dense = L.Dense(2)
    dense.build((None, 6, 6, 2))
    return dense


def remembering(built=True):
    return called(Remembering(built))


class DroppingCell(L.Layer):
    """A recurrent cell that draws random numbers inside the loop."""

    state_size = 2

    def __init__(self):
        super().__init__()
        self.dense, self.dropout = L.Dense(2), L.Dropout(0.5)
        self.dense.build((None, 2))
        self.built = True

    def call(self, x, states, training=None):
        h = self.dropout(self.dense(x) + states[0], training=training)
        return h, [h]


def dropping_in_a_loop():
    return keras.Sequential([L.Input((4, 2)), L.RNN(DroppingCell()), L.Dense(3)])


class Counted:
    """A constraint that behaves differently at every call."""

    calls = 0

    def __call__(self, weights):
        Counted.calls += 1
        return weights * Counted.calls


def constrained(constraint):
    return keras.Sequential([L.Input((3,)), L.Dense(3, kernel_constraint=constraint)])


def joint():
    x, y = L.Input((3,)), L.Input((3,))
    return keras.Model([x, y], L.Dense(3)(L.Add()([x, y])))


def two_outputs():
    x = L.Input((3,))
    return keras.Model(x, [L.Dense(3)(x), L.Dense(3)(x)])


def noise_around_a_norm():
    class Block(L.Layer):
        def __init__(self):
            super().__init__(name="culprit")
            self.norm, self.generator = L.BatchNormalization(), keras.random.SeedGenerator(0)

        def call(self, x, training=None):
            return self.norm(x + keras.random.normal((1, 6, 6, 2), seed=self.generator), training=training)

    return seq(Block())


def mixed_dtypes():
    return seq(L.Dense(2, dtype="float64"))


REFUSED = {
    "a layer": (lambda: L.Dense(3), "the model is a Dense, not a Keras model"),
    "no weights": (lambda: keras.Sequential([L.Dense(2)]), "no weights yet: give it an Input"),
    "nothing to train": (lambda: keras.Sequential([L.Input((3,)), L.Dense(3, trainable=False)]), "unfreeze"),
    "two inputs": (joint, "one input and one output"),
    "two outputs": (two_outputs, "one input and one output"),
    "two dtypes": (mixed_dtypes, "one dtype, not float32, float64"),
    "spectral norm": (lambda: seq(L.SpectralNormalization(L.Conv2D(2, 3))), "changes .*spectral_norm.*: freeze"),
    "renorm": (lambda: seq(L.BatchNormalization(renorm=True)), "changes .*batch_norm.*: freeze"),
    "a tf.Variable that counts": (lambda: seq(Custom(counting, count=tf.Variable(0.0))), "culprit changes a tf.Var"),
    "noise of NumPy": (lambda: seq(Custom(numpy_noise)), "culprit returns different outputs at every call: give it"),
    "noise of TensorFlow": (lambda: seq(Custom(stateful_noise)), "culprit draws random numbers without a generator"),
    "noise of no generator": (lambda: seq(Custom(global_generator)), "culprit returns different outputs at every call"),
    "noise around a norm": (noise_around_a_norm, "culprit contains a batch norm and draws"),
    "a branch": (lambda: seq(Custom(sometimes, dense=built_dense())), "culprit has weights and a branch .*ops.where"),
    "a tf.function": (remembering, "dense.*/kernel cannot be replaced .*leave out the tf.function"),
    "a tf.function of dropout": (lambda: called(Dropping()), "dropout.* changes a tf.Variable when it is called"),
    "a tf.function that builds": (lambda: remembering(False), "depend on no trainable weight"),
    "noise in a loop": (dropping_in_a_loop, "cannot be called on a batch .*InaccessibleTensorError"),
    "a constraint of variables": (lambda: constrained(lambda w: w.value * 1.0), "constraint of .*kernel must be a"),
    "a constraint of NumPy": (lambda: constrained(lambda w: np.abs(w)), "constraint of .*kernel must be a"),
    "a constraint that counts": (lambda: constrained(Counted()), "constraint of .*kernel returns"),
    "softmax": (lambda: keras.Sequential([L.Input((3,)), L.Dense(3, activation="softmax")]), "takes logits"),
    "a layer of softmax": (lambda: keras.Sequential([L.Input((3,)), L.Dense(3), L.Softmax()]), "takes logits"),
    "sigmoid": (lambda: keras.Sequential([L.Input((3,)), L.Dense(3, activation="sigmoid")]), "takes logits"),
    "images": (lambda: keras.Sequential([L.Input((6, 6, 2)), L.Dense(3)]), r"\[batch, class\], .*flatten"),
    "an error": (lambda: seq(L.Reshape((6, 6, 2))), "cannot be called on a batch of shape .*: .*division by zero"),
}  # fmt: skip


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_exact_is_refused_in_one_line(name, stacked):
    make, message = REFUSED[name]
    model = make()
    if name == "an error":
        model.layers[0].call = lambda x: 1 / 0
    with pytest.raises(ValueError, match=message) as caught:
        learner(model, stacked=stacked)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_noise_of_a_fixed_seed_is_exact_but_for_xla():
    model = seq(Custom(lambda layer, x, _: x * keras.random.uniform((1, 6, 6, 2), dtype=x.dtype, seed=3)))
    learner(model)
    with pytest.raises(ValueError, match="culprit has a fixed seed, and XLA draws other numbers"):
        learner(model, stacked=True)


def test_operations_that_xla_pads_are_refused_where_it_compiles():
    model = seq(Custom(lambda layer, x, _: x * tf.cast(tf.shape(tf.where(x[0] > 0.5))[0], x.dtype)))
    learner(model)
    with pytest.raises(ValueError, match="culprit has a Where, whose output size depends on values"):
        learner(model, stacked=True)


def test_inputs_are_as_precise_as_the_model_takes_them():
    """The inputs are seconds since 1970, which are normalized in float64 before a float32 network."""
    norm = L.Normalization(mean=1.7e9, variance=1e4, dtype="float64")
    model = keras.Sequential([L.Input((3,), dtype="float64"), norm, L.Dense(3)])
    x = 1.7e9 + 100 * np.random.default_rng(0).normal(size=(4, 3))
    few = learner(model).adapt(x, [0, 1, 2, 0], steps=0)
    np.testing.assert_allclose(few.outputs(x, transductive=True), model(x), rtol=1e-5)


def test_a_frozen_norm_of_another_precision_behind_a_convolution_is_taken():
    learner(seq(L.Conv2D(2, 3, dtype="mixed_bfloat16"), L.BatchNormalization(trainable=False, dtype="float32")))


def test_another_backend_is_refused(small_model, monkeypatch):
    model = small_model()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="Keras runs on jax: set KERAS_BACKEND=tensorflow"):
        learner(model)


class Step(optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 if step < 3 else 0.01

    def get_config(self):
        return {}


def stepped():
    optimizer = optimizers.SGD(0.1)
    optimizer.apply([tf.ones([1])], [keras.Variable(tf.zeros([1]))])
    return optimizer


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (stepped, "has already taken steps: give a new one"),
        (lambda: optimizers.SGD(lambda: 0.1), "must be a number or a LearningRateSchedule"),
        (lambda: optimizers.SGD(Step()), "schedule Step must run in a graph"),
        (lambda: optimizers.SGD(0.1, clipnorm=1.0), "unset clipnorm"),
        (lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2), "unset gradient_accumulation_steps"),
        (lambda: optimizers.Lamb(), "elementwise: one of .*, not Lamb"),
    ],
)
def test_inner_optimizers_that_would_not_be_exact_are_refused(small_model, inner, message):
    with pytest.raises(ValueError, match=message):
        learner(small_model(), inner())


def test_outer_optimizers_that_would_not_be_exact_are_refused(small_model):
    excluding = optimizers.AdamW()
    excluding.exclude_from_weight_decay(var_names=["bias"])
    for outer, message in (
        (optimizers.Lamb(), "elementwise: one of .*, not Lamb"),
        (optimizers.SGD(use_ema=True), "unset use_ema"),
        (excluding, "exclude none"),
    ):
        with pytest.raises(ValueError, match=f"(the outer optimizer|sees one vector).*{message}"):
            learner(small_model(), outer=outer)


@pytest.mark.parametrize("kind", [optimizers.Adam, optimizers.Adamax, optimizers.Adagrad])
def test_an_embedding_with_an_optimizer_that_treats_its_gradient_token_by_token_is_refused(kind):
    model = keras.Sequential([L.Input((4,), dtype="int32"), L.Embedding(5, 3), L.Flatten(), L.Dense(3)])
    with pytest.raises(ValueError, match="embedding.*/embeddings has a sparse gradient.*use SGD or Lion"):
        learner(model, kind(0.1))
    learner(model, optimizers.SGD(0.1))
    model.layers[0].trainable = False
    learner(model, kind(0.1))


def test_a_loss_of_many_numbers_is_refused(small_model, glyphs):
    one = learner(small_model(), loss=keras.losses.sparse_categorical_crossentropy)
    with pytest.raises(ValueError, match="the loss must be a scalar, not .*: sum it over the minibatch"):
        one.adapt(glyphs.images[:4], np.zeros(4), steps=1)


def test_a_stand_in_that_computes_something_else_is_named(small_model, monkeypatch):
    fused = layers._fused
    monkeypatch.setattr(layers, "_fused", lambda layer, inputs: fused(layer, inputs) * 1.01)
    model = small_model()
    with pytest.raises(ValueError, match="batch_normalization.*, a BatchNormalization, would compute something else"):
        learner(model)


def test_examining_leaves_no_trace(small_model):
    model = keras.Sequential([L.Input((28, 28, 1)), L.Dropout(0.5), small_model()])
    before = [v.numpy() for v in model.variables], [dict(layer.__dict__) for layer in model._flatten_layers()]
    for stacked in (False, True):
        Network(model, stacked=stacked)
    for variable, value in zip(model.variables, before[0], strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    for layer, attributes in zip(model._flatten_layers(), before[1], strict=True):
        assert layer.__dict__.keys() == attributes.keys()


def test_what_runs_task_after_task_is_said_in_one_line(capsys):
    Network(seq(L.Conv2D(2, 3, dilation_rate=2, name="dilated"), L.Conv2D(2, 1, name="plain")), stacked=True)
    said = capsys.readouterr()
    assert said.out == "stacked: these run one task after another, because they have no vectorized form: dilated\n"
    Network(seq(L.Conv2D(2, 1)), stacked=True)
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_what_xla_does_not_compile_is_said_in_one_line():
    model = seq(Custom(lambda layer, x, _: x + tf.reshape(tf.numpy_function(lambda a: a, [x], x.dtype), tf.shape(x))))
    line = r"XLA cannot compile this network \(\w+\): leave out stacked=True"
    with pytest.raises(ValueError, match=line) as caught:
        learner(model, stacked=True)
    assert "\n" not in str(caught.value)

    def loss(y, outputs):  # it is first compiled in the first step
        return tf.reduce_sum(tf.numpy_function(lambda a: a, [outputs], outputs.dtype))

    one = learner(seq(), stacked=True, loss=loss)
    tasks = Tasks(np.ones([1, 4, 6, 6, 2]), np.zeros([1, 4], np.int32), np.zeros([1, 1, 2], np.int32))
    with pytest.raises(ValueError, match=line) as caught:
        one.step(tasks, 0.1)
    assert "\n" not in str(caught.value)


# --- tasks -------------------------------------------------------------------------------------------------------


def adapt(x, y, **options):
    model = seq(L.Conv2D(2, 3), L.GlobalAveragePooling2D())
    return learner(model).adapt(x, y, steps=1, **options)


X = np.ones((4, 6, 6, 2))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, [0, 1, 2], "4 inputs need as many labels, not .3."),
        (X.astype(complex), [0, 1, 2, 0], "inputs must be real numbers, not complex128"),
        (X, [0, 1, 2, 0.5], "must be names or integers: 0.5 is neither"),
        (X, [0, 1, 2, np.nan], "must be names or integers: nan is neither"),
        (X, [0, 1, 2, np.inf], "must be names or integers: inf is neither"),
        (X, [0, 1, 2, b"a"], "must be names or integers, not"),
        (X, [0, 1, 2, None], "must be names or integers, not object"),
        (X, [7, 7, 7, 7], "all labels are 7: give examples of at least two classes"),
        (X, np.eye(3)[[0, 1, 2, 0]], r"not one-hot rows: give labels.argmax\(-1\)"),
        (X, np.zeros((4, 2), int), r"4 inputs need as many labels, not \[4, 2\]"),
        (np.ones((4, 7, 6, 2)), [0, 1, 2, 0], r"not take inputs of \(7, 6, 2\): it is made for \(6, 6, 2\)"),
        (np.ones((4, 6, 6)), [0, 1, 2, 0], r"does not take inputs of \(6, 6\): it is made for \(6, 6, 2\)$"),
        (np.ones((6, 6, 2)), [0], r"does not take inputs of \(6, 2\): .*; give a single one as x\[None\]$"),
    ],
)
def test_labels_and_inputs_that_do_not_fit_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        adapt(x, y)


def test_labels_may_be_of_any_whole_numbers():
    for dtype in (np.uint8, np.int64, np.float32, bool):
        adapt(X, np.array([0, 1, 1, 0], dtype))


def test_minibatches_of_samples_that_are_not_there_are_refused():
    one = learner(seq())
    dealt = np.array([[[0, 4]]], np.int32)
    with pytest.raises(ValueError, match="minibatches must index 4 samples, not 0 to 4"):
        one.step(Tasks(X[np.newaxis], np.zeros([1, 4], np.int32), dealt), 0.1)


def test_an_input_of_any_size_is_taken():
    model = keras.Sequential([L.Input((None, None, 2)), L.Conv2D(3, 3), L.GlobalAveragePooling2D(), L.Dense(3)])
    assert examine.examine(model, True).input_shape == (None, None, 2)
    learner(model).adapt(np.ones((4, 9, 5, 2)), [0, 1, 2, 0], steps=1)
