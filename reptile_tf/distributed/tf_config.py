"""Reads and checks TF_CONFIG, and waits for the other workers.

Where this module raises an error of one line, TensorFlow itself would abort the process or wait indefinitely.
"""

import dataclasses
import errno
import json
import os
import re
import socket
import time

from reptile_tf.errors import ClusterError, UserError

EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


@dataclasses.dataclass(frozen=True)
class Place:
    """A process's place in its cluster.

    Attributes:
      addresses: "host:port" of each worker, the chief first; empty for a single process.
      jobs: TensorFlow's name of each worker, such as "/job:worker/replica:0/task:1".
      index: index of this process.
      join_seconds: how long the workers wait for each other to start.
    """

    addresses: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    index: int = 0
    join_seconds: float = 60.0

    @property
    def count(self) -> int:
        """The number of workers."""
        return max(1, len(self.addresses))

    def name(self, index: int) -> str:
        """Returns a worker's name for messages."""
        return f"worker {index} ({self.addresses[index]})"


def of_this_process() -> Place:
    """Reads TF_CONFIG and REPTILE_JOIN_SECONDS. If TF_CONFIG is unset or names one worker, the process is single.

    Raises:
      UserError: either variable is invalid.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        _check_that_no_scheduler_started_many()
    try:
        config = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(f"TF_CONFIG is not JSON ({error}): it has to be like {EXAMPLE}") from error
    if config == {}:
        return Place()
    try:
        cluster, task = config["cluster"], config["task"]
        unknown = sorted(cluster.keys() - {"chief", "worker"})
        members = [(job, i, address) for job in ("chief", "worker") for i, address in enumerate(cluster.get(job, []))]
        kind, number = task["type"], int(task["index"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"TF_CONFIG lacks something ({error!r}): it has to be like {EXAMPLE}") from error
    if unknown:
        raise UserError(f"TF_CONFIG names tasks of type {unknown[0]!r}: only chief and workers train here")
    if len(cluster.get("chief", [])) > 1:
        raise UserError("TF_CONFIG names more than one chief")
    addresses = tuple(address for *_, address in members)
    for address in addresses:
        if (
            not isinstance(address, str)
            or not re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]]+):\d{1,5}", address)
            or not 0 < _port(address) < 2**16
        ):
            raise UserError(
                f"TF_CONFIG has the address {address!r}: it has to be like 'host0:2222' or '[2001:db8::1]:2222'"
            )
        if addresses.count(address) > 1:
            raise UserError(f"TF_CONFIG has the address {address} twice")
    index = next((n for n, (job, i, _) in enumerate(members) if (job, i) == (kind, number)), None)
    if index is None:
        there = ", ".join(f"{job} {i}" for job, i, _ in members) or "none"
        raise UserError(f"TF_CONFIG says that this is {kind} {number}, but its cluster has only: {there}")
    if len(addresses) == 1:
        return Place()
    jobs = tuple(f"/job:{job}/replica:0/task:{i}" for job, i, _ in members)
    return Place(addresses, jobs, index, _join_seconds())


def _check_that_no_scheduler_started_many() -> None:
    """Raises UserError if a scheduler started several processes, since each would train alone in the same folder."""
    for variable, scheduler in (("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")):
        count = os.environ.get(variable, "")
        if count.isdecimal() and int(count) > 1:
            raise UserError(
                f"{scheduler} has started {count} of this, but TF_CONFIG does not say where they are: set it in each, "
                "or start one on each host; where each is to train by itself, set TF_CONFIG={} and another --checkpoint"
            )


def _join_seconds() -> float:
    text = os.environ.get("REPTILE_JOIN_SECONDS", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise UserError(f"REPTILE_JOIN_SECONDS is {text!r}: it has to be a number of seconds, a day's at most")
    return seconds


def meet(where: Place) -> None:
    """Waits until every worker listens at its port.

    Raises:
      ClusterError: this worker's port is taken, or another worker does not answer within `join_seconds`.
    """
    try:
        listener = _listener(_port(where.addresses[where.index]))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ClusterError(  # not a user error, since a launcher that restarts the workers chooses other ports
            f"{where.name(where.index)} cannot use its port ({reason}): another run may have it; "
            "end that or change TF_CONFIG"
        ) from error
    with listener:
        missing = [i for i in range(where.count) if i != where.index]
        deadline = time.monotonic() + where.join_seconds
        while missing := [i for i in missing if not _answers(where.addresses[i])]:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"no answer from {', '.join(map(where.name, missing))} in {where.join_seconds:.0f} s: start all "
                    "workers of TF_CONFIG, or set REPTILE_JOIN_SECONDS to wait longer"
                )
            time.sleep(0.1)


def _listener(port: int) -> socket.socket:
    """Listens at a port, with IPv4 and, if the host supports it, IPv6."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # these mean that IPv6 is disabled
                raise
    return socket.create_server(("", port), backlog=4096)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _answers(address: str) -> bool:
    try:
        host = address.rpartition(":")[0].strip("[]")  # an IPv6 address stands in brackets
        socket.create_connection((host, _port(address)), timeout=2).close()
    except OSError:  # includes a host name that cannot be resolved yet
        return False
    return True
