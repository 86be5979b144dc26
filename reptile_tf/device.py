"""Where and how the tasks run: the device, the mode, the threads. To be settled before TensorFlow does any work."""

import os

import tensorflow as tf
from tensorflow.python.client import device_lib


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_memory() -> int:
    """How many bytes of the first GPU TensorFlow may use; 0 without one."""
    if not tf.config.get_visible_devices("GPU"):
        return 0
    return next(one.memory_limit for one in device_lib.list_local_devices() if one.device_type == "GPU")


def configure(mode: str, tasks_side_by_side: int) -> tuple[bool, str]:
    """Chooses the mode, sets TensorFlow's threads and makes its ops deterministic.

    Args:
      mode: "auto", "branches" or "stacked" (see `Settings.mode`).
      tasks_side_by_side: in training.

    Returns:
      Whether to stack the tasks into one XLA program, and a line for the log.
    """
    gpus = tf.config.list_physical_devices("GPU")
    stacked = mode == "stacked" or (mode == "auto" and bool(gpus))
    # Branches: a core each, since small kernels gain little from two. One program, or one task: all cores within an op.
    within = cores() if stacked else max(1, cores() // tasks_side_by_side)
    tf.config.threading.set_intra_op_parallelism_threads(within)
    tf.config.threading.set_inter_op_parallelism_threads(cores())
    tf.config.experimental.enable_op_determinism()
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    device = f"CPU, {cores()} cores"
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "of unknown make")
        device = f"GPU, {name}" + (f", the first of {len(gpus)}" if len(gpus) > 1 else "")
    how = "stacked in one XLA program" if stacked else "branches of one graph"
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "TensorFlow's choice")
    threads = f"threads: {cores()} between ops, {within} within an op"
    return stacked, f"device: {device}; mode: {how}; {threads}; TF_ENABLE_ONEDNN_OPTS: {onednn}"
