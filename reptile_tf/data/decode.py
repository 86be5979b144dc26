"""Decodes image files with Pillow. The whole package uses this module, except for Omniglot's drawings.

Raise `VERSION` whenever `read` returns different pixels for any file: stores of decoded images are then rebuilt.
"""

import contextlib
import errno
import os
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffTags import TAGS_V2

from reptile_tf.errors import UserError
from reptile_tf.progress import log

VERSION = 2
# Pillow's names. Decoders that start another program (such as EPS) or are rarely tested are left out.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Suffixes of image files, in upper or lower case. The format itself is recognized by the file's content.
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
)  # fmt: skip
MAX_PIXELS = 1 << 27  # 134 megapixels, half a gigabyte when decoded; a file of a few kilobytes may declare any size
RESAMPLING = Image.Resampling.NEAREST  # as in the paper: the default of the Pillow version that its code used

_MODES = {1: "L", 3: "RGB"}
_GREY_OF_FEW_BITS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies such pixels by
_BITS, _PHOTOMETRIC, _FORMAT = (
    next(number for number, tag in TAGS_V2.items() if tag.name == name)
    for name in ("BitsPerSample", "PhotometricInterpretation", "SampleFormat")
)


class UnreadableError(UserError):
    """The file could not be read, so it is unknown whether it is an image."""


class Picture(NamedTuple):
    """An image file, decoded.

    Attributes:
      pixels: uint8 [height, width, channel].
      several: whether the file is an animation or has several pages, of which this is the first. False for a camera's
        JPEG file that holds previews or a second stereo view beside the photograph.
    """

    pixels: np.ndarray
    several: bool


def read(
    file: str | os.PathLike, size: int | tuple[int, int] | None, channels: int = 3, *, as_stored: bool = False
) -> np.ndarray:
    """Decodes an image as a viewer shows it, stretched to `size` by nearest neighbour.

    - The image is rotated and mirrored as its EXIF data say. Unreadable EXIF data are ignored.
    - Palettes, bilevel, CMYK and 16-bit colour (its upper eight bits) are converted by Pillow; grey follows ITU-R 601.
    - Grey of more than eight bits is scaled and rounded to 0 to 255, from 0 to the maximum of the file's number type:
      65,535 for 16 bits, 4,294,967,295 for 32 bits, about half of that if signed, and 1.0 for floating point. A file
      with values that are negative, above that maximum or not finite is rejected.
    - Transparent parts become white. 16-bit colour with one transparent colour is rejected, since Pillow loses it.
    - The first picture of an animation or of several pages is used, and this is logged.

    Args:
      file: the path of a file in one of `FORMATS`, whatever its name.
      size: (height, width), or one number for both; None keeps the image's own size.
      channels: 3 for RGB or 1 for greyscale.
      as_stored: decode as the paper's code does: Pillow resizes and converts the stored pixels, and orientation,
        additional bits and transparency are ignored.

    Returns:
      uint8 [height, width, channel].

    Raises:
      UnreadableError: the file cannot be read.
      UserError: the file is not an image in one of `FORMATS`, is damaged, or has more than `MAX_PIXELS`.
      ValueError: `channels` is neither 1 nor 3.
    """
    decoded = picture(file, size, channels, as_stored=as_stored)
    if decoded.several:
        log.info(f"{os.fspath(file)} has several pictures: the first is taken")
    return decoded.pixels


def picture(
    file: str | os.PathLike, size: int | tuple[int, int] | None, channels: int = 3, *, as_stored: bool = False
) -> Picture:
    """Does the same as `read`, but returns whether the file has several pictures instead of logging it."""
    if channels not in _MODES:
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    wanted = (size, size) if isinstance(size, int) else size and (size[1], size[0])  # width first
    path = os.fspath(file)
    try:
        # Given a path, Pillow maps uncompressed TIFF files into memory, and scrambles those that EXIF data turn.
        with open(path, "rb") as content, Image.open(content, formats=FORMATS) as image:
            if as_stored:
                small = image.resize(wanted or image.size, RESAMPLING).convert(_MODES[channels])
            else:
                small = _as_shown(image, wanted, _MODES[channels])
            several = image.format != "MPO" and getattr(image, "is_animated", False)
        return Picture(np.asarray(small).reshape(small.height, small.width, channels), several)
    except MemoryError as error:
        raise UnreadableError(f"cannot read {path}: not enough memory; make the image smaller") from error
    except Exception as error:  # Pillow raises many kinds of errors for malformed images
        # A system error says nothing about the image, except EINVAL, from seeking to a bad offset given in the file.
        if isinstance(error, OSError) and error.errno and error.errno != errno.EINVAL:
            raise UnreadableError(f"cannot read {path}: {error.strerror}") from error
        reason = "not in a supported format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"cannot read {path} as an image ({reason}); replace it, or move it away") from error


def of_pixels(pixels: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Resizes and converts decoded pixels as `read` does.

    Args:
      pixels: uint8 or uint16 [height, width, channel] with 1, 3 or 4 channels, or float from 0 to 1 with 1 channel.
      size: height and width to resize to.
      channels: 3 for RGB or 1 for greyscale.

    Returns:
      uint8 [size, size, channels].

    Raises:
      ValueError: the pixels have another dtype, number of channels or range.
    """
    grey = pixels.shape[-1] == 1
    if grey and pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    elif not grey and pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[-1] not in (1, 3, 4) or pixels.dtype not in (np.uint8, *([np.uint16, np.float32] if grey else [])):
        raise ValueError(f"images of {pixels.dtype} with {pixels.shape[-1]} channels cannot be converted: use uint8")
    small = Image.fromarray(pixels[..., 0] if grey else pixels).resize((size, size), RESAMPLING)
    if small.mode[0] in "IF":
        small = _eight_bits(small, np.asarray(small))
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    return np.asarray(small.convert(_MODES[channels])).reshape(size, size, channels)


def _as_shown(image: ImageFile.ImageFile, size: tuple[int, int] | None, mode: str) -> Image.Image:
    """Returns `image` as a viewer shows it, resized to `size` (width, height) unless that is None."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    _adapt_transparency(image)
    if image.mode not in ("I", "F", "I;16") and 2 in getattr(image, "tag_v2", {}).get(_FORMAT, ()):
        raise ValueError("its numbers are signed")
    image.load()
    with contextlib.suppress(Exception):  # broken EXIF data may raise anything
        ImageOps.exif_transpose(image, in_place=True)
    # Nearest-neighbour resizing commutes with the conversions. Resizing first leaves fewer pixels to convert.
    small = image.resize(size or image.size, RESAMPLING)
    if image.mode[0] in "IF":
        small = _eight_bits(image, np.asarray(small))
    elif small.has_transparency_data:
        small = small.convert("RGBA")
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    return small.convert(mode)


def _adapt_transparency(image: ImageFile.ImageFile) -> None:
    """Scales a PNG file's transparent grey as Pillow scales its pixels; raises ValueError for one of 16-bit colour."""
    raw = image.tile[0].args if image.format == "PNG" and "transparency" in image.info and image.tile else ""
    if raw in _GREY_OF_FEW_BITS:
        image.info["transparency"] *= _GREY_OF_FEW_BITS[raw]
    elif raw == "RGB;16B":
        raise ValueError("16-bit colour with a transparent colour: save it with 8 bits, or with an alpha channel")


def _eight_bits(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Converts the grey `values` of an image in mode I;16, I or F to an image in mode L."""
    tags = getattr(image, "tag_v2", {})  # only in TIFF files; in other formats I and I;16 mean 16 bits
    if image.mode == "F":
        most = 1.0
    else:
        bits, kind = tags.get(_BITS, (16,))[0], tags.get(_FORMAT, (1,))[0]
        is_signed = kind == 2
        most = 2 ** (bits - is_signed) - 1
        values = values.astype(np.int64)
        if bits == 32 and not is_signed:
            values &= most  # Pillow reads them as signed
    if not np.all((values >= 0) & (values <= most)):
        raise ValueError(f"its numbers are not all from 0 to {most}, black to white")
    grey = np.rint(values * (255 / most))
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white; Pillow inverts only eight-bit images
        grey = 255 - grey
    if "transparency" in image.info:  # in a PNG file, the one value that is transparent
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8))
