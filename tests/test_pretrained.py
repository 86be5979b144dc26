"""Tests of the pretrained weights in the repository, and of the notebook that demonstrates them."""

import os
import pathlib
import re

import nbclient
import nbformat
import pytest
import waiting

import reptile_tf
from reptile_tf import data
from reptile_tf.settings import Settings

ROOT = pathlib.Path(__file__).parent.parent
WEIGHTS = ROOT / "pretrained" / "omniglot-5way"


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook):
    return "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")


def pictures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


@pytest.mark.parametrize(("name", "seed"), [("omniglot-5way", 0), ("omniglot-5way-seed1", 1)])
def test_the_weights_are_of_the_papers_whole_setting(name, seed):
    folder, paper = reptile_tf.RunFolder(WEIGHTS.parent / name), Settings.preset("omniglot-1shot-5way", seed=seed)
    assert folder.load().iteration == paper.meta_iters
    recorded, papers = folder.config()["settings"], paper.determining_weights()
    assert recorded == {name: papers[name] for name in recorded}
    assert len(recorded) >= 20
    assert {name: len(names) for name, names in folder.config()["split"].items()} == {"train": 1200, "test": 423}


@pytest.mark.slow
def test_the_weights_classify_shapes_of_another_alphabet():
    """The shapes are glyphs, which were not in the training data, with one drawing each."""
    settings = Settings(eval_samples=50, shots=1, transductive=True, seed=3)
    accuracy = reptile_tf.meta_test(reptile_tf.load(WEIGHTS), data.glyphs.load(), settings)
    assert accuracy.accuracy - accuracy.ci95 > 0.8


@pytest.mark.slow
def test_the_notebook_adapts_and_shows_that_meta_training_pays():
    """The whole notebook runs, on a fifth of the tasks; on real Omniglot if OMNIGLOT_DIR names it, or on glyphs."""
    notebook = nbformat.read(ROOT / "examples" / "few_shot.ipynb", as_version=4)
    (evaluating,) = [cell for cell in notebook.cells if "eval_samples=100" in cell.source]
    evaluating.source = evaluating.source.replace("eval_samples=100", "eval_samples=20")
    where = {"metadata": {"path": str(ROOT / "examples")}}
    nbclient.NotebookClient(notebook, timeout=waiting.LIMIT, resources=where).execute()
    text = printed(notebook)
    fetched = "OMNIGLOT_DIR" in os.environ or (ROOT / "data" / "omniglot").is_dir()
    source = "Omniglot: 423 test characters" if fetched else "built-in shapes instead"
    assert source in text
    assert re.search(r"right: [345] of 5", text)
    curves = {
        name: [float(a) for a in re.findall(r"([\d.]+)% after", line)]
        for name, line in re.findall(r"(meta-trained|random weights).*?: (.*)", text)
    }
    assert max(curves["meta-trained"][0], curves["random weights"][0]) < 40
    assert curves["meta-trained"][-1] > curves["random weights"][-1] + 10
    assert len(pictures(notebook)) == 3


def test_the_committed_notebook_has_its_outputs():
    stored = nbformat.read(ROOT / "examples" / "few_shot.ipynb", as_version=4)
    assert "Omniglot: 423 test characters" in printed(stored)
    assert len(pictures(stored)) == 3


def test_load_gives_the_scale_that_the_images_come_with():
    assert reptile_tf.load(WEIGHTS).network.scale == data.glyphs.load(classes=5, drawings=2).scale
