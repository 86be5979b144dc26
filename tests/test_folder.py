"""Tests of photographs in class folders: all kinds of files, their order, resizing, and error messages."""

import os
import resource

import numpy as np
import pytest
from PIL import Image

from reptile_tf.data import folder, listing
from reptile_tf.errors import UserError


def picture(seed, mode="RGB", size=(13, 9)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def photographs(tmp_path):
    """Two classes of different sizes, with all kinds of image files and with other files that must be ignored."""
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).mkdir()
    picture(0).save(tmp_path / "b" / "2.PNG")
    picture(1, "CMYK").save(tmp_path / "b" / "10.JPEG")
    picture(2, "P").save(tmp_path / "a" / "z.png")
    picture(3, "L").save(tmp_path / "a" / "m.jpg")
    picture(4, "1").save(tmp_path / "a" / "k.png")
    (tmp_path / "a" / "labels.txt").write_text("no image")
    (tmp_path / "a" / "._k.png").write_bytes(b"left by a file manager")
    (tmp_path / "index.csv").write_text("no class")
    return tmp_path


def test_classes_and_images_come_in_the_order_of_their_names(photographs):
    loaded = folder.load(photographs, size=5)
    assert loaded.names == ("a", "b")
    assert loaded.counts.tolist() == [3, 2]
    assert loaded.starts.tolist() == [0, 3]
    assert loaded.scale == 1 / 255


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_any_kind_of_image_is_converted_and_resized_by_nearest_neighbour(photographs, channels, mode):
    loaded = folder.load(photographs, size=6, channels=channels)
    assert loaded.images.dtype == np.uint8
    rows, columns = (2 * np.arange(6) + 1) * 9 // 12, (2 * np.arange(6) + 1) * 13 // 12
    for image, name in zip(loaded.images, ("a/k.png", "a/m.jpg", "a/z.png", "b/10.JPEG", "b/2.PNG"), strict=True):
        with Image.open(photographs / name) as whole:
            pixels = np.asarray(whole.convert(mode)).reshape(9, 13, channels)
        np.testing.assert_array_equal(image, pixels[rows[:, None], columns])


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere; name one"):
        folder.load(tmp_path / "nowhere")


def test_a_folder_without_classes_is_named(tmp_path):
    picture(0).save(tmp_path / "loose.png")
    with pytest.raises(UserError, match=f"no class folders in {tmp_path}; put"):
        folder.load(tmp_path)


def test_a_class_without_images_is_named(photographs):
    (photographs / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in .*empty; put"):
        folder.load(photographs)


@pytest.mark.parametrize("harm", [lambda whole: whole[:60], lambda whole: b"<html>", lambda whole: b""])
def test_an_image_that_cannot_be_read_is_named(photographs, harm):
    file = photographs / "b" / "2.PNG"
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(UserError, match=r"cannot read .*b/2\.PNG as an image .*replace it, or move it away") as caught:
        folder.load(photographs)
    assert "\n" not in str(caught.value)


def test_two_channels_are_no_image_format(tmp_path):
    with pytest.raises(ValueError, match="1 or 3, not 2"):
        folder.load(tmp_path, channels=2)


def test_what_hinders_reading_is_no_bad_image(photographs):
    """A shortage of file handles must not exclude images permanently."""
    files = [file for found in listing.of(photographs).classes.values() for file in found]
    images = np.empty((len(files), 8, 8, 3), np.uint8)
    handle = os.open(os.devnull, os.O_RDONLY)
    os.close(handle)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (handle, hard))
    try:
        with pytest.raises(UserError, match="Too many open files"):
            folder.decode(files, images, skip_bad_images=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert folder.decode(files, images, skip_bad_images=True).bad == []


def grey(value, size=(8, 8)):
    return Image.new("RGB", size, (value, value, value))


@pytest.fixture
def plain(tmp_path):
    """Three classes of two images. Each image is uniformly grey, with its number times ten."""
    for number in range(6):
        (tmp_path / "plain" / "abc"[number // 2]).mkdir(parents=True, exist_ok=True)
        grey(10 * number).save(tmp_path / "plain" / "abc"[number // 2] / f"{number}.png")
    return tmp_path / "plain"


def test_height_and_width_may_differ(photographs):
    loaded = folder.load(photographs, size=(5, 7), channels=1)
    assert loaded.images.shape == (5, 5, 7, 1)


def test_a_table_gives_the_images_that_it_names(plain):
    (plain / "labels.csv").write_text("path,label,set\na/0.png,x,train\nb/3.png,y,test\nc/4.png,x,train\n")
    loaded = folder.load(plain / "labels.csv", size=2)
    assert loaded.names == ("train/x", "test/y")
    assert loaded.images[:, 0, 0, 0].tolist() == [0, 40, 30]


def test_several_pictures_in_a_file_are_counted_in_one_line(plain, capsys):
    for name in ("a/7.gif", "b/8.tif"):
        grey(1).save(plain / name, save_all=True, append_images=[grey(2)])
    folder.load(plain, size=2)
    assert f"of which the first is taken: 2, such as {plain}/a/7.gif\n" in capsys.readouterr().out


def test_bad_images_are_left_out_and_named(plain, capsys):
    (plain / "a" / "1.png").write_bytes(b"no image")
    loaded = folder.load(plain, size=2, skip_bad_images=True)
    assert loaded.counts.tolist() == [1, 2, 2]
    assert loaded.images[:, 0, 0, 0].tolist() == [0, 20, 30, 40, 50]
    assert capsys.readouterr().out.endswith(f"\nwarning: left out, since it is not an image: {plain}/a/1.png\n")


@pytest.mark.parametrize("kept", [False, True])
def test_an_image_in_two_sets_is_named(plain, kept):
    (plain / "train").mkdir()
    (plain / "test").mkdir()
    for name, part in (("a", "train"), ("b", "train"), ("c", "test")):
        (plain / name).rename(plain / part / name)
    folder.load(plain, size=2, store=kept)
    copy = plain / "test" / "c" / "copy.png"
    copy.write_bytes((plain / "train" / "a" / "1.png").read_bytes())
    (plain / "test" / "c" / "twice.png").write_bytes(copy.read_bytes())
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"in the sets train, test: train/a/1.png, test/c/copy.png in .*plain \(1 of 1 such"
        ):
            folder.load(plain, size=2, store=kept)
    copy.unlink()
    (plain / "test" / "c" / "twice.png").unlink()
    folder.load(plain, size=2, store=kept)


def test_an_image_in_two_classes_is_an_error_once_they_are_split(plain, capsys):
    (plain / "c" / "copy.png").write_bytes((plain / "a" / "1.png").read_bytes())
    folder.load(plain, size=2)
    assert f"warning: images in several classes: 1, such as a/1.png and c/copy.png in {plain}" in (
        capsys.readouterr().out
    )
    folder.load(plain, size=2, split=lambda counts: {"train": ["a", "c"], "test": ["b"]})
    with pytest.raises(UserError, match="the same image is in the sets train, test: a/1.png, c/copy.png in"):
        folder.load(plain, size=2, split=lambda counts: {"train": [*counts][:2], "test": [*counts][2:]})


def test_a_store_is_made_once_and_for_each_kind_of_image(plain, monkeypatch):
    calls = []
    original = folder.decode
    monkeypatch.setattr(
        folder, "decode", lambda files, *rest, **more: calls.append(1) or original(files, *rest, **more)
    )
    first = folder.load(plain, size=2, store=True)
    again = folder.load(plain, size=2, store=True)
    assert len(calls) == 1
    assert isinstance(again.images.base, np.memmap)
    np.testing.assert_array_equal(again.images, first.images)
    assert folder.load(plain, size=(2, 3), store=True).images.shape == (6, 2, 3, 3)
    assert folder.load(plain, size=2, channels=1, store=True).images.shape == (6, 2, 2, 1)
    (plain / "labels.csv").write_text("path,label\na/0.png,x\n")
    assert len(folder.load(plain / "labels.csv", size=2, store=True).images) == 1
    assert len(calls) == 4
    folder.load(plain, size=2, store=True)
    assert len(calls) == 4
    manifests = sorted(path.name for path in plain.glob("prepared*.json"))
    expected = ["prepared-2x2x1.json", "prepared-2x2x3.json", "prepared-2x3x3.json", "prepared-labels-2x2x3.json"]
    assert manifests == expected
    monkeypatch.setattr("reptile_tf.data.decode.VERSION", 0)  # simulates another version of this package
    folder.load(plain, size=2, store=True)
    assert len(calls) == 5


def test_a_table_with_other_labels_is_prepared_anew(plain):
    for label in "xy":
        (plain / "labels.csv").write_text(f"path,label\na/0.png,{label}\n")
        assert folder.load(plain / "labels.csv", size=2, store=True).names == (label,)


def test_more_files_than_wait_at_a_time(plain, monkeypatch):
    expected = folder.load(plain, size=2).images
    monkeypatch.setattr(folder, "_AT_A_TIME", 4)
    np.testing.assert_array_equal(folder.load(plain, size=2).images, expected)


def test_a_store_leaves_those_of_like_names_alone(plain):
    for name in ("2x2x3", "[ab]"):
        (plain / f"{name}.csv").write_text("path,label\na/0.png,x\n")
        folder.load(plain / f"{name}.csv", size=2, store=True)
    before = {path.name for path in plain.glob("prepared*")}
    being_written = plain / ".prepared-2x2x3-5x5x3-0123456789ab.1.part.npy"
    being_written.touch()
    for time in (1, 2):  # the second store replaces the first
        os.utime(plain / "a" / "0.png", ns=(time, time))
        folder.load(plain, size=2, store=True)
        after = {path.name for path in plain.glob("prepared*")}
        assert before < after
        assert len(after) == len(before) + 2
    assert being_written.exists()
    os.utime(plain / "a" / "0.png", ns=(3, 3))
    folder.load(plain / "[ab].csv", size=2, store=True)
    assert len({path.name for path in plain.glob("prepared*")}) == len(after)
