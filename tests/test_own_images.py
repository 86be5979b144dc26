"""Tests of run_folder.py, from a folder of photographs to results, figures and a learner."""

import argparse
import json
import re
import shutil

import frozen_backbone
import keras
import numpy as np
import pytest
from PIL import Image

import reptile_tf as rt
from reptile_tf import cli, device
from reptile_tf.problems.folder import PROBLEM

TINY = (
    "--data-dir=photos", "--size=16", "--channels=1", "--filters=4", "--classes=2", "--shots=1", "--train-shots=3",
    "--inner-batch=3", "--inner-iters=2", "--meta-iters=6", "--eval-interval=3", "--eval-tasks=2", "--eval-iters=2",
    "--eval-samples=30", "--checkpoint=run",
)  # fmt: skip


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """A function that runs the script where photos/ has seven classes; returns exit code, output and error line."""
    monkeypatch.setattr(device, "configure", lambda *_: device.Placement(False, {}, "device: as the tests have it"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label in range(7):
        folder = tmp_path / "photos" / f"kind {label}"
        folder.mkdir(parents=True)
        for i in range(5):
            image = rng.integers(0, 60, (30, 40, 3)) + np.array([label * 25, 100, 150 - label * 20])
            Image.fromarray(image.astype(np.uint8)).save(folder / f"{i}.jpg")

    def call(*arguments):
        code = cli.main(["run_folder.py", *arguments], "What it does.", PROBLEM)
        return code, *capsys.readouterr()

    return call


def test_a_folder_of_ones_own_is_trained_on_evaluated_and_loaded(main, tmp_path):
    code, out, error = main(*TINY, "--rotations", "--flips")
    assert (code, error) == (0, "")
    assert "3 classes to train on, 2 for validation, 2 for testing" in out
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert {"train", "val", "test"} <= results.keys()
    assert results["task"] == "images of photos, 1-shot 2-way"
    config = json.loads((run / "config.json").read_text())
    assert config["images"]["shape"] == [16, 16, 1]
    by_class = json.loads((run / "classes.json").read_text())
    assert by_class.keys() == {"val", "test"}
    for part, found in by_class.items():
        assert found["classes"].keys() == set(config["split"][part])
        right = sum(one["accuracy"] * one["queries"] for one in found["classes"].values())
        assert sum(one["queries"] for one in found["classes"].values()) == 2 * 30
        assert right / 60 == pytest.approx(results[part]["accuracy"])
        assert sum(one["times"] for one in found["confusions"]) == 60 - round(right)
        assert len(found["worst_tasks"]) == 3
    for picture in ("confusion.png", "worst_tasks.png", "test_task.png", "learning_curve.png"):
        with Image.open(run / picture) as image:
            assert min(image.size) > 200
    learner = rt.load(run)
    assert learner.model.input_shape == (None, 16, 16, 1)
    (tmp_path / "photos" / "kind 0" / "0.jpg").unlink()  # the store is rebuilt, and the split stays the same
    code, out, _ = main("--pretrained", "--data-dir=photos", "--checkpoint=run", "--eval-samples=2", "--shots=1")
    assert code == 0
    assert (run / "classes-1shot.json").exists()


def test_a_folder_must_be_named_and_have_classes_enough(main):
    code, _, error = main("--checkpoint=run")
    assert (code, error) == (1, "run_folder.py: name the folder of your images (or a table of them) with --data-dir\n")
    code, _, error = main(*TINY, "--classes=4")
    assert code == 1
    assert "7 classes cannot be split: tasks of 4 ways need 4 classes to train on and 4 others to test on" in error
    code, _, error = main("--channels=2")
    assert (code, error) == (2, "run_folder.py: --channels must be one of 1, 3, not 2 (see --help)\n")


def test_a_run_among_the_images_is_resumed_and_is_no_class(main, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path / "photos")
    code, out, _ = main(*TINY, "--data-dir=.")
    assert code == 0
    assert "images of .: 7 classes" in out
    code, out, error = main(*TINY, "--data-dir=.")
    assert (code, error) == (0, "")
    assert "left out the folder ./run, which holds a run" in out
    assert "resuming from meta-iteration 6" in out
    shutil.copytree("run", tmp_path / "whole" / "run")
    code, _, error = main(*TINY, f"--data-dir={tmp_path / 'whole'}")
    assert code == 1
    assert "no class folders in" in error


def test_small_classes_do_not_stop_a_run_whatever_the_seed(main, tmp_path):
    for label in (1, 4, 6):
        for i in range(1, 5):
            (tmp_path / "photos" / f"kind {label}" / f"{i}.jpg").unlink()
    for seed in range(3):
        code, out, error = main(*TINY, "--meta-iters=1", f"--seed={seed}", f"--checkpoint=run{seed}")
        assert (code, error) == (0, "")
        assert (
            "2 classes to train on, none for validation (which would take 6 classes for 2 ways), 2 for testing" in out
        )
        assert "classes left out, with too few images: 3, such as kind 1" in out


@pytest.mark.slow
def test_a_run_starts_from_what_another_has_learned(main, tmp_path):
    assert main(*TINY)[0] == 0
    first = rt.load("run").phi.numpy()
    code, out, error = main(*TINY, "--checkpoint=next", "--init-from=run", "--meta-step=1e-9", "--meta-step-final=1e-9")
    assert (code, error) == (0, "")
    assert "starting from the weights in run" in out
    np.testing.assert_allclose(rt.load("next").phi, first, atol=1e-6)
    shutil.move("run", "moved")  # it contains the weights of a resumed run
    code, out, error = main(*TINY, "--checkpoint=next", "--init-from=run", "--meta-step=1e-9", "--meta-step-final=1e-9")
    assert (code, error) == (0, "")
    shutil.move("moved", "run")
    code, _, error = main(*TINY, "--checkpoint=other", "--init-from=run", "--filters=8")
    assert code == 1
    assert "--init-from run: its network has other weights than this one" in error
    code, _, error = main(*TINY, "--checkpoint=other", "--init-from=nowhere")
    assert code == 1
    assert "no run in nowhere" in error


def test_flips_are_images_seen_in_a_mirror():
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4, 1)
    classes = rt.ImageClasses.from_groups({"a": images[:2], "b": images[2:]})
    flipped = classes.with_flips()
    assert flipped.counts.tolist() == [4, 8]
    np.testing.assert_array_equal(flipped.of_class(1), np.concatenate([images[2:], images[2:, :, ::-1]]))
    np.testing.assert_array_equal(flipped.of_class(1, np.array([7, 0])), [images[5][:, ::-1], images[2]])
    np.testing.assert_array_equal(classes.images, images)
    turned = classes.with_rotations().with_flips()
    np.testing.assert_array_equal(turned.of_class(2)[2:], np.rot90(images[:2, :, ::-1], 1, axes=(1, 2)))
    numbered_images, numbered = turned.numbered()
    for index in range(len(turned)):
        np.testing.assert_array_equal(numbered_images[numbered.of_class(index)], turned.of_class(index))
    with pytest.raises(ValueError, match="only images .* can be mirrored"):
        rt.ImageClasses.from_groups({"a": np.zeros([3, 5])}).with_flips()
    with pytest.raises(ValueError, match="only square images .* can be turned"):
        rt.ImageClasses.from_groups({"a": np.zeros([3, 5])}).with_rotations()


def test_the_network_of_a_folder_is_the_papers_for_its_size():
    keras.utils.clear_session()
    settings = rt.Settings.preset("folder-5shot-5way", size=32, channels=1)
    model = PROBLEM.network(settings)
    assert model.input_shape == (None, 32, 32, 1)
    papers = rt.models.miniimagenet(5)
    assert [type(layer) for layer in model.layers] == [type(layer) for layer in papers.layers]
    assert rt.Settings.preset("miniimagenet-5shot-5way").determining_weights() == {
        **rt.Settings.preset("folder-5shot-5way").determining_weights()
    }


@pytest.mark.slow
def test_the_example_of_a_frozen_body_computes_its_features_once(main, monkeypatch, capsys):
    monkeypatch.setattr(frozen_backbone, "SIZE", 32)
    make, fewer = rt.Settings, {"meta_batch": 1, "eval_samples": 100}
    monkeypatch.setattr(rt, "Settings", lambda **given: make(**given | fewer))
    given = argparse.Namespace(data_dir="photos", ways=2, meta_iters=3, seed=0, weights="none", compare=True)
    frozen_backbone.main(given)
    out = capsys.readouterr().out
    assert re.search(r"features of 35 images: [\d.]+ s\n", out)
    (accuracy,) = re.findall(r"accuracy on 2 other classes: [\d.]+ ± [\d.]+ % \(100 tasks", out)
    of_features, of_images = map(float, re.search(r"([\d.]+) ms on features, ([\d.]+) ms with", out).groups())
    assert of_images > 5 * of_features
    monkeypatch.setattr(given, "compare", False)
    frozen_backbone.main(given)
    again = capsys.readouterr().out
    assert accuracy in again
    assert "mapping samples" not in again
    assert "warning" not in again
