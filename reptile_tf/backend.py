"""What must be right before anything is imported that needs it: the platform, and Keras's backend."""

import importlib.util
import json
import os
import pathlib

from reptile_tf.errors import UserError


def check() -> None:
    """Raises UserError unless this is Linux or macOS, and Keras's backend TensorFlow, by KERAS_BACKEND or its file."""
    if importlib.util.find_spec("fcntl") is None:
        raise UserError("this runs on Linux and macOS, and on Windows through WSL, which is Linux")
    file = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "keras.json"
    try:
        configured = json.loads(file.read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):  # Keras then has its default
        configured = "tensorflow"
    chosen = os.environ.get("KERAS_BACKEND") or configured
    if chosen != "tensorflow":
        raise UserError(f"Keras is set to run on {chosen}: set KERAS_BACKEND=tensorflow, the one backend this runs on")
