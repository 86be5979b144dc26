"""Tests of the choice of device, mode and threads, made before TensorFlow's first operation."""

import pathlib
import re
import subprocess
import sys

import pytest
import tensorflow as tf

from reptile_tf import device
from reptile_tf.errors import UserError


@pytest.fixture
def told(monkeypatch):
    """Records the settings of TensorFlow by name instead of making them; simulates four cores and no GPU."""
    said = {}
    for module, name in (
        (tf.config, "set_visible_devices"),
        (tf.config.threading, "set_intra_op_parallelism_threads"),
        (tf.config.threading, "set_inter_op_parallelism_threads"),
        (tf.config.experimental, "enable_op_determinism"),
        (tf.config.experimental, "enable_tensor_float_32_execution"),
        (tf.config.experimental, "set_memory_growth"),
    ):
        monkeypatch.setattr(module, name, lambda *arguments, name=name: said.update({name: arguments}))
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
    monkeypatch.setattr(device, "cores", lambda: 4)
    monkeypatch.setattr(device, "_why_no_gpu", lambda: "")
    return said


@pytest.fixture
def gpus(told, monkeypatch):
    """Simulates two GPUs."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["one", "two"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"device_name": f"Make {gpu}"})


@pytest.mark.parametrize(("mode", "tasks", "within"), [("auto", 2, 2), ("branches", 5, 1), ("stacked", 5, 4)])
def test_operations_are_deterministic_and_the_cores_are_shared(told, mode, tasks, within):
    stacked, record, line = device.configure(tasks, mode=mode)
    assert told == {
        "set_intra_op_parallelism_threads": (within,),
        "set_inter_op_parallelism_threads": (4,),
        "enable_op_determinism": (),
        "enable_tensor_float_32_execution": (False,),
    }
    assert stacked == (mode == "stacked")
    assert f"threads: 4 between ops, {within} within an op" in line
    assert record == {
        "device": "CPU, 4 cores",
        "mode": "stacked" if stacked else "branches",
        "precision": "float32",
        "deterministic operations": True,
        "onednn": device.onednn(),
    }
    assert f"TF_ENABLE_ONEDNN_OPTS: {device.onednn()}" in line


@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_runs_stacked_and_rounds_to_tf32_only_if_asked(gpus, told, tf32):
    stacked, record, line = device.configure(5, tf32=tf32)
    assert stacked
    assert told["enable_tensor_float_32_execution"] == (tf32,)
    assert record["precision"] == ("TF32" if tf32 else "float32")
    assert record["device"] == "GPU, Make one, the first of 2"
    assert record["device"] in line
    assert not device.configure(5, mode="branches").stacked


def test_a_gpu_can_be_left_alone(told):
    device.configure(5, device="cpu")
    assert told["set_visible_devices"] == ([], "GPU")


def test_a_gpu_that_is_asked_for_but_not_there_stops_the_run(told, monkeypatch):
    with pytest.raises(UserError, match="device gpu: there is no NVIDIA GPU here, or CUDA_VISIBLE_DEVICES hides it"):
        device.configure(5, device="gpu")
    monkeypatch.setattr(device, "_why_no_gpu", lambda: "its driver is missing")
    with pytest.raises(UserError, match="device gpu: its driver is missing"):
        device.configure(5, device="gpu")


def test_a_gpu_that_cannot_be_used_is_said_in_one_line(told, monkeypatch, capsys):
    monkeypatch.setattr(device, "_why_no_gpu", lambda: "its driver is missing")
    device.configure(5, device="cpu")
    assert not capsys.readouterr().out
    device.configure(5)
    assert capsys.readouterr().out.startswith("warning: its driver is missing; using the CPU")


@pytest.mark.parametrize(
    ("files", "loads", "built", "reason"),
    [
        ([], [], {}, ""),
        (["/dev/nvidia0"], [], {"is_cuda_build": False}, "has no CUDA"),
        (["/dev/nvidia0"], [], {}, "driver is not installed"),
        (["/proc/driver/nvidia/gpus/0"], ["libcuda.so.1"], {}, r"\(cudart, cudnn\): pip install -e '.\[gpu\]'"),
        (["/dev/nvidia0"], ["libcuda.so.1", "libcudart.so.12"], {}, r"missing \(cudnn\)"),
        (["/dev/nvidia0"], ["libcuda.so.1", "libcudart.so.12", "libcudnn.so.9"], {}, "too old for CUDA 12.5.1"),
    ],
)
def test_what_keeps_tensorflow_from_a_gpu_is_found_out(monkeypatch, files, loads, built, reason):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(
        device.glob, "glob", lambda pattern: [f for f in files if f.startswith(re.split(r"[\[*]", pattern)[0])]
    )
    monkeypatch.setattr(device, "_loads", lambda library: library in loads)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    build = {"is_cuda_build": True, "cuda_version": "12.5.1", "cudnn_version": "9"} | built
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: build)
    found = device._why_no_gpu()
    assert re.search(reason, found) if reason else not found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not device._why_no_gpu()


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 4), ("150000 100000", 2), ("900000 100000", 4), ("", 4)]
)
def test_a_containers_quota_bounds_the_cores(monkeypatch, tmp_path, quota, expected):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: range(4), raising=False)
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(device, "CPU_QUOTA", tmp_path / "cpu.max")
    assert device.cores() == expected
    monkeypatch.setattr(device, "CPU_QUOTA", tmp_path / "none")
    assert device.cores() == 4


@pytest.mark.slow
def test_every_mode_gives_the_same_numbers_under_determinism():
    """The script covers all pairs of networks, algorithms and optimizers."""
    script = pathlib.Path(__file__).with_name("run_modes.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "10 compared\n"
