"""Tests of fetch_data.sh miniimagenet, with a synthetic ImageNet in the real one's format.

MINIIMAGENET_LISTS names the zip with the real lists. Without it, one test is skipped.
"""

import collections
import os
import pathlib
import shutil
import signal
import threading

import pytest
import waiting
from made_imagenet import VARIABLES, encoded
from mirrors import unpacked

from reptile_tf.fetch import image_files, imagenet, parallel
from reptile_tf.fetch.archive import FetchError

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
LISTS = os.environ.get("MINIIMAGENET_LISTS")


def identities(folder: pathlib.Path) -> set[tuple[str, int, int]]:
    found = ((file.name, file.stat()) for file in folder.rglob("n*.JPEG"))
    return {(name, status.st_ino, status.st_mtime_ns) for name, status in found}


@pytest.mark.parametrize("variable", VARIABLES)
def test_just_the_listed_images_are_put_in_place_and_counted(source, root, variable, capsys):
    source.fetch(root, variable)
    out = capsys.readouterr().out
    assert unpacked(root / "miniimagenet") == source.images
    assert sorted(unpacked(root)) == [
        ".download/miniimagenet.lock",
        *sorted(f"miniimagenet/{p}" for p in source.images),
    ]
    assert "train: 6 images of 2 classes, 2 to 4 of each\nval: 1 images of 1 classes, 1 of each\ntest: 3 images" in out
    assert "in all: 10 images of 4 classes, 1 to 4 of each; this is not the paper's Mini-ImageNet\n" in out
    assert out.endswith(f"{root}/miniimagenet is complete\n")


@pytest.mark.skipif(not LISTS, reason="MINIIMAGENET_LISTS names no zip with the real lists")
def test_the_real_lists_are_the_pinned_ones():
    images = imagenet.read_lists(pathlib.Path(LISTS))
    assert len({image.path for image in images}) == 59_981
    headers = [image.first - 512 for image in images]
    assert all(image.first + image.size <= header for image, header in zip(images, headers[1:], strict=False))
    assert {s: sum(i.path.startswith(f"{s}/") for i in images) for s in ("train", "val", "test")} == {
        "train": 38_392,
        "val": 9_593,
        "test": 11_996,
    }
    counts = collections.Counter(os.path.dirname(image.path) for image in images)
    assert image_files.is_the_papers(counts)
    assert not image_files.is_the_papers(counts + collections.Counter([os.path.dirname(images[0].path)]))


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(parallel, "SECONDS_BETWEEN_LINES", 0)
    shown, show = threading.Semaphore(0), parallel._Progress.show

    def noted(*arguments, **options):
        show(*arguments, **options)
        shown.release()

    def work(job):
        assert not job or shown.acquire(timeout=waiting.LIMIT)  # the first job finishes before any line is shown

    monkeypatch.setattr(parallel._Progress, "show", noted)
    parallel.in_parallel("images", work, range(5), before=10)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3
    assert lines[-1].startswith("images 15/15  ")
    assert lines[-1].endswith("/s  0:00 left")


# A wrong tar or folder.


def test_a_tar_that_is_cut_off_is_known_before_anything_is_written(source, root):
    tar = source.folder / "train.tar"
    os.truncate(tar, max(end for _, end in source.ranges.values()) - 1)
    with pytest.raises(
        FetchError, match=rf"train.tar has {tar.stat().st_size:,} bytes, .* cut off, or .*147,897,477,120"
    ):
        source.fetch(root, "IMAGENET_TAR")
    assert not (root / ".miniimagenet.building").exists()


@pytest.mark.parametrize(
    ("shift", "complaint"),
    [
        ((-512, 0), "begins as no JPEG file does"),
        ((1, 0), r"begins as no JPEG file does \(d8 ff"),
        ((0, -2), r"does not end as a JPEG file does \(with FF D9, but .*cut off"),
        ((0, 9), "is 'n00000001_1.JPEG' of .* bytes"),
    ],
)
def test_ranges_that_are_shifted_are_known_at_the_first_image(source, root, shift, complaint):
    source.ranges = {path: (a + shift[0], b + shift[1]) for path, (a, b) in source.ranges.items()}
    source.pack()
    first, last = source.ranges["train/n00000001/n00000001_1.JPEG"]
    expected = f"bytes {first}-{last} should be the JPEG file n00000001_1.JPEG, but what is there {complaint}"
    with pytest.raises(FetchError, match=f"{expected}.*must be ILSVRC2012_img_train.tar as published"):
        source.fetch(root, "IMAGENET_TAR")
    assert list(unpacked(root / ".miniimagenet.building")) == ["origin"]


def test_a_tar_of_other_images_in_the_same_places_is_known(source, root):
    source.ranges = dict(zip(source.ranges, [*list(source.ranges.values())[1:], (1024, 1700)], strict=True))
    source.pack()
    with pytest.raises(FetchError, match="but what is there"):
        source.fetch(root, "IMAGENET_TAR")
    (source.folder / "train.tar").write_bytes(bytes(1 << 20))
    with pytest.raises(FetchError, match=r"begins as no JPEG file does \(00 00"):
        source.fetch(root, "IMAGENET_TAR")


def test_missing_images_are_counted_and_the_first_is_named(source, root):
    shutil.rmtree(source.folder / "unpacked" / "n00000003")
    (source.folder / "unpacked" / "n00000004" / "n00000004_1.JPEG").unlink()
    complaint = (
        "3 of the 10 images are missing, and 1 of their class folders; the first is .*/n00000003/n00000003_1.JPEG;"
    )
    with pytest.raises(FetchError, match=complaint):
        source.fetch(root, "IMAGENET_DIR")


def test_images_that_were_resized_are_taken_and_mentioned(source, root, capsys):
    (source.folder / "unpacked" / "n00000003" / "n00000003_1.JPEG").write_bytes(encoded(9) + b"\0")
    source.fetch(root, "IMAGENET_DIR")
    assert "note: 1 of 10 files differ in size" in capsys.readouterr().out
    assert (root / "miniimagenet" / "train" / "n00000003" / "n00000003_1.JPEG").read_bytes() == encoded(9) + b"\0"


# Interruptions.


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(("moment", "call"), [("replace", 5), ("rename", 1)])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_after_an_interruption_it_goes_on(source, root, variable, moment, call, how, capsys):
    stopped = source.interrupted(root, variable, moment, call, how)
    if how == signal.SIGINT:
        assert (stopped.returncode, stopped.stderr) == (130, "fetch_data.sh: interrupted; run this again to go on\n")
    else:
        assert stopped.returncode == -signal.SIGKILL
    assert not (root / "miniimagenet").exists()
    written = identities(root / ".miniimagenet.building" / "images")
    assert len(written) == 10 if moment == "rename" else 3 <= len(written) <= 7
    source.fetch(root, variable)
    out = capsys.readouterr().out
    assert f"{len(written)} of 10 images are there already, from an earlier run\n" in out
    assert ("images 10/10" in out) == (len(written) < 10)
    assert written <= identities(root / "miniimagenet")
    assert unpacked(root / "miniimagenet") == source.images
    assert not (root / ".miniimagenet.building").exists()


def test_what_was_begun_from_another_source_is_not_mixed_in(source, root, capsys):
    source.interrupted(root, "IMAGENET_TAR", "replace", 5, signal.SIGKILL)
    written = identities(root / ".miniimagenet.building")
    source.fetch(root, "MINIIMAGENET_DIR")
    assert "starting over: IMAGENET_TAR=" in capsys.readouterr().out
    assert not written & identities(root / "miniimagenet")


def test_leftovers_and_damage_in_what_was_begun_are_mended(source, root):
    source.interrupted(root, "IMAGENET_TAR", "rename", 1, signal.SIGKILL)
    images = root / ".miniimagenet.building" / "images"
    (images / "train" / "n00000099").mkdir()
    (images / "train" / "n00000099" / "n00000099_1.JPEG").write_bytes(encoded(1))
    os.truncate(images / "val" / "n00000002" / "n00000002_1.JPEG", 10)
    bad = images / "test" / "n00000004" / "n00000004_1.JPEG"
    bad.write_bytes(bytes(bad.stat().st_size))  # as after a power failure
    with pytest.raises(FetchError, match=r"n00000004_1.JPEG begins as no JPEG or PNG .*; deleted it, run this again"):
        source.fetch(root, "IMAGENET_TAR")
    source.fetch(root, "IMAGENET_TAR")
    assert unpacked(root / "miniimagenet") == source.images
    assert not (root / "miniimagenet" / "train" / "n00000099").exists()


# A complete Mini-ImageNet.


def test_images_of_all_kinds_are_copied_and_nothing_else(source, root, tmp_path, capsys):
    source.environment("MINIIMAGENET_DIR")
    folder = source.folder / "ready"
    wanted = {
        "train/a cat/1.jpg": encoded(1),
        "train/a cat/2.Jpeg": encoded(2),
        "val/n00000002/3.PNG": encoded(3, "PNG"),
        "test/Ω/4.png": encoded(4, "PNG"),
    }
    for path, content in {**wanted, "val/n00000002/notes.txt": b"", "val/n00000002/.5.jpg": b"", "5.jpg": b""}.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    (tmp_path / "elsewhere").write_bytes(encoded(6))
    (folder / "test" / "Ω" / "6.jpg").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "test" / "Ω" / "7.jpg")
    source.fetch(root, "MINIIMAGENET_DIR")
    assert unpacked(root / "miniimagenet") == source.images | wanted | {"test/Ω/6.jpg": encoded(6)}
    assert not any(path.is_symlink() for path in (root / "miniimagenet").rglob("*"))
    assert "train: 8 images of 3 classes, 2 to 4 of each\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda folder: shutil.rmtree(folder / "val"), "ready has no folder val; "),
        (lambda folder: shutil.rmtree(folder / "val" / "n00000002"), "val has no class folders; "),
        (lambda folder: (folder / "val" / "n00000009").mkdir(), "n00000009 has no JPEG or PNG images; "),
        (lambda folder: (folder / "val" / "n00000002" / "a.jpg").touch(), "a.jpg is empty; "),
        (
            lambda folder: (folder / "val" / "n00000002" / "a.jpg").write_text("<html>"),
            "a.jpg begins as no JPEG or PNG",
        ),
        (lambda folder: (folder / "val" / "n00000002" / "a.jpg").write_bytes(encoded(1)[:-9]), "a.jpg does not end as"),
    ],
)
def test_what_is_wrong_with_a_ready_one_is_named(source, root, harm, complaint):
    source.environment("MINIIMAGENET_DIR")
    harm(source.folder / "ready")
    with pytest.raises(FetchError, match=complaint):
        source.fetch(root, "MINIIMAGENET_DIR")
    assert not (root / "miniimagenet").exists()


def test_one_that_is_there_is_checked_and_left_alone(source, root, capsys):
    source.fetch(root, "IMAGENET_TAR")
    before = identities(root / "miniimagenet")
    capsys.readouterr()
    imagenet.fetch_miniimagenet({}, root, 10)
    out = capsys.readouterr().out
    assert "in all: 10 images" in out
    assert out.endswith("miniimagenet is there already, nothing to do; move it away to build it again\n")
    bad = root / "miniimagenet" / "val" / "n00000002" / "n00000002_1.JPEG"
    os.truncate(bad, 100)
    with pytest.raises(FetchError, match=f"{bad} does not end as a JPEG .*move .*miniimagenet away and run this again"):
        imagenet.fetch_miniimagenet({}, root, 10)
    assert bad.stat().st_size == 100
    assert {name for name, *_ in identities(root / "miniimagenet")} == {name for name, *_ in before}
