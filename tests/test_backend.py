"""What must be right before anything is imported is said in one line."""

import importlib.util
import json

import pytest

from reptile_tf import backend
from reptile_tf.errors import UserError


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """Keras's own folder, empty."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    return tmp_path


def test_another_backend_is_refused_wherever_it_is_set(home, monkeypatch):
    backend.check()
    (home / "keras.json").write_text(json.dumps({"backend": "torch"}))
    with pytest.raises(UserError, match="Keras is set to run on torch: set KERAS_BACKEND=tensorflow"):
        backend.check()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # which wins
    backend.check()
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(UserError, match="Keras is set to run on jax"):
        backend.check()


def test_a_platform_without_locks_is_refused(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fcntl" else find(name))
    with pytest.raises(UserError, match="Linux and macOS, and on Windows through WSL"):
        backend.check()
