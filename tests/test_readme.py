"""The README's program, as it stands there, on a folder of images; and its results."""

import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


def program():
    (found,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return found


def test_the_readmes_program_runs_in_under_twenty_lines(glyphs, tmp_path, monkeypatch, capsys):
    for index, name in enumerate(glyphs.names):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, image in enumerate(glyphs.of_class(index)):
            Image.fromarray(255 * image[..., 0]).save(tmp_path / "photos" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    text = program()
    assert len(text.splitlines()) < 20
    shorter, changes = re.subn(r"(meta_iters|eval_samples)=\d+", r"\1=20", text)
    assert changes == 2
    variables = {}
    exec(compile(shorter, str(README), "exec"), variables)
    assert re.search(r"\d\d\.\d\d ± \d+\.\d\d % \(\d+ tasks\)", capsys.readouterr().out)
    saved = variables["keras"].models.load_model("model.keras")
    trained = np.concatenate([v.numpy().ravel() for v in saved.trainable_variables])
    np.testing.assert_array_equal(trained, variables["learner"].phi.numpy())


@pytest.mark.parametrize("shots", [1, 5])
def test_the_results_are_what_the_evaluations_wrote(shots):
    """Each row of the table, whose third column is ours, the fourth the difference to the paper."""
    table = section("Omniglot, 5-way")
    results = json.loads((ROOT / "docs" / "results" / f"omniglot-5way-{shots}shot.json").read_text())
    assert results["meta_iterations"] == 100_000
    for label, suffix in ((", transductive", ""), ("", ", not transductive")):
        test, train = results[f"test{suffix}"], results[f"train{suffix}"]
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {shots}-shot{label} | ")]
        _, _, paper, ours, difference, training, _ = (cell.strip() for cell in row.split("|"))
        assert ours == shown(test)
        assert training == shown(train)
        gap = 100 * test["accuracy"] - float(paper.split(" ±")[0])
        assert float(difference.replace("−", "-")) == pytest.approx(gap, abs=0.005001)
        assert test["tasks"] == train["tasks"] == 10_000
        assert shown(test) in (ROOT / "pretrained" / "omniglot-5way" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("shots", "tasks"), [(1, 1000), (5, 200)])
def test_the_results_on_photographs_are_what_the_evaluations_wrote(shots, tasks):
    """Each row of the table: accuracy on test, validation and training classes, and the number of tasks."""
    table = section("Photographs")
    results = json.loads((ROOT / "docs" / "results" / f"tiny-imagenet-part-{shots}shot.json").read_text())
    assert results["meta_iterations"] == 1500
    for label, suffix in ((", transductive", ""), ("", ", not transductive")):
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {shots}-shot{label} | ")]
        sets = [results[f"{part}{suffix}"] for part in ("test", "val", "train")]
        assert [cell.strip() for cell in row.split("|")[2:6]] == [*map(shown, sets), f"{tasks:,}"]
        assert {accuracy["tasks"] for accuracy in sets} == {tasks}


def test_the_demos_accuracy_is_what_the_training_wrote():
    text = README.read_text(encoding="utf-8").split("\n## In the browser")[1].split("\n## ")[0]
    results = json.loads((ROOT / "docs" / "results" / "demo-3way.json").read_text())
    assert results["meta_iterations"] == 120_000
    assert results["test"]["tasks"] == results["train"]["tasks"] == 2000
    for label, suffix in (("one query at a time, as on the page", ""), ("transductive", ", transductive")):
        row = f"| {label} | {shown(results[f'test{suffix}'])} | {shown(results[f'train{suffix}'])} |"
        assert row in text.splitlines()


def section(title):
    """What stands below the first heading that begins with `title`."""
    return README.read_text(encoding="utf-8").split(f"\n### {title}")[1].split("\n### ")[0]


def shown(accuracy):
    return f"{100 * accuracy['accuracy']:.2f} ± {100 * accuracy['ci95']:.2f}"
