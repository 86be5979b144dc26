"""Examines a model on a random batch, and rejects it if the inner loop could not compute what plain Keras does."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import layers

BATCH = 4
FREE_AXIS = 32  # the length used for an axis of any length
_RANDOM = re.compile("Random|TruncatedNormal|Multinomial|StatefulUniform|StatefulStandardNormal|Rng")
_STATEFUL = re.compile("Assign|ResourceScatter|ResourceApply|LookupTable(Insert|Import)")
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")
_GENERATOR = "give it a keras.random.SeedGenerator as an attribute"


class ModelError(ValueError):
    """Raised for an unsupported model. The one-line message names the layer, the reason, and what to do."""


class Facts(NamedTuple):
    """The properties of a model found by a call on a random batch.

    Attributes:
      input_shape: shape of one input, without the batch axis; None for an axis of any length.
      input_dtype: dtype of the inputs.
      output_shape: shape of one output, without the batch axis.
      random: states of the random generators from which a call in training draws.
      connected: for each trainable variable, whether the outputs or the model's own losses depend on it.
      sparse: paths of trainable variables with sparse gradients, tf.IndexedSlices (embeddings).
    """

    input_shape: tuple[int | None, ...]
    input_dtype: tf.DType
    output_shape: tuple[int, ...]
    random: list[keras.Variable]
    connected: list[bool]
    sparse: list[str]


def examine(model: keras.Model, is_classifier: bool) -> Facts:
    """Examines a model by calling it, without changing it.

    Args:
      model: a built Keras model.
      is_classifier: whether the loss is the cross-entropy, so that the outputs must be logits.

    Returns:
      The facts.

    Raises:
      ModelError: the model is not supported.
    """
    _check_form(model)
    shape = _input_shape(model)
    x = random_batch(model, shape)
    seeds = _seed_states(model)

    def in_a_graph(x: tf.Tensor) -> tf.Tensor:
        values = [(v, tf.convert_to_tensor(v.value)) for v in [*model.trainable_variables, *seeds]]
        with keras.StatelessScope(state_mapping=values) as scope:
            model(x, training=True)
        # This fails if the model draws from a generator in a loop or in another tf.function.
        return tf.stack([tf.identity(scope.get_current_value(seed)) for seed in seeds] or [0])

    try:
        call, again = PlainCall(model, x), PlainCall(model, x)
        operations = operations_of(model, in_a_graph, tf.constant(x))
    except Exception as error:  # a model may raise anything
        raise ModelError(f"the model cannot be called on a batch of shape {x.shape}: {in_one_line(error)}") from error
    _check_state(model, call, operations)
    _check_branches(model, operations)
    _check_randomness(model, operations)
    if not same(call.outputs, again.outputs, 0):
        name = next(name for name, is_same in _by_layer(model, x) if not is_same)
        raise ModelError(f"{name} returns different outputs at every call: {_GENERATOR}")
    if is_classifier:
        _check_logits(model, np.asarray(tf.cast(call.outputs, tf.float64)))
    changed = {id(variable) for variable in call.changed}
    random = [state for state in seeds if id(state) in changed]
    connected = [gradient is not None for gradient in call.gradients]
    if not any(connected):
        raise ModelError("the outputs depend on no trainable weight: unfreeze the layers that should adapt")
    sparse = [
        v.path
        for v, gradient in zip(model.trainable_variables, call.gradients, strict=True)
        if isinstance(gradient, tf.IndexedSlices)
    ]
    dtype = tf.as_dtype(_input_dtype(model))
    return Facts(shape, dtype, tuple(call.outputs.shape[1:]), random, connected, sparse)


def in_one_line(error: Exception) -> str:
    """Shortens an error of Keras or TensorFlow to one line, without the place where it occurred."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    where = ("Exception encountered", "Graph execution error", "Detected at node", "File ")
    lines = [line.strip() for line in text.splitlines()]
    return f"{type(error).__name__}: {next((line for line in lines if line and not line.startswith(where)), '')[:160]}"


def _check_form(model: keras.Model) -> None:
    """Checks what can be checked without a call."""
    if keras.backend.backend() != "tensorflow":
        raise ModelError(f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow")
    if not isinstance(model, keras.Model):
        raise ModelError(f"the model is a {type(model).__name__}, not a Keras model: pass a keras.Model")
    if not model.built or not model.variables:
        raise ModelError("the model has no weights yet: give it an Input layer or call it once")
    if not model.trainable_variables:
        raise ModelError("the model has no trainable weights: unfreeze the layers that should adapt")
    if len(getattr(model, "inputs", None) or [0]) != 1 or len(getattr(model, "outputs", None) or [0]) != 1:
        raise ModelError("the model must have one input and one output: wrap it in a model that joins them")
    if len(dtypes := {v.dtype for v in model.trainable_variables}) > 1:
        raise ModelError(f"all trainable weights must have one dtype, not {', '.join(sorted(dtypes))}")
    for variable in model.trainable_variables:
        if getattr(variable, "overwrite_with_gradient", False):
            raise ModelError(f"{variable.path} is not a weight but a float8 scale: leave out the quantization")
    for layer in model._flatten_layers():
        inside = layer._flatten_layers(include_self=False)
        if layer._seed_generators and any(isinstance(one, keras.layers.BatchNormalization) for one in inside):
            raise ModelError(
                f"{layer.name} contains a batch norm and draws random numbers itself: use a layer such as Dropout"
            )


def _input_shape(model: keras.Model) -> tuple[int | None, ...]:
    if hasattr(model, "input_shape"):
        return tuple(model.input_shape[1:])
    shapes = list((model._build_shapes_dict or {}).values())  # the shape of the first batch
    if len(shapes) != 1 or not all(isinstance(axis, int | None) for axis in shapes[0]):
        raise ModelError("the model's input shape is unknown: call the model once on a batch, a single tensor")
    return tuple(shapes[0][1:])


def random_batch(model: keras.Model, shape: tuple[int | None, ...], seed: int = 0) -> np.ndarray:
    """Returns a reproducible batch of inputs [BATCH, *shape] from 0 to 1; integers 0 and 1 for an integer input."""
    rng = np.random.default_rng(seed)
    size = (BATCH, *(axis or FREE_AXIS for axis in shape))
    dtype = _input_dtype(model)
    return rng.integers(0, 2, size).astype(dtype) if "int" in dtype else rng.uniform(size=size).astype(dtype)


def _input_dtype(model: keras.Model) -> str:
    """Returns the dtype of the inputs; a subclassed model does not state it, so its weights' dtype is used."""
    return model.inputs[0].dtype if getattr(model, "inputs", None) else model.trainable_variables[0].dtype


def _seed_states(model: keras.Model) -> list[keras.Variable]:
    generators = [generator for layer in model._flatten_layers() for generator in layer._seed_generators]
    return list({id(generator): generator.state for generator in generators}.values())  # some may be shared


class PlainCall:
    """Calls the model in training and differentiates `objective`, then restores the variables that the call changed.

    Attributes:
      outputs: the model's outputs, [batch, ...].
      gradients: the gradient of each trainable variable, or None.
      changed: the model's variables that the call changed.
    """

    def __init__(self, model: keras.Model, x: np.ndarray):
        variables = [*model.variables, *getattr(model, "metrics_variables", [])]
        before = [(variable, variable.numpy()) for variable in variables]
        try:
            with tf.GradientTape() as tape:
                self.outputs = model(tf.constant(x), training=True)
                if not tf.is_tensor(self.outputs) or not self.outputs.shape.rank:
                    raise TypeError("it must return one tensor [batch, ...]")
                value = objective(self.outputs, model.losses, tf.as_dtype(model.trainable_variables[0].dtype))
            self.gradients = tape.gradient(value, [variable.value for variable in model.trainable_variables])
        finally:
            changed = [
                (v, old) for v, old in before if not np.array_equal(v.numpy(), old, equal_nan=old.dtype.kind == "f")
            ]
            for variable, old in changed:
                variable.assign(old)
        self.changed = [variable for variable, _ in changed if any(variable is one for one in model.variables)]


def objective(outputs: tf.Tensor, penalties: list[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """Returns a scalar to differentiate: a random combination of all outputs, plus the losses that the model adds."""
    mix = tf.constant(np.random.default_rng(1).normal(size=outputs.shape), dtype)
    return tf.add_n([tf.reduce_sum(tf.cast(outputs, dtype) * mix), *(tf.cast(p, dtype) for p in penalties)])


class Operation(NamedTuple):
    """A TensorFlow operation: its type, its name in the graph, and the name of the layer that it belongs to."""

    kind: str
    name: str
    layer: str


def operations_of(model: keras.Model, function: Callable, *arguments: tf.Tensor) -> list[Operation]:
    """Traces a function that calls a model, with symbolic arguments, and returns its operations."""
    names = {layer.name for layer in model._flatten_layers()}
    definition = tf.function(function, autograph=False).get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*definition.node, *(node for inner in definition.library.function for node in inner.node_def)]

    def layer_of(operation: str) -> str:
        scopes = [part if part in names else re.sub(r"_\d+$", "", part) for part in operation.split("/")]
        return next((scope for scope in reversed(scopes) if scope in names), model.name)

    return [Operation(node.op, node.name, layer_of(node.name)) for node in nodes]


def _check_state(model: keras.Model, call: PlainCall, operations: list[Operation]) -> None:
    harmless = {id(state) for state in _seed_states(model)}
    for layer in model._flatten_layers():
        if type(layer) is keras.layers.BatchNormalization and not layer.renorm:
            harmless |= {id(layer.moving_mean), id(layer.moving_variance)}  # a call in training does not read these
    for variable in call.changed:
        if id(variable) not in harmless:
            raise ModelError(f"every call in training changes {variable.path}: freeze that layer, or leave it out")
    for operation in operations:
        if _STATEFUL.match(operation.kind):
            raise ModelError(f"{operation.layer} changes a tf.Variable when it is called: leave that layer out")


def _check_branches(model: keras.Model, operations: list[Operation]) -> None:
    """Raises ModelError for weights that only some calls may use.

    Keras does not update a variable without a gradient, nor its moments. In the flat vector its gradient would be zero,
    and its moments and weight decay would still apply.
    """
    with_weights = {layer.name for layer in model._flatten_layers() if layer.trainable_weights}
    for operation in operations:
        if operation.kind in _BRANCHES and operation.layer in with_weights:
            raise ModelError(
                f"{operation.layer} has weights and a branch (keras.ops.cond), which may exclude some of them from a "
                "step: compute both sides and select by keras.ops.where"
            )


def _check_randomness(model: keras.Model, operations: list[Operation]) -> None:
    with_generator = {layer.name for layer in model._flatten_layers() if layer._seed_generators}
    for kind, _, layer in operations:
        if _RANDOM.search(kind) and not kind.startswith("Stateless") and layer not in with_generator:
            raise ModelError(f"{layer} draws random numbers without a generator of its own: {_GENERATOR}")


def _check_logits(model: keras.Model, outputs: np.ndarray) -> None:
    if outputs.ndim != 2:
        raise ModelError(f"the cross-entropy needs outputs [batch, class], not {list(outputs.shape)}: flatten them")
    last = getattr(model.outputs[0], "_keras_history", None) if getattr(model, "outputs", None) else None
    activation = getattr(last and last.operation, "activation", None)
    squashed = activation in (keras.activations.softmax, keras.activations.sigmoid)
    if squashed or (outputs.shape[1] > 1 and (outputs >= 0).all() and np.allclose(outputs.sum(1), 1, atol=1e-2)):
        raise ModelError(
            "the model returns probabilities, but the loss takes logits: remove the softmax or sigmoid at its end"
        )


def _by_layer(model: keras.Model, x: np.ndarray) -> Iterator[tuple[str, bool]]:
    """Yields each layer in the order of execution, and whether two calls of it agree; finally the model, as False."""
    calls: list[list[tuple[str, tf.Tensor]]] = [[], []]
    for call in calls:
        with layers.recording(model, call):
            PlainCall(model, x)
    for (name, one), (_, other) in zip(*calls, strict=False):
        yield name, same(one, other, 0)
    yield model.name, False


def same(ours: tf.Tensor, expected: tf.Tensor, rounding: float) -> bool:
    """Returns whether ‖ours - expected‖ ≤ `rounding` · ‖expected‖; for 0, whether all values are identical."""
    ours, expected = (np.asarray(tf.cast(tensor, tf.float64)) for tensor in (ours, expected))
    if not rounding:
        return np.array_equal(ours, expected, equal_nan=True)
    finite = np.isfinite(expected)  # a model may overflow on random numbers
    return bool(np.linalg.norm((ours - expected)[finite]) <= rounding * np.linalg.norm(expected[finite]) + 1e-9)
