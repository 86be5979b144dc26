"""Photographs in class folders: every kind of file, the order, the resize, and what the user hears of mistakes."""

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
    """Two classes, ragged, of all kinds of files, among other things that are to be left alone."""
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
    """A lack of handles must not leave images out for good."""
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
