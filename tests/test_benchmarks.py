"""Tests that each benchmark runs, at a tiny size, and ends with the JSON of what it measured."""

import json
import subprocess
import sys

import pytest
from pages import ROOT

TINY = {  # flags, and a positive number of the result as the path of its keys
    "speed.py": ("--rounds=1 --seconds=0.1 --against=eager", ["train_ratio"]),
    "classes.py": ("--classes 10 20 --meta-iters=1 --rounds=1", ["rows", "20", 2]),
    "memory.py": ("--images=300 --classes=20 --meta-iters=1", ["resident bytes", "own"]),
    "start.py": ("--rounds=1", ["this", "seconds", "whole"]),
    "onednn.py": ("--rounds=1 --meta-iters=1", ["ratio"]),
    "scaling.py": ("--rounds=1 --seconds=0.1 --meta-batches 2", ["meta_batches", "2", "ratio"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_and_ends_with_what_it_measured(name, tmp_path):
    if name == "speed.py":
        pytest.importorskip("torch", reason="it compares with PyTorch")
    flags, path = TINY[name]
    command = [sys.executable, ROOT / "benchmarks" / name, *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout[("\n" + done.stdout).rindex("\n{") :])
    for key in path:
        value = value[key]
    assert value > 0
