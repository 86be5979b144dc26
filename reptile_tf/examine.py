"""A look at a model on one random batch, before a network is made of it, and a comparison of the network with it.

What would not give the numbers of the plain Keras loop is refused in one line.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import layers

if TYPE_CHECKING:
    from reptile_tf.network import Network

BATCH = 4
FREE_AXIS = 32  # what stands for an axis of any length
# ‖difference‖ / ‖value‖ that rounding may bring, by the dtype that a layer computes in.
ROUNDING = {"float64": 1e-8, "float32": 2e-3, "float16": 5e-2, "bfloat16": 2e-1}
_RANDOM = re.compile("Random|TruncatedNormal|Multinomial|StatefulUniform|StatefulStandardNormal|Rng")
_STATEFUL = re.compile("Assign|ResourceScatter|ResourceApply|LookupTable(Insert|Import)")
_GENERATOR = "give it a keras.random.SeedGenerator as an attribute"


class Facts(NamedTuple):
    """What a random batch told of a model.

    Attributes:
      input_shape: of one input; None for an axis of any length.
      output_shape: of one input's output.
      random: the states of the random generators that a call in training draws from.
      connected: for each trainable variable, whether the outputs or the model's own losses depend on it.
      sparse: the paths of trainable variables whose gradients TensorFlow gives as slices (embeddings).
    """

    input_shape: tuple[int | None, ...]
    output_shape: tuple[int, ...]
    random: list[keras.Variable]
    connected: list[bool]
    sparse: list[str]


def examine(model: keras.Model, is_classifier: bool) -> Facts:
    """Calls a model as it is; nothing in it changes.

    Args:
      model: to be examined.
      is_classifier: whether its outputs go into the cross-entropy, and so must be logits.

    Raises:
      ValueError: it does not serve; the message names the layer, and says what to do.
    """
    _check_form(model)
    shape = _input_shape(model)
    x = _random_batch(model, shape)
    try:
        call, again = _PlainCall(model, x), _PlainCall(model, x)
        operations = _operations(model, lambda: _PlainCall(model, x, watched=False))
    except Exception as error:  # a model may raise anything
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"the model cannot be called on a batch of shape {x.shape}: {line}") from error
    _check_state(model, call, operations)
    _check_randomness(model, call, operations)
    if not _same(call.outputs, again.outputs, 0):
        name = next(name for name, same in _by_layer(model, x) if not same)
        raise ValueError(f"{name} gives other outputs at every call: {_GENERATOR}")
    if is_classifier:
        _check_logits(model, np.asarray(tf.cast(call.outputs, tf.float64)))
    random = [state for state in _seed_states(model) if call.set_to(state) is not None]
    connected = [gradient is not None for gradient in call.gradients]
    sparse = [
        v.path
        for v, gradient in zip(model.trainable_variables, call.gradients, strict=True)
        if isinstance(gradient, tf.IndexedSlices)
    ]
    return Facts(shape, tuple(call.outputs.shape[1:]), random, connected, sparse)


def _check_form(model: keras.Model) -> None:
    """What can be seen without a call."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow, which this needs")
    if not model.built or not model.variables:
        raise ValueError("the model has no weights yet: give it an Input layer or call it once")
    if not model.trainable_variables:
        raise ValueError("the model has no trainable weights: unfreeze the layers that are to adapt")
    if len(getattr(model, "inputs", None) or [0]) != 1 or len(getattr(model, "outputs", None) or [0]) != 1:
        raise ValueError("the model must have one input and one output: make a model around it that joins them")
    if len(dtypes := {v.dtype for v in model.trainable_variables}) > 1:
        raise ValueError(f"all trainable weights must have one dtype, not {', '.join(sorted(dtypes))}")
    for layer in model._flatten_layers():
        inside = layer._flatten_layers(include_self=False)
        if layer._seed_generators and any(isinstance(one, keras.layers.BatchNormalization) for one in inside):
            raise ValueError(
                f"{layer.name} has a batch norm in it and draws random numbers itself: let a layer such as Dropout draw"
            )


def _input_shape(model: keras.Model) -> tuple[int | None, ...]:
    if hasattr(model, "input_shape"):
        return tuple(model.input_shape[1:])
    shapes = list((model._build_shapes_dict or {}).values())  # of the batch that it was first called on
    if len(shapes) != 1 or not all(isinstance(axis, int | None) for axis in shapes[0]):
        raise ValueError("the model's input has no known shape: call the model once on a batch, one tensor")
    return tuple(shapes[0][1:])


def _random_batch(model: keras.Model, shape: tuple[int | None, ...]) -> np.ndarray:
    """The same every time: numbers from 0 to 1, or 0 and 1 where the model takes integers."""
    rng = np.random.default_rng(0)
    size = (BATCH, *(axis or FREE_AXIS for axis in shape))
    dtype = model.inputs[0].dtype if getattr(model, "inputs", None) else "float32"
    if "int" in dtype:
        return rng.integers(0, 2, size).astype(dtype)
    return rng.uniform(size=size).astype(model.trainable_variables[0].dtype)


def _seed_states(model: keras.Model) -> list[keras.Variable]:
    generators = [generator for layer in model._flatten_layers() for generator in layer._seed_generators]
    return list({id(generator): generator.state for generator in generators}.values())  # some may be shared


class _PlainCall:
    """One call of the model itself in training, what it would change, and the gradients of `_objective`.

    Attributes:
      outputs: the model's.
      gradients: for each trainable variable, or None.
    """

    def __init__(self, model: keras.Model, x: np.ndarray, watched: bool = True):
        variables = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            if watched:
                tape.watch(variables)
            # Regularizers ask the scope for the weights.
            self._given = [(v, tf.convert_to_tensor(v.value)) for v in model.trainable_variables]
            self._scope = keras.StatelessScope(state_mapping=self._given, collect_losses=True)
            with self._scope:
                self.outputs = model(tf.constant(x), training=True)
                penalties = model.losses
            if not tf.is_tensor(self.outputs) or not self.outputs.shape.rank:
                raise ValueError("it must give one tensor [batch, ...]")
            objective = _objective(self.outputs, penalties, variables[0].dtype)
        self.gradients = tape.gradient(objective, variables) if watched else []
        known = {id(variable) for variable in model.variables}
        self.changes_foreign = bool(set(self._scope.state_mapping) - known)

    def set_to(self, variable: keras.Variable) -> tf.Tensor | None:
        """What the call would have set a variable to, or None."""
        value = self._scope.get_current_value(variable)
        return None if any(value is given for _, given in self._given) else value


def _objective(outputs: tf.Tensor, penalties: list[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """A scalar to differentiate: every output in a proportion of its own, and the losses that the model adds."""
    mix = tf.constant(np.random.default_rng(1).normal(size=outputs.shape), dtype)
    return tf.add_n([tf.reduce_sum(tf.cast(outputs, dtype) * mix), *(tf.cast(p, dtype) for p in penalties)])


def _operations(model: keras.Model, function: Callable[[], object]) -> list[tuple[str, str]]:
    """The kind of each TensorFlow operation of a function, and the name of the model's layer that it belongs to."""
    names = {layer.name for layer in model._flatten_layers()}

    def traced() -> None:
        function()

    definition = tf.function(traced).get_concrete_function().graph.as_graph_def()
    nodes = [*definition.node, *(node for inner in definition.library.function for node in inner.node_def)]
    return [(n.op, ([part for part in n.name.split("/") if part in names] or [model.name])[-1]) for n in nodes]


def _check_state(model: keras.Model, call: _PlainCall, operations: list[tuple[str, str]]) -> None:
    harmless = {id(state) for state in _seed_states(model)}
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.renorm:
            harmless |= {id(layer.moving_mean), id(layer.moving_variance)}  # which no call in training reads
    for variable in model.variables:
        if call.set_to(variable) is not None and id(variable) not in harmless:
            raise ValueError(f"every call in training changes {variable.path}: freeze that layer, or leave it out")
    for kind, name in operations:
        if _STATEFUL.match(kind):
            raise ValueError(f"{name} changes a tf.Variable when it is called: leave that layer out")


def _check_randomness(model: keras.Model, call: _PlainCall, operations: list[tuple[str, str]]) -> None:
    with_generator = {layer.name for layer in model._flatten_layers() if layer._seed_generators}
    for kind, name in operations:
        random = _RANDOM.search(kind) and (not kind.startswith("Stateless") or call.changes_foreign)
        if random and name not in with_generator:
            raise ValueError(f"{name} draws random numbers from no generator of its own: {_GENERATOR}")
    if call.changes_foreign:
        raise ValueError(
            f"a layer changes a variable that is not the model's: {_GENERATOR}, or add_weight the variable"
        )


def _check_logits(model: keras.Model, outputs: np.ndarray) -> None:
    if outputs.ndim != 2:
        raise ValueError(f"the cross-entropy needs outputs [batch, class], not {list(outputs.shape)}: flatten them")
    last = getattr(model.outputs[0], "_keras_history", None) if getattr(model, "outputs", None) else None
    activation = getattr(last and last.operation, "activation", None)
    squashed = activation in (keras.activations.softmax, keras.activations.sigmoid)
    if squashed or (outputs.shape[1] > 1 and (outputs >= 0).all() and np.allclose(outputs.sum(1), 1, atol=1e-2)):
        raise ValueError("the model gives probabilities, but the loss takes logits: leave out the softmax at its end")


def _by_layer(model: keras.Model, x: np.ndarray) -> Iterator[tuple[str, bool]]:
    """Each layer, in the order in which they run, and whether two calls gave the same; the model itself at the end."""
    calls: list[list[tuple[str, tf.Tensor]]] = [[], []]
    for call in calls:
        with layers.recording(model, call), keras.StatelessScope():
            model(tf.constant(x), training=True)
    for (name, one), (_, other) in zip(*calls, strict=False):
        yield name, _same(one, other, 0)
    yield model.name, False


def _same(ours: tf.Tensor, expected: tf.Tensor, rounding: float) -> bool:
    ours, expected = (np.asarray(tf.cast(tensor, tf.float64)) for tensor in (ours, expected))
    if not rounding:
        return np.array_equal(ours, expected, equal_nan=True)
    finite = np.isfinite(expected)  # a model may overflow on random numbers
    return bool(np.linalg.norm((ours - expected)[finite]) <= rounding * np.linalg.norm(expected[finite]) + 1e-9)


def compare(network: "Network") -> list[str]:
    """Compares a network with its model on a random batch: outputs and gradients, at the model's weights and at others.

    Returns:
      The layers that run task after task although the network is stacked.

    Raises:
      ValueError: they differ; the message names the first layer that does.
    """
    model, facts = network.model, network.facts
    x = _random_batch(model, facts.input_shape)
    rounding = max(ROUNDING.get(layer.compute_dtype, 0) for layer in model._flatten_layers())
    seeds = [tf.stack([state.value for state in facts.random])] if facts.random else []

    def computing(only: Callable[[keras.Layer], bool]) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        def outputs_and_gradient(weights: tf.Tensor, *seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                outputs, penalties, *_ = network.call(weights, x / network.scale, *(seeds or [None]), only=only)
                objective = _objective(outputs, penalties, network.dtype)
            gradient = tape.gradient(objective, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return tf.cast(outputs, network.dtype), gradient

        return outputs_and_gradient

    call = _PlainCall(model, x)
    gradients = [
        tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
        for g, v in zip(call.gradients, network.trainable, strict=True)
    ]
    plain = tf.cast(call.outputs, network.dtype), network.flatten(gradients)
    weights = network.flatten([variable.value for variable in network.trainable])
    others = weights * (1 + 0.1 * tf.constant(np.random.default_rng(2).normal(size=network.size), network.dtype))
    expected = plain, computing(only=lambda layer: False)(others, *seeds)
    rows = [tf.stack([weights, others]), *(tf.stack([state, state]) for state in seeds)]
    with loops_noted() as kinds:
        ours = _each_row(network, computing(only=lambda layer: True), rows)
    if not all(_same(*pair, rounding) for row in range(2) for pair in zip(ours[row], expected[row], strict=True)):
        for layer in model._flatten_layers():
            here = computing(only=lambda one, layer=layer: one is layer)(weights, *seeds)
            if not all(_same(*pair, rounding) for pair in zip(here, plain, strict=True)):
                raise ValueError(
                    f"{layer.name}, a {type(layer).__name__}, would compute something else here: please report it"
                )
        raise ValueError(
            f"{model.name} computes something else with other weights in place of its own: "
            f"{_first_unmoved(network, computing, plain, rounding)} is not reached; leave out any tf.function in it"
        )
    operations = _operations(model, lambda: network.call(weights, x, None)) if kinds else []
    return sorted({name for kind, name in operations if kind in kinds} or kinds)


def _each_row(network: "Network", function: Callable, rows: list[tf.Tensor]) -> list[tuple[tf.Tensor, ...]]:
    """What a function of one task gives for each of two."""
    if not network.stacked:
        return [function(*(stack[row] for stack in rows)) for row in range(2)]
    try:
        return list(zip(*network.each(function, *rows), strict=True))
    except Exception as error:  # tf.vectorized_map and the model may raise anything
        line = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"the model does not run on several tasks at once ({type(error).__name__}: {line}): leave out stacked=True"
        ) from error


def _first_unmoved(network: "Network", computing: Callable, plain: tuple, rounding: float) -> str:
    """The path of the first variable whose gradient differs though no layer computes in another way."""
    weights = network.flatten([variable.value for variable in network.trainable])
    seeds = [tf.stack([state.value for state in network.facts.random])] if network.facts.random else []
    _, gradient = computing(only=lambda layer: False)(weights, *seeds)
    parts = zip(network.trainable, network.unflatten(gradient), network.unflatten(plain[1]), strict=True)
    return next((v.path for v, ours, theirs in parts if not _same(ours, theirs, rounding)), "a weight")


@contextlib.contextmanager
def loops_noted() -> Iterator[set[str]]:
    """Collects what tf.vectorized_map says of operations for which it has no rule, instead of letting it be logged."""
    kinds: set[str] = set()

    def note(record: logging.LogRecord) -> bool:
        found = re.match(r"Using a while_loop for converting (\w+)|(\w+) uses a while_loop", record.getMessage())
        if found:
            kinds.add(re.sub("Backprop(Filter|Input)|Native|Grad$", "", found[1] or found[2]))
        return not found

    logger = tf.get_logger()
    logger.addFilter(note)
    try:
        yield kinds
    finally:
        logger.removeFilter(note)
