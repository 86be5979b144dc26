"""From an image file to pixels, by Pillow: the one reader of every part of this package but Omniglot's drawings.

Raise `VERSION` whenever the pixels change that `read` gives for any file: stores of decoded images are made anew then.
"""

import contextlib
import errno
import os
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffTags import TAGS_V2

from reptile_tf.errors import UserError
from reptile_tf.progress import log

VERSION = 1
# As Pillow calls them. None whose decoder starts another program, as that of EPS does, and no rarely tested one.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# How their names end, in any case. What a file is its content says.
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
)  # fmt: skip
MAX_PIXELS = 1 << 27  # 134 megapixels, decoded half a gigabyte; a file of a few kilobytes may claim any number
RESAMPLING = Image.Resampling.NEAREST  # the paper's: the default of the Pillow that its code was run with

_MODES = {1: "L", 3: "RGB"}
_BITS, _PHOTOMETRIC, _FORMAT = (
    next(number for number, tag in TAGS_V2.items() if tag.name == name)
    for name in ("BitsPerSample", "PhotometricInterpretation", "SampleFormat")
)


class UnreadableError(UserError):
    """A file that could not be read at all; it may be an image."""


class Picture(NamedTuple):
    """An image file, decoded.

    Attributes:
      pixels: uint8 [height, width, channel].
      several: whether it is an animation, or has several pages, of which this is the first. (Not where a JPEG file of a
        camera holds previews or the other eye's view beside the photograph.)
    """

    pixels: np.ndarray
    several: bool


def read(
    file: str | os.PathLike, size: int | tuple[int, int] | None, channels: int = 3, *, as_stored: bool = False
) -> np.ndarray:
    """Decodes an image as a viewer shows it, stretched to `size` by nearest neighbour.

    - Turned and mirrored as its EXIF data say; EXIF data that cannot be read count as none.
    - Palettes, bilevel, CMYK and 16-bit colour (its upper eight bits) as Pillow converts them; grey by ITU-R 601.
    - Grey of more than eight bits: 0 to the most that the file's type of number holds becomes 0 to 255, rounded. That
      is 65,535 for 16 bits, 4,294,967,295 for 32, half of it with a sign; 1.0 for floating point. Numbers that are
      negative, above 1.0 or not finite have no brightness, and the file is refused.
    - Transparency is composed on white.
    - Of an animation or several pages the first, which is logged.

    Args:
      file: the path of a file of one of `FORMATS`, whatever its name.
      size: height and width, or both alike; None: as it is.
      channels: 3 for RGB or 1 for greyscale.
      as_stored: as the paper's code does it, without orientation, more bits or transparency: what is stored, resized
        and converted by Pillow.

    Returns:
      uint8 [height, width, channel].

    Raises:
      UnreadableError: it cannot be read at all.
      UserError: it is no such image, damaged, or has more than `MAX_PIXELS`.
      ValueError: `channels` is neither 1 nor 3.
    """
    decoded = picture(file, size, channels, as_stored=as_stored)
    if decoded.several:
        log.info(f"{os.fspath(file)} has several pictures: the first is taken")
    return decoded.pixels


def picture(
    file: str | os.PathLike, size: int | tuple[int, int] | None, channels: int = 3, *, as_stored: bool = False
) -> Picture:
    """As `read`, which it explains, but tells of further pictures in the file instead of logging that."""
    if channels not in _MODES:
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    wanted = (size, size) if isinstance(size, int) else size and (size[1], size[0])  # width first
    path = os.fspath(file)
    try:
        with Image.open(path, formats=FORMATS) as image:
            if as_stored:
                small = image.resize(wanted or image.size, RESAMPLING).convert(_MODES[channels])
            else:
                small = _as_shown(image, wanted, _MODES[channels])
            several = image.format != "MPO" and getattr(image, "is_animated", False)
        return Picture(np.asarray(small).reshape(small.height, small.width, channels), several)
    except MemoryError as error:
        raise UnreadableError(f"cannot read {path}: not enough memory; make the image smaller") from error
    except Exception as error:  # Pillow lets many kinds out when the bytes are not those of a sound image
        # The machine's say nothing of the image; but a place that cannot be sought comes of its bytes.
        if isinstance(error, OSError) and error.errno and error.errno != errno.EINVAL:
            raise UnreadableError(f"cannot read {path}: {error.strerror}; put that right") from error
        reason = "none of the formats read here" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"cannot read {path} as an image ({reason}); replace it, or move it away") from error


def of_pixels(pixels: np.ndarray, size: int, channels: int) -> np.ndarray:
    """As `read`, of an image that is decoded already: uint8 [height, width, 1, 3 or 4 channels]."""
    small = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).resize((size, size), RESAMPLING)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    return np.asarray(small.convert(_MODES[channels])).reshape(size, size, channels)


def _as_shown(image: Image.Image, size: tuple[int, int] | None, mode: str) -> Image.Image:
    """`image` as a viewer shows it, of `size`, width first, or its own."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    image.load()
    with contextlib.suppress(Exception):  # whatever broken EXIF data lead to
        ImageOps.exif_transpose(image, in_place=True)
    # Before the conversions, which it commutes with: there are fewer pixels to convert.
    small = image.resize(size or image.size, RESAMPLING)
    if image.mode[0] in "IF":
        small = _eight_bits(image, np.asarray(small))
    elif small.has_transparency_data:
        small = small.convert("RGBA")
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    return small.convert(mode)


def _eight_bits(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Grey `values` of an image in mode I;16, I or F as one in mode L."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF file; in the others I and I;16 are of 16 bits
    if image.mode == "F":
        most = 1.0
    else:
        bits, kind = tags.get(_BITS, (16,))[0], tags.get(_FORMAT, (1,))[0]
        is_signed = kind == 2
        most = 2 ** (bits - is_signed) - 1
        values = values.astype(np.int64)
        if bits == 32 and not is_signed:
            values &= most  # Pillow has it with a sign
    if not np.all((values >= 0) & (values <= most)):
        raise ValueError(f"its numbers are not all from 0 to {most}, black to white")
    grey = np.rint(values * (255 / most))
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0: Pillow inverts eight bits alone
        grey = 255 - grey
    if "transparency" in image.info:  # of a PNG file: the one value that is transparent
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8))
