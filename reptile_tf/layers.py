"""Alternative implementations of single layers for use while a model is traced, and where each one is equivalent.

No layer is replaced: `standing_in` sets `call` or `convolution_op` on the layers of the user's model and removes it
again. Weights, state, names and saved files therefore remain the model's own.
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
    """Sets the alternative implementations of a model's layers in the body of a `with` statement.

    Args:
      model: a built Keras model of any kind. Nested layers are included.
      stacked: use the implementations for tf.vectorized_map over the weights of several tasks, and for XLA.
      classifying: turn random layers off, as Keras does at inference. Batch norm still uses the batch.
      only: returns whether a layer may change its implementation.
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
    """Appends to `outputs` the name and output of each layer that runs in the body of a `with` statement, in order."""

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
    # Bypasses Keras's __setattr__, which would track the value, and restores any attribute that the user has set.
    own = layer.__dict__.get(attribute)
    object.__setattr__(layer, attribute, value)
    try:
        yield
    finally:
        object.__delattr__(layer, attribute)
        if own is not None:
            object.__setattr__(layer, attribute, own)


def batch_norm(layer: keras.layers.BatchNormalization, stacked: bool) -> Callable:
    """Returns a `call` that normalizes over the batch, by TensorFlow's fused kernel or in a twice differentiable form.

    Keras's batch norm takes about ten operations, which are slow on a CPU (XLA fuses them). Keras computes the variance
    by tf.nn.moments, which stops the gradient through the mean. First derivatives are right all the same, because the
    deviations sum to zero, but the second derivatives that MAML needs are wrong.

    The alternative equals Keras's implementation for training over an unmasked float32 or float64 batch. In all other
    cases Keras's implementation runs.
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
    """Returns a `call` that leaves out the bias, which the following batch norm would subtract (see `idle_biases`).

    Adding the bias, and summing its gradient (zero except for rounding), takes a tenth of an inner step of the
    Mini-ImageNet network. The bias is attached to the outputs, for a batch norm that uses its moving averages.
    """

    def call(inputs):
        outputs = layer.convolution_op(inputs, layer.kernel)
        along = [1, -1, 1, 1] if layer.data_format == "channels_first" else [1, 1, 1, -1]
        setattr(outputs, _LEFT_OUT, tf.reshape(tf.convert_to_tensor(layer.bias), along))
        return outputs

    return call


def idle_biases(model: keras.Model) -> list[keras.Layer]:
    """Returns the convolutions of a model whose outputs go only to batch norms over their channels.

    Keras has no graph of a subclassed model's `call`, so convolutions inside it keep their bias.
    """
    followers: dict[int, list[Any]] = {}
    for part in model._flatten_layers():
        graph = getattr(part, "_functional", None) or part  # a Sequential has one; a functional model is one
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
            and follower.compute_dtype == layer.compute_dtype  # a cast copy would lose the attached bias
            for follower in followers[id(layer)]
        )

    return [layer for layer in model._flatten_layers() if is_idle(layer)]


def _is_matmul(layer: keras.Layer) -> bool:
    """Returns whether a layer is a convolution that equals patches times one matrix."""
    return (
        type(layer) is keras.layers.Conv2D
        and layer.data_format == "channels_last"
        and layer.groups == 1
        and tuple(layer.dilation_rate) == (1, 1)
    )


def _matmul(layer: keras.layers.Conv2D) -> Callable:
    """Returns a `convolution_op` that multiplies patches by one matrix.

    tf.vectorized_map can stack the product over one kernel per task; it has no such rule for Conv2D.
    """
    stock = layer.convolution_op

    def convolution_op(inputs, kernel):
        if None in inputs.shape[1:3]:
            return stock(inputs, kernel)
        return patches_times_kernel(inputs, kernel, layer.strides, layer.padding)

    return convolution_op


def _max_pooling(layer: keras.layers.MaxPooling2D) -> Callable:
    """Returns a `call` that takes the maximum of strided slices, one slice for each position in the window.

    Its gradient is deterministic under XLA on a GPU, which that of TensorFlow's MaxPool is not. If several positions
    share the maximum, the first one gets the gradient, as in TensorFlow.
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
    """Returns, for each position in a sliding window, the values there for all places of the window.

    Args:
      inputs: [batch, height, width, channel], of static height and width.
      size: height and width of the window.
      strides: vertical and horizontal stride.

    Returns:
      One [batch, height', width', channel] for each position, row by row.
    """
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
    """Convolves by a matrix product of patches and kernel.

    Args:
      inputs: [batch, height, width, channel], of static height and width.
      kernel: [rows, columns, channel, filter].
      strides: vertical and horizontal stride.
      padding: "valid" or "same".

    Returns:
      [batch, height', width', filter], in the inputs' dtype.
    """
    inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
    rows, columns, channels, filters = kernel.shape
    if padding == "same":
        pads = [_same_padding(*axis) for axis in zip(inputs.shape[1:3], (rows, columns), strides, strict=True)]
        inputs = tf.pad(inputs, [(0, 0), *pads, (0, 0)])
    patches = tf.concat(windows(inputs, (rows, columns), strides), axis=-1)
    flat = tf.reshape(patches, [-1, rows * columns * channels])
    return tf.reshape(flat @ tf.reshape(kernel, [-1, filters]), [-1, *patches.shape[1:3], filters])


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns TensorFlow's "same" padding (before, after) of one axis; the odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _without_randomness(layer: keras.Layer) -> Callable:
    stock = layer.call
    if "training" not in inspect.signature(stock).parameters:
        return stock  # the user's layer is random at inference too

    def call(*args, **kwargs):
        return stock(*args, **(kwargs | {"training": False}))

    return call
