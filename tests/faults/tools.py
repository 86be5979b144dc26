"""Helpers for the tests of faults."""

import contextlib
import pathlib
import resource
import subprocess

import pytest

from reptile_tf import cli, device
from reptile_tf.files import is_leftover
from reptile_tf.problems.omniglot import PROBLEM

TINY = [
    "--source=glyphs", "--filters=4", "--classes=3", "--shots=1", "--inner-iters=1", "--meta-iters=40",
    "--save-interval=20", "--eval-interval=20", "--eval-tasks=2", "--eval-samples=2", "--eval-iters=1",
]  # fmt: skip


def trained(folder: pathlib.Path) -> pathlib.Path:
    """Runs TINY in a folder and returns the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "configure", lambda *_: device.Placement(False, {}, "device: none"))
        assert cli.main(["run_omniglot.py", *TINY, f"--checkpoint={folder}"], "", PROBLEM) == 0
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the content of all files below a folder, except TensorBoard's and locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "events")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.endswith(".lock")}


def leftovers(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that `files.replacing` has left behind below a folder."""
    return [path for path in folder.rglob("*") if is_leftover(path)]


@contextlib.contextmanager
def limited(what: int, amount: int):
    """Lowers one of this process's limits, resource.RLIMIT_…."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (amount, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


class Disk:
    """A small separate disk, mounted at `path`."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        with contextlib.suppress(OSError), open(self._filler, "ab", buffering=0) as file:
            while True:
                file.write(bytes(512))

    def free(self) -> None:
        self._filler.unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)
