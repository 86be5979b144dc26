"""Compares a network with its Keras model on random batches, when the network is constructed."""

import contextlib
import functools
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from reptile_tf.examine import (
    ModelError,
    Operation,
    PlainCall,
    in_one_line,
    objective,
    operations_of,
    random_batch,
    same,
)

if TYPE_CHECKING:
    from reptile_tf.network import Network

# The relative difference ‖difference‖ / ‖value‖ that rounding may cause, by the compute dtype of a layer.
ROUNDING = {"float64": 1e-8, "float32": 2e-3, "float16": 5e-2, "bfloat16": 2e-1}
# Some models amplify rounding, for example batch norm over a few nearly equal values. If changing the weights by UNITS
# units in the last place changes the model's own results, MORE times that change is tolerated.
UNITS, MORE = 4, 10
# Rounding may cross a kink of ReLU or max pooling, where gradients jump. The Mini-ImageNet network does so on one batch
# in thirty. A network that really differs does so on all batches.
BATCHES = 4
# Operations whose output size depends on values; XLA pads their outputs.
_SIZED_BY_VALUES = re.compile("Where|Unique.*|ListDiff|DynamicPartition|NonMaxSuppression.*")


class Results(NamedTuple):
    """The results to compare: the outputs [batch, ...], and the gradient [weight] of `examine.objective`."""

    outputs: tf.Tensor
    gradient: tf.Tensor


def compare(network: "Network") -> list[str]:
    """Compares a network with its model, at the model's weights and at other weights.

    Returns:
      The names of layers that run one task after another although the network is stacked.

    Raises:
      ModelError: the network cannot be computed, or its results differ; the message names the first layer that differs.
    """
    try:
        _check_constraints(network)
        for seed in range(BATCHES - 1):
            if (in_turn := _compare(network, seed, is_last=False)) is not None:
                return in_turn
        return _compare(network, BATCHES - 1, is_last=True) or []
    except ModelError:
        raise
    except Exception as error:  # a model may raise anything
        raise ModelError(
            f"the model cannot be called with a task's weights in place of its own: {in_one_line(error)}"
        ) from error


def _check_constraints(network: "Network") -> None:
    for variable in network.trainable:
        if variable.constraint is None:
            continue
        weights = tf.convert_to_tensor(variable.value)
        try:
            once, again = (variable.constraint(weights) for _ in range(2))
            tf.function(variable.constraint, autograph=False).get_concrete_function(weights)
        except Exception as error:  # a user's constraint may raise anything
            raise ModelError(
                f"the constraint of {variable.path} must be a function of a tensor that runs in a graph: "
                f"{in_one_line(error)}"
            ) from error
        if not same(once, again, 0):
            raise ModelError(f"the constraint of {variable.path} returns different values at every call: leave it out")


def _compare(network: "Network", seed: int, is_last: bool) -> list[str] | None:
    """Does `compare` on one batch; returns None if the results differ and the batch is not the last."""
    model, x = network.model, random_batch(network.model, network.facts.input_shape, seed)
    rounding = max(ROUNDING.get(layer.compute_dtype, 0) for layer in model._flatten_layers())
    weights = network.flatten([variable.value for variable in network.trainable])
    others = weights * (1 + 0.1 * tf.constant(np.random.default_rng(2).normal(size=network.size), network.dtype))
    seeds = [tf.stack([state.value for state in network.facts.random])] if network.facts.random else []

    def computing(only: Callable[[keras.Layer], bool]) -> Callable[..., Results]:
        """Makes a function of one task's weights, batch and seeds in which `only` some layers use alternatives."""

        def results(weights: tf.Tensor, x: tf.Tensor, *seeds: tf.Tensor) -> Results:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                outputs, penalties, *_ = network.call(weights, x, *(seeds or [None]), only=only)
                value = objective(outputs, penalties, network.dtype)
            gradient = tape.gradient(value, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return Results(tf.cast(outputs, network.dtype), gradient)

        return results

    every, none = computing(lambda layer: True), computing(lambda layer: False)
    _check_seeds(network, weights, x, seeds)
    plain = _of_the_model(network, x)
    given = [tf.constant(x) if network.scale == 1 else tf.constant(x / network.scale), *seeds]
    elsewhere = none(others, *given)
    rows = [(weights, *given), (others, *given)]
    with loops_noted() as kinds:
        ours = _each(network, every, rows)
    if not (_agree(ours[0], plain, rounding) and _agree(ours[1], elsewhere, rounding)):
        signs = tf.constant(np.random.default_rng(3).choice([-1, 1], network.size), network.dtype)
        for where, there in (weights, none(weights, *given)), (others, elsewhere):
            moved = none(where * (1 + signs * UNITS * np.finfo(network.dtype.as_numpy_dtype).eps), *given)
            rounding = max(rounding, *(MORE * _difference(*pair) for pair in zip(moved, there, strict=True)))
    if _agree(ours[0], plain, rounding) and _agree(ours[1], elsewhere, rounding):
        operations = _operations(network, weights, x) if network.stacked else []
        _check_for_xla(model, operations)
        if network.stacked:
            _check_that_xla_compiles(network, every, rows)
        return sorted({layer for kind, _, layer in operations if kind in kinds} or kinds)
    if not is_last:
        return None
    if not _agree(found := none(weights, *given), plain, rounding):
        raise ModelError(
            f"{_first_path(network, found, plain, rounding)} cannot be replaced by a task's weights: leave out the "
            "tf.function around it, which keeps the weights with which it was traced"
        )
    for layer in model._flatten_layers():
        alone = computing(functools.partial(operator.is_, layer))
        if not _agree(alone(weights, *given), plain, rounding):
            raise ModelError(f"{layer.name}, a {type(layer).__name__}, would compute something else: please report it")
    raise ModelError(f"{model.name} would compute something else for several tasks at once: leave out stacked=True")


def _check_for_xla(model: keras.Model, operations: list[Operation]) -> None:
    """Raises ModelError for operations that XLA computes differently."""
    with_generator = {layer.name for layer in model._flatten_layers() if layer._seed_generators}
    for kind, _, layer in operations:
        if kind.startswith("StatelessRandom") and layer not in with_generator:
            raise ModelError(f"{layer} has a fixed seed, and XLA draws other numbers from it: leave out stacked=True")
        if _SIZED_BY_VALUES.fullmatch(kind):
            raise ModelError(
                f"{layer} has a {kind}, whose output size depends on values; XLA does not support this: leave out "
                "stacked=True"
            )


def not_differentiable_twice(network: "Network") -> list[str]:
    """Returns the names of the layers with wrong second derivatives.

    tf.nn.moments stops the gradient through the mean in the variance, which leaves only first derivatives right.
    """
    weights, x = tf.zeros(network.size, network.dtype), random_batch(network.model, network.facts.input_shape)
    operations = _operations(network, weights, x)
    return sorted({one.layer for one in operations if re.search(r"\bmoments(_\d+)?/StopGradient", one.name)})


def _operations(network: "Network", weights: tf.Tensor, x: np.ndarray) -> list[Operation]:
    return operations_of(network.model, lambda weights, x: network.call(weights, x, None)[0], weights, tf.constant(x))


def _check_that_xla_compiles(
    network: "Network", function: Callable[..., Results], rows: list[tuple[tf.Tensor, ...]]
) -> None:
    stacks = [tf.stack(parts) for parts in zip(*rows, strict=True)]
    compiled = tf.function(lambda *stacks: network.each(function, *stacks), autograph=False, jit_compile=True)
    try:
        with warnings.catch_warnings():
            # TensorFlow warns of device_name, but without it draws a random number to find the device.
            warnings.simplefilter("ignore")
            compiled.experimental_get_compiler_ir(*stacks)(stage="hlo", device_name=stacks[0].device)
    except (ValueError, tf.errors.OpError) as error:
        raise ModelError(not_compiled(error)) from error


def not_compiled(error: Exception) -> str:
    """Returns a one-line message for an error of XLA."""
    found = re.search(r"on XLA_\w+: (\w+)", str(error))
    return f"XLA cannot compile this network ({found[1] if found else in_one_line(error)}): leave out stacked=True"


def _check_seeds(network: "Network", weights: tf.Tensor, x: np.ndarray, seeds: list[tf.Tensor]) -> None:
    """Raises ModelError unless every random generator draws from the given seeds instead of the model's."""
    for before in seeds:
        *_, after = network.call(weights, x / network.scale, before)
        for variable, one, other in zip(network.facts.random, before.numpy(), after.numpy(), strict=True):
            if (one == other).all():
                raise ModelError(
                    f"{variable.path} cannot be replaced by a task's seed: leave out the tf.function around it"
                )


def _of_the_model(network: "Network", x: np.ndarray) -> Results:
    call = PlainCall(network.model, x)
    pairs = zip(call.gradients, network.trainable, strict=True)
    gradients = [tf.zeros(v.shape, network.dtype) if g is None else tf.convert_to_tensor(g) for g, v in pairs]
    return Results(tf.cast(call.outputs, network.dtype), network.flatten(gradients))


def _each(network: "Network", function: Callable[..., Results], rows: list[tuple[tf.Tensor, ...]]) -> list[Results]:
    """Applies a function of one task to each row; if the network is stacked, to all rows together."""
    if not network.stacked:
        return [function(*row) for row in rows]
    try:
        stacks = network.each(function, *map(tf.stack, zip(*rows, strict=True)))
    except Exception as error:  # tf.vectorized_map and the model may raise anything
        raise ModelError(
            f"the model cannot run on several tasks at once ({in_one_line(error)}): leave out stacked=True"
        ) from error
    return [Results(*(stack[i] for stack in stacks)) for i in range(len(rows))]


def _difference(ours: tf.Tensor, expected: tf.Tensor) -> float:
    size = float(tf.norm(expected))
    return float(tf.norm(ours - expected)) / size if size else 0.0


def _agree(ours: Results, expected: Results, rounding: float) -> bool:
    return all(same(a, b, rounding) for a, b in zip(ours, expected, strict=True))


def _first_path(network: "Network", ours: Results, expected: Results, rounding: float) -> str:
    """Returns the path of the first variable whose gradient differs."""
    parts = zip(network.trainable, network.unflatten(ours.gradient), network.unflatten(expected.gradient), strict=True)
    return next((variable.path for variable, a, b in parts if not same(a, b, rounding)), "a weight")


@contextlib.contextmanager
def loops_noted() -> Iterator[set[str]]:
    """Collects the operations for which tf.vectorized_map has no rule, and keeps its warnings out of the log."""
    kinds: set[str] = set()

    def note(record: logging.LogRecord) -> bool:
        found = re.match(r"Using a while_loop for converting (\w+)|(\w+) uses a while_loop", record.getMessage())
        if found:
            kinds.add(re.sub("Backprop(Filter|Input)|Native|Grad$", "", found[1] or found[2]))
        return not found and record.levelno >= level

    logger = tf.get_logger()
    level = logger.getEffectiveLevel()
    logger.addFilter(note)
    logger.setLevel(logging.DEBUG)  # the level of most of these messages
    try:
        yield kinds
    finally:
        logger.setLevel(level)
        logger.removeFilter(note)
