"""Tests that problems with the backend are reported in one line before anything is imported."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from reptile_tf import backend
from reptile_tf.errors import UserError


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """Keras's configuration folder, empty."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    return tmp_path


def test_another_backend_is_refused_wherever_it_is_set(home, monkeypatch):
    backend.check()
    (home / "keras.json").write_text(json.dumps({"backend": "torch"}))
    with pytest.raises(UserError, match="Keras is set to run on torch: set KERAS_BACKEND=tensorflow"):
        backend.check()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # takes precedence over the file
    backend.check()
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(UserError, match="Keras is set to run on jax"):
        backend.check()


def test_a_platform_without_locks_is_refused(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fcntl" else find(name))
    with pytest.raises(UserError, match="Linux and macOS, and on Windows through WSL"):
        backend.check()


@pytest.mark.parametrize("fails", [False, True])
def test_what_tensorflow_writes_while_it_is_imported_shows_only_if_that_fails(fails, tmp_path):
    ending = "raise ImportError('no such library')" if fails else ""
    (tmp_path / "tensorflow.py").write_text(f"import os\nos.write(2, b'chatter')\n{ending}")
    program = "import os; from reptile_tf import backend; backend.import_quietly(); os.write(2, b'later')"
    path = os.pathsep.join([str(tmp_path), str(pathlib.Path(backend.__file__).parent.parent)])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if fails:
        assert done.stderr.startswith("chatter")
        assert "no such library" in done.stderr
    else:
        assert done.stderr == "later"


def test_the_garbage_collector_rests_while_tensorflow_is_imported(tmp_path):
    (tmp_path / "tensorflow.py").write_text("import gc\nprint(gc.isenabled())\nheld = [[]]\nheld.append(held)")
    program = "import gc; from reptile_tf import backend; backend.import_quietly(); print(gc.isenabled())\n"
    program += "count = gc.get_freeze_count(); more = [[] for _ in range(1000)]; backend.import_quietly()\n"
    program += "print(count > 0, gc.get_freeze_count() == count)"
    path = os.pathsep.join([str(tmp_path), str(pathlib.Path(backend.__file__).parent.parent)])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "True"]
