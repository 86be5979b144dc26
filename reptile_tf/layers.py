"""Other ways to compute single layers while a model is traced, each with the condition for giving the same numbers.

Nothing here replaces a layer: `standing_in` sets `call` or `convolution_op` on the instances of the user's own model,
and takes it off again, so that weights, state, names and saved files stay the model's.
"""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

ONE_AT_A_TIME = threading.RLock()  # two threads may trace the same model
_LEFT_OUT = "_reptile_left_out_bias"


@contextlib.contextmanager
def standing_in(
    model: keras.Model,
    *,
    stacked: bool = False,
    classifying: bool = False,
    only: Callable[[keras.Layer], bool] = lambda layer: True,
) -> Iterator[None]:
    """Lets single layers of a model compute another way in the body of a `with` statement.

    Args:
      model: a built Keras model of any kind; nested layers are found.
      stacked: for tf.vectorized_map over the weights of several tasks, and XLA.
      classifying: random layers are off, as Keras has them at inference, while batch norm goes on using the batch.
      only: which layers may compute another way.
    """
    with ONE_AT_A_TIME, contextlib.ExitStack() as undo:
        idle = {id(layer) for layer in idle_biases(model)}
        for layer in filter(only, model._flatten_layers()):
            found: dict[str, Any] = (
                {"call": batch_norm(layer, stacked)} if type(layer) is keras.layers.BatchNormalization else {}
            )
            if stacked and _is_matmul(layer):
                found["convolution_op"] = _matmul(layer)
            if stacked and type(layer) is keras.layers.MaxPooling2D and layer.data_format == "channels_last":
                found["call"] = _max_pooling(layer)
            if stacked and isinstance(layer, keras.layers.RNN):
                found["unroll"] = True  # XLA cannot compile tf.vectorized_map's form of the loop
            if id(layer) in idle:
                found["call"] = _without_bias(layer)
            if classifying and layer._seed_generators:
                found["call"] = _without_randomness(layer)
            for attribute, value in found.items():
                undo.enter_context(_set(layer, attribute, value))
        yield


@contextlib.contextmanager
def recording(model: keras.Model, outputs: list[tuple[str, tf.Tensor]]) -> Iterator[None]:
    """Adds to `outputs` the name and output of each layer that runs in the body of a `with` statement, in order."""

    def recorded(layer: keras.Layer) -> Callable:
        stock = layer.call

        @functools.wraps(stock)
        def call(*args, **kwargs):
            result = stock(*args, **kwargs)
            outputs.extend((layer.name, part) for part in keras.tree.flatten(result) if tf.is_tensor(part))
            return result

        return call

    with ONE_AT_A_TIME, contextlib.ExitStack() as undo:
        for layer in model._flatten_layers(include_self=False):
            undo.enter_context(_set(layer, "call", recorded(layer)))
        yield


@contextlib.contextmanager
def _set(layer: keras.Layer, attribute: str, value: Any) -> Iterator[None]:
    # Past Keras's __setattr__, which would track it; and back to what the user may have set himself.
    own = layer.__dict__.get(attribute)
    object.__setattr__(layer, attribute, value)
    try:
        yield
    finally:
        object.__delattr__(layer, attribute)
        if own is not None:
            object.__setattr__(layer, attribute, own)


def batch_norm(layer: keras.layers.BatchNormalization, stacked: bool) -> Callable:
    """Batch norm over the batch at hand: by TensorFlow's fused kernel, or so that it can be differentiated twice.

    Keras takes some ten operations, which cost a CPU dearly (XLA fuses them by itself). It has the variance from
    tf.nn.moments, which keeps the mean inside from being differentiated: no matter for first derivatives, since
    deviations sum up to zero, but second ones, which MAML needs, come out wrong.

    The same as Keras's own where that uses the batch, at full precision, without masks. Elsewhere Keras's own runs.
    """
    stock = layer.call

    def call(inputs, training=None, mask=None):
        over_batch = training and layer.trainable and not layer.renorm
        if over_batch and mask is None and inputs.dtype in (tf.float32, tf.float64):
            last = layer.axis in (-1, len(inputs.shape) - 1)
            if not stacked and inputs.dtype == tf.float32 and len(inputs.shape) == 4 and last:
                return _fused(layer, inputs)
            return _twice_differentiable(layer, inputs)
        bias = getattr(inputs, _LEFT_OUT, None)
        return stock(inputs if bias is None else inputs + bias, training=training, mask=mask)

    return call


def _fused(layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
    channels = inputs.shape[-1]
    outputs, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma if layer.scale else tf.ones([channels]),
        offset=layer.beta if layer.center else tf.zeros([channels]),
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
        is_training=True,
    )
    return tf.cast(outputs, layer.compute_dtype)


def _twice_differentiable(layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
    axis = layer.axis % len(inputs.shape)
    others = [i for i in range(len(inputs.shape)) if i != axis]
    along = [-1 if i == axis else 1 for i in range(len(inputs.shape))]
    deviations = inputs - tf.reduce_mean(inputs, others, keepdims=True)
    variance = tf.reduce_mean(deviations * deviations, others, keepdims=True)
    outputs = deviations * tf.math.rsqrt(variance + layer.epsilon)
    if layer.scale:
        outputs *= tf.reshape(tf.cast(layer.gamma, outputs.dtype), along)
    if layer.center:
        outputs += tf.reshape(tf.cast(layer.beta, outputs.dtype), along)
    return tf.cast(outputs, layer.compute_dtype)


def _without_bias(layer: keras.layers.Conv2D) -> Callable:
    """A convolution without its bias; the same where batch norm takes the bias off again (see `idle_biases`).

    Adding the bias and summing up its gradient, zero but for rounding, is a tenth of a step of Mini-ImageNet's network.
    A batch norm that runs on its moving averages after all gets the bias back: it travels with the outputs.
    """

    def call(inputs):
        outputs = layer.convolution_op(inputs, layer.kernel)
        along = [1, -1, 1, 1] if layer.data_format == "channels_first" else [1, 1, 1, -1]
        setattr(outputs, _LEFT_OUT, tf.reshape(tf.convert_to_tensor(layer.bias), along))
        return outputs

    return call


def idle_biases(model: keras.Model) -> list[keras.Layer]:
    """The convolutions of a model whose outputs all go to batch norms over their channels, and nowhere else.

    Convolutions inside a subclassed model's `call` are in no graph that Keras knows, and keep their bias.
    """
    followers: dict[int, list[Any]] = {}
    for part in model._flatten_layers():
        graph = getattr(part, "_functional", None) or part  # of a Sequential; a functional model is its own
        nodes = [node for level in getattr(graph, "_nodes_by_depth", {}).values() for node in level]
        for node in nodes:
            for tensor in node.input_tensors:
                followers.setdefault(id(tensor._keras_history.operation), []).append(node.operation)
        for tensor in keras.tree.flatten(graph.outputs) if nodes else ():
            followers.setdefault(id(tensor._keras_history.operation), []).append(None)

    def is_idle(layer: keras.Layer) -> bool:
        if (
            type(layer) is not keras.layers.Conv2D
            or not layer.use_bias
            or layer.activation is not keras.activations.linear
            or layer.activity_regularizer is not None
        ):
            return False
        channels = 1 if layer.data_format == "channels_first" else 3
        return id(layer) in followers and all(
            type(follower) is keras.layers.BatchNormalization
            and follower.axis in (channels, channels - 4)
            and follower.compute_dtype == layer.compute_dtype  # else it gets a cast copy, and no bias with it
            for follower in followers[id(layer)]
        )

    return [layer for layer in model._flatten_layers() if is_idle(layer)]


def _is_matmul(layer: keras.Layer) -> bool:
    """Whether a layer is a convolution that is the same as patches times one matrix."""
    return (
        type(layer) is keras.layers.Conv2D
        and layer.data_format == "channels_last"
        and layer.groups == 1
        and tuple(layer.dilation_rate) == (1, 1)
    )


def _matmul(layer: keras.layers.Conv2D) -> Callable:
    """A convolution as patches times one matrix, which tf.vectorized_map can stack over one kernel per task.

    tf.vectorized_map has no rule for Conv2D with a kernel that differs from task to task.
    """
    stock = layer.convolution_op

    def convolution_op(inputs, kernel):
        if None in inputs.shape[1:3]:
            return stock(inputs, kernel)
        return patches_times_kernel(inputs, kernel, layer.strides, layer.padding)

    return convolution_op


def _max_pooling(layer: keras.layers.MaxPooling2D) -> Callable:
    """Max pooling as the maximum of strided slices, one for each place in the window.

    Its gradient is deterministic under XLA on a GPU, too, where TensorFlow's MaxPool has none such. Of places with the
    same maximum, the first gets the gradient, as with TensorFlow's.
    """
    stock = layer.call

    def call(inputs):
        if None in inputs.shape[1:3]:
            return stock(inputs)
        if layer.padding == "same":
            pads = [
                _same_padding(*axis) for axis in zip(inputs.shape[1:3], layer.pool_size, layer.strides, strict=True)
            ]
            inputs = tf.pad(inputs, [(0, 0), *pads, (0, 0)], constant_values=inputs.dtype.min)
        return functools.reduce(tf.maximum, windows(inputs, layer.pool_size, layer.strides))

    return call


def windows(inputs: tf.Tensor, size: tuple[int, int], strides: tuple[int, int]) -> list[tf.Tensor]:
    """What lies at each place of a sliding window: [batch, height, width, channel] to [batch, height', width', …]."""
    (rows, columns), (row_stride, column_stride) = size, strides
    height = (inputs.shape[1] - rows) // row_stride + 1
    width = (inputs.shape[2] - columns) // column_stride + 1
    return [
        inputs[
            :,
            row : row + (height - 1) * row_stride + 1 : row_stride,
            column : column + (width - 1) * column_stride + 1 : column_stride,
        ]
        for row in range(rows)
        for column in range(columns)
    ]


def patches_times_kernel(inputs: tf.Tensor, kernel: tf.Tensor, strides: tuple[int, int], padding: str) -> tf.Tensor:
    """[batch, height, width, channel] and [rows, columns, channel, filter] to [batch, height', width', filter]."""
    inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
    rows, columns, channels, filters = kernel.shape
    if padding == "same":
        pads = [_same_padding(*axis) for axis in zip(inputs.shape[1:3], (rows, columns), strides, strict=True)]
        inputs = tf.pad(inputs, [(0, 0), *pads, (0, 0)])
    patches = tf.concat(windows(inputs, (rows, columns), strides), axis=-1)
    flat = tf.reshape(patches, [-1, rows * columns * channels])
    return tf.reshape(flat @ tf.reshape(kernel, [-1, filters]), [-1, *patches.shape[1:3], filters])


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding (before, after) of one axis: the odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _without_randomness(layer: keras.Layer) -> Callable:
    stock = layer.call
    if "training" not in inspect.signature(stock).parameters:
        return stock  # random at inference, too, as the user made it

    def call(*args, **kwargs):
        return stock(*args, **(kwargs | {"training": False}))

    return call
