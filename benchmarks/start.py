"""Measures what a run takes besides training: until its first meta-iteration, and from start to end of a tiny run.

  python benchmarks/start.py --data-dir data/omniglot
  python benchmarks/start.py --data-dir data/omniglot --other ../before    also another checkout of this code, in turn

"first" is the time from the command to the first meta-iteration, saved. "whole" is a run of two meta-iterations with
the preset's evaluation of ten tasks and the pictures. The last line is JSON, with the median of each in seconds: the
first round alone may have to prepare Omniglot's store and to compile Python's modules.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import provenance

ROOT = pathlib.Path(__file__).parent.parent
RUN = ["run_omniglot.py", "--preset", "omniglot-1shot-5way", "--transductive"]


def environment(code: pathlib.Path) -> dict[str, str]:
    """Returns the environment in which a checkout's own package is imported, wherever another is installed."""
    return os.environ | {"PYTHONPATH": str(code)}


def first(code: pathlib.Path, images: list[str], folder: pathlib.Path) -> float:
    """Returns the seconds until a run has saved its first meta-iteration, and ends the run."""
    command = [sys.executable, *RUN, *images, "--save-interval", "1", "--checkpoint", str(folder)]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=code, env=environment(code), stdout=subprocess.DEVNULL) as run:
        while not list(folder.glob("checkpoint-*.npz")):
            if run.poll() is not None:
                sys.exit(f"the run ended early, with {run.returncode}: it says why above")
            time.sleep(0.01)
        seconds = time.monotonic() - began
        run.send_signal(signal.SIGTERM)
    return seconds


def whole(code: pathlib.Path, images: list[str], folder: pathlib.Path) -> float:
    """Returns the seconds that a tiny run takes from its start to the end of its process."""
    command = [sys.executable, *RUN, *images, "--meta-iters", "2", "--eval-samples", "10", "--checkpoint", str(folder)]
    began = time.monotonic()
    subprocess.run(command, cwd=code, env=environment(code), stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def usage(code: pathlib.Path, *_) -> float:
    """Returns the seconds that --help takes."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, RUN[0], "--help"], cwd=code, env=environment(code), stdout=subprocess.DEVNULL, check=True
    )
    return time.monotonic() - began


MEASURED = {"help": usage, "first": first, "whole": whole}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=pathlib.Path, help="Omniglot; without it, the built-in glyphs")
    parser.add_argument("--other", type=pathlib.Path, help="another checkout, measured in turn")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    images = ["--data-dir", str(arguments.data_dir.resolve())] if arguments.data_dir else ["--source", "glyphs"]
    checkouts = {"this": ROOT} | ({"other": arguments.other.resolve()} if arguments.other else {})
    seconds = {name: {what: [] for what in MEASURED} for name in checkouts}
    for number in range(arguments.rounds):
        for name, code in checkouts.items() if number % 2 else reversed(checkouts.items()):
            for what, measured in MEASURED.items():
                with tempfile.TemporaryDirectory() as folder:
                    seconds[name][what].append(round(measured(code, images, pathlib.Path(folder, "run")), 2))
    result = {"command": " ".join(["python benchmarks/start.py", *sys.argv[1:]]), **provenance.of_now()}
    for name, code in checkouts.items():
        medians = {what: round(statistics.median(each), 2) for what, each in seconds[name].items()}
        result[name] = {"commit": provenance.commit(code), "seconds": medians, "each": seconds[name]}
    print(json.dumps(result | {"load average after": round(os.getloadavg()[0], 2)}))


if __name__ == "__main__":
    main()
