"""Describes a model's layers for TensorFlow.js, and rejects those that it would compute differently."""

from typing import TYPE_CHECKING, Any

from reptile_tf.errors import UserError

if TYPE_CHECKING:
    import keras

# The options that are exported for each type of layer. Every other option that affects the outputs must have Keras's
# default value; options that do not affect them are omitted.
_EXPORTED = {
    "Conv2D": ("filters", "kernel_size", "strides", "padding", "use_bias", "activation"),
    "BatchNormalization": ("epsilon",),
    "ReLU": (),
    "MaxPooling2D": ("pool_size", "strides", "padding"),
    "Flatten": (),
    "Dense": ("units", "use_bias", "activation"),
}
_SHAPES_NO_OUTPUT = ("name", "trainable", "dtype", "momentum", "registered_name", "synchronized")
_ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "elu", "selu", "softplus", "softsign")


def described(model: "keras.Sequential") -> list[dict[str, Any]]:
    """Returns the configuration of each layer; raises UserError for a layer that would compute differently."""
    configs: list[dict[str, Any]] = []
    for layer in model.layers:
        kind, config = type(layer).__name__, layer.get_config()
        _check_layer(kind, config)
        told = {"name": layer.name} | {key: config[key] for key in _EXPORTED[kind]}
        if kind in ("Conv2D", "Dense"):  # the default in TensorFlow.js is a different distribution
            told["kernel_initializer"] = {"class_name": "GlorotUniform", "config": {"seed": None}}
        configs.append({"class_name": kind, "config": told})
    configs[0]["config"] |= {"batch_input_shape": list(model.input_shape), "dtype": "float32"}
    return configs


def _check_layer(kind: str, config: dict[str, Any]) -> None:
    """Raises UserError unless the exported options determine the layer's outputs."""
    import keras

    if kind not in _EXPORTED:
        raise UserError(f"layer {config['name']} is a {kind}, which does not export; these do: {', '.join(_EXPORTED)}")
    if config.get("activation", "linear") not in _ACTIVATIONS:
        raise UserError(
            f"layer {config['name']}: activation {config['activation']!r} does not export; "
            f"use one of {', '.join(_ACTIVATIONS)}"
        )
    required = {"Conv2D": {"filters": 1, "kernel_size": 1}, "Dense": {"units": 1}}.get(kind, {})
    stock = getattr(keras.layers, kind)(**required).get_config()
    for key, value in config.items():
        left_out = key not in _EXPORTED[kind] and key not in _SHAPES_NO_OUTPUT
        is_of_training = key.endswith(("_initializer", "_regularizer", "_constraint"))
        if left_out and not is_of_training and value != stock.get(key, value):
            raise UserError(f"layer {config['name']}: {key}={value!r} does not export; only {stock[key]!r} does")
