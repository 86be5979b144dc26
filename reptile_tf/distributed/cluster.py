"""Trains one run in several processes, with one all-reduce per meta-iteration over TensorFlow's collectives.

Every worker has its own variables and compiled inner loop, and works on its share of the tasks. Only sums are
exchanged, through `tf.distribute.MultiWorkerMirroredStrategy` (NCCL between GPUs, RPC between CPUs). Nothing is created
in the strategy's scope, because stock optimizers there would all-reduce in every inner step.
"""

import contextlib
import faulthandler
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context  # the key-value store and the abort of collectives have no public name

from reptile_tf import progress
from reptile_tf.distributed import tf_config
from reptile_tf.distributed.tf_config import Place
from reptile_tf.errors import ClusterError, UserError

# How long an exchange waits for a worker that is alive but does not join: PATIENCE seconds, or MULTIPLE times the
# longest wait so far if that is longer, since tasks may take minutes. (A worker that does not respond at all is
# detected in 10 to 20 seconds.)
PATIENCE = 45.0
MULTIPLE = 4


class Cluster:
    """The workers of a run, from the view of one of them. This class serves a single process.

    Attributes:
      index: index of this worker, from 0.
      count: number of workers.
      caught: the signals that this process has received; assign the list that the signal handler fills.
    """

    index = 0
    count = 1

    def __init__(self):
        self.caught: list[int] = []

    @property
    def is_chief(self) -> bool:
        """Whether this worker reads and writes the run's folder and shows output."""
        return self.index == 0

    @property
    def stopping(self) -> int:
        """The signal that ends training, or 0. After an exchange it is the same on all workers."""
        return self.caught[0] if self.caught else 0

    def share(self, tasks: int) -> tuple[int, int]:
        """Returns this worker's share of `tasks` tasks as (first, count). Shares differ by at most one task."""
        first = self.index * tasks // self.count
        return first, (self.index + 1) * tasks // self.count - first

    def sum(self, value: tf.Tensor, patient: bool = False) -> tf.Tensor:
        """Sums a tensor over all workers, which all must call it in the same order.

        Args:
          value: this worker's summand, float32 or float64, of the same shape and dtype on all workers.
          patient: wait for the other workers while they run, and log which one is awaited.

        Raises:
          ClusterError: a worker has stopped or does not connect; the message names it.
        """
        del patient
        return value

    def from_chief(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the chief's arrays. Others pass arrays of the same shapes and dtypes. Integers are below 2**53."""
        return list(arrays)

    def text_from_chief(self, text: Callable[[], str]) -> str:
        """Calls `text` on the chief only, and returns its result on all workers."""
        return text()

    def agree(self, what: str, value: Any, patient: bool = False) -> None:
        """Raises UserError on every worker unless `value`, by its repr, is the same on all; `patient`: see `sum`."""
        del what, value, patient


ALONE = Cluster()


class _Workers(Cluster):
    """A cluster of several workers.

    Args:
      place: this process's place in the cluster.
      strategy: a strategy created in this process.
    """

    def __init__(self, place: Place, strategy: tf.distribute.Strategy):
        super().__init__()
        self.index, self.count = place.index, place.count
        self._place = place
        self._stopping = 0
        self._watch = _Watch(place)

        def all_reduce(vector: tf.Tensor) -> tf.Tensor:
            # tf.identity places the tensor on this worker's device, which the strategy requires.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(vector))

        def over_workers(vector: tf.Tensor) -> tf.Tensor:
            return strategy.run(all_reduce, args=(vector,))

        self._all_reduce = {
            dtype: tf.function(over_workers, autograph=False, input_signature=[tf.TensorSpec([None], dtype)])
            for dtype in (tf.float32, tf.float64)
        }

    @property
    def stopping(self) -> int:
        return self._stopping

    def sum(self, value: tf.Tensor, patient: bool = False) -> tf.Tensor:
        # The signals are summed too, so that all workers stop at the same meta-iteration.
        signals = signal.SIGINT, signal.SIGTERM
        caught = tf.constant([float(n in self.caught) for n in signals], value.dtype)
        try:
            with self._watch.over(patient):
                total = self._all_reduce[value.dtype](tf.concat([tf.reshape(value, [-1]), caught], 0))
                caught = total[-2:].numpy()
        except tf.errors.OpError as error:
            raise ClusterError(_lost(self._place, str(error))) from error
        self._stopping = next((int(n) for n, count in zip(signals, caught, strict=True) if count), 0)
        return tf.reshape(total[:-2], value.shape)

    def from_chief(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        mine = np.concatenate([np.ravel(a).astype(np.float64) for a in arrays])
        values = self.sum(tf.constant(mine if self.is_chief else np.zeros_like(mine))).numpy()
        parts = np.split(values, np.cumsum([np.size(a) for a in arrays])[:-1])
        return [p.reshape(np.shape(a)).astype(np.asarray(a).dtype) for p, a in zip(parts, arrays, strict=True)]

    def text_from_chief(self, text: Callable[[], str]) -> str:
        mine = np.frombuffer(text().encode() if self.is_chief else b"", np.uint8)
        (length,) = self.from_chief([np.array(len(mine))])
        return self.from_chief([mine if self.is_chief else np.zeros(length, np.uint8)])[0].tobytes().decode()

    def agree(self, what: str, value: Any, patient: bool = False) -> None:
        mine = np.zeros(self.count)
        mine[self.index] = zlib.crc32(repr(value).encode())
        digests = self.sum(tf.constant(mine), patient).numpy()
        if others := _names(self._place, np.flatnonzero(digests != digests[0])):
            raise UserError(f"{others}: other {what} than {self._place.name(0)}; give all workers the same")


def join(where: Place) -> Cluster:
    """Joins the cluster. Call it after `device.configure` and before any other TensorFlow operation.

    From then on, workers other than the chief print only errors.

    Raises:
      ClusterError: this worker's port is taken, or another worker does not answer; the message names it.
    """
    if where.count == 1:
        return Cluster()
    if where.index:
        progress.hush()
    tf_config.meet(where)
    # One process per GPU: the strategy would place a replica on every visible GPU, and count a task once per replica.
    tf.config.set_visible_devices(tf.config.get_visible_devices("GPU")[:1], "GPU")
    # All workers are present, so this takes a second. But if one dies now, TensorFlow waits for an hour and holds
    # Python's global lock. Only another process (which prints the error and sends SIGALRM) and C code (faulthandler)
    # can end that. It is SIGALRM because exit code 1 would mean a user error.
    lost = f"{where.name(where.index)}: another worker ended while all joined: this one stops too; start all again"
    wait = "i=0; while [ $i -lt $0 ]; do kill -0 $1 2>/dev/null || exit; sleep 1; i=$((i + 1)); done"
    tell = f'{wait}; echo "$2" >&2; kill -ALRM $1'
    command = ["sh", "-c", tell, str(max(1, int(where.join_seconds) - 2)), str(os.getpid()), lost]
    with (
        open(os.devnull, "w") as nowhere,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as notice,
    ):
        faulthandler.dump_traceback_later(where.join_seconds, exit=True, file=nowhere)
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.OpError, RuntimeError) as error:
            raise ClusterError(f"cannot join the cluster: {str(error).splitlines()[0]}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
            os.killpg(notice.pid, signal.SIGKILL)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # TensorFlow has installed its own handler
    progress.log.info(f"cluster: {where.count} workers, {' '.join(where.addresses)}")
    return _Workers(where, strategy)


def _lost(where: Place, error: str) -> str:
    """Returns the message for an error of TensorFlow, and names the worker that caused it.

    The other workers' errors quote that worker first, followed by the workers that passed the error on.
    """
    job = r"/job:\w+/replica:0/task:\d+"
    if found := re.search(rf"unhealthy[^/\n]*\n?((?:{job}[\s,]*)+)", error):
        jobs = re.findall(job, found[1])
    elif "CoordinationService" in error:  # which runs on the chief
        jobs = list(where.jobs[:1])
    else:
        jobs = re.findall(rf"remote target ({job})", error)[:1]
    who = _names(where, [where.jobs.index(job) for job in jobs]) or f"another worker ({error.splitlines()[0]})"
    return (
        f"{who} {'is' if len(jobs) < 2 else 'are'} gone or {'does' if len(jobs) < 2 else 'do'} not answer, the log "
        "there may say why: this worker stops too; the same command on all goes on from the newest checkpoint"
    )


def _names(where: Place, indices: Iterable[int]) -> str:
    return ", ".join(map(where.name, indices))


class _Watch:
    """Aborts an exchange that a live worker does not join.

    Workers that have waited for long record it in the cluster's key-value store. A worker without a record is late.
    """

    def __init__(self, where: Place):
        self._where = where
        self._number = 0
        self._waiting: tuple[int, float, bool] | None = None  # the exchange's number, its start time, and `patient`
        self._longest = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    @contextlib.contextmanager
    def over(self, patient: bool) -> Iterator[None]:
        """Watches one exchange. Exchanges have the same numbers on all workers."""
        self._number += 1
        began = time.monotonic()
        self._waiting = self._number, began, patient
        try:
            yield
        finally:
            self._waiting = None
        if not patient:
            self._longest = max(self._longest, time.monotonic() - began)

    def _run(self) -> None:
        told = named = 0
        while True:
            time.sleep(1)
            if not (waiting := self._waiting):
                continue
            (number, began, patient), index = waiting, self._where.index
            seconds = time.monotonic() - began
            if told != number and (patient or seconds > PATIENCE / 3):
                told = number
                with contextlib.suppress(tf.errors.OpError):  # if the service's host is gone, the exchange reports it
                    context.context().set_config_key_value(self._key(number, index), "")
            if named == number or seconds <= (PATIENCE if patient else max(PATIENCE, MULTIPLE * self._longest)):
                continue
            named = number
            late = [i for i in range(self._where.count) if i != index and not self._has_come(number, i)]
            if patient:
                if late:
                    progress.log.info(f"waiting for {_names(self._where, late)}")
                continue
            unhealthy = f"unhealthy: {', '.join(self._where.jobs[i] for i in late)}"
            # Raises in the exchange, on this worker and on the others, which get the same message.
            context.context().abort_collective_ops(tf.errors.UNAVAILABLE, unhealthy)
            time.sleep(5)
            if self._waiting == waiting:  # the exchange is in a kernel that cannot be aborted
                print(_lost(self._where, unhealthy), file=sys.stderr, flush=True)
                os._exit(ClusterError.exit_code)
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
