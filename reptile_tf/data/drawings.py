"""Turns a photograph or scan of a drawing into one like Omniglot's: two values, and strokes of uniform width.

The steps, all with Pillow's filters:

1. Convert the image to grey, shrink its longer side to at most 420 pixels, and remove noise with a median filter.
2. Estimate the paper by a morphological closing wider than the strokes, and divide by it to remove shadows.
3. Separate ink from paper by Otsu's threshold. Light ink on dark paper, recognized by its skewness, is inverted first.
4. Remove small separate parts, and parts along an edge of the image.
5. Scale and centre the drawing to the median size and position of Omniglot's, with strokes of their width, so that the
   result does not depend on the camera's distance.
6. Sample the pixel at the centre of each cell of the network's grid, as for Omniglot's drawings.

Drawings that already have two values and Omniglot's or the network's size only go through the last step.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from reptile_tf.errors import UserError

SIDE = 105  # pixels along each side of an Omniglot drawing
# Medians of 1,500 Omniglot drawings, in their pixels.
PEN = 5.5  # width of a stroke
SIZE = 68  # the larger of a drawing's width and height
MIDDLE = (51.5, 51)  # x and y of the centre of the bounding box

_LONGER = 420  # maximum length of a photograph's longer side, in pixels
_WIDEST = 11  # widest stroke, in pixels of the photograph at a quarter of that size
_FINE = 2 * SIDE  # pixels along each side of the canvas on which a drawing is laid out
_LEAST_CONTRAST = 0.12  # between ink and paper, as a share of the paper's brightness
_LEAST_SPECK = 0.02  # share of all ink; smaller separate parts are dirt


def prepared(grey: np.ndarray, size: int, name: str = "the image") -> np.ndarray:
    """Prepares one drawing for a network trained on Omniglot.

    Args:
      grey: uint8 [height, width]. The paper should fill the image.
      size: height and width of the result.
      name: the image's name in messages.

    Returns:
      uint8 [size, size], 0 ink and 1 paper.

    Raises:
      UserError: the image shows no drawing.
    """
    values = np.unique(grey)
    if len(values) == 2 and grey.shape in ((SIDE, SIDE), (size, size)):
        paper = grey == values[1]
        return _cells(paper if paper.mean() >= 0.5 else ~paper, size).astype(np.uint8)
    return 1 - _cells(_laid_out(_squared(_without_dirt(_ink(grey, name)))), size).astype(np.uint8)


def _cells(mask: np.ndarray, size: int) -> np.ndarray:
    """Samples a square at the centres of size x size cells."""
    rows = (2 * np.arange(size) + 1) * len(mask) // (2 * size)
    return mask[rows[:, None], rows]


def _ink(grey: np.ndarray, name: str) -> np.ndarray:
    """Finds the ink: bool [height, width] of the shrunk image."""
    image = Image.fromarray(grey)
    image.thumbnail((_LONGER, _LONGER), Image.Resampling.BOX)
    side = max(image.size)
    if side > _LONGER / 2:  # in smaller images the filter would remove thin strokes
        image = image.filter(ImageFilter.MedianFilter(3))
    around = np.asarray(image, np.float64) - np.asarray(image.filter(ImageFilter.BoxBlur(side / 8)))
    if (around**3).mean() > 0:  # the tail of the distribution is the ink, here lighter than the paper
        image = ImageOps.invert(image)
    # The closing runs at a quarter of the size, with a margin that continues shadows beyond the edge.
    small = np.asarray(image.resize([max(1, length // 4) for length in image.size], Image.Resampling.BOX))
    wide = Image.fromarray(np.pad(small, _WIDEST, "edge"))
    wide = wide.filter(ImageFilter.MaxFilter(_WIDEST)).filter(ImageFilter.MinFilter(_WIDEST + 2))
    bare = wide.crop((_WIDEST, _WIDEST, wide.width - _WIDEST, wide.height - _WIDEST))
    paper = np.asarray(bare.resize(image.size, Image.Resampling.BILINEAR), np.float64)
    light = np.clip(np.asarray(image) / np.maximum(paper, 1), 0, 1)
    ink = light < _otsu(light)
    if not ink.any() or ink.all() or light[~ink].mean() - light[ink].mean() < _LEAST_CONTRAST:
        raise UserError(f"{name} shows no drawing that stands out from its paper; give one with more contrast")
    return ink


def _squared(ink: np.ndarray) -> np.ndarray:
    """Pads the ink with paper to a square."""
    side = max(ink.shape)
    square = np.zeros((side, side), bool)
    top, left = ((side - length) // 2 for length in ink.shape)
    square[top : top + len(ink), left : left + ink.shape[1]] = ink
    return square


def _otsu(light: np.ndarray) -> float:
    """Returns the threshold, from 0 to 1, that minimizes the variance within the two classes of pixels (Otsu 1979)."""
    counts, edges = np.histogram(light, 256, (0, 1))
    middles = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), light.size
    sums = np.cumsum(counts * middles)
    between = (sums[-1] * below / total - sums) ** 2 / np.maximum(below * (total - below), 1)
    best = np.flatnonzero(between == between.max())
    return float(edges[best[len(best) // 2] + 1])


def _without_dirt(ink: np.ndarray) -> np.ndarray:
    """Removes separate parts that are a small share of the ink or lie along an edge."""
    near = _image(ink).filter(ImageFilter.MaxFilter(5))  # joins the pieces of a broken stroke
    least, kept = _LEAST_SPECK * ink.sum(), np.zeros_like(ink)
    while (left := np.asarray(near) == 255).any():
        row, column = np.unravel_index(left.argmax(), left.shape)
        ImageDraw.floodfill(near, (int(column), int(row)), 128)
        part = np.asarray(near) == 128
        if (part & ink).sum() >= least and not _lies_along_the_edge(part):
            kept |= part & ink
        near.paste(0, mask=_image(part))
    return kept if kept.any() else ink


def _lies_along_the_edge(part: np.ndarray) -> bool:
    """Returns whether a part touches a side of the image and stays within an eighth of it, like the edge of a table."""
    for axis in (0, 1):
        at, length = np.flatnonzero(part.any(1 - axis)), part.shape[axis]
        if (at[0] == 0 and at[-1] < length / 8) or (at[-1] == length - 1 and at[0] > length * 7 / 8):
            return True
    return False


def _laid_out(ink: np.ndarray) -> np.ndarray:
    """Gives the ink of a square the scale, position and stroke width of Omniglot's: bool [_FINE, _FINE]."""
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    extent = 1 + max(at[-1] - at[0] for at in (columns, rows))
    width = _stroke_width(ink)
    # Pixels of `ink` per pixel of the result. A dot is scaled by its stroke width, so that it stays a dot.
    step = float(width / PEN if extent < 3 * width else extent / SIZE) * SIDE / _FINE
    left, top = (
        (at[0] + at[-1] + 1) / 2 - step * middle * _FINE / SIDE
        for at, middle in zip((columns, rows), MIDDLE, strict=True)
    )
    transform = (step, 0, left, 0, step, top)
    blur = _image(ink).filter(ImageFilter.GaussianBlur(step / 2))  # keeps thin strokes from falling between samples
    laid = blur.transform((_FINE, _FINE), Image.Transform.AFFINE, transform, Image.Resampling.BILINEAR)
    drawn = np.asarray(laid) > 64
    wanted, found = PEN * _FINE / SIDE, _stroke_width(drawn)
    reach = int(np.clip(round((wanted - found) / 2), -_FINE // 50, _FINE // 10))
    if reach:
        spread = ImageFilter.MaxFilter if reach > 0 else ImageFilter.MinFilter
        thick = np.asarray(_image(drawn).filter(spread(2 * abs(reach) + 1))) > 0
        drawn = thick if thick.any() else drawn
    return drawn


def _stroke_width(ink: np.ndarray) -> float:
    """Returns the stroke width in pixels: twice the area divided by the perimeter.

    Counting pixel edges overestimates the perimeter by a factor of 4 / pi, averaged over all directions.
    """
    steps = sum(int((np.diff(np.pad(ink, 1).astype(np.int8), axis=axis) != 0).sum()) for axis in (0, 1))
    return 2 * ink.sum() / (steps * np.pi / 4)


def _image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)
