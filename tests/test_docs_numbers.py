"""Tests that every measured number in README.md and docs/*.md is a rounded one from a committed file the page links."""

import csv
import functools
import itertools
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from pages import PAGES, ROOT, blocks, links, prose, rows, text_of

from reptile_tf import RunFolder
from reptile_tf.settings import Settings

sys.path.insert(0, str(ROOT / "benchmarks"))
import seeds

RESULTS = ROOT / "docs" / "results"
PROVENANCE = {"command", "commands"}, {"commit", "commits"}, {"machine"}
# Numbers that are not measured, by page: settings, limits and published specifications. Single digits are always free.
NOT_MEASURED = {
    "README.md": "2018 3.11 20 100,000 1,500",
    "results.md": "95 1.96 100,000 1,500 400 5,000 10,000 20 64 84 100 600 2.21",
    "training.md": "95 100 5e-4 1e-3 10 15 20 100,000 200,000 75 130 143",
    "data.md": "1,623 1,200 423 16 20 84 90 180 270",
    "library.md": "90 180 270 96",
    "models.md": "1e-9 20 300",
    "distributed.md": "45 60 75 142",
    "scaling.md": "10,000 4.0 802.3 1.4 16 64 20 32 450 300 900 600 25 400 200 "
    "100 10 12.5 3.1 50 80 12 110 1.3 2019 2.4 133.3 39.7 90 167 1.36",
    "browser.md": "20 24",
    "performance.md": "2.13 100 1,000 10,000 100,000",
    "reliability.md": "1.3",
    "gpu.md": "64 128",
    "differences.md": "95 100 10 2,000",
    "development.md": "",
    "classify.md": "20 14 50 80 255 420",
    "folders.md": "84 100,000 16 601 65,535 4,294,967,295 32 134 30 20 1,200",
}
NUMBER = re.compile(r"(?<![\w.,/-])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?![\w/]|\.\d|-(?:shot|way))")
COMMIT = re.compile(r"\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{7,10}\b")


def is_rounded(shown: str, value: float) -> bool:
    """Returns whether the text is the number, rounded to the same number of digits."""
    digits = len(shown.partition(".")[2])
    return abs(float(shown.replace(",", "")) - value) <= 0.5 * 10**-digits + 1e-9


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def values(data) -> list[float]:
    """Returns all numbers in data from a JSON or CSV file, also converted to per cent, minutes and gigabytes."""
    if isinstance(data, dict):
        more = []
        for name, value in data.items():
            if name in ("accuracy", "ci95", "minus one by one", "minus one by one, ci95") and abs(value) <= 1:
                more.append(100 * abs(value))  # a minus sign is not part of a number on a page
            elif name in ("training_seconds", "evaluation_seconds"):
                more.append(value / 60)
            elif name == "peak_memory_kib":
                more.append(value * 1024 / 1e9)
        return more + values(list(data.values()))
    if isinstance(data, list):
        return [value for part in data for value in values(part)]
    if isinstance(data, str):
        return [float(data.replace(",", ""))] if re.fullmatch(r"-?[\d,]+(\.\d+)?", data) else []
    return [] if data is None or isinstance(data, bool) else [float(data)]


@functools.cache
def read(path):
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    return json.loads(path.read_text(encoding="utf-8"))


def sources(page):
    """Returns the files with a page's numbers: those that it (or for the README, docs/results.md) links."""
    page = "results.md" if page == "README.md" else page
    linked = {(PAGES[page].parent / name).resolve() for name in links(text_of(page))}
    return sorted({path for path in linked if path.suffix in (".json", ".csv")} | {RESULTS / "paper.json"})


@functools.cache
def printed(page):
    """Returns the numbers that the page's own plain Python programs print, by line."""
    lines = []
    for block in blocks(page, "bash"):
        if block.startswith('python -c "'):
            done = subprocess.run([sys.executable, "-c", block[11:].rpartition('"')[0]], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            lines += [
                [float(n) for n in re.findall(r"\d+\.?\d*(?=[\s,)%]|$)", line)] for line in done.stdout.split("\n")
            ]
    return lines


def percent(accuracy):
    return [100 * accuracy["accuracy"], 100 * accuracy["ci95"]]


def expected_rows(page):
    """Returns (first cell, numbers in the other cells) of each row that the page must contain."""
    files = {path.name: read(path) for path in sources(page)}
    paper = files["paper.json"]["accuracies"]
    for name, data in files.items() if page != "README.md" else ():
        if isinstance(data, dict):
            yield from data.get("rows", {}).items()
        if found := re.fullmatch(r"(omniglot-5way|tiny-imagenet-part)-(\d)shot.json", name):
            for way, suffix in ((", transductive", ""), ("", ", not transductive")):
                ours = {part: data[f"{part}{suffix}"] for part in ("test", "val", "train") if part in data}
                label, test = f"{found[2]}-shot{way}", percent(ours["test"])
                if "val" in ours:
                    yield label, [n for each in ours.values() for n in percent(each)] + [ours["test"]["tasks"]]
                    continue
                papers = paper[f"Omniglot, 5-way {label}"]
                yield label, [*papers, *test, abs(test[0] - papers[0]), *percent(ours["train"])]
    if page == "README.md":
        for label, papers, mean, *more in rows(seeds.tables(files["seeds.json"])):
            if label and more and "sequential" not in label:
                yield f"Omniglot, {label}", [float(n) for n in numbers(f"{papers} | {mean}")]
        yield from ((label, papers) for label, papers in paper.items() if "20-way" in label)
        yield "Mini-ImageNet, 5-way 1-shot, transductive", [*paper["Mini-ImageNet, 5-way 1-shot, transductive"]]
    if page == "browser.md":
        for label, suffix in (("one query at a time, as on the page", ""), ("transductive", ", transductive")):
            data = files["demo-3way.json"]
            yield label, percent(data[f"test{suffix}"]) + percent(data[f"train{suffix}"])
    if page == "results.md":
        for row in rows(seeds.tables(files["seeds.json"])):
            yield row[0], [float(n) for n in numbers(" | ".join(row[1:]))]
        training = files["omniglot-5way-training.json"]
        yield "training", [training["wall_time_minutes"]]
        yield from ((label, [minutes]) for label, minutes in training["evaluation_minutes"].items())
        final = {row["run"]: row for row in files["adam_order.csv"] if row["kind"] == "final"}
        for label, run in (("side by side (default)", "side"), ("one after another ( )", "turn")):
            each = [[float(final[f"{run}-seed{s}"][f"{n}_percent"]) for n in ("accuracy", "ci95")] for s in range(3)]
            mean = [sum(a for a, _ in each) / 3, math.hypot(*(ci for _, ci in each)) / 3]
            yield label, [n for pair in each for n in pair] + mean
    if page == "performance.md":
        for preset, data in files["speed.json"].items():
            for what, unit in (("train", "training, meta-iterations/s"), ("eval", "evaluation, tasks/s")):
                rates = {name.split(",")[0]: rate for name, rate in data[f"{what}_per_s"].items()}
                rates = [rates[kind] for kind in ("ours", "compiled", "eager")]
                yield f"{preset}: {unit}", [*rates, data[f"{what}_ratio"], *data[f"{what}_ratio_range"]]
    if page == "scaling.md":
        computed = [line for line in printed(page) if len(line) == 9 and line[0].is_integer()]
        exchange = printed(page)[6]  # the line after the six fitted times
        yield "meta-batch", [n for pair in zip((2, 8, 16, 64), exchange, strict=True) for n in pair]
        yield from (("5 (the paper's)" if line[0] == 5 else f"{line[0]:,.0f}", line[1:]) for line in computed)
        # Each link has its milliseconds and share; two rows also have those of a ring.
        gpus = [line[-2:] for line in printed(page) if len(line) == 6]
        for label, tree, *ring in (
            ("8 GPUs of a host, NVLink 3 or 4", 0),
            ("8 GPUs of a host, PCIe 4.0", 1),
            ("64 hosts, one GPU each, InfiniBand NDR, tree (ring)", 2, 3),
            ("64 hosts, one GPU each, InfiniBand HDR, tree", 4),
            ("64 hosts, one GPU each, 100 GbE, tree", 5),
            ("64 hosts, one GPU each, 25 GbE, tree (ring)", 6, 7),
        ):
            yield label, [n for pair in zip(*(gpus[i] for i in (tree, *ring)), strict=True) for n in pair]


@functools.cache
def committed(page):
    """Returns all numbers that the page may contain, the rows that it must contain, and a text with all commits."""
    files, must = [read(path) for path in sources(page)], list(expected_rows(page))
    known = values(files) + [n for line in printed(page) for n in line] + [n for _, row in must for n in row]
    return known, must, json.dumps(files)


def wrong(page, text):
    """Returns the numbers, rows and commits that do not match the committed files."""
    known, must, commits = committed(page)
    free = NOT_MEASURED.get(page, "").split()
    # A commit such as 847e720 looks like a number.
    found = [n for n in numbers(COMMIT.sub("", prose(text))) if len(n) > 1 and n not in free]
    faults = [f"{n} is in no file that {page} links" for n in found if not any(is_rounded(n, v) for v in known)]
    table = rows(re.sub(r"`[^`\n]*`(?! is killed)", " ", text))
    for label, expected in must:
        same = [row for row in table if re.sub(r"\s+", " ", row[0]).strip() == label]
        lines = [numbers(" | ".join(row[1:])) for row in same]
        if not any(len(n) == len(expected) and all(map(is_rounded, n, expected)) for n in lines):
            faults.append(f"the row {label!r} is not {expected} but {lines}")
    return faults + [f"commit {c} is in no file" for c in COMMIT.findall(prose(text)) if c not in commits]


@pytest.mark.parametrize("page", PAGES)
def test_every_number_is_of_a_committed_file(page):
    assert wrong(page, text_of(page)) == []


@pytest.mark.parametrize("page", ["README.md", "results.md", "performance.md", "scaling.md", "browser.md", "models.md"])
def test_a_changed_number_in_a_table_is_noticed(page):
    text, count = text_of(page), 0
    for row in re.finditer(r"^\| [^|]*\|(.*)$", text, re.MULTILINE):
        for number in NUMBER.finditer(text, *row.span(1)):
            if len(number[0]) < 2 or text[: number.start()].count("`") % 2 or number[0] in NOT_MEASURED[page].split():
                continue
            last = str((int(number[0][-1]) + 1) % 10)
            assert wrong(page, text[: number.end() - 1] + last + text[number.end() :]), (row[0], number[0])
            count += 1
    assert count >= 8


def test_every_file_of_results_says_where_it_is_from():
    for path in RESULTS.glob("*.json"):
        data = read(path)
        if path.name == "paper.json":
            assert "arXiv" in data["source"]
        elif "settings" in data:  # the results of a run
            assert {"commit", "machine", "seed", "versions"} <= data.keys(), path.name
        else:
            parts = [data] if PROVENANCE[0] & data.keys() else list(data.values())  # each part has its own
            assert all(some & part.keys() for part in parts for some in PROVENANCE), path.name


def test_the_time_to_accuracy_is_that_of_the_history():
    history = RunFolder(ROOT / "pretrained" / "omniglot-5way").load().history
    mean = np.convolve(history[:, 2], np.full(400, 1 / 400), "valid")
    training = read(RESULTS / "omniglot-5way-training.json")
    for goal, (iterations, minutes) in training["rows"].items():
        first = history[399:][mean >= int(goal.removesuffix(" %")) / 100][0, 0]
        assert first == iterations
        assert round(first / training["meta_iterations_per_second"] / 60) == minutes


def test_runs_are_as_long_as_the_pages_say():
    for name, iterations, tasks in (
        ("omniglot-5way-1shot", 100_000, 10_000),
        ("omniglot-5way-5shot", 100_000, 10_000),
        ("tiny-imagenet-part-1shot", 1500, 1000),
        ("tiny-imagenet-part-5shot", 1500, 200),
        ("demo-3way", 120_000, 2000),
    ):
        data = read(RESULTS / f"{name}.json")
        assert data["meta_iterations"] == iterations
        assert {data[part]["tasks"] for part in ("train", "test")} == {tasks}


def test_the_errors_are_as_far_above_the_papers_as_the_page_says():
    more = []
    for shots, suffix in itertools.product((1, 5), ("", ", transductive")):
        paper = read(RESULTS / "paper.json")["accuracies"][f"Omniglot, 5-way {shots}-shot{suffix}"][0]
        test = read(RESULTS / f"omniglot-5way-{shots}shot.json")["test" if suffix else "test, not transductive"]
        more.append(100 * ((100 - percent(test)[0]) / (100 - paper) - 1))
    assert f"above the paper's, by {min(more):.0f} to {max(more):.0f} % of it" in text_of("results.md")


def test_the_model_card_has_the_results():
    card = (ROOT / "pretrained" / "omniglot-5way" / "README.md").read_text(encoding="utf-8")
    for shots, suffix in itertools.product((1, 5), ("", ", not transductive")):
        accuracy, ci95 = percent(read(RESULTS / f"omniglot-5way-{shots}shot.json")[f"test{suffix}"])
        assert f"{accuracy:.2f} ± {ci95:.2f}" in card


def test_the_experiments_numbers_are_of_their_files():
    folder = ROOT / "experiments"
    text = (folder / "README.md").read_text(encoding="utf-8")
    known = [row for path in (folder / "results").glob("*.csv") for row in read(path)]
    pairs = {tuple(float(v) for n, v in row.items() if n.startswith(("accuracy", "ci95", "mean"))) for row in known}
    for path in (folder / "results").glob("*.json"):
        found = read(path)
        assert all(some & found.keys() for some in PROVENANCE)
        assert found["commit"] in text
        pairs |= {(error["error_percent"], error["ci95_percent"]) for error in found["errors"].values()}
    said = re.findall(r"(\d+\.\d+) ± (\d+\.\d+)", text)
    assert len(said) > 50
    for pair in said:
        assert any(len(each) == 2 and all(map(is_rounded, pair, each)) for each in pairs), pair
    names = {
        "maml": "MAML",
        "fomaml": "MAML, first order",
        "foml": "FOML",
        "reptile": "Reptile",
        "joint": "joint training",
    }
    table = {tuple(row[:2]): numbers(" ".join(row[2:])) for row in rows(text)}
    for row in read(folder / "results" / "maml.csv"):
        own = [
            float(value) for name, value in row.items() if name not in ("algorithm", "k", "meta_iterations", "tasks")
        ]
        assert all(map(is_rounded, table[names[row["algorithm"]], row["k"]], own)), row


def test_the_papers_numbers_in_commands_are_the_papers():
    papers = {f"{a:.2f} ± {ci:.2f}" for a, ci in read(RESULTS / "paper.json")["accuracies"].values()}
    for path in (PAGES["training.md"], ROOT / "run_omniglot.py", ROOT / "run_miniimagenet.py"):
        said = re.findall(r"paper: ([\d.]+ ± [\d.]+) %", path.read_text(encoding="utf-8"))
        assert len(said) == 4
        assert set(said) <= papers


def test_the_papers_settings_are_the_presets():
    names = "classes train_shots inner_batch inner_iters learning_rate meta_batch meta_iters eval_batch eval_iters"
    for row in rows(text_of("training.md")):
        for preset in re.findall(r"`((?:omniglot|miniimagenet)-\dshot-\d+way)`", row[0]):
            settings = Settings.preset(preset)
            said = [float(n.replace(",", "")) for n in numbers(" | ".join(row[1:]))]
            assert said == [getattr(settings, name) for name in names.split()]
            assert (settings.meta_step, settings.meta_step_final) == (1.0, 0.0)
