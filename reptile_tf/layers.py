"""Stock Keras layers, computed another way where the inner loop needs it.

The subclasses add no weights and no settings: a model is built, saved and exported with the stock layers, and only the
copy that the inner loop computes with holds these.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over the batch at hand by TensorFlow's fused kernel; Keras uses about ten separate ops."""

    def call(self, inputs, training=None, mask=None):
        """Float32 [batch, height, width, channel] to the same shape; the moving averages are neither read nor kept."""
        outputs, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        return outputs


class PairwiseMaxPooling2D(keras.layers.MaxPooling2D):
    """Max-pooling of 2x2 windows that do not overlap, with a gradient that XLA compiles.

    TensorFlow's own gradient looks for the maxima again, one window at a time: 16.6 ms for 10 images of 84x84 with 32
    channels on one core, where their convolution takes 7.5 ms.
    """

    def call(self, inputs):
        """Floatx [batch, height, width, channel] to half the height and width, rounded up."""
        return _max_pool(inputs)


@tf.custom_gradient
def _max_pool(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    pooled = tf.nn.max_pool2d(x, 2, 2, "SAME")
    return pooled, lambda gradient: _max_pool_gradient(x, pooled, gradient)


@tf.function(jit_compile=True)
def _max_pool_gradient(x: tf.Tensor, pooled: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Each window's gradient goes to its maximum, and to the first of several: the same numbers as TensorFlow's own."""
    (height, width, channels), (rows, columns) = x.shape[1:], pooled.shape[1:3]
    x = tf.pad(x, [(0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0)], constant_values=-np.inf)
    windows = tf.reshape(x, [-1, rows, 2, columns, 2, channels])
    place = tf.reshape([[0, 1], [2, 3]], [1, 1, 2, 1, 2, 1])
    candidates = tf.where(windows == pooled[:, :, tf.newaxis, :, tf.newaxis], place, 4)
    first = place == tf.reduce_min(candidates, axis=[2, 4], keepdims=True)
    spread = tf.where(first, gradient[:, :, tf.newaxis, :, tf.newaxis], tf.zeros([], x.dtype))
    return tf.reshape(spread, [-1, 2 * rows, 2 * columns, channels])[:, :height, :width]


class MatmulConv2D(keras.layers.Conv2D):
    """A convolution as patches times one matrix, which tf.vectorized_map can stack over one kernel per task.

    tf.vectorized_map has no rule for Conv2D with a kernel that differs from task to task.
    """

    def convolution_op(self, inputs, kernel):
        """[batch, height, width, channel] and [rows, columns, channel, filter] to [batch, height', width', filter]."""
        rows, columns, channels, filters = kernel.shape
        row_stride, column_stride = self.strides
        if self.padding == "same":
            pads = [_same_padding(*axis) for axis in zip(inputs.shape[1:3], (rows, columns), self.strides, strict=True)]
            inputs = tf.pad(inputs, [(0, 0), *pads, (0, 0)])
        height = (inputs.shape[1] - rows) // row_stride + 1
        width = (inputs.shape[2] - columns) // column_stride + 1
        patches = tf.concat(
            [
                inputs[
                    :,
                    row : row + (height - 1) * row_stride + 1 : row_stride,
                    column : column + (width - 1) * column_stride + 1 : column_stride,
                ]
                for row in range(rows)
                for column in range(columns)
            ],
            axis=-1,
        )
        flat = tf.reshape(patches, [-1, rows * columns * channels])
        return tf.reshape(flat @ tf.reshape(kernel, [-1, filters]), [-1, height, width, filters])


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding (before, after) of one axis: the odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def inner_loop_copy(model: keras.Model, stacked: bool) -> keras.Model:
    """A copy of `model` with the same weight list, computing with the layers above wherever they serve.

    Args:
      model: a built Keras model. Sequential and functional models are copied; a subclassed model is returned as it is.
      stacked: whether the copy is to run under tf.vectorized_map and XLA (which fuses batch norm by itself).

    Raises:
      ValueError: convolutions of a subclassed model, to be stacked.
    """
    kinds = _STACKED if stacked else _BRANCHES

    def copied(layer: keras.Layer) -> keras.Layer:
        kind = next((kind for kind, fits in kinds.items() if fits(layer)), type(layer))
        return kind.from_config(layer.get_config())

    if type(model).__name__ not in ("Sequential", "Functional"):  # Keras gives the second no public name
        if stacked and any(isinstance(layer, keras.layers.Conv2D) for layer in model._flatten_layers()):
            raise ValueError(
                "convolutions of a subclassed model cannot be stacked: use a functional model, or branches"
            )
        return model
    return keras.models.clone_model(model, clone_function=copied)


def _fits_fused(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.BatchNormalization
        and len(layer.input.shape) == 4
        and layer.axis in (-1, 3)
        and layer.center
        and layer.scale
        and layer.compute_dtype == "float32"  # the kernel has no float64
    )


def _fits_matmul(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.Conv2D
        and layer.data_format == "channels_last"
        and layer.groups == 1
        and tuple(layer.dilation_rate) == (1, 1)
        and None not in layer.input.shape[1:3]
    )


def _fits_pairwise(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.MaxPooling2D
        and layer.data_format == "channels_last"
        and (tuple(layer.pool_size), tuple(layer.strides)) == ((2, 2), (2, 2))
        and None not in layer.input.shape[1:3]
        and (layer.padding == "same" or not any(size % 2 for size in layer.input.shape[1:3]))
    )


_STACKED = {MatmulConv2D: _fits_matmul}
_BRANCHES = {FusedBatchNormalization: _fits_fused, PairwiseMaxPooling2D: _fits_pairwise}
