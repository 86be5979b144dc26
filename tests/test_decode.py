"""Tests that every kind of image file is decoded as viewers show it, and that other files are rejected."""

import os
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, TiffImagePlugin

from reptile_tf.data import decode
from reptile_tf.errors import UserError

HEIGHT, WIDTH = 9, 13
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)


def nearest(pixels, height, width):
    """Resizes `pixels` [height, width, …] by the definition of nearest neighbour."""
    rows = (2 * np.arange(height) + 1) * pixels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * pixels.shape[1] // (2 * width)
    return pixels[rows[:, None], columns]


def with_tag(path, tag, value):
    """Changes the value of a 16-bit tag in a little-endian TIFF file."""
    data = bytearray(path.read_bytes())
    (begin,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, begin)
    places = [begin + 2 + 12 * k for k in range(count)]
    (place,) = (place for place in places if struct.unpack_from("<H", data, place) == (tag,))
    struct.pack_into("<H", data, place + 8, value)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tif", "a.tiff", "a.ppm", "a.JPG", "a.jpeg", "a.jfif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_by_a_plain_computation(tmp_path, name, channels):
    Image.fromarray(COLOURS).save(tmp_path / name, "JPEG" if name[2] in "jJ" else None)
    with Image.open(tmp_path / name) as whole:
        expected = np.asarray(whole.convert({1: "L", 3: "RGB"}[channels])).reshape(HEIGHT, WIDTH, channels)
    found = decode.read(tmp_path / name, (5, 7), channels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, nearest(expected, 5, 7))
    assert name.lower().endswith(decode.SUFFIXES)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_opaque_mode_is_as_pillow_converts_it(tmp_path, mode):
    path = tmp_path / ("a.png" if mode in ("1", "L", "P", "RGB") else "a.tif")
    Image.fromarray(COLOURS).convert(mode).save(path)
    with Image.open(path) as whole:
        assert whole.mode == mode
        expected = np.asarray(whole.convert("RGB"))
    np.testing.assert_array_equal(decode.read(path, (HEIGHT, WIDTH)), expected)
    assert decode.read(path, 4).shape == (4, 4, 3)


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_orientation_is_followed(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / name
    Image.fromarray(COLOURS).save(path, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    turned = {1: 0, 3: 2, 6: 3, 8: 1, 5: 3, 7: 1, 2: 0, 4: 2}.get(orientation, 0)  # quarter turns counterclockwise
    expected = np.rot90(COLOURS, turned)
    if orientation in (2, 4):
        expected = expected[:, ::-1]
    if orientation in (5, 7):  # turned, then mirrored
        expected = expected[:, ::-1]
    height, width = expected.shape[:2]
    np.testing.assert_array_equal(decode.read(path, (height, width)), expected)
    np.testing.assert_array_equal(decode.read(path, 5), nearest(expected, 5, 5))


@pytest.mark.parametrize("harm", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + bytes(9)])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_exif_data_that_cannot_be_read_turn_nothing(tmp_path, harm):
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=harm or None)
    np.testing.assert_array_equal(decode.read(tmp_path / "a.png", (HEIGHT, WIDTH)), COLOURS)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big-endian.tif", "a.pgm"])
def test_sixteen_bits_are_rounded_to_eight(tmp_path, name):
    pixels = DEEP.copy()
    pixels[0, :4] = [0, 65535, 128, 129]  # 129 is closer to 257 than to 0
    Image.fromarray(pixels.astype(">u2") if "big" in name else pixels).save(tmp_path / name)
    found = decode.read(tmp_path / name, (HEIGHT, WIDTH), 1)[..., 0]
    np.testing.assert_array_equal(found, np.rint(pixels / 257))
    assert found[0, :4].tolist() == [0, 255, 0, 1]
    colour = decode.read(tmp_path / name, (HEIGHT, WIDTH), 3)
    np.testing.assert_array_equal(colour, np.stack([found] * 3, -1))


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(np.uint32, 2**32 - 1), (np.int32, 2**31 - 1), (np.float32, 1.0)],
    ids=["unsigned", "int", "float"],
)
def test_thirty_two_bits_are_scaled_by_their_range(tmp_path, dtype, most):
    pixels = (DEEP / 65535 * most).astype(dtype)
    Image.fromarray(pixels.view(np.int32) if dtype == np.uint32 else pixels).save(tmp_path / "a.tif")
    if dtype == np.uint32:
        with_tag(tmp_path / "a.tif", TiffImagePlugin.SAMPLEFORMAT, 1)
    found = decode.read(tmp_path / "a.tif", (HEIGHT, WIDTH), 1)[..., 0]
    np.testing.assert_array_equal(found, np.rint(pixels.astype(np.float64) * (255 / most)))


@pytest.mark.parametrize("kind", ["eight", "sixteen", "float"])
def test_where_white_is_zero_it_is_white(tmp_path, kind):
    pixels = {"eight": COLOURS[..., 0], "sixteen": DEEP, "float": (DEEP / 65535).astype(np.float32)}[kind]
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    upright = decode.read(tmp_path / "a.tif", (HEIGHT, WIDTH), 1)
    with_tag(tmp_path / "a.tif", TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
    np.testing.assert_array_equal(decode.read(tmp_path / "a.tif", (HEIGHT, WIDTH), 1), 255 - upright)


@pytest.mark.parametrize("wrong", [-1.0, 1.5, 255.0, np.nan, np.inf])
def test_numbers_without_brightness_are_refused(tmp_path, wrong):
    Image.fromarray(np.full((4, 4), wrong, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"cannot read .*a.tif as an image \(its numbers are not all from 0 to 1.0"):
        decode.read(tmp_path / "a.tif", 4, 1)


def on_white(rgba):
    colour, alpha = rgba[..., :3].astype(np.float64), rgba[..., 3:] / 255
    return colour * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparency_is_composed_on_white(tmp_path, name):
    rgba = np.concatenate([COLOURS, RNG.integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)], -1)
    rgba[0, :2, 3] = 0, 255
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    Image.fromarray(rgba).save(tmp_path / name, **options)
    found = decode.read(tmp_path / name, (HEIGHT, WIDTH))
    assert np.abs(found - on_white(rgba)).max() < 1
    assert found[0, 0].tolist() == [255] * 3
    np.testing.assert_array_equal(found[0, 1], COLOURS[0, 1])


@pytest.mark.parametrize(("mode", "clear"), [("P", 3), ("P", b"\xff\x80\0"), ("L", 7), ("1", 0), ("RGB", (1, 2, 3))])
def test_transparent_colours_are_white(tmp_path, mode, clear):
    image = Image.fromarray(COLOURS)
    image.putpixel((0, 0), (1, 2, 3) if mode == "RGB" else (7, 7, 7))
    image.convert(mode).save(tmp_path / "a.png", transparency=clear)
    with Image.open(tmp_path / "a.png") as whole:
        assert "transparency" in whole.info
        expected = on_white(np.asarray(whole.convert("RGBA")))
    assert (expected == 255).any()
    assert np.abs(decode.read(tmp_path / "a.png", (HEIGHT, WIDTH)) - expected).max() < 1


def test_the_transparent_value_of_sixteen_bits_is_white(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.png", transparency=int(DEEP[1, 1]))
    found = decode.read(tmp_path / "a.png", (HEIGHT, WIDTH), 1)[..., 0]
    np.testing.assert_array_equal(found, np.where(DEEP[1, 1] == DEEP, 255, np.rint(DEEP / 257)))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_of_several_pictures_the_first_is_taken_and_that_is_said(tmp_path, name, capsys):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert decode.picture(tmp_path / name, 2).several
    found = decode.read(tmp_path / name, 2)
    assert np.abs(found.astype(int) - [255, 0, 0]).max() < 8
    assert f"{tmp_path / name} has several pictures: the first is taken" in capsys.readouterr().out
    frames[0].save(tmp_path / name)
    assert not decode.picture(tmp_path / name, 2).several


def test_previews_beside_a_photograph_are_not_worth_a_word(tmp_path):
    photograph = Image.fromarray(COLOURS)
    photograph.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photograph.resize((4, 4))])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
    assert not decode.picture(tmp_path / "a.jpg", 5).several


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_size_mode_and_orientation_is_what_plain_pillow_gives(tmp_path_factory, data):
    """The expected result applies Pillow's functions one after another to the whole image."""
    path = tmp_path_factory.getbasetemp() / "any.png"
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    mode = data.draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]))
    exif = Image.Exif()
    exif[0x112] = data.draw(st.integers(1, 8))
    seed = data.draw(st.integers(0, 9))
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 4), np.uint8)
    image = Image.fromarray(pixels if mode == "RGBA" else pixels[..., :3])
    image.convert(mode).save(path, exif=exif)
    size = data.draw(st.tuples(st.integers(1, 50), st.integers(1, 50)))
    channels = data.draw(st.sampled_from([1, 3]))
    with Image.open(path) as whole:
        upright = ImageOps.exif_transpose(whole).convert("RGBA")
    flat = Image.new("RGBA", upright.size, "white")
    flat.alpha_composite(upright)
    expected = flat.convert({1: "L", 3: "RGB"}[channels]).resize(size[::-1], Image.Resampling.NEAREST)
    found = decode.read(path, size, channels)
    np.testing.assert_array_equal(found, np.asarray(expected).reshape(*size, channels))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_a_turned_tiff_file_is_the_plain_one_turned(tmp_path, mode, compression):
    numbers = DEEP.astype({"I": np.int32, "F": np.float32}.get(mode, np.uint16))
    image = Image.fromarray(numbers / 65535 if mode == "F" else numbers) if mode[0] in "IF" else None
    image = image or Image.fromarray(COLOURS).convert(mode)
    image.save(tmp_path / "plain.tif", compression=compression)
    plain = decode.read(tmp_path / "plain.tif", None)
    turned = [plain, plain[:, ::-1], np.rot90(plain, 2), plain[::-1]]
    turned += [plain.swapaxes(0, 1), np.rot90(plain, 3), np.rot90(plain, 2).swapaxes(0, 1), np.rot90(plain)]
    for orientation, expected in enumerate(turned, 1):
        exif = Image.Exif()
        exif[0x112] = orientation
        image.save(tmp_path / "turned.tif", compression=compression, exif=exif)
        np.testing.assert_array_equal(decode.read(tmp_path / "turned.tif", None), expected)


def png(bits, colour, width, row, transparent):
    """A PNG file of one row, with one transparent grey or colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (1, b"\xa0", 0, [255, 255, 255, 255]),
        (1, b"\xa0", 1, [255, 0, 255, 0]),
        (2, b"\x1b", 1, [0, 255, 170, 255]),
        (4, b"\x01\x9f", 9, [0, 17, 255, 255]),
        (8, b"\x01\x02\x09\xc8", 9, [1, 2, 255, 200]),
        (16, b"\x01\x01\x02\x02\x09\x09\xc8\xc8", 0x0909, [1, 2, 255, 200]),
    ],
)
def test_a_transparent_grey_of_any_depth_is_white(tmp_path, bits, row, transparent, expected):
    (tmp_path / "a.png").write_bytes(png(bits, 0, 4, row, struct.pack(">H", transparent)))
    assert decode.read(tmp_path / "a.png", None, 1).ravel().tolist() == expected


def test_a_transparent_colour_of_sixteen_bits_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(8, 2, 1, b"\1\2\3", bytes([0, 1, 0, 2, 0, 3])))
    assert decode.read(tmp_path / "a.png", None).ravel().tolist() == [255] * 3
    (tmp_path / "a.png").write_bytes(png(16, 2, 1, bytes(6), bytes(6)))
    with pytest.raises(
        UserError, match="16-bit colour with a transparent colour: save it with 8 bits, or with an alpha"
    ):
        decode.read(tmp_path / "a.png", None)


def test_signed_numbers_of_eight_bits_are_refused(tmp_path):
    Image.fromarray(COLOURS[..., 0]).save(tmp_path / "a.tif", tiffinfo={339: 1})
    assert decode.read(tmp_path / "a.tif", None, 1).shape == (HEIGHT, WIDTH, 1)
    with_tag(tmp_path / "a.tif", 339, 2)
    with pytest.raises(UserError, match="its numbers are signed"):
        decode.read(tmp_path / "a.tif", None)


def test_the_papers_way_is_pillows_alone(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    rgba = np.concatenate([COLOURS, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], -1)
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(image.resize((7, 7), Image.Resampling.NEAREST).convert("RGB"))
    np.testing.assert_array_equal(decode.read(tmp_path / "a.png", 7, as_stored=True), expected)


@pytest.mark.parametrize(
    "harm", [lambda whole: whole[:60], lambda whole: b"<html>", lambda whole: b"", lambda w: w[: len(w) // 2]]
)
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.gif", "a.bmp", "a.ppm"])
def test_what_is_no_image_is_named(tmp_path, harm, name):
    Image.fromarray(COLOURS).save(tmp_path / name)
    (tmp_path / name).write_bytes(harm((tmp_path / name).read_bytes()))
    with pytest.raises(UserError, match=r"cannot read .*a\.\w+ as an image .*replace it, or move it away") as caught:
        decode.read(tmp_path / name, 5)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, decode.UnreadableError)


def test_no_format_that_starts_a_program_is_read(tmp_path, monkeypatch):
    """Pillow would pass EPS files to Ghostscript."""
    harm = tmp_path / "harm"
    (tmp_path / "gs").write_text(f"#!{sys.executable}\nopen({str(harm)!r}, 'w')\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    Image.fromarray(COLOURS).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png as an image \(not in a supported format\)"):
        decode.read(tmp_path / "a.png", 5)
    assert not harm.exists()
    with Image.open(tmp_path / "a.png") as image, pytest.raises(OSError):
        image.load()
    assert harm.exists()  # the payload works


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", ["16384 8193", "1000000 1000000"])
def test_more_pixels_than_any_photograph_has_are_refused(tmp_path, size):
    """A file of a few bytes may declare any size; it is rejected before memory is allocated."""
    (tmp_path / "a.ppm").write_text(f"P6 {size} 255\n")
    with pytest.raises(UserError, match=r"cannot read .*a.ppm as an image .*pixels"):
        decode.read(tmp_path / "a.ppm", 5)


def test_as_many_pixels_as_are_read(tmp_path, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / "a.ppm")
    monkeypatch.setattr(decode, "MAX_PIXELS", HEIGHT * WIDTH)
    decode.read(tmp_path / "a.ppm", 5)
    monkeypatch.setattr(decode, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(UserError, match="13x9 pixels, more than 116"):
        decode.read(tmp_path / "a.ppm", 5)


def test_what_hinders_reading_says_nothing_of_the_image(tmp_path):
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(decode.UnreadableError, match="cannot read .*: (No such file or|Is a) directory$"):
            decode.read(path, 5)


def test_two_channels_are_no_image_format(tmp_path):
    with pytest.raises(ValueError, match="1 or 3, not 2"):
        decode.read(tmp_path / "a.png", 5, channels=2)
