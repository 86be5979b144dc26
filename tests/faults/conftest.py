"""Fixtures that several files here share."""

import subprocess

import pytest
from tools import TINY, Disk

from reptile_tf import cli, device


@pytest.fixture
def main(monkeypatch, capsys):
    """Runs a tiny training with more flags: (exit code, what stands on standard error)."""
    monkeypatch.setattr(device, "configure", lambda *_: (False, "device: as the tests have it"))

    def call(*arguments):
        code = cli.main(["run_omniglot.py", *TINY, *arguments], "What it does.", "omniglot")
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def disk(tmp_path):
    """A disk of 3 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount a small disk here: {made.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)
