"""experiments/lake_one_shot.py on two made-up runs; on the real ones if OMNIGLOT_ZIPS is a folder with all_runs.zip."""

import io
import json
import os
import pathlib
import stat
import sys
import zipfile

import lake_one_shot  # of experiments/
import numpy as np
import pytest
from PIL import Image

import reptile_tf as rt
from reptile_tf import configuration, learners
from reptile_tf.checkpoint import Checkpoint
from reptile_tf.data import ImageClasses, omniglot
from reptile_tf.errors import UserError

pytestmark = pytest.mark.slow
ZIPS = pathlib.Path(os.environ.get("OMNIGLOT_ZIPS", ""))
needs_runs = pytest.mark.skipif(not (ZIPS / "all_runs.zip").is_file(), reason="OMNIGLOT_ZIPS has no all_runs.zip")
LABELS = "run01/class_labels.txt"


@pytest.fixture
def entries(monkeypatch, glyphs):
    """Two runs of three classes, by path; those of the second run are all labelled wrongly."""
    monkeypatch.setattr(lake_one_shot, "RUNS", 2)
    monkeypatch.setattr(lake_one_shot, "WAYS", 3)
    content = {}
    for run in (1, 2):
        labels = []
        for i in (1, 2, 3):
            glyph = glyphs.of_class(3 * run + i)[0, ..., 0].astype(bool)
            drawing = np.pad(np.kron(glyph, np.ones((3, 3), bool)), ((10, 11), (10, 11)), constant_values=True)
            name, item = f"run{run:02d}/training/class{i:02d}.png", f"run{run:02d}/test/item{i:02d}.png"
            content |= {name: png(drawing), item: png(np.roll(drawing, 5, 1))}
            labels.append(f"{item} run{run:02d}/training/class{i if run == 1 else i % 3 + 1:02d}.png\n")
        content[f"run{run:02d}/class_labels.txt"] = "".join(labels).encode()
    return content


def png(drawing):
    file = io.BytesIO()
    Image.fromarray(drawing).save(file, "PNG")
    return file.getvalue()


def zipped(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs the script: (exit code, what it says, the last line of its errors)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lake_one_shot.py", *map(str, arguments)])
        code = lake_one_shot.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


def background(glyphs, ink=0):
    """Glyphs under the names of background characters."""
    images = {f"Latin/character{i + 1:02d}": glyphs.of_class(i) ^ np.uint8(ink) for i in range(6)}
    return ImageClasses.from_groups(images)


def folder(path, model, classes, iteration=3, **config):
    """A run's folder, with a network that has not learned anything."""
    settings = rt.Settings(classes=2, shots=1, meta_iters=3, eval_iters=3, eval_batch=2)
    config = configuration.of_run(None, settings, model, classes, {"train": classes}) | config
    run = rt.RunFolder(path)
    with run.claimed(config):
        state = learners.make_learner(model, settings, classes.scale).state()
        run.save(Checkpoint(iteration, 1.0, state, np.zeros([0, 3])))
    return path


def test_the_baseline_finds_the_shifted_copies(script, entries, tmp_path):
    path = zipped(tmp_path / "runs.zip", entries)
    code, said, _ = script("--runs-zip", path, "--baseline", "--out", tmp_path / "out")
    assert code == 0
    assert "50.00 ± 98.00 % errors (2 runs)" in said
    (file,) = (tmp_path / "out").iterdir()
    result = json.loads(file.read_text())
    assert file.name == "lake_one_shot_baseline.json"
    assert result["errors"]["modified Hausdorff distance"]["error_percent_by_run"] == [0, 100]
    assert {"command", "commit", "machine", "seed", "seconds"} <= result.keys()


def test_the_distance_is_the_larger_mean_of_the_nearest():
    a, b = np.array([[0.0, 0], [0, 4]]), np.array([[0.0, 1], [3, 4], [3, 0]])
    # From a: 1 and 3. From b: 1, 3 and 3.
    assert lake_one_shot.hausdorff(a, b) == pytest.approx(7 / 3)
    assert lake_one_shot.hausdorff(b, a) == pytest.approx(7 / 3)


@pytest.mark.parametrize("ways", [2, 3])
def test_a_tiny_network(script, entries, tmp_path, glyphs, small_model, ways):
    """What the script counts is what adapting to the drawings as Pillow resizes them gives."""
    inner = {"inner_iters": 1, "learning_rate": 0.01, "eval_iters": 2, "eval_batch": 1}
    settings = rt.Settings(classes=ways, shots=1, meta_iters=1, meta_batch=1, **inner)
    run = rt.RunFolder(tmp_path / "run")
    rt.meta_train(small_model(ways), background(glyphs), settings, folder=run)
    path = zipped(tmp_path / "runs.zip", entries)
    code, said, error = script("--runs-zip", path, "--checkpoint", run.path, "--out", tmp_path / "out", "--seed", "7")
    assert code == 0, error
    assert ("it gets 3 outputs" in said + error) == (ways == 2)
    result = json.loads((tmp_path / "out" / "lake_one_shot.json").read_text())
    assert (tmp_path / "out" / "lake_one_shot.png").stat().st_size > 10_000

    def resized(name):
        with Image.open(io.BytesIO(entries[name])) as image:
            return np.asarray(image.resize((28, 28), Image.Resampling.NEAREST)).astype(np.uint8)[..., np.newaxis]

    learner, wrong = rt.load(run.path), []
    for number, right in ((1, [0, 1, 2]), (2, [1, 2, 0])):
        x, queries = (
            np.stack([resized(f"run{number:02d}/{part}{i:02d}.png") for i in (1, 2, 3)])
            for part in ("training/class", "test/item")
        )
        few = learner.adapt(x, [0, 1, 2], seed=6 + number)
        wrong.append([100 * (few.predict(queries, transductive=t) != right).mean() for t in (False, True)])
    found = [result["errors"][way]["error_percent_by_run"] for way in ("one by one", "transductive")]
    np.testing.assert_allclose(found, np.transpose(wrong), atol=0.01)
    assert result["training"]["ways"] == ways
    assert result["seed"] == 7


def test_networks_that_may_know_the_test_characters_are_refused(script, entries, tmp_path, glyphs, small_model):
    classes, model = background(glyphs), small_model(2)
    names = ["Latin/character01", "Tengwar/character25", "Tibetan/character01"]
    of_settings = {"settings": rt.Settings(meta_iters=3, init_from="other").determining_weights()}
    for number, (config, message) in enumerate(
        (
            (
                {"split": {"train": names}},
                "2 classes that are not of Omniglot's background alphabets, such as Tengwar/",
            ),
            ({"split": {"train": glyphs.names}}, "that are not of Omniglot's background alphabets"),
            ({"split": {}}, "does not say which classes it was trained on"),
            (of_settings, "began with the weights of other"),
            ({"iteration": 2}, "at meta-iteration 2 of 3: run its command again"),
            ({"pixels": {"white": 1, "paper": 0}}, "not trained on drawings of 0 for ink and 1 for paper"),
        )
    ):
        trained = folder(tmp_path / f"run{number}", model, classes, **config)
        code, _, error = script(
            "--runs-zip", zipped(tmp_path / "runs.zip", entries), "--checkpoint", trained, "--out", tmp_path / "out"
        )
        assert code == 1
        assert message in error.splitlines()[-1]
    assert script("--runs-zip", "runs.zip", "--checkpoint", tmp_path / "none", "--out", tmp_path / "out")[0] == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LABELS, b"run01/test/item01.png ../../secret.png\n" * 3, "does not give each test drawing its class"),
        (
            LABELS,
            b"run01/test/item01.png run01/training/class01.png\n" * 3,
            "does not give each test drawing its class",
        ),
        (LABELS, b"\xff\xfe\n", "does not give each test drawing its class"),
        (LABELS, None, f"it has no {LABELS}"),
        ("run02/test/item03.png", b"<html>", "cannot read a drawing of run02/test/item03.png"),
        ("run02/test/item03.png", png(np.ones((28, 28), bool)), "28x28 pixels instead of 105x105"),
        ("run02/test/item03.png", png(np.ones((105, 105), bool)), "a drawing without ink, run02/test/item03.png"),
        ("zeros", bytes(65 << 20), "it would unpack to far more than it should"),
    ],
)
def test_hostile_archives_are_refused_in_one_line(entries, tmp_path, name, content, message):
    entries |= {name: content}
    path = zipped(tmp_path / "runs.zip", {name: content for name, content in entries.items() if content is not None})
    with pytest.raises(UserError, match=message):
        lake_one_shot.read(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_entries_that_are_no_files_are_refused(entries, tmp_path, kind):
    entry = zipfile.ZipInfo(LABELS)
    entry.external_attr = kind << 16
    path = zipped(tmp_path / "runs.zip", {entry: b"/etc/passwd"} | {n: c for n, c in entries.items() if n != LABELS})
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        lake_one_shot.read(path)


def test_what_the_archive_holds_besides_is_left_alone(entries, tmp_path):
    inner = tmp_path / "in"
    inner.mkdir()
    path = zipped(inner / "runs.zip", entries | {"../outside.png": b"", "/outside.png": b"", "run03/more.txt": b""})
    assert [run.labels.tolist() for run in lake_one_shot.read(path)] == [[0, 1, 2], [1, 2, 0]]
    assert list(tmp_path.rglob("*")) == [inner, path]


@pytest.mark.parametrize(("content", "message"), [(None, "cannot read"), (b"no zip", "is not Omniglot's all_runs.zip")])
def test_files_that_are_no_archives_are_refused(script, tmp_path, content, message):
    path = tmp_path / "runs.zip"
    if content:
        path.write_bytes(content)
    code, _, error = script("--runs-zip", path, "--baseline", "--out", tmp_path / "out")
    assert code == 1
    assert message in error.splitlines()[-1]
    assert "one-shot-classification/all_runs.zip" in error.splitlines()[-1]


@needs_runs
def test_the_baseline_gives_the_published_error(script, tmp_path):
    """38.8 %, as demo_classification.py of Omniglot's repository says."""
    assert script("--runs-zip", ZIPS / "all_runs.zip", "--baseline", "--out", tmp_path)[0] == 0
    found = json.loads((tmp_path / "lake_one_shot_baseline.json").read_text())["errors"]
    assert found["modified Hausdorff distance"]["error_percent"] == 38.75
    assert found["modified Hausdorff distance"]["runs"] == 20


@needs_runs
def test_all_drawings_are_of_evaluation_alphabets():
    with zipfile.ZipFile(ZIPS / "images_evaluation.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        where = {omniglot.decode_png(archive.read(name), name, "").tobytes(): name for name in names}
    for run in lake_one_shot.read(ZIPS / "all_runs.zip"):
        training, test = ([where[drawing.tobytes()].split("/") for drawing in part] for part in run[:2])
        assert len({alphabet for _, alphabet, *_ in training + test}) == 1
        assert [test[i][2] for i in np.argsort(run.labels)] == [character for *_, character, _ in training]
        drawers = [{file[-6:-4] for *_, file in part} for part in (training, test)]
        assert [len(each) for each in drawers] == [1, 1]
        assert drawers[0] != drawers[1]
