"""Tests of classifying images from a few examples: preparing files, the command, and the files it saves."""

import csv
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import zipfile

import hand_drawn
import keras
import numpy as np
import pytest
import waiting
from conftest import DEMO, in_node
from PIL import Image, ImageOps

import reptile_tf as rt
from reptile_tf import UserError, classify, learners, tfjs
from reptile_tf.data import drawings, omniglot
from reptile_tf.origin import Origin

ROOT = pathlib.Path(__file__).parent.parent
WEIGHTS = ROOT / "pretrained" / "omniglot-5way"


@pytest.fixture(scope="module")
def learner():
    return rt.load(WEIGHTS)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder with photographs of three shapes: shapes/CLASS/1.jpg and new/CLASS-1.jpg."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(1)
    (folder / "new").mkdir()
    for name in ("circle", "cross", "house"):
        (folder / "shapes" / name).mkdir(parents=True)
        for path in (folder / "shapes" / name / "1.jpg", folder / "new" / f"{name}-1.jpg"):
            hand_drawn.photograph(hand_drawn.drawing(name, rng), rng).save(path)
    return folder


# --- preparing files for the network ---------------------------------------------------------------------------------


def like(white, shape=(28, 28, 1), paper=1):
    """Makes a stand-in with the attributes of a learner that `images` uses."""
    facts = types.SimpleNamespace(input_shape=shape)
    return types.SimpleNamespace(network=types.SimpleNamespace(facts=facts), origin=Origin(white=white, paper=paper))


def sheet(name="house"):
    """Returns a clean drawing, uint8, with dark ink on light paper."""
    ink = hand_drawn.drawing(name, np.random.default_rng(3))
    return (230 - 190 * ink).astype(np.uint8)


def test_drawings_of_the_data_sets_own_are_taken_as_they_are(glyphs, tmp_path):
    for index in range(5):
        Image.fromarray(255 * glyphs.images[index, ..., 0]).convert("1").save(tmp_path / f"{index}.png")
    np.testing.assert_array_equal(rt.images(tmp_path, like(1)), glyphs.images[:5])
    np.testing.assert_array_equal(rt.images(tmp_path, like(1, paper=0)), 1 - glyphs.images[:5])
    large = np.random.default_rng(0).random((105, 105)) < 0.8
    Image.fromarray(large).save(tmp_path / "large.png")
    rows = (2 * np.arange(28) + 1) * 105 // 56
    np.testing.assert_array_equal(rt.images(tmp_path / "large.png", like(1))[0, ..., 0], large[rows[:, None], rows])


@pytest.mark.skipif("OMNIGLOT_DIR" not in os.environ, reason="needs OMNIGLOT_DIR")
def test_omniglots_files_are_what_the_network_was_trained_on():
    classes, folder = omniglot.load_raw(os.environ["OMNIGLOT_DIR"]), pathlib.Path(os.environ["OMNIGLOT_DIR"])
    for index in range(0, len(classes), 400):
        (path,) = folder.glob(f"*/{classes.names[index]}")
        ours, theirs = rt.images(path, like(1)), classes.of_class(index)
        assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


@pytest.mark.parametrize("name", ["arrow", "spiral", "star", "tree"])
def test_light_noise_polarity_and_size_change_little(name):
    """The pixels that differ from the clean drawing's amount to at most 25 % of its ink."""
    clean, rng = sheet(name), np.random.default_rng(0)
    expected = drawings.prepared(clean, 28)
    assert 0.05 < (expected == 0).mean() < 0.35
    x = np.linspace(0, 1, len(clean))
    shadow = 0.55 + 0.45 / (1 + np.exp(-40 * (x - 0.4)))
    dark = clean * shadow + rng.normal(0, 8, clean.shape)
    small = np.asarray(Image.fromarray(clean).resize((400, 400), Image.Resampling.BOX))
    moved = np.full((1800, 1500), clean[0, 0])
    moved[500:1700, 200:1400] = clean
    spotted = clean.copy()
    spotted[40:52, 60:72] = 30
    on_table = clean.copy()
    on_table[:, -70:] = 40
    for changed in (dark, 255 - clean, small, moved, spotted, on_table):
        ours = drawings.prepared(np.clip(changed, 0, 255).astype(np.uint8), 28)
        ink = (expected == 0).sum()
        assert (ours != expected).sum() <= 0.25 * ink, (ours != expected).sum() / ink


def test_size_and_stroke_are_those_of_omniglot():
    prepared = drawings.prepared(sheet("square"), 28) == 0
    rows, columns = (np.flatnonzero(prepared.any(axis)) for axis in (1, 0))
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    assert extent == pytest.approx(68 * 28 / 105, abs=1.5)
    assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(51 * 28 / 105, abs=1)
    assert prepared.sum() / (4 * extent) == pytest.approx(5.5 * 28 / 105, rel=0.3)  # of four sides


def test_a_dot_stays_a_dot():
    dot = np.full((400, 600), 220, np.uint8)
    y, x = np.mgrid[:400, :600]
    dot[(y - 100) ** 2 + (x - 200) ** 2 < 30**2] = 40
    ink = drawings.prepared(dot, 28) == 0
    assert 1 <= ink.sum() <= 9
    assert ink[11:16, 11:16].sum() == ink.sum()


def test_what_shows_no_drawing_is_named(tmp_path):
    rng = np.random.default_rng(0)
    grey = np.clip(200 + rng.normal(0, 8, (300, 400)), 0, 255).astype(np.uint8)
    for image in (grey, np.full((50, 60), 7, np.uint8), np.zeros((1, 1), np.uint8)):
        Image.fromarray(image).save(tmp_path / "blank.png")
        with pytest.raises(UserError, match=r"blank.png shows no drawing that stands out from its paper"):
            rt.images(tmp_path / "blank.png", like(1))


def test_files_of_any_kind_are_read_upright_and_on_white(tmp_path):
    clean = Image.fromarray(sheet())
    expected = drawings.prepared(np.asarray(clean), 28)
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate it by 90 degrees
    clean.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(sheet().astype(np.uint16) * 257).save(tmp_path / "deep.png")
    alpha = ImageOps.invert(clean).point(lambda value: max(0, value - 25))
    Image.merge("LA", (Image.new("L", clean.size, 10), alpha)).save(tmp_path / "clear.png")
    clean.convert("P").save(tmp_path / "palette.png")
    for path in tmp_path.iterdir():
        ours = rt.images(path, like(1))[0, ..., 0]
        assert (ours != expected).sum() <= 0.1 * (expected == 0).sum(), path


def test_photographs_are_prepared_as_training_photographs_are(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / name / "x.png")
    for channels in (1, 3):
        trained_on = rt.data.folder.load(tmp_path, size=32, channels=channels)
        x, y = rt.examples(tmp_path, like(255, (32, 32, channels)))
        np.testing.assert_array_equal(x, trained_on.images)
        assert y.tolist() == ["a", "b"]


def test_a_file_several_or_a_folder(photographs):
    folder = photographs / "new"
    paths = sorted(folder.iterdir())
    whole = rt.images(folder, like(1))
    assert whole.shape == (3, 28, 28, 1)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(rt.images(paths, like(1)), whole)
    np.testing.assert_array_equal(rt.images(str(paths[1]), like(1)), whole[1:2])
    np.testing.assert_array_equal(rt.images([paths[2], folder], like(1)), whole[[2, 0, 1, 2]])


@pytest.mark.parametrize(
    ("learner_like", "message"),
    [
        (like(None), "does not say what its training images were like"),
        (like(1, (28, 28, 3)), r"takes drawings of \(28, 28, 3\), for which files cannot be prepared"),
        (like(255, (None, None, 3)), "for which files cannot be prepared: give arrays"),
        (like(255, (10,)), "for which files cannot be prepared: give arrays"),
    ],
)
def test_learners_that_files_cannot_be_prepared_for(learner_like, message, photographs):
    with pytest.raises(UserError, match=message):
        rt.images(photographs / "new", learner_like)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classified(photographs, tmp_path_factory):
    """The folder that the command wrote, and its output."""
    out = tmp_path_factory.mktemp("classified")
    outputs = [f"--{kind}={out / name}" for kind, name in (("json", "a.json"), ("csv", "a.csv"), ("save", "c.keras"))]
    run = [sys.executable, "-m", "reptile_tf.classify", f"--checkpoint={WEIGHTS}", "--support", "shapes"]
    done = subprocess.run(
        [*run, "--queries", "new", *outputs, f"--report={out / 'r.html'}"],
        cwd=photographs, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_photographs_of_drawings_are_classified(classified):
    lines = classified[1].splitlines()
    assert lines[0] == (
        "3 classes (circle 1, cross 1, house 1); 50 steps on minibatches of 5; each query beside the support set"
    )
    assert re.split(" +", lines[1]) == ["file", "label", "probability"]
    for line, name in zip(lines[2:5], ("circle", "cross", "house"), strict=True):
        file, label, probability = line.split()
        assert (file, label) == (f"new/{name}-1.jpg", name)
        assert 50 < float(probability.rstrip("%")) <= 100
    assert re.fullmatch(r"\d+\.\d s; written: .*c.keras, .*r.html, .*a.json, .*a.csv", lines[5])
    assert len(lines) == 6


def test_json_and_csv_say_the_same(classified):
    said = json.loads((classified[0] / "a.json").read_text())
    assert said["examples"] == {"circle": 1, "cross": 1, "house": 1}
    rows = list(csv.DictReader(io.StringIO((classified[0] / "a.csv").read_text())))
    for row, answer in zip(rows, said["answers"], strict=True):
        assert row == {name: str(answer[name]) for name in ("file", "label", "probability")}
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_the_command_does_what_the_five_lines_do(classified, photographs, learner):
    images, labels = rt.examples(photographs / "shapes", like=learner)
    few = learner.adapt(images, labels)
    new = rt.images(photographs / "new", like=learner)
    said = json.loads((classified[0] / "a.json").read_text())["answers"]
    assert few.predict(new).tolist() == [answer["label"] for answer in said]
    ours = [[answer["probabilities"][label] for label in few.labels] for answer in said]
    np.testing.assert_allclose(few.probabilities(new), ours, atol=1e-3)


def test_the_report_is_one_file_with_all_images(classified):
    page = (classified[0] / "r.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == page.count("data:image/png;base64,") == 6
    assert not re.findall(r'(?:src|href)=(?!"data:)|url\(|@import|<script', page)
    assert page.count("<li class=best>") == 3
    assert "circle-1.jpg" in page


def test_names_are_escaped_in_the_report(classified, photographs, learner):
    from reptile_tf import report

    file = photographs / "new" / "cross-1.jpg"
    run = {"examples": {"<b>&": 1}, "transductive": True, "checkpoint": "<i>", "steps": 1, "batch": 1, "seed": 0}
    seen = rt.images(file, learner)[0]
    page = report.page(run, [(file, seen, "<b>&")], [(file, seen, {"<b>&": 1.0})], 1)
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;&amp;" in page


def test_help_and_bad_flags_need_no_tensorflow():
    code = (
        "import sys; from reptile_tf import classify\n"
        "try: classify.main(sys.argv[1:])\n"
        "except SystemExit as e: print(e.code, 'tensorflow' in sys.modules, 'numpy' in sys.modules)"
    )
    for arguments, expected in (["--help"], 0), (["--colour"], 2), ([], 2):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.stdout.splitlines()[-1] == f"{expected} False False", done.stderr
    assert "--support DIR" in classify._parser().format_help()


@pytest.mark.parametrize(
    "flag", ["--save=a.h5", "--report=a.txt", "--steps=-1", "--batch=0", "--seed=x", "--check=a", "--nothing"]
)
def test_bad_flags_exit_with_2(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        classify.main(["--checkpoint=a", "--support=b", "--queries=c", flag])
    assert ended.value.code == 2
    assert "usage: python -m reptile_tf.classify" in capsys.readouterr().err


def mistakes(folder):
    """Invalid arguments, and the expected messages."""
    (folder / "one" / "only").mkdir(parents=True)
    (folder / "blank").mkdir()
    for path in (folder / "one" / "only" / "1.png", folder / "blank" / "white.png"):
        Image.new("L", (40, 40), 255).save(path)
    (folder / "text.png").write_text("no image")
    return {
        f"--support={folder / 'none'}": "no folder .*none; name one that holds a folder of images for each class",
        f"--support={folder / 'one'}": "has one class folder, only: give examples of at least two classes",
        f"--queries={folder / 'none'}": "no file or folder .*none; name an image, or a folder of images",
        f"--queries={folder / 'one'}": "no images in .*one; put some there",
        f"--queries={folder / 'text.png'}": "cannot read .*text.png as an image",
        f"--queries={folder / 'blank'}": "white.png shows no drawing that stands out from its paper",
        f"--checkpoint={folder / 'one'}": "no run in .*one",
        f"--report={folder / 'nowhere' / 'r.html'}": "no folder .*nowhere for --report; make it first",
        f"--json={folder}": "cannot write",
    }


def test_mistakes_are_one_line(photographs, tmp_path, capsys):
    for flag, said in mistakes(tmp_path).items():
        usual = {"--checkpoint": WEIGHTS, "--support": photographs / "shapes", "--queries": photographs / "new"}
        usual |= {"--steps": 1}
        name, _, value = flag.partition("=")
        usual[name] = value
        assert classify.main([f"{name}={value}" for name, value in usual.items()]) == 1, flag
        error = capsys.readouterr().err
        assert re.search(f"^python -m reptile_tf.classify: .*{said}", error), error
        assert error.count("\n") == 1


def test_flags_may_have_underscores_and_options_matter(photographs, monkeypatch, capsys):
    asked = []

    def adapt(self, x, y, **options):
        asked.append((list(y), options))
        raise ValueError("enough --seen")

    monkeypatch.setattr(rt.MetaLearner, "adapt", adapt)
    arguments = [f"--checkpoint={WEIGHTS}", f"--support={photographs / 'shapes'}"]
    arguments += ["--queries", str(photographs / "new"), "--steps", "3", "--batch=2", "--seed", "4"]
    assert classify.main(arguments) == 1
    assert asked == [(["circle", "cross", "house"], {"steps": 3, "batch": 2, "seed": 4})]
    assert capsys.readouterr().err == "python -m reptile_tf.classify: enough --seen\n"
    assert classify._hyphenated(["--a_b=c_d", "x_y"]) == ["--a-b=c_d", "x_y"]


# --- saved files -----------------------------------------------------------------------------------------------------


def test_the_saved_classifier_is_a_keras_model_that_says_its_labels(classified, photographs, learner):
    path = classified[0] / "c.keras"
    model = keras.saving.load_model(path)
    logits = model.predict(rt.images(photographs / "new", like=learner), verbose=0)
    assert logits.shape == (3, 3)
    np.testing.assert_array_equal(logits.argmax(-1), [0, 1, 2])
    with zipfile.ZipFile(path) as archive:
        said = json.loads(archive.read("classifier.json"))
        assert said == {"labels": ["circle", "cross", "house"], "scale": 1.0, "white": 1, "paper": 1}
        assert archive.testzip() is None


def test_only_a_keras_file_is_written(learner, tmp_path):
    few = learner.adapt(np.eye(28, dtype=np.uint8)[np.newaxis, ..., np.newaxis].repeat(2, 0), [0, 1], steps=0)
    with pytest.raises(ValueError, match=r"must end in .keras, not 'a.h5'"):
        few.save("a.h5")
    few.save(tmp_path / "few.keras")
    with zipfile.ZipFile(tmp_path / "few.keras") as archive:
        assert json.loads(archive.read("classifier.json"))["labels"] == [0, 1]


def opened(path, images):
    """Opens a saved model with the code of the demo's page."""
    pixels = path.with_suffix(".bin")
    pixels.write_bytes(images.astype("<f4").tobytes())
    done = subprocess.run(
        ["node", "test/saved.js", path, pixels],
        cwd=DEMO,
        capture_output=True,
        text=True,
        timeout=waiting.LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@in_node
def test_the_browser_opens_a_saved_classifier(classified, photographs, learner):
    images = rt.images(photographs / "new", like=learner)
    said = opened(classified[0] / "c.keras", images)
    assert said["labels"] == ["circle", "cross", "house"]
    assert said["about"].startswith(
        "c.keras: a classifier of 28 × 28 × 1 images that has learned circle, cross, house."
    )
    expected = keras.saving.load_model(classified[0] / "c.keras").predict(images, verbose=0)
    np.testing.assert_allclose(said["logits"], expected, atol=1e-4)


@in_node
def test_the_browser_opens_a_runs_model_with_its_moments(learner, glyphs, tmp_path):
    learners.save_model(learner, tmp_path / "model.keras")
    said = opened(tmp_path / "model.keras", glyphs.images[:6])
    assert said["labels"] is None
    assert "a meta-trained initialization for 5 classes of 28 × 28 × 1 images, Adam with" in said["about"]
    assert said["count"] == int(learner.inner_state[0])
    read = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(said["logits"], read(glyphs.images[:6], training=True), atol=1e-3)


def test_the_classifier_exports_for_tensorflow_js_by_itself(classified, tmp_path, capsys):
    assert tfjs.main([f"--classifier={classified[0] / 'c.keras'}", f"--out={tmp_path / 'js'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "js").iterdir()) == ["model.json", "weights.bin"]
    model = keras.saving.load_model(classified[0] / "c.keras")
    weights = np.fromfile(tmp_path / "js" / "weights.bin", "<f4")
    np.testing.assert_array_equal(weights, np.concatenate([v.numpy().ravel() for v in model.variables]))
    capsys.readouterr()
    assert tfjs.main([f"--classifier={tmp_path / 'none.keras'}", f"--out={tmp_path / 'js'}"]) == 1
    assert re.fullmatch(r".*tfjs: cannot load .*none.keras as a Keras model.*\n", capsys.readouterr().err)


def test_a_model_that_the_browser_cannot_compute_is_saved_all_the_same(tmp_path, capsys):
    model = keras.Sequential([keras.layers.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3, "gelu")])
    one = rt.MetaLearner(model, keras.optimizers.SGD(0.1), keras.optimizers.SGD())
    one.adapt(np.ones((3, 4, 4, 1)), [0, 1, 2], steps=1).save(tmp_path / "c.keras")
    assert "c.keras does not open in the browser demo: layer" in capsys.readouterr().out
    assert keras.saving.load_model(tmp_path / "c.keras").output_shape == (None, 3)


# --- the documentation -----------------------------------------------------------------------------------------------


def test_the_figures_are_what_the_benchmark_wrote():
    """Every row of the tables comes from docs/results/classify.json."""
    command = [sys.executable, "benchmarks/classify.py", "--rows"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = (ROOT / "docs" / "classify.md").read_text(encoding="utf-8").splitlines()
    rows = done.stdout.splitlines()
    assert len(rows) == 3 + 7 + 3
    assert [line for line in said if line in rows] == rows


def test_the_pages_program_is_five_lines_that_run(photographs, monkeypatch, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "classify.md").read_text("utf-8"), re.DOTALL)
    assert len(program.split("\n\n", 1)[1].splitlines()) == 5
    monkeypatch.chdir(photographs)
    exec(compile(program.replace("pretrained/omniglot-5way", str(WEIGHTS)), "classify.md", "exec"), {})
    assert capsys.readouterr().out.startswith("['circle' 'cross' 'house'] [[")
