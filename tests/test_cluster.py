"""Tests of clusters: errors in TF_CONFIG, and workers that are lost, hang or have other settings."""

import json
import re
import signal
import socket
import types

import pytest
import tensorflow as tf
import waiting
from claims import claim
from workers import TINY, cluster, ended, start

from reptile_tf import cli, device
from reptile_tf.checkpoint import RunFolder
from reptile_tf.distributed import tf_config
from reptile_tf.distributed.cluster import _lost, _Watch
from reptile_tf.distributed.tf_config import Place
from reptile_tf.errors import ClusterError, UserError
from reptile_tf.problems.omniglot import PROBLEM

LOST = 75
TWO = ("127.0.0.1:2000", "127.0.0.1:2001")
THREE = Place(
    ("a:1", "b:1", "c:1"),
    ("/job:chief/replica:0/task:0", "/job:worker/replica:0/task:0", "/job:worker/replica:0/task:1"),
)


def config(addresses=TWO, kind="worker", index=0, **more):
    return json.dumps({"cluster": {"worker": list(addresses)} | more, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "TF_CONFIG is not JSON (Expecting property name"),
        ("[]", "TF_CONFIG lacks something"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG lacks something (KeyError('task')): it has to be like {"),
        ('{"task": {"type": "worker", "index": 0}}', "TF_CONFIG lacks something (KeyError('cluster'))"),
        (config(index="zero"), "TF_CONFIG lacks something (ValueError"),
        (config(index=2), "this is worker 2, but its cluster has only: worker 0, worker 1"),
        (config(index=-1), "this is worker -1, but its cluster has only: worker 0, worker 1"),
        (config(kind="chief"), "this is chief 0, but its cluster has only: worker 0, worker 1"),
        (config([]), "but its cluster has only: none"),
        (config(["here", "there:1"]), "the address 'here': it has to be like 'host0:2222'"),
        (config(["here:1", "there:70000"]), "the address 'there:70000'"),
        (config(["here:1", "here:1"]), "the address here:1 twice"),
        (config(ps=["there:1"]), "tasks of type 'ps'"),
        (config(chief=["a:1", "b:1"]), "more than one chief"),
    ],
)
def test_a_mistake_in_tf_config_gets_one_line(monkeypatch, tmp_path, capsys, text, message):
    monkeypatch.setattr(device, "configure", lambda *_: device.Placement(False, {}, "device: none"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CONFIG", text)
    assert cli.main(["run_omniglot.py", "--source=glyphs"], "What it does.", PROBLEM) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("run_omniglot.py: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_tasks_in_turn_are_for_one_worker(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CONFIG", config())
    assert cli.main(["run_omniglot.py", "--source=glyphs", "--in-turn"], "What it does.", PROBLEM) == 1
    assert "--sequential passes Adam's state from task to task, so it needs a single worker" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", config(TWO[:1])])
def test_a_cluster_of_one_is_none(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    assert tf_config.of_this_process() == Place()
    assert tf_config.of_this_process().count == 1


def test_the_chief_comes_first(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(index=1, chief=["127.0.0.1:1999"]))
    where = tf_config.of_this_process()
    assert where.index == 2
    assert where.addresses == ("127.0.0.1:1999", *TWO)
    assert where.jobs[0] == "/job:chief/replica:0/task:0"
    assert where.jobs[2] == "/job:worker/replica:0/task:1"


@pytest.mark.parametrize(
    ("variable", "scheduler"), [("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun")]
)
def test_many_that_a_scheduler_started_without_tf_config_do_not_train_alone(monkeypatch, variable, scheduler):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv(variable, "1")
    assert tf_config.of_this_process() == Place()
    monkeypatch.setenv(variable, "4")
    with pytest.raises(UserError, match=rf"{scheduler} has started 4 of this, but TF_CONFIG does not say where"):
        tf_config.of_this_process()
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert tf_config.of_this_process() == Place()


def test_an_ipv6_address_stands_in_brackets(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(["[::1]:2000", "[::1]:2001"]))
    assert tf_config.of_this_process().addresses == ("[::1]:2000", "[::1]:2001")
    monkeypatch.setenv("TF_CONFIG", config(["::1:2000", "[::1]:2001"]))
    with pytest.raises(
        UserError, match=r"address '::1:2000': it has to be like 'host0:2222' or '\[2001:db8::1\]:2222'"
    ):
        tf_config.of_this_process()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_workers_meet_by_either_kind_of_address(host):
    if host == "[::1]":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this host has no IPv6")
    free, own = listening()
    free.close()
    there = tf_config._listener(0)
    with there:
        port = there.getsockname()[1]
        tf_config.meet(Place((own, f"{host}:{port}"), ("", ""), 0, 5.0))


def listening():
    one = socket.socket()
    one.bind(("127.0.0.1", 0))
    one.listen()
    return one, f"127.0.0.1:{one.getsockname()[1]}"


def test_a_port_that_is_taken_is_named():
    taken, address = listening()
    with (
        taken,
        pytest.raises(ClusterError, match=rf"worker 0 \({address}\) cannot use its port \(Address already in use"),
    ):
        tf_config.meet(Place((address, TWO[1]), ("", ""), 0))


@pytest.mark.parametrize("text", ["1m", "", "0", "nan", "inf"])
def test_a_wrong_time_to_join_is_named(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", config())
    monkeypatch.setenv("REPTILE_JOIN_SECONDS", text)
    with pytest.raises(UserError, match=f"REPTILE_JOIN_SECONDS is '{text}': it has to be a number of seconds"):
        tf_config.of_this_process()


def test_those_who_never_come_are_named():
    there, address = listening()
    free, own = listening()
    free.close()
    with there, pytest.raises(ClusterError, match=r"no answer from worker 2 \(127.0.0.1:1\) in 0 s: start all workers"):
        tf_config.meet(Place((own, address, "127.0.0.1:1"), ("", "", ""), 0, 0.5))


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (
            "Collective ops is aborted by: Collective ops is aborted by: Socket closed\nfrom remote target "
            "/job:worker/replica:0/task:1 while calling /tensorflow.WorkerService/RecvBuf:\nfrom remote target "
            "/job:chief/replica:0/task:0 while calling /tensorflow.WorkerService/RecvBuf:",
            "worker 2 (c:1)",
        ),
        (
            "aborted by: Error reported from /job:worker/task:0: The following tasks are unhealthy (stopped sending "
            "heartbeats):\n/job:worker/replica:0/task:0\nThe tasks have crashed.",
            "worker 1 (b:1)",
        ),
        (
            "aborted by: Deadline Exceeded\n\nRPC: /tensorflow.CoordinationService/Heartbeat\nfrom remote target "
            "/job:worker/replica:0/task:0 while calling /tensorflow.WorkerService/RecvBuf:",
            "worker 0 (a:1)",
        ),
        (
            "aborted by: unhealthy: /job:worker/replica:0/task:0, /job:worker/replica:0/task:1\nfrom remote target "
            "/job:chief/replica:0/task:0 while calling /tensorflow.WorkerService/RecvBuf:",
            "worker 1 (b:1), worker 2 (c:1)",
        ),
        ("Something new\nwith details", "another worker (Something new)"),
    ],
)
def test_the_lost_worker_is_read_off_tensorflows_errors(error, named):
    are = "are gone or do not answer" if "," in named else "is gone or does not answer"
    assert _lost(THREE, error).startswith(f"{named} {are}, ")


class Store:
    """A stand-in for TensorFlow's key-value store and abort, in which no other worker has recorded anything."""

    def __init__(self):
        self.told, self.aborted = set(), None

    def set_config_key_value(self, key, value):
        self.told.add(key)

    def get_config_key_value(self, key, timeout_in_ms):
        if key not in self.told:
            raise tf.errors.DeadlineExceededError(None, None, key)

    def abort_collective_ops(self, code, message):
        self.aborted = message


@pytest.mark.parametrize("patient", [False, True])
def test_those_who_do_not_come_to_an_exchange_are_named(monkeypatch, capsys, patient):
    store = Store()
    monkeypatch.setattr("reptile_tf.distributed.cluster.context", types.SimpleNamespace(context=lambda: store))
    monkeypatch.setattr("reptile_tf.distributed.cluster.PATIENCE", 1.5)
    said = []
    with _Watch(THREE).over(patient):
        waiting.until(lambda: said.append(capsys.readouterr().out) or any(said) or store.aborted)
    assert store.told == {"reptile/waiting/1/0"}
    if patient:
        assert "".join(said) == "waiting for worker 1 (b:1), worker 2 (c:1)\n"
        assert not store.aborted
    else:
        assert store.aborted == f"unhealthy: {THREE.jobs[1]}, {THREE.jobs[2]}"


# --- real workers without a launcher -----------------------------------------------------------------------------


def wait_for(path, process):
    waiting.until(path.exists, process)


@pytest.mark.slow
def test_a_worker_lost_while_all_join_is_told_of(tmp_path):
    """The lost worker has answered at its port, after which TensorFlow would wait an hour for it."""
    silent, address = listening()
    free, own = listening()
    free.close()
    with silent:
        environment = {"TF_CONFIG": config([own, address]), "REPTILE_JOIN_SECONDS": "8"}
        said = ended(
            start(["run_omniglot.py", *TINY, f"--checkpoint={tmp_path}/run"], **environment), code=-signal.SIGALRM
        )
    assert said[-1] == f"worker 0 ({own}): another worker ended while all joined: this one stops too; start all again"


@pytest.mark.slow
def test_a_stopped_worker_is_named(tmp_path):
    """This holds even for the chief, which hosts TensorFlow's coordination service and receives all heartbeats."""
    processes, addresses = cluster(2, f"--checkpoint={tmp_path}/run", "--meta-iters=1000000")
    wait_for(tmp_path / "run" / "checkpoint-0000005.npz", processes[0])
    processes[0].send_signal(signal.SIGSTOP)
    said = ended(processes[1], LOST)
    processes[0].kill()
    processes[0].communicate()
    assert said[-1].startswith(f"run_omniglot.py: worker 0 ({addresses[0]}) is gone or does not answer")


@pytest.mark.slow
def test_a_killed_worker_is_named(tmp_path):
    processes, addresses = cluster(2, f"--checkpoint={tmp_path}/run", "--meta-iters=1000000")
    wait_for(tmp_path / "run" / "checkpoint-0000005.npz", processes[0])
    processes[1].kill()
    said = ended(processes[0], LOST)
    processes[1].communicate()
    assert said[-1].startswith(f"run_omniglot.py: worker 1 ({addresses[1]}) is gone or does not answer")


@pytest.mark.slow
def test_a_mistake_that_the_chief_alone_sees_ends_the_others(tmp_path):
    claim(RunFolder(tmp_path / "run"), {"problem": "another", "settings": {}, "split": {}})
    processes, addresses = cluster(2, f"--checkpoint={tmp_path}/run")
    chief, other = (ended(*each) for each in zip(processes, (1, LOST), strict=True))
    assert chief[-1].startswith(f"run_omniglot.py: {tmp_path}/run holds ")
    assert other[-1].startswith(f"run_omniglot.py: worker 0 ({addresses[0]}) is gone or does not answer")


@pytest.mark.slow
def test_a_worker_that_hangs_is_named(tmp_path):
    """The worker is alive and continues to send heartbeats."""
    processes, addresses = cluster(3, f"--checkpoint={tmp_path}/run", script="tests/run_hanging.py")
    for other in (processes[0], processes[2]):
        said = ended(other, LOST)
        assert said[-1].startswith(f"run_hanging.py: worker 1 ({addresses[1]}) is gone or does not answer")
    assert processes[1].poll() is None
    processes[1].kill()
    processes[1].communicate()


@pytest.mark.slow
def test_workers_with_other_flags_are_refused(tmp_path):
    processes, addresses = cluster(2, lambda index: f"--seed={index}", f"--checkpoint={tmp_path}/run")
    for process in processes:
        said = ended(process, code=1)
        assert said[-1].startswith(f"run_omniglot.py: worker 1 ({addresses[1]}): other flags than worker 0 (")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_divergence_stops_all_and_the_chief_explains(tmp_path):
    """One of the workers has no task of its own."""
    flags = ["--meta-batch=1", "--meta-optimizer=sgd", "--meta-step=1e30", "--meta-step-final=1e30"]
    processes, _ = cluster(2, *flags, f"--checkpoint={tmp_path}/run")
    chief, other = (ended(process, code=1) for process in processes)
    stopped = r"run_omniglot.py: numbers are not finite at meta-iteration (\d+)"
    at = re.match(rf"{stopped} \(.*\): training stops, none is saved", chief[-1])[1]
    assert re.fullmatch(rf"{stopped}: it stops", *other)[1] == at
