"""Chooses where and how tasks run: the device, the mode and the threads. Must run before TensorFlow does any work."""

import ctypes
import glob
import importlib.util
import math
import os
import pathlib
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.client import device_lib
from tensorflow.python.util import _pywrap_util_port

from reptile_tf.errors import UserError
from reptile_tf.progress import log


class Placement(NamedTuple):
    """The choices of `configure`.

    Attributes:
      stacked: whether to stack the tasks into one XLA program.
      record: the entries for results.json.
      line: the line for the log.
    """

    stacked: bool
    record: dict[str, Any]
    line: str


CPU_QUOTA = pathlib.Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "QUOTA PERIOD" in microseconds; QUOTA may be "max"


def cores() -> int:
    """Returns the number of cores that the process's affinity and its container's quota (rounded up) allow."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, CPU_QUOTA.read_text().split())
    except (OSError, ValueError):  # there is no quota
        return mine
    return max(1, min(mine, math.ceil(quota / period)))


def onednn() -> str:
    """Whether TensorFlow uses oneDNN's operations, "1" or "0", whoever decided that: it changes the last bits."""
    return str(int(_pywrap_util_port.IsMklEnabled()))


def gpu_memory() -> int:
    """Returns the bytes of memory that TensorFlow may use on the first GPU; 0 without a GPU."""
    if not tf.config.get_visible_devices("GPU"):
        return 0
    return next(one.memory_limit for one in device_lib.list_local_devices() if one.device_type == "GPU")


def configure(tasks_side_by_side: int, device: str = "auto", mode: str = "auto", tf32: bool = False) -> Placement:
    """Chooses device and mode, sets TensorFlow's threads and precision, and makes its operations deterministic.

    Args:
      tasks_side_by_side: number of tasks that one worker runs side by side in training.
      device: "auto", "cpu" or "gpu"; see `Settings`.
      mode: "auto", "branches" or "stacked"; see `Settings`.
      tf32: see `Settings`.

    Raises:
      UserError: a GPU is requested, but TensorFlow finds no usable GPU.
    """
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus and device != "cpu":
        reason = _why_no_gpu()
        if device == "gpu":
            raise UserError(
                f"--device gpu: {reason or 'there is no NVIDIA GPU here, or CUDA_VISIBLE_DEVICES hides it'}"
            )
        if reason:
            log.warning(f"{reason}; using the CPU (--device cpu silences this)")
    stacked = mode == "stacked" or (mode == "auto" and bool(gpus))
    # Each branch gets a core, because small kernels gain little from two. One program, or one task, gets all cores.
    within = cores() if stacked else max(1, cores() // tasks_side_by_side)
    tf.config.threading.set_intra_op_parallelism_threads(within)
    tf.config.threading.set_inter_op_parallelism_threads(cores())
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    name = f"CPU, {cores()} cores"
    if gpus:
        make = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "of unknown make")
        name = f"GPU, {make}" + (f", the first of {len(gpus)}" if len(gpus) > 1 else "")
    record = {
        "device": name,
        "mode": "stacked" if stacked else "branches",
        "precision": "TF32" if gpus and tf32 else "float32",
        "deterministic operations": True,
        "onednn": onednn(),
    }
    how = "stacked in one XLA program" if stacked else "branches of one graph"
    threads = f"threads: {cores()} between ops, {within} within an op"
    line = (
        f"device: {name}; mode: {how}; precision: {record['precision']}; {threads}; TF_ENABLE_ONEDNN_OPTS: {onednn()}"
    )
    return Placement(stacked, record, line)


def _why_no_gpu() -> str:
    """Returns why TensorFlow cannot use the NVIDIA GPU of this host; "" if there is none, or it is hidden on purpose.

    TensorFlow reports the reason only in its log, which is silenced.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ""
    if not (glob.glob("/dev/nvidia[0-9]*") or glob.glob("/proc/driver/nvidia/gpus/*")):
        return ""
    here = "there is an NVIDIA GPU, but TensorFlow cannot use it: "
    built = tf.sysconfig.get_build_info()
    if not built.get("is_cuda_build"):
        return here + "this build of TensorFlow has no CUDA"
    if not _loads("libcuda.so.1"):
        return here + "its driver is not installed (libcuda.so.1)"
    needed = {"cudart": built["cuda_version"], "cudnn": built["cudnn_version"]}
    if missing := [name for name, version in needed.items() if not _has_library(name, version.split(".")[0])]:
        return here + f"CUDA's libraries are missing ({', '.join(missing)}): pip install -e '.[gpu]'"
    return here + f"its driver may be too old for CUDA {built['cuda_version']}, or not working (see nvidia-smi)"


def _has_library(name: str, version: str) -> bool:
    """Returns whether a CUDA library is in NVIDIA's Python packages or on the linker's path, as for TensorFlow."""
    file = f"lib{name}.so.{version}"
    packages = importlib.util.find_spec("nvidia")
    places = list(packages.submodule_search_locations or []) if packages else []
    return any(list(pathlib.Path(place).glob(f"*/lib/{file}*")) for place in places) or _loads(file)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
