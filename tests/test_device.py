"""Where and how the tasks run, as TensorFlow is told before its first work."""

import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from reptile_tf import device


@pytest.fixture
def told(monkeypatch):
    """What TensorFlow is told, by name, instead of being told it; there are four cores."""
    said = {}
    for module, name in (
        (tf.config.threading, "set_intra_op_parallelism_threads"),
        (tf.config.threading, "set_inter_op_parallelism_threads"),
        (tf.config.experimental, "enable_op_determinism"),
    ):
        monkeypatch.setattr(module, name, lambda *arguments, name=name: said.update({name: arguments}))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(device, "cores", lambda: 4)
    return said


@pytest.mark.parametrize(("mode", "tasks", "within"), [("auto", 2, 2), ("branches", 5, 1), ("stacked", 5, 4)])
def test_operations_are_deterministic_and_the_cores_are_shared(told, mode, tasks, within):
    stacked, line = device.configure(mode, tasks)
    assert told == {
        "set_intra_op_parallelism_threads": (within,),
        "set_inter_op_parallelism_threads": (4,),
        "enable_op_determinism": (),
    }
    assert stacked == (mode == "stacked")
    assert f"threads: 4 between ops, {within} within an op" in line


def test_every_mode_gives_the_same_numbers_under_determinism():
    """Networks, algorithms and optimizers in pairs; see the script."""
    script = pathlib.Path(__file__).with_name("run_modes.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "10 compared\n"
