"""Tests of benchmarks/seeds.py: evaluations of runs, their means over seeds, and paired differences."""

import json
import sys

import numpy as np
import pytest
from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import seeds


def entry(right, ways=5, **classes):
    """Returns an entry for numbers of right answers by task, the same in both ways."""
    of_tasks = np.array(right) / ways
    accuracy = {"accuracy": of_tasks.mean(), "ci95": 0.03, "ci95_classes": 0.04, "tasks": len(right)} | classes
    letters = dict.fromkeys(seeds.WAYS, "".join(chr(ord("a") + number) for number in right))
    return dict.fromkeys(seeds.WAYS, accuracy) | {"right": letters, "trained by": {"classes": ways}}


def test_the_mean_covers_tasks_and_classes_of_all_seeds():
    one, two = entry([5, 4, 3, 4]), entry([5, 5, 5, 4], ci95_classes=None)
    value, interval, spread = seeds.mean([each["transductive"] for each in (one, two)])
    assert value == pytest.approx(87.5)
    assert interval == pytest.approx(100 * np.sqrt(0.03**2 + 0.04**2 + 0.03**2) / 2)
    assert spread is None
    three = [one, two, entry([5, 5, 5, 5])]
    values = 100 * np.array([0.8, 0.95, 1.0])
    assert seeds.mean([each["one by one"] for each in three])[2] == pytest.approx(4.303 * values.std(ddof=1) / 3**0.5)


def test_differences_are_paired_by_task():
    sequential, side = entry([5, 4, 3, 4]), entry([4, 3, 2, 3])
    gap = seeds.difference(sequential, side, "one by one")
    assert (gap.accuracy, gap.ci95) == pytest.approx((0.2, 0))
    found = {"5-way, seed 0; 1-shot; test": side, "5-way, seed 0, sequential; 1-shot; test": sequential}
    found["5-way, seed 1; 1-shot; test"] = entry([5, 4, 3, 4])
    table = seeds.tables(found)
    assert "| 5-way 1-shot | 95.39 ± 0.09 | 70.00 ± 3.54 | 60.00 (seed 0), 80.00 (seed 1) | – |" in table
    assert "| 5-way 1-shot, transductive, sequential | 97.68 ± 0.04 | 80.00 ± 5.00 | 80.00 (seed 0) | – |" in table
    assert "| 5-way 1-shot, transductive, seed 0 | +20.00 ± 0.00 |" in table
    assert len(table.splitlines()) == 2 + 4 + 3 + 2
    found |= {f"5-way, seed {seed}; 1-shot; train": entry([5, 5]) for seed in (0, 1, 2)}
    assert "80.00 (seed 1) | 100.00 ± 2.89 (by the seeds' spread ± 0.00) |" in seeds.tables(found)


@pytest.mark.slow
def test_runs_are_evaluated_once_in_every_way(main, tmp_path, monkeypatch, capsys):
    tiny = ["--source=glyphs", "--classes=5", "--filters=2", "--shots=1", "--meta-iters=1", "--meta-batch=2"]
    tiny += ["--eval-samples=2", "--inner-iters=1", "--train-shots=2"]
    for number, extra in enumerate([[], ["--sequential"]]):
        assert main(*tiny, *extra, f"--checkpoint={number}") == (0, "")
    monkeypatch.setattr(sys, "argv", ["seeds.py", "--tasks=6", f"--out={tmp_path / 'seeds.json'}", "0", "1"])

    def printed():
        capsys.readouterr()
        seeds.main()
        return capsys.readouterr().out.splitlines()

    first = printed()
    found = json.loads((tmp_path / "seeds.json").read_text())
    assert len(found) == 2 * 2 * 2
    for each in found.values():
        assert {"command", "commit", "machine", "seed", "onednn", "training_seconds"} <= each.keys()
        for way in seeds.WAYS:
            right = [ord(letter) - ord("a") for letter in each["right"][way]]
            assert np.mean(right) / 5 == pytest.approx(each[way]["accuracy"])
            assert each[way]["tasks"] == len(right) == 6
    monkeypatch.setattr(seeds, "evaluated", None)  # nothing is missing
    again = printed()
    assert [line for line in first if line.startswith("| ")] == [line for line in again if line.startswith("| ")]
    assert len(again) == 2 + 2 * 2 * 2 + 3 + 2 * 2
