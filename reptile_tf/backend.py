"""Which backend Keras will run on, found out before anything is imported that needs it."""

import json
import os
import pathlib

from reptile_tf.errors import UserError


def check() -> None:
    """Raises UserError unless Keras's backend is TensorFlow, as KERAS_BACKEND or Keras's own file says."""
    file = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "keras.json"
    try:
        configured = json.loads(file.read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):  # Keras then has its default
        configured = "tensorflow"
    chosen = os.environ.get("KERAS_BACKEND") or configured
    if chosen != "tensorflow":
        raise UserError(f"Keras is set to run on {chosen}: set KERAS_BACKEND=tensorflow, the one backend this runs on")
