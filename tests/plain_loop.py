"""The plain Keras loop that the package's inner loop must match, and random models and optimizers."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

L = keras.layers
WAYS, SAMPLES = 3, 6


def inner_steps(model, optimizer, x, y, minibatches, loss, weight_decay=1.0):
    """Takes one step on each minibatch as in Keras's guides; returns the gradients, one list per step."""
    taken = []
    for samples in minibatches:
        for variable in model.trainable_variables if weight_decay != 1 else ():
            variable.assign(variable * weight_decay)
        with tf.GradientTape() as tape:
            value = loss(tf.gather(y, samples), model(tf.gather(x, samples), training=True))
            value = tf.add_n([value, *(tf.cast(penalty, value.dtype) for penalty in model.losses)])
        gradients = tape.gradient(value, model.trainable_variables)
        found = [(g, v) for g, v in zip(gradients, model.trainable_variables, strict=True) if g is not None]
        optimizer.apply_gradients(found)
        taken.append(
            [
                np.zeros(v.shape) if g is None else np.asarray(tf.convert_to_tensor(g))
                for g, v in zip(gradients, model.trainable_variables, strict=True)
            ]
        )
    return taken


def flat(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


class Draw:
    """A random model and a random optimizer, for tasks of three classes.

    Attributes:
      model: a built model with random weights, including biases and moving averages.
      make_optimizer: returns a new optimizer with the same settings.
      kinds: class names of the layers.
      is_random: whether the model has random layers.
    """

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)
        keras.utils.set_random_seed(seed)
        keras.backend.clear_session()
        self.shape = self._one([(8, 8, 2), (5, 3), (7,), (5,)])
        self._tokens = self.shape == (5,)
        self.model = self._model()
        self.make_optimizer = self._optimizer()
        self.kinds = {type(layer).__name__ for layer in self.model._flatten_layers()}
        self.is_random = any(layer._seed_generators for layer in self.model._flatten_layers())
        self._shake()

    def _one(self, options):
        return options[self._rng.integers(len(options))]

    def _perhaps(self, value, chance=0.3):
        return value if self._rng.random() < chance else None

    def inputs(self):
        """Draws a pool of samples: [task, sample, ...]."""
        size = (2, SAMPLES, *self.shape)
        return self._rng.integers(0, 5, size) if self._tokens else self._rng.normal(size=size)

    # --- models --------------------------------------------------------------------------------------------------

    def _model(self):
        inputs = x = L.Input(self.shape, dtype="int32" if self._tokens else None)
        if self._tokens:
            x = L.Embedding(5, 4, embeddings_regularizer=self._perhaps("l2"))(x)
        for _ in range(self._rng.integers(2, 5)):
            x = self._block(x)
        x = self._flattened(x)
        if self._rng.random() < 0.5:
            x = self._flattened(self._one(self._of_features())(x))
        model = keras.Model(inputs, L.Dense(WAYS, kernel_constraint=self._perhaps("max_norm", 0.1))(x))
        kind = self._rng.integers(4)
        if kind == 0:  # wraps it in a subclassed model
            model = Subclassed(model)
            model(np.zeros((1, *self.shape)))
        elif kind == 1:
            model = keras.Sequential([L.Input(self.shape, dtype=inputs.dtype), model])
        layers = [one for one in model._flatten_layers(include_self=False) if one.trainable_variables]
        if self._rng.random() < 0.4:
            frozen = self._one(layers)
            frozen.trainable = False
            if not model.trainable_variables:
                frozen.trainable = True
        return model

    def _block(self, x):
        """Adds one layer, or several that are combined in some way."""
        menu = {4: self._of_images, 3: self._of_sequences, 2: self._of_features}[len(x.shape)]()
        kind = self._rng.integers(8)
        if kind == 0:  # a residual branch
            layer = self._one([L.Add, L.Multiply, L.Average, L.Maximum])()
            return layer([x, self._same_shape(x)])
        if kind == 1:
            return L.Concatenate()([x, self._same_shape(x)])
        if kind == 2:  # one layer twice
            shared = self._dense(x.shape[-1], activation="tanh")
            return shared(shared(x))
        if kind == 3:  # a nested model, frozen or not
            entry = L.Input(x.shape[1:])
            inside = keras.Model(entry, self._same_shape(L.BatchNormalization()(self._same_shape(entry))))
            inside.trainable = self._rng.random() < 0.5
            return inside(x, training=False) if self._rng.random() < 0.2 else inside(x)
        return self._one(menu)(x)

    def _same_shape(self, x):
        if len(x.shape) == 4:
            return L.Conv2D(x.shape[-1], 3, padding="same", use_bias=self._rng.random() < 0.7)(x)
        return self._dense(x.shape[-1], activation=self._one(["tanh", "gelu", None]))(x)

    def _flattened(self, x):
        if len(x.shape) == 2:
            return x
        pool = L.GlobalAveragePooling2D if len(x.shape) == 4 else L.GlobalMaxPooling1D
        return self._one([L.Flatten, pool])()(x)

    def _dense(self, units, **options):
        return L.Dense(
            units,
            kernel_constraint=self._perhaps(self._one(["non_neg", "unit_norm", keras.constraints.MaxNorm(1.0)]), 0.2),
            kernel_regularizer=self._perhaps(keras.regularizers.L1L2(1e-3, 1e-2)),
            activity_regularizer=self._perhaps("l2", 0.1),
            **options,
        )

    def _anywhere(self) -> list[Callable]:
        rate = self._rng.uniform(0.1, 0.6)
        return [
            lambda x: L.BatchNormalization(
                axis=self._one([-1, *range(1, len(x.shape))]),
                scale=self._rng.random() < 0.8,
                center=self._rng.random() < 0.8,
                epsilon=self._one([1e-3, 1e-1]),
                trainable=self._rng.random() < 0.7,
                gamma_constraint=self._perhaps("non_neg", 0.2),
            )(x),
            L.LayerNormalization(),
            L.UnitNormalization(),
            L.RMSNormalization(),
            L.Dropout(rate),
            L.GaussianNoise(rate),
            L.GaussianDropout(rate),
            L.Activation(self._one(["gelu", "swish", "softplus", "tanh"])),
            L.LeakyReLU(),
            L.PReLU(),
            L.ReLU(max_value=2.0),
            L.ELU(),
            L.Rescaling(0.5, 0.1),
            L.Lambda(lambda x: x * 1.5),
            L.ActivityRegularization(l2=1e-3),
            self._normalization,
        ]

    def _normalization(self, x):
        layer = L.Normalization(axis=-1)
        layer.adapt(self._rng.normal(2, 3, (10, *x.shape[1:])))
        return layer(x)

    def _of_images(self) -> list[Callable]:
        padding, filters = self._one(["same", "valid"]), int(self._rng.integers(1, 4))
        common = {"kernel_regularizer": self._perhaps("l2"), "bias_initializer": "random_normal"}

        def and_norm(x):
            return L.BatchNormalization(axis=self._one([-1, 1]))(L.Conv2D(filters, 2, padding=padding, **common)(x))

        return [
            L.Conv2D(filters, 2, strides=self._one([1, 2]), padding="same", activation="tanh", **common),
            L.Conv2D(filters, 2, dilation_rate=2, padding="same", **common),
            lambda x: L.Conv2D(2 * x.shape[-1], 2, groups=x.shape[-1], padding="same", **common)(x),
            L.SeparableConv2D(filters, 2, padding="same"),
            L.DepthwiseConv2D(2, padding="same"),
            L.Conv2DTranspose(filters, 2, padding="same", **common),
            and_norm,
            and_norm,
            L.MaxPooling2D(2, padding="same"),
            L.AveragePooling2D(2, padding="same"),
            L.UpSampling2D(2),
            L.ZeroPadding2D(1),
            L.SpatialDropout2D(0.3),
            L.Permute((2, 1, 3)),
            lambda x: L.GroupNormalization(x.shape[-1])(x),
            lambda x: L.Reshape((x.shape[1] * x.shape[2], x.shape[3]))(x),
            *self._anywhere(),
        ]

    def _of_sequences(self) -> list[Callable]:
        dropout = self._one([0.0, 0.0, 0.3])
        return [
            L.Conv1D(3, 2, padding=self._one(["same", "causal"])),
            L.LSTM(3, return_sequences=True, dropout=dropout),
            L.GRU(3, return_sequences=self._rng.random() < 0.5, reset_after=self._rng.random() < 0.5),
            L.SimpleRNN(3, return_sequences=True),
            L.Bidirectional(L.GRU(2, return_sequences=True)),
            L.TimeDistributed(L.Dense(3)),
            lambda x: L.MultiHeadAttention(2, 3, dropout=dropout)(x, x),
            L.MaxPooling1D(2, padding="same"),
            lambda x: L.EinsumDense("abc,cd->abd", output_shape=(x.shape[1], 3), bias_axes="d")(x),
            *self._anywhere(),
        ]

    def _of_features(self) -> list[Callable]:
        return [
            self._dense(4),
            self._dense(3, activation="tanh", use_bias=False),
            L.RepeatVector(3),
            *self._anywhere(),
        ]

    def _shake(self):
        """Randomizes biases, scales and moving averages, and applies the constraints to them."""
        for variable in self.model.variables:
            if "seed" in variable.path or variable.path.endswith("count"):
                continue
            value = variable.numpy() + 0.1 * self._rng.normal(size=variable.shape)
            if "variance" in variable.path:
                value = np.abs(value) + 0.1
            variable.assign(value)
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable.value))

    # --- optimizers ----------------------------------------------------------------------------------------------

    def _optimizer(self):
        rate = self._rng.uniform(0.01, 0.1)
        if self._rng.random() < 0.2:
            rate = keras.optimizers.schedules.PiecewiseConstantDecay([2], [rate, rate / 4])
        options = {"learning_rate": rate, "clipvalue": self._perhaps(0.5, 0.2), "weight_decay": self._perhaps(0.1)}
        kind, more = self._one(
            [
                (keras.optimizers.SGD, {}),
                (keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
                (keras.optimizers.Adam, {"beta_1": 0.0, "epsilon": 1e-8}),
                (keras.optimizers.Adam, {"amsgrad": True}),
                (keras.optimizers.AdamW, {"weight_decay": 0.2}),
                (keras.optimizers.Nadam, {}),
                (keras.optimizers.Adamax, {}),
                (keras.optimizers.RMSprop, {"momentum": 0.5, "centered": True}),
                (keras.optimizers.Adagrad, {}),
                (keras.optimizers.Adadelta, {}),
                (keras.optimizers.Lion, {}),
                (keras.optimizers.Ftrl, {}),
            ]
        )
        options |= more
        if self._tokens:  # other optimizers are rejected for models with an embedding
            kind, more = self._one([(keras.optimizers.SGD, {"momentum": 0.5}), (keras.optimizers.Lion, {})])
            options = {"learning_rate": rate, "weight_decay": self._perhaps(0.1)} | more
        excluded = self._one(["bias", "kernel"]) if options["weight_decay"] and self._rng.random() < 0.5 else None
        self.optimizer_text = f"{kind.__name__}({options}), without decay: {excluded}"

        def make():
            optimizer = kind(**options)
            if excluded:
                optimizer.exclude_from_weight_decay(var_names=[excluded])
            return optimizer

        return make


class Subclassed(keras.Model):
    """A subclassed model, whose structure Keras does not know."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def call(self, x, training=None):
        return self.inside(x, training=training)
