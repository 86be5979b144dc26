"""Tests that fetch_data.sh miniimagenet rejects wrong, damaged and hostile lists, and reports user errors."""

import os
import pathlib
import shutil
import stat
import subprocess
import sys
import zipfile

import pytest
import waiting
from made_imagenet import SCRIPT, VARIABLES
from mirrors import digest_of, unpacked

from reptile_tf.fetch import imagenet
from reptile_tf.fetch.archive import FetchError

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
FOLDER = "reptile-1/metadata/miniimagenet"


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "content", "complaint"),
    [
        (f"{FOLDER}/val/n00000007.csv", b"", "5 lists .* are not the published ones"),
        ("other/metadata/miniimagenet/val/n00000002.csv", b"", "5 lists .* are not the published ones"),
        (link(f"{FOLDER}/val/n00000007.csv"), b"/etc/passwd", "neither a file nor a folder"),
        (f"{FOLDER}/val/n00000007.csv", bytes(65 << 20), "far more than it should"),
    ],
)
def test_a_zip_with_other_lists_is_refused_and_deleted(source, root, entry, content, complaint):
    source.pack((entry, content))
    with pytest.raises(FetchError, match=f"lists.zip gave something else: .*{complaint}.*; deleted it"):
        source.fetch(root, "IMAGENET_TAR")
    assert list(unpacked(root)) == [".download/miniimagenet.lock"]


def test_what_else_is_in_the_zip_of_lists_goes_nowhere(source, root, tmp_path):
    source.pack(("../../escaped.csv", b"?"), (f"{FOLDER}/val/../../../../escaped.csv", b"?"), (link("a"), b"/etc"))
    source.fetch(root, "IMAGENET_TAR")
    assert unpacked(root / "miniimagenet") == source.images
    assert not list(tmp_path.rglob("escaped*"))


def test_lists_packed_in_a_way_that_python_unpacks_without_bounds_are_refused(source, root):
    source.pack((f"{FOLDER}/val/n00000007.csv", bytes(1000)), packing=zipfile.ZIP_BZIP2)
    with pytest.raises(FetchError, match="packed in an unusual way"):
        source.fetch(root, "IMAGENET_TAR")


@pytest.mark.parametrize(
    "line",
    [
        "../n00000001_1.JPEG,1024-2000",
        "n00000002_1.JPEG,1024-2000",
        "n00000001_1.png,1024-2000",
        "n00000001_1.JPEG,1024-99999999999",
        "n00000001_1.JPEG,2000-2000",
        "n00000001_1.JPEG,511-2000",
        "n00000001_1.JPEG,-1024-2000",
        "n00000001_1.JPEG",
        "",
    ],
)
def test_lists_whose_lines_are_not_in_order_are_refused(tmp_path, line):
    content = f"{line}\n".encode()
    with zipfile.ZipFile(tmp_path / "lists.zip", "w") as file:
        file.writestr("metadata/miniimagenet/train/n00000001.csv", content)
    with pytest.raises(FetchError, match=r"its list train/n00000001.csv has the line .*, which names no image of n0"):
        imagenet.read_lists(tmp_path / "lists.zip", digest_of({"train/n00000001.csv": content}))


def test_lists_that_name_an_image_twice_are_refused(tmp_path):
    content = b"n00000001_1.JPEG,1024-2000\nn00000001_1.JPEG,4096-5000\n"
    with zipfile.ZipFile(tmp_path / "lists.zip", "w") as file:
        file.writestr("metadata/miniimagenet/train/n00000001.csv", content)
    with pytest.raises(FetchError, match="its lists name an image twice"):
        imagenet.read_lists(tmp_path / "lists.zip", digest_of({"train/n00000001.csv": content}))


def run(root: pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {
        **{k: v for k, v in os.environ.items() if k not in VARIABLES},
        "PYTHON": sys.executable,
        **environment,
    }
    command = ["bash", SCRIPT, "miniimagenet", root]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=waiting.LIMIT)


@pytest.mark.parametrize(("count", "named"), [(0, "none"), (2, "IMAGENET_TAR, IMAGENET_DIR")])
def test_without_one_source_the_three_ways_are_listed(root, tmp_path, count, named):
    done = run(root, **dict.fromkeys(VARIABLES[:count], str(tmp_path)))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("fetch_data.sh: set exactly one of IMAGENET_TAR=ILSVRC2012_img_train.tar (")
    assert all(f"{variable}=" in done.stderr for variable in VARIABLES)
    assert done.stderr.endswith(f"; now set: {named}\n")
    assert not root.exists()


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_path_that_is_not_there_or_of_the_other_kind_is_named(root, tmp_path, variable):
    (tmp_path / "file").touch()
    wrong, kind = (tmp_path, "file") if variable == "IMAGENET_TAR" else (tmp_path / "file", "folder")
    for path, problem in {wrong: f"is not a {kind}", tmp_path / "nowhere": "does not exist"}.items():
        done = run(root, **{variable: str(path)})
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"fetch_data.sh: {variable}: {path} {problem}; set it to")
    assert not root.exists()


def test_a_source_where_it_would_be_cleared_away_is_refused(source, root):
    root.mkdir()
    source.environment("MINIIMAGENET_DIR")
    shutil.move(source.folder, root / ".miniimagenet.building")
    source.folder = root / ".miniimagenet.building"
    with pytest.raises(FetchError, match="lies in a folder that this script clears; move it away"):
        source.fetch(root, "MINIIMAGENET_DIR")
    assert unpacked(source.folder / "ready") == source.images


def test_the_script_builds_it(source, root):
    done = run(root, **source.environment("MINIIMAGENET_DIR"))
    assert (done.returncode, done.stderr) == (0, "")
    assert unpacked(root / "miniimagenet") == source.images
