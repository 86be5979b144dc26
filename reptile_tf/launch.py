"""Starts a run script as several workers on this host.

  python -m reptile_tf.launch --workers 8 run_omniglot.py --preset omniglot-1shot-5way

Each worker gets its own GPU, or a share of the CPU's cores. To train on several hosts, let a scheduler start the
processes and set TF_CONFIG.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import BinaryIO, TextIO

from reptile_tf.errors import ClusterError, UserError

# After a worker has failed, the seconds that the others have to report the failure and exit before they are killed.
GRACE = 5.0
MISTAKES = UserError.exit_code, 2  # 2: a bad flag
LOST = ClusterError.exit_code
STOPPED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class Output:
    """Copies the workers' output line by line, each prefixed with its worker's number."""

    def __init__(self):
        self._lock = threading.Lock()
        self._errors: dict[bytes, int] = {}  # the worker that printed each line first
        self._clear = "\r\033[K" if sys.stdout.isatty() else ""  # erases the chief's live line

    def copy(self, source: BinaryIO, to: TextIO, worker: int) -> None:
        """Copies `source` to its end, except errors that another worker has printed: all have the same flags."""
        with source:
            for line in source:
                with self._lock:
                    if to is sys.stderr and self._errors.setdefault(line, worker) != worker:
                        continue
                    # Written as bytes, since the encoding of `to` may differ from the worker's.
                    to.buffer.write(f"{self._clear}[{worker}] ".encode() + line.rstrip(b"\n") + b"\n")
                    to.buffer.flush()

    def say(self, text: str) -> None:
        """Prints a line from the launcher itself."""
        with self._lock:
            print(f"{self._clear}launch: {text}", file=sys.stderr, flush=True)


LAUNCHER = "REPTILE_LAUNCHER"  # environment variable with the launcher's process id


def end_with_launcher() -> None:
    """Makes this process send itself SIGTERM when the launcher that started it, if any, has ended, even by SIGKILL."""
    launcher = os.environ.get(LAUNCHER, "")
    if not launcher.isdecimal() or os.getppid() != int(launcher):  # inherited from a launcher of a parent process
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """The worker processes of one start.

    Args:
      command: the command line that each worker runs.
      count: number of workers.
      output: copies their output. On a terminal the chief writes its standard output there itself, for its live line.
    """

    def __init__(self, command: list[str], count: int, output: Output):
        self._output = output
        self.addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
        self.processes: list[subprocess.Popen] = []
        self._readers: list[threading.Thread] = []
        gpus = _gpus(count)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []  # macOS cannot divide them
        try:
            for index in range(count):
                task = {"cluster": {"worker": self.addresses}, "task": {"type": "worker", "index": index}}
                environment = os.environ | {"TF_CONFIG": json.dumps(task), LAUNCHER: str(os.getpid())}
                if gpus:
                    environment["CUDA_VISIBLE_DEVICES"] = gpus[index]
                if cores:
                    os.sched_setaffinity(0, _part(cores, index, count))  # the worker inherits it; see `device.cores`
                self._start(command, environment, index)
        finally:
            if cores:
                os.sched_setaffinity(0, cores)

    def _start(self, command: list[str], environment: dict[str, str], index: int) -> None:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if index == 0 and sys.stdout.isatty() else subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C reaches it only once, through the launcher
        )
        self.processes.append(process)
        for source, to in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            if source:
                self._readers.append(threading.Thread(target=self._output.copy, args=(source, to, index), daemon=True))
                self._readers[-1].start()

    def send(self, number: int) -> None:
        """Sends a signal to the workers that are still running."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> int:
        """Waits for all workers, and ends the others when one fails; returns the exit code of the cause, or 0.

        The cause is a user error if any worker reports one, otherwise the first failure. Exit code LOST counts only if
        there is no other, since it reports another worker's failure.
        """
        culprit, code, deadline = -1, 0, float("inf")
        running, told = True, False
        while running:
            running = None in [process.poll() for process in self.processes]
            late = time.monotonic() > deadline
            if not late and (failed := [i for i, p in enumerate(self.processes) if p.returncode]):
                codes = [process.returncode for process in self.processes]
                # Of several at once, the cause is the one that a signal killed (a negative code).
                culprit = min(
                    failed, key=lambda i: (codes[i] not in MISTAKES, codes[i] == LOST, i != culprit, codes[i])
                )
                code = _exit_code(self.processes[culprit])
                if code not in STOPPED:  # after a signal to stop, all workers end on their own and the chief saves
                    deadline = min(deadline, time.monotonic() + GRACE)
            if running and not told and deadline < float("inf") and (code != LOST or late):
                told = True
                self._output.say(f"{self._ending(culprit)}; the other workers are stopped")
            if late:
                self.send(signal.SIGKILL)
            time.sleep(0.05 * running)
        for reader in self._readers:
            reader.join(timeout=5)
        return code

    def _ending(self, index: int) -> str:
        code = self.processes[index].returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"worker {index} ({self.addresses[index]}) {how}"


def _exit_code(process: subprocess.Popen) -> int:
    """Returns a process's exit code as a shell reports it: 128 + N after signal N."""
    return 128 - process.returncode if process.returncode < 0 else process.returncode


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _part(cores: list[int], index: int, count: int) -> set[int]:
    """Returns a worker's share of the cores. With more workers than cores, each gets one, and some are shared."""
    if count > len(cores):
        return {cores[index % len(cores)]}
    return set(cores[index * len(cores) // count : (index + 1) * len(cores) // count])


def _gpus(count: int) -> list[str]:
    """Returns CUDA's names of the first `count` GPUs; empty without GPUs. Raises UserError if there are too few."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        gpus = [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    elif shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        gpus = [str(i) for i, line in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]
    else:
        gpus = []
    if gpus and count > len(gpus):
        raise UserError(f"--workers {count} need a GPU each, but there are {len(gpus)}: start {len(gpus)} or fewer")
    return gpus[:count]


def launch(script: str, flags: Sequence[str], workers: int, restarts: int = 0) -> int:
    """Runs a script as several workers, and restarts all of them if one has stopped.

    Args:
      script: path of the script.
      flags: the script's command-line arguments, the same for all workers.
      workers: number of workers.
      restarts: how often to restart all workers from the newest checkpoint. There is no restart after a user error or a
        signal to stop.

    Returns:
      The exit code: 0, that of a user error or else of the first failure, 130 after SIGINT, or 143 after SIGTERM or
      SIGHUP.

    Raises:
      UserError: there is no such script, or there are fewer GPUs than workers.
    """
    if not pathlib.Path(script).is_file():
        raise UserError(f"no script {script}: name one, such as run_omniglot.py")
    asked: list[int] = []
    running: list[Workers] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(signal.SIGTERM if number == signal.SIGHUP else number)
        for one in running:
            one.send(asked[-1] if len(asked) < 3 else signal.SIGKILL)

    old = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup ignores SIGHUP
    }
    try:
        while True:
            output = Output()
            running[:] = [Workers([sys.executable, script, *flags], workers, output)]
            if asked:  # a signal arrived while they were being started
                running[0].send(asked[0])
            code = running[0].wait()
            if asked and code:
                return 128 + asked[0]
            if code in (0, *MISTAKES, *STOPPED) or not restarts:
                return code
            restarts -= 1
            output.say(f"all {workers} start again; restarts left: {restarts}")
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns `launch`'s exit code, 1 after a user error, or 2 (SystemExit) after a bad flag."""
    parser = argparse.ArgumentParser(
        prog="python -m reptile_tf.launch",
        description="Start a run script as several workers on this host, one per GPU or the CPU's cores divided.",
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=_at_least(1), required=True, help="how many processes")
    parser.add_argument(
        "--restarts",
        type=_at_least(0),
        default=0,
        help="how often to restart all workers after one has stopped or crashed, not after a mistake (default: 0)",
    )
    parser.add_argument("script", help="what to run, such as run_omniglot.py")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="the script's own flags")
    arguments = parser.parse_args(argv)
    try:
        return launch(arguments.script, arguments.flags, arguments.workers, arguments.restarts)
    except UserError as error:
        print(f"{parser.prog}: {error.on_command_line}", file=sys.stderr)
        return 1


def _at_least(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number, {low} or more")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
