"""Checks the platform and Keras's backend before anything is imported that needs them."""

import atexit
import contextlib
import gc
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from reptile_tf.errors import UserError


def check() -> None:
    """Raises UserError unless the platform is Linux or macOS and Keras is configured to run on TensorFlow."""
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


def import_quietly() -> None:
    """Imports TensorFlow and Keras, and discards what they write to stderr meanwhile unless the import fails.

    No setting of TensorFlow's turns all of these lines off. Its later messages are off as well, unless
    TF_CPP_MIN_LOG_LEVEL is set: its errors are raised as exceptions, too. Keras's own plots do not work afterwards.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules:
        return  # and what the process has made since stays with the garbage collector
    with contextlib.ExitStack() as stack:
        stack.enter_context(_nothing_collected())
        for name in {"IPython", "matplotlib"} - sys.modules.keys():
            # Keras imports these where they are installed, for notebooks and plots: 0.7 s, and 35 MB.
            sys.modules[name] = None  # type: ignore[assignment]
            stack.callback(sys.modules.pop, name)
        try:
            said, stderr = stack.enter_context(tempfile.TemporaryFile()), os.dup(2)
        except OSError:  # stderr is closed, or there is no space or handle left: the lines stay
            importlib.import_module("tensorflow")
            return
        stack.callback(os.close, stderr)
        stack.callback(os.dup2, stderr, 2)
        os.dup2(said.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
        except BaseException:
            said.seek(0)
            os.write(stderr, said.read())
            raise


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Turns the garbage collector off, for the import and for the end of the process.

    TensorFlow's modules are so many objects that looking through them takes about a second at each of the two. Memory
    that is left at the end goes back to the system anyway.
    """
    atexit.register(gc.freeze)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # training need not look through them either
        if enabled:
            gc.enable()
