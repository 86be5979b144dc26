"""Many processes, one run: one exchange per meta-iteration over TensorFlow's own collectives.

Every worker keeps its own variables and compiled inner loop and works on its share of the tasks; only sums travel, by
`tf.distribute.MultiWorkerMirroredStrategy` (NCCL between GPUs, RPC between CPUs). Nothing is created under the
strategy's scope: stock optimizers there would reduce in every inner step.
"""

import faulthandler
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context  # the key-value store and the abort of collectives have no public name

from reptile_tf import place, progress
from reptile_tf.errors import UserError
from reptile_tf.place import Place

# Seconds that workers wait in an exchange for one that is alive but does not come: at least these, or this multiple of
# the longest wait so far, for tasks that take minutes. (One that stops answering altogether is noticed in 10 to 20.)
PATIENCE = 45.0
MULTIPLE = 4


class Cluster:
    """The workers of a run, seen from one of them; this class is that of a process alone.

    Attributes:
      index: this worker's, from 0.
      count: how many there are.
      caught: the signals that this process has got; assign the list that a handler fills.
    """

    index = 0
    count = 1

    def __init__(self):
        self.caught: list[int] = []

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that reads and writes the run's folder and speaks."""
        return self.index == 0

    @property
    def stopping(self) -> int:
        """The signal that ends training, 0 if there is none; the same on all workers after an exchange."""
        return self.caught[0] if self.caught else 0

    def share(self, tasks: int) -> tuple[int, int]:
        """This worker's of so many tasks, as first and count; shares differ by one at most and may be empty."""
        first = self.index * tasks // self.count
        return first, (self.index + 1) * tasks // self.count - first

    def sum(self, value: tf.Tensor, patient: bool = False) -> tf.Tensor:
        """The sum over all workers; all call it, in the same order, with the same shape and dtype (float32, float64).

        Args:
          value: this worker's.
          patient: wait for the others as long as they live (they may be preparing data).

        Raises:
          UserError: a worker is gone or does not come; the message names it.
        """
        del patient
        return value

    def from_chief(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The chief's arrays; the others give some of the same shapes and dtypes. Integers below 2**53 are exact."""
        return list(arrays)

    def text_from_chief(self, text: Callable[[], str]) -> str:
        """What `text`, called on the chief only, returns."""
        return text()

    def agree(self, what: str, value: Any) -> None:
        """Raises UserError on every worker unless `value`, by its repr, is the same on all."""
        del what, value


ALONE = Cluster()


class _Workers(Cluster):
    """Several workers.

    Args:
      place: this process's.
      strategy: made in it.
    """

    def __init__(self, place: Place, strategy: tf.distribute.Strategy):
        super().__init__()
        self.index, self.count = place.index, place.count
        self._place = place
        self._stopping = 0
        self._watch = _Watch(place)

        def all_reduce(vector: tf.Tensor) -> tf.Tensor:
            # The identity is made on this worker's device, by which the strategy knows it.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(vector))

        def over_workers(vector: tf.Tensor) -> tf.Tensor:
            return strategy.run(all_reduce, args=(vector,))

        self._all_reduce = {
            dtype: tf.function(over_workers, input_signature=[tf.TensorSpec([None], dtype)])
            for dtype in (tf.float32, tf.float64)
        }

    @property
    def stopping(self) -> int:
        return self._stopping

    def sum(self, value: tf.Tensor, patient: bool = False) -> tf.Tensor:
        # Signals travel along, so that all workers stop at the same meta-iteration.
        signals = signal.SIGINT, signal.SIGTERM
        caught = tf.constant([float(n in self.caught) for n in signals], value.dtype)
        try:
            with self._watch.exchange(patient):
                total = self._all_reduce[value.dtype](tf.concat([tf.reshape(value, [-1]), caught], 0))
                caught = total[-2:].numpy()
        except tf.errors.OpError as error:
            raise UserError(_lost(self._place, str(error))) from error
        self._stopping = next((int(n) for n, count in zip(signals, caught, strict=True) if count), 0)
        return tf.reshape(total[:-2], value.shape)

    def from_chief(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        mine = np.concatenate([np.ravel(a).astype(np.float64) for a in arrays])
        values = self.sum(tf.constant(mine if self.is_chief else np.zeros_like(mine)), patient=True).numpy()
        parts = np.split(values, np.cumsum([np.size(a) for a in arrays])[:-1])
        return [p.reshape(np.shape(a)).astype(np.asarray(a).dtype) for p, a in zip(parts, arrays, strict=True)]

    def text_from_chief(self, text: Callable[[], str]) -> str:
        mine = np.frombuffer(text().encode() if self.is_chief else b"", np.uint8)
        (length,) = self.from_chief([np.array(len(mine))])
        return self.from_chief([mine if self.is_chief else np.zeros(length, np.uint8)])[0].tobytes().decode()

    def agree(self, what: str, value: Any) -> None:
        mine = np.zeros(self.count)
        mine[self.index] = zlib.crc32(repr(value).encode())
        digests = self.sum(tf.constant(mine), patient=True).numpy()
        others = [self._place.name(i) for i in range(self.count) if digests[i] != digests[0]]
        if others:
            raise UserError(f"{', '.join(others)}: other {what} than {self._place.name(0)}; give all workers the same")


def join(where: Place) -> Cluster:
    """Joins the cluster; to be called before TensorFlow does any work, after `device.configure`.

    Workers but the chief say nothing from here on, but for errors.

    Raises:
      UserError: this worker's port is taken, or another worker does not answer; the message names it.
    """
    if where.count == 1:
        return Cluster()
    if where.index:
        progress.hush()
    place.meet(where)
    # One process per GPU: the strategy would make a replica of each that it sees, and count tasks so often.
    tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")
    # All are there, so this takes a second. But one may die in it, and TensorFlow would wait for an hour, its lock on
    # Python held: only another process and C code can end that, and say so.
    lost = f"{where.name(where.index)}: another worker ended while all joined: this one stops too; start all again"
    command = ["sh", "-c", 'sleep "$0"; echo "$1" >&2', str(max(1, int(place.JOIN_SECONDS) - 2)), lost]
    with open(os.devnull, "w") as nowhere, subprocess.Popen(command, start_new_session=True) as notice:
        faulthandler.dump_traceback_later(place.JOIN_SECONDS, exit=True, file=nowhere)
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.OpError, RuntimeError) as error:
            raise UserError(f"cannot join the cluster: {str(error).splitlines()[0]}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
            os.killpg(notice.pid, signal.SIGKILL)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # TensorFlow has put its own in place
    progress.say(f"cluster: {where.count} workers, {' '.join(where.addresses)}")
    return _Workers(where, strategy)


def _lost(where: Place, error: str) -> str:
    """Which worker TensorFlow's error is about; the others' errors quote it, with those in between behind it."""
    found = re.search(r"unhealthy.*?(/job:\w+/replica:0/task:\d+)", error, re.DOTALL)
    if not found and "CoordinationService" not in error:
        found = re.search(r"remote target (/job:\w+/replica:0/task:\d+)", error)
    if found or "CoordinationService" in error:  # which the chief has
        who = where.name(where.jobs.index(found[1]) if found else 0)
    else:
        who = f"another worker ({error.splitlines()[0]})"
    return (
        f"{who} is gone or does not answer, its own log may say why: this worker stops too; "
        "the same command on all goes on from the newest checkpoint"
    )


class _Watch:
    """Ends exchanges to which a worker does not come although it is alive.

    Those who wait for long say so in the cluster's key-value store; who has not said so in the end is the one.
    """

    def __init__(self, where: Place):
        self._where = where
        self._number = 0
        self._waiting: tuple[int, float] | None = None  # the exchange's number and when it began
        self._longest = 0.0
        self._patient = False
        threading.Thread(target=self._run, daemon=True).start()

    def exchange(self, patient: bool) -> "_Watch":
        self._patient = patient
        return self

    def __enter__(self) -> None:
        self._number += 1
        self._waiting = None if self._patient else (self._number, time.monotonic())

    def __exit__(self, *exception: Any) -> None:
        if self._waiting:
            self._longest = max(self._longest, time.monotonic() - self._waiting[1])
        self._waiting = None

    def _run(self) -> None:
        told = 0
        while True:
            time.sleep(1)
            if not (waiting := self._waiting):
                continue
            number, seconds = waiting[0], time.monotonic() - waiting[1]
            if seconds > PATIENCE / 3 and told != number:
                told = number
                context.context().set_config_key_value(self._key(number, self._where.index), "")
            if seconds > max(PATIENCE, MULTIPLE * self._longest):
                late = [i for i in range(self._where.count) if not self._has_come(number, i)]
                unhealthy = self._where.jobs[late[0]] if late else "(no one knows which)"
                # Raises in the exchange, here and on the others, who get the message.
                context.context().abort_collective_ops(tf.errors.UNAVAILABLE, f"unhealthy: {unhealthy}")
                time.sleep(5)
                if self._waiting == waiting:  # in a kernel that cannot be aborted
                    print(_lost(self._where, f"unhealthy: {unhealthy}"), file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def _has_come(self, number: int, index: int) -> bool:
        try:
            context.context().get_config_key_value(self._key(number, index), timeout_in_ms=1000)
        except tf.errors.OpError:
            return False
        return True

    @staticmethod
    def _key(number: int, index: int) -> str:
        return f"reptile/waiting/{number}/{index}"
