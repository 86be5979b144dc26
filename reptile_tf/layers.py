"""Stock Keras layers, computed another way where the inner loop needs it.

The subclasses add no weights and no settings: a model is built, saved and exported with the stock layers, and only the
copy that the inner loop computes with holds these.
"""

import keras
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


class SmoothBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over the batch at hand that can be differentiated twice, as second-order MAML needs.

    Keras takes the variance by tf.nn.moments, which keeps the mean inside it from being differentiated: no matter for
    first derivatives, since deviations sum up to zero, but second ones come out wrong.
    """

    def call(self, inputs, training=None, mask=None):
        """Floatx [batch, ...] to the same shape; the moving averages are neither read nor kept."""
        axis = self.axis % len(inputs.shape)
        others = [i for i in range(len(inputs.shape)) if i != axis]
        along = [-1 if i == axis else 1 for i in range(len(inputs.shape))]
        deviations = inputs - tf.reduce_mean(inputs, others, keepdims=True)
        variance = tf.reduce_mean(deviations * deviations, others, keepdims=True)
        outputs = deviations * tf.math.rsqrt(variance + self.epsilon)
        if self.scale:
            outputs *= tf.reshape(self.gamma, along)
        if self.center:
            outputs += tf.reshape(self.beta, along)
        return outputs


class UnbiasedConv2D(keras.layers.Conv2D):
    """A convolution in front of a batch norm, which takes its bias off again: the bias is left out, and never moves.

    Adding the bias and summing up its gradient, zero but for rounding, is a tenth of a step of Mini-ImageNet's network.
    """

    def call(self, inputs):
        """Floatx [batch, height, width, channel] to [batch, height', width', filter]."""
        return self.convolution_op(inputs, self.kernel)


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
        _is_batch_norm(layer)
        and len(layer.input.shape) == 4
        and layer.axis in (-1, 3)
        and layer.center
        and layer.scale
        and layer.compute_dtype == "float32"  # the kernel has no float64
    )


def _is_batch_norm(layer: keras.Layer) -> bool:
    """Whether a layer is a batch norm of images or features over the batch at hand, at full precision."""
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.trainable  # else Keras uses the moving averages
        and len(layer.input.shape) in (2, 4)  # sequences may have masks
        and layer.compute_dtype in ("float32", "float64")
    )


def not_differentiable_twice(model: keras.Model) -> list[str]:
    """The names of a model's layers that take their variance by tf.nn.moments (see SmoothBatchNormalization)."""
    norms = (keras.layers.BatchNormalization, keras.layers.LayerNormalization, keras.layers.GroupNormalization)
    return [layer.name for layer in model._flatten_layers() if type(layer) in norms]


def _fits_matmul(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.Conv2D
        and layer.data_format == "channels_last"
        and layer.groups == 1
        and tuple(layer.dilation_rate) == (1, 1)
        and None not in layer.input.shape[1:3]
    )


def has_idle_bias(layer: keras.Layer) -> bool:
    """Whether a layer is a convolution whose bias a batch norm takes off again, wherever its output goes."""
    followers = [node.operation for node in layer._outbound_nodes]
    return (
        type(layer) is keras.layers.Conv2D
        and layer.activation is keras.activations.linear
        and bool(followers)
        and all(isinstance(follower, keras.layers.BatchNormalization) for follower in followers)
    )


_STACKED = {MatmulConv2D: _fits_matmul, SmoothBatchNormalization: _is_batch_norm}
_BRANCHES = {
    FusedBatchNormalization: _fits_fused,
    SmoothBatchNormalization: _is_batch_norm,
    UnbiasedConv2D: has_idle_bias,
}
