"""Tests of README.md and docs/*.md: commands and programs run, links are valid, and no text occurs twice."""

import collections
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from pages import PAGES, ROOT, blocks, links, prose, text_of
from PIL import Image

from reptile_tf.settings import Settings, flag

# Every block of commands is run as it stands, made small by `small.py`, except for these, for the given reasons:
STAND_INS = """
set -euo pipefail
python() { "$PYTHON" "$ROOT/tests/small.py" "$@"; }
git() { mkdir reptile-tf; }  # network
pip() { [ "${PIP_CONSTRAINT:+there}" != there ] || [ -f "$ROOT/$PIP_CONSTRAINT" ]; }  # network
bash() { [ -f "$ROOT/$1" ]; }  # fetch_data.sh: network, or ImageNet; tests/test_fetch*.py run it
make() { command make --dry-run --directory "$ROOT" "$@" > out; }  # network, a GPU, Node.js: the target exists
"""
# Blocks that are neither commands nor complete programs, as (page, beginning of the block).
NOT_RUN = {
    ("training.md", "phi ← initial weights"): "pseudocode",
    ("models.md", "for x, y in minibatches:"): "the loop that tests/test_exact.py compares with",
    ("classify.md", "5 classes (circle"): "what the first command prints",
    ("classify.md", "python -m reptile_tf.classify: blank"): "mistakes",
    ("folders.md", "path,label,set"): "a table",
    ("folders.md", "# to test on"): "a file of names",
    ("README.md", "test accuracy:"): "what make train prints",
    ("README.md", "@article"): "BibTeX",
}


@pytest.fixture
def place(request, tmp_path, glyphs):
    """A folder like the repository, with synthetic images; `request.param` is the page's name."""
    for name in ("reptile_tf", "examples", "experiments", "benchmarks", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for script in ROOT.glob("run_*.py"):
        (tmp_path / script.name).symlink_to(script)
    shutil.copytree(ROOT / "pretrained", tmp_path / "pretrained")
    sets = [f"{part}/" for part in ("train", "val", "test")]
    write_images(tmp_path / "photos", sets if request.param == "data.md" else [""], glyphs)
    for folder in ("data/miniimagenet", "data/standin/miniimagenet", "tree"):
        write_images(tmp_path / folder, sets, glyphs)
    for index in range(5):
        first, second = (Image.fromarray(255 * image[..., 0]) for image in glyphs.of_class(index)[:2])
        (tmp_path / "shapes" / f"shape {index}").mkdir(parents=True)
        (tmp_path / "new").mkdir(exist_ok=True)
        first.save(tmp_path / "shapes" / f"shape {index}" / "0.png")
        second.save(tmp_path / "new" / f"{index}.png")
    return tmp_path


def write_images(folder, sets, glyphs):
    """Writes all glyphs as PART/CLASS/IMAGE.png, each to exactly one of the sets."""
    for index, name in enumerate(glyphs.names):
        of_class = folder / f"{sets[index % len(sets)]}{name}"
        of_class.mkdir(parents=True)
        for number, image in enumerate(glyphs.of_class(index)):
            Image.fromarray(255 * image[..., 0]).save(of_class / f"{number}.png")


def in_bash(block, place, **more):
    environment = os.environ | {"ROOT": str(ROOT), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **more}
    command = ["bash", "-c", STAND_INS + block]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def small(program):
    """Returns a Python program with its amounts of work reduced."""
    return re.sub(r"(meta_iters=|eval_samples=|\brange\()\d{2,}", r"\g<1>4", program)


def programs(page):
    return [block for block in blocks(page, "python") if (page, block.splitlines()[0]) not in NOT_RUN]


def with_commands():
    return [page for page in PAGES if blocks(page, "bash")]


def test_every_block_is_of_a_kind_that_is_run_or_listed():
    listed = set()
    for page in PAGES:
        fences = re.findall(r"^ *(?:```|~~~)", text_of(page), re.MULTILINE)
        known = {language: blocks(page, language) for language in ("bash", "python", "text", "bibtex", "")}
        assert len(fences) == 2 * sum(map(len, known.values())), f"{page} has blocks of another language"
        for language in ("python", "text", "bibtex", ""):
            for block in known[language]:
                found = [key for key in NOT_RUN if key[0] == page and block.startswith(key[1])]
                listed |= set(found)
                assert found or language == "python", f"{page} has a block that nothing runs: {block}"
    assert listed == NOT_RUN.keys()


@pytest.mark.parametrize("place", with_commands(), indirect=True)
def test_the_commands_exist_and_their_flags_are_right(place, request):
    for block in blocks(request.node.callspec.params["place"], "bash"):
        in_bash(block, place, CHECK_ONLY="1")


@pytest.mark.parametrize("place", PAGES, indirect=True)
def test_so_do_those_within_the_text(place, request):
    commands = re.findall(r"`((?:make|python) [^`…]+)`", text_of(request.node.callspec.params["place"]))
    in_bash("\n".join(["true", *commands]), place, CHECK_ONLY="1")


@pytest.mark.slow
@pytest.mark.parametrize("place", PAGES, indirect=True)
def test_a_page_runs_from_top_to_bottom(place, request):
    page = request.node.callspec.params["place"]
    for block in blocks(page, "bash"):
        in_bash(block, place)
    for number, program in enumerate(programs(page)):
        (place / f"program{number}.py").write_text(small(program))
        in_bash(f"python program{number}.py", place)


@pytest.mark.parametrize("place", ["README.md", pytest.param("library.md", marks=pytest.mark.slow)], indirect=True)
def test_the_first_program_runs_in_under_twenty_lines(place, request, monkeypatch, capsys):
    monkeypatch.chdir(place)
    page = request.node.callspec.params["place"]
    program, variables = programs(page)[0], {}
    assert len(program.splitlines()) < 20
    exec(compile(small(program), page, "exec"), variables)
    assert re.search(r"\d\d\.\d\d ± \d+\.\d\d % \(4 tasks\)", capsys.readouterr().out)
    if page == "library.md":
        saved = variables["keras"].models.load_model("model.keras")
        trained = np.concatenate([v.numpy().ravel() for v in saved.trainable_variables])
        np.testing.assert_array_equal(trained, variables["learner"].phi.numpy())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in links(text_of(page)):
        assert (PAGES[page].parent / link).exists(), link


def test_every_page_and_picture_is_linked():
    linked = {(PAGES[page].parent / link).resolve() for page in PAGES for link in links(text_of(page))}
    files = [path for path in pathlib.Path(ROOT / "docs").rglob("*") if path.is_file()]
    assert [path.name for path in files if path not in linked and path.name != "paper.json"] == []


def test_the_modules_of_the_map_exist():
    named = re.findall(
        r"`(\w+(?:\.py|/))`", text_of("README.md").split("## Map")[1].split("\n## ")[0].split("|---|")[1]
    )
    assert len(named) > 15
    assert [name for name in named if not (ROOT / "reptile_tf" / name).exists()] == []


def test_the_table_of_settings_is_complete():
    table = text_of("training.md").split("## Settings")[1].split("\n## ")[0].split("|---|---|")[1]
    names = [flag(field.name) for field in dataclasses.fields(Settings)]
    assert re.findall(r"`(--[a-z0-9-]+)`", table.split("\n\n")[0]) == names


def test_the_readme_is_short():
    assert len(text_of("README.md").split()) <= 900


def test_no_sentence_stands_on_two_pages():
    where = collections.defaultdict(set)
    for page in PAGES:
        for sentence in re.split(r"(?<=[.:!?])\s+|\n\n|\n[-|]", prose(text_of(page))):
            words = " ".join(sentence.split())
            if len(words.split()) >= 8 and not words.startswith("|"):
                where[words].add(page)
    assert {words: pages for words, pages in where.items() if len(pages) > 1} == {}
