"""Measures the accuracy of classifiers that are made from a few examples: the numbers in docs/classify.md.

  python benchmarks/classify.py --omniglot data/omniglot --part model        # one by one, transductive, a Keras model
  python benchmarks/classify.py --omniglot data/omniglot --part ways         # 2 to 20 classes with a 5-way network
  python benchmarks/classify.py --omniglot data/omniglot --part photographs  # photographs of drawings

  python benchmarks/classify.py --rows                                       # prints the tables of docs/classify.md

All use pretrained/omniglot-5way with its own evaluation settings and one example per class, on characters that it was
not trained on (its config.json has the split). Each part replaces its own entry in docs/results/classify.json, and
writes intermediate results.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from reptile_tf import backend

backend.import_quietly()

import numpy as np
import provenance
from PIL import Image, ImageFilter

import reptile_tf as rt
from reptile_tf import adapted, device, files, heads, tasks
from reptile_tf.evaluate import Accuracy, Evaluator
from reptile_tf.settings import Settings

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import hand_drawn

WEIGHTS = ROOT / "pretrained" / "omniglot-5way"
OUT = ROOT / "docs" / "results" / "classify.json"


def one_task(few: adapted.Adapted, query_x: np.ndarray, query_y: np.ndarray, model=None) -> list[float]:
    """Returns the shares of queries classified correctly: one by one, transductively, and by the Keras model.

    Args:
      few: the adapted learner.
      query_x: the queries.
      query_y: their labels.
      model: the result of `few.model()` for an earlier task, into which this task's weights and statistics are copied;
        that takes a tenth of the time. Without it `few.model()` is called.
    """
    network = few._adapter.network
    if model is None:
        model = few.model()
    else:
        for variable, value in zip(model.trainable_variables, network.unflatten(few.weights), strict=True):
            variable.assign(value)
        adapted._set_moving_averages(model, network, network.scaled(few._support_x))
    logits = np.asarray(model(query_x.astype(np.float32) * network.scale, training=False))
    return [float((few.labels[of_way.argmax(-1)] == query_y).mean()) for of_way in (*few.predictions(query_x), logits)]


def summary(shares: np.ndarray) -> dict:
    """Returns the accuracy of each method, and its difference from the first, from correct shares [task, method]."""
    ways = ("one by one", "transductive", "keras model")
    rows = {way: Accuracy.of(shares[:, i])._asdict() for i, way in enumerate(ways)}
    for i, way in enumerate(ways[1:], 1):
        gap = Accuracy.of(shares[:, i] - shares[:, 0])
        rows[way] |= {"minus one by one": gap.accuracy, "minus one by one, ci95": gap.ci95}
    return rows


def model_part(learner: rt.MetaLearner, test: rt.ImageClasses, count: int, _: str) -> Iterator[dict]:
    """Yields the accuracy of the three methods on the same adapted learners."""
    shares, model = [], None
    for i in range(count):
        task = tasks.evaluation_tasks(test, way=5, shots=1, batch=1, steps=0, seed=0, first=i, count=1)
        x, y, query_x, query_y = task.support.x[0], task.support.y[0], task.query_x[0], task.query_y[0]
        few = learner.adapt(x, y, seed=i)
        shares.append(one_task(few, query_x, query_y, model))
        if model is None:
            model = few.model()
        if i % 100 == 99 or i == count - 1:
            assert one_task(few, query_x, query_y) == shares[-1], "the model that is used again answers otherwise"
            yield {"task": "omniglot test characters, 1-shot 5-way"} | summary(np.array(shares))


def ways_part(learner: rt.MetaLearner, test: rt.ImageClasses, count: int, _: str) -> Iterator[dict]:
    """Yields the accuracy by number of classes; above five classes also with minibatches of one image per class."""
    rows = []
    for way, batch in ((2, 5), (3, 5), (5, 5), (10, 5), (10, 10), (20, 5), (20, 20)):
        began = time.monotonic()
        evaluator = Evaluator(heads.with_outputs(learner, way))
        settings = Settings(classes=way, shots=1, eval_batch=batch, eval_iters=50, seed=0)
        right = np.zeros([2, count])
        for first in range(0, count, evaluator.tasks):
            drawn = tasks.evaluation_tasks(test, **settings.evaluation_arguments(), first=first, count=evaluator.tasks)
            for of_way, logits in zip(right, evaluator.logits(drawn), strict=True):
                shares = (logits[..., :way].argmax(-1) == drawn.query_y).mean(-1)
                of_way[first : first + evaluator.tasks] = shares[: count - first]
        one_by_one, transductive = map(Accuracy.of, right)
        rows.append(
            {
                "classes": way,
                "minibatch": batch,
                "one by one": one_by_one._asdict(),
                "transductive": transductive._asdict(),
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        yield {"task": "omniglot test characters, 1-shot", "rows": rows}


def photographs_part(learner: rt.MetaLearner, test: rt.ImageClasses, count: int, omniglot: str) -> Iterator[dict]:
    """Yields the accuracy on 5-way tasks of photographs, of generated shapes and of Omniglot's own drawings."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        shapes = {name: _shapes(folder, name, 6, rng, learner) for name in hand_drawn.SHAPES}
        chosen = rng.choice(len(test), 20, replace=False)
        drawn = {test.names[c]: _omniglot(folder, pathlib.Path(omniglot), test.names[c], 4, rng) for c in chosen}
        photographed = {name: rt.images([photo for photo, _ in pairs], learner) for name, pairs in drawn.items()}
        originals = {name: rt.images([file for _, file in pairs], learner) for name, pairs in drawn.items()}
        as_a_user = _as_a_user(folder)
    result = {"task": "photographs, 1-shot 5-way"} | as_a_user
    for name, classes in (
        ("shapes", shapes),
        ("omniglot, photographed", photographed),
        ("omniglot, the same drawings as they are", originals),
    ):
        result |= {name: _tasks(learner, classes, count)}
        yield result


def _shapes(
    folder: pathlib.Path, name: str, count: int, rng: np.random.Generator, learner: rt.MetaLearner
) -> np.ndarray:
    """Makes photographs of drawings of a shape, and prepares them for the learner."""
    paths = [folder / f"{name}-{number}.jpg" for number in range(count)]
    for path in paths:
        hand_drawn.photograph(hand_drawn.drawing(name, rng), rng).save(path, quality=75)
    return rt.images(paths, learner)


def _omniglot(
    folder: pathlib.Path, omniglot: pathlib.Path, name: str, count: int, rng: np.random.Generator
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Makes photographs of some drawings of a character; returns pairs of photograph and original file."""
    (of_character,) = omniglot.glob(f"*/{name}")
    pairs = []
    for original in sorted(of_character.glob("*.png"))[:count]:
        with Image.open(original) as image:
            ink = Image.fromarray((~np.asarray(image.convert("1"))).astype(np.uint8) * 255)
        smooth = ink.resize((700, 700), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(5))
        sheet = Image.new("L", (hand_drawn.SIDE, hand_drawn.SIDE))
        sheet.paste(smooth.point(lambda value: 255 * (value > 128)), [(hand_drawn.SIDE - 700) // 2] * 2)
        soft = np.asarray(sheet.filter(ImageFilter.GaussianBlur(1.5)), np.float64) / 255
        photo = folder / f"{name.replace('/', '-')}-{original.stem}.jpg"
        hand_drawn.photograph(soft, rng).save(photo, quality=75)
        pairs.append((photo, original))
    return pairs


def _tasks(learner: rt.MetaLearner, classes: dict[str, np.ndarray], count: int) -> dict:
    """Returns the accuracy on random tasks, which depend only on the names and numbers of images."""
    rng, names, shares, model = np.random.default_rng(1), sorted(classes), [], None
    for i in range(count):
        chosen = rng.choice(len(names), 5, replace=False)
        drawn = np.stack([classes[names[c]][rng.permutation(len(classes[names[c]]))[:2]] for c in chosen])
        labels = np.array([names[c] for c in chosen])
        few = learner.adapt(drawn[:, 0], labels, seed=i)
        shares.append(one_task(few, drawn[:, 1], labels, model))
        model = model or few.model()
    return summary(np.array(shares))


def _as_a_user(folder: pathlib.Path) -> dict:
    """Runs the command line on photographs and on invalid queries; returns the seconds and its output."""
    run = [sys.executable, str(ROOT / "examples" / "hand_drawn.py"), "--out", str(folder / "drawn")]
    subprocess.run(run, check=True, capture_output=True)
    Image.new("RGB", (800, 600), (200, 196, 190)).save(folder / "blank.jpg")
    (folder / "notes.txt").write_text("no image")

    def classify(queries: pathlib.Path) -> tuple[float, list[str]]:
        command = [sys.executable, "-m", "reptile_tf.classify", "--checkpoint", "pretrained/omniglot-5way"]
        command += ["--support", str(folder / "drawn" / "shapes"), "--queries", str(queries)]
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        said = [line for line in done.stderr.splitlines() if line.startswith("python -m")] or done.stdout.splitlines()
        return round(time.monotonic() - began, 1), [line.replace(f"{folder}/", "") for line in said]

    seconds, said = classify(folder / "drawn" / "new")
    answers = [found for line in said if (found := re.match(r"\S*/(\w+)-\d\.jpg +(\w+)", line))]
    right = sum(found[1] == found[2] for found in answers)
    return {
        "command line": {"seconds": seconds, "right": right, "of": len(answers), "says": said},
        "a blank photograph": classify(folder / "blank.jpg")[1],
        "no image": classify(folder / "notes.txt")[1],
        "no folder": classify(folder / "nowhere")[1],
    }


def rows(known: dict) -> str:
    """Returns the rows of the tables, in the order of docs/classify.md."""

    def percent(part: dict, accuracy: str = "accuracy", ci95: str = "ci95") -> str:
        return f"{100 * part[accuracy]:.2f} ± {100 * part[ci95]:.2f}"

    lines = []
    for way, name in (("one by one", "each query beside the examples"), ("transductive", "all queries together"),
                      ("keras model", "the Keras model's `predict`")):  # fmt: skip
        part = known["model"][way]
        gap = (
            percent(part, "minus one by one", "minus one by one, ci95").replace("-", "−") if way != "one by one" else ""
        )
        lines.append(f"| {name} | {percent(part)} | {gap} |")
    for row in known["ways"]["rows"]:
        lines.append(
            f"| {row['classes']} | {row['minibatch']} | {percent(row['one by one'])} | {percent(row['transductive'])} |"
        )
    for entry, name in (("shapes", "photographs of 14 shapes"), ("omniglot, photographed", "photographs of Omniglot"),
                        ("omniglot, the same drawings as they are", "Omniglot's own files")):  # fmt: skip
        part = known["photographs"][entry]
        lines.append(f"| {name} | " + " | ".join(percent(part[way]) for way in part) + " |")
    return "\n".join(lines)


def main():
    """Measures one part and writes its result, or prints the tables."""
    parts = {"model": (model_part, 2000), "ways": (ways_part, 500), "photographs": (photographs_part, 500)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", default="data/omniglot", help="folder with images_background and …_evaluation")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--part", choices=parts, help="part to measure")
    what.add_argument("--rows", action="store_true", help="print the tables of the recorded results")
    parser.add_argument("--tasks", type=int, help="number of tasks (default: 2000 for model, else 500)")
    parser.add_argument("--out", type=pathlib.Path, default=OUT, help="file of results (default: in docs/results)")
    arguments = parser.parse_args()
    if arguments.rows:
        print(rows(json.loads(arguments.out.read_text())))
        return
    run, count = parts[arguments.part]
    count = arguments.tasks or count
    began, code = time.monotonic(), provenance.commit()
    device.configure(device.cores())
    learner = rt.load(WEIGHTS)
    classes = rt.data.omniglot.load_raw(arguments.omniglot)
    unseen = set(rt.RunFolder(WEIGHTS).config()["split"]["test"])
    test = classes.subset([i for i, name in enumerate(classes.names) if name in unseen])
    for result in run(learner, test, count, arguments.omniglot):
        entry = result | {
            "command": f"python benchmarks/classify.py --part {arguments.part} --tasks {count}",
            "commit": code,
            "seed": 0,
            "seconds": round(time.monotonic() - began),
            "machine": f"{provenance.processor()}, {device.cores()} cores",
        }
        known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        known |= {arguments.part: entry}
        files.write_text(arguments.out, json.dumps(known, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
