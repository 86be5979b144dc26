"""The paper's two networks as stock Keras models (paper, appendix A), with the layer sizes of the original code."""

import keras
from keras import layers


def omniglot(classes: int, filters: int = 64) -> keras.Sequential:
    """Builds the Omniglot network: four strided convolutions with batch norm and ReLU, and a dense layer.

    Args:
      classes: number of ways, which is the number of outputs.
      filters: number of filters of each convolution.

    Returns:
      A model from floatx [batch, 28, 28, 1] to logits [batch, classes].
    """
    model = keras.Sequential([layers.Input((28, 28, 1))], name="omniglot")
    for block in range(1, 5):
        model.add(
            layers.Conv2D(filters, 3, strides=2, padding="same", data_format="channels_last", name=f"conv{block}")
        )
        model.add(layers.BatchNormalization(name=f"norm{block}"))
        model.add(layers.ReLU(name=f"relu{block}"))
    model.add(layers.Flatten(data_format="channels_last", name="flatten"))
    model.add(layers.Dense(classes, name="logits"))
    return model


def miniimagenet(classes: int, filters: int = 32, size: int = 84, channels: int = 3) -> keras.Sequential:
    """Builds the Mini-ImageNet network: four convolutions with batch norm, max pooling and ReLU, and a dense layer.

    Args:
      classes: number of ways, which is the number of outputs.
      filters: number of filters of each convolution.
      size: height and width of the images; 84 in the paper.
      channels: number of channels of the images.

    Returns:
      A model from floatx [batch, size, size, channels] to logits [batch, classes].
    """
    model = keras.Sequential([layers.Input((size, size, channels))], name="miniimagenet")
    for block in range(1, 5):
        model.add(layers.Conv2D(filters, 3, padding="same", data_format="channels_last", name=f"conv{block}"))
        model.add(layers.BatchNormalization(name=f"norm{block}"))
        model.add(layers.MaxPooling2D(2, strides=2, padding="same", data_format="channels_last", name=f"pool{block}"))
        model.add(layers.ReLU(name=f"relu{block}"))
    model.add(layers.Flatten(data_format="channels_last", name="flatten"))
    model.add(layers.Dense(classes, name="logits"))
    return model
