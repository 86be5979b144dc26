"""Tests that a resumed run keeps its setting of oneDNN, which affects the last bits of results."""

import json
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from reptile_tf import cli
from reptile_tf.checkpoint import RunFolder
from reptile_tf.files import sealed
from reptile_tf.problems import find, names

ROOT = pathlib.Path(__file__).parent.parent
VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
TINY = [
    "--source=glyphs", "--classes=3", "--shots=1", "--train-shots=4", "--filters=2", "--inner-batch=6",
    "--inner-iters=1", "--meta-batch=1", "--meta-iters=1", "--eval-iters=1", "--eval-tasks=1", "--eval-samples=2",
]  # fmt: skip


def run(folder, *arguments, **more):
    """Returns a run's output. The environment variable is unset unless `more` sets it."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | more
    command = [sys.executable, str(ROOT / "run_omniglot.py"), *arguments, f"--checkpoint={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorFlow has oneDNN to turn on")
def test_a_run_keeps_what_it_began_with_unless_the_variable_is_set(tmp_path):
    folder = tmp_path / "run"
    other = {"0": "1", "1": "0"}[str(int(find("omniglot").onednn))]
    assert f"{VARIABLE}: {other}\n" in run(folder, *TINY, **{VARIABLE: other})
    assert json.loads((folder / "results.json").read_text())["machine"]["onednn"] == other
    default = {"0": "1", "1": "0"}[other]
    said = run(folder, "--pretrained", "--source=glyphs", "--eval-samples=2")
    assert f"{VARIABLE}: {other}\n" in said
    assert "last bits" not in said
    for arguments in TINY, ("--pretrained", "--source=glyphs", "--eval-samples=2"):
        said = run(folder, *arguments, **{VARIABLE: default})
        assert f"{VARIABLE}: {default}\n" in said
        assert f"this run began with {VARIABLE}={other}, and {default} is set now: the last bits" in said
    assert RunFolder(folder).config()["onednn"] == other


def config_in(folder, **content):
    folder.mkdir()
    (folder / "config.json").write_text(sealed({"settings": {}, "split": {}} | content))
    return str(folder)


@pytest.mark.parametrize("name", names())
def test_a_problem_decides_where_no_run_does(name, tmp_path):
    problem = find(name)
    ours, other = (str(int(on)) for on in (problem.onednn, not problem.onednn))
    assert cli._onednn(str(tmp_path / "none"), problem) == ours
    assert cli._onednn(config_in(tmp_path / "run", problem=name, onednn=other), problem) == other
    assert cli._onednn(config_in(tmp_path / "earlier", problem=name), problem) == ours
    assert cli._onednn(config_in(tmp_path / "chess", problem="chess", onednn=other), problem) == ours
    damaged = pathlib.Path(config_in(tmp_path / "damaged", problem=name, onednn=other), "config.json")
    damaged.write_text(damaged.read_text().replace("sha256", "sha255"))
    assert cli._onednn(str(damaged.parent), problem) == ours
