"""What several files here share."""

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
    """The folder of a finished run of TINY."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "configure", lambda *_: device.Placement(False, {}, "device: none"))
        assert cli.main(["run_omniglot.py", *TINY, f"--checkpoint={folder}"], "", PROBLEM) == 0
    return folder


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files below a folder but TensorBoard's and locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "events")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.endswith(".lock")}


def leftovers(folder: pathlib.Path) -> list[pathlib.Path]:
    """What `files.replacing` left behind below a folder."""
    return [path for path in folder.rglob("*") if is_leftover(path)]


@contextlib.contextmanager
def limited(what: int, amount: int):
    """A lower quota for this process, one of resource.RLIMIT_…."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (amount, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


class Disk:
    """A small disk of its own, mounted at `path`."""

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
