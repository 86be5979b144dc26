"""From a photograph or scan of a drawing to one as Omniglot's are: ink of one width on paper, two values.

The way, step by step, by Pillow's filters:

1. The image is made grey, at most 420 pixels along its longer side, and a median filter takes off noise.
2. Paper is what a morphological closing leaves, which is wider than strokes are; dividing by it takes off shadows.
3. Otsu's threshold parts ink from paper. Light ink on dark paper is told by its skewness, and inverted before.
4. Parts that are small and lie apart, or along an edge of the image, are left out.
5. The drawing gets the size and place that Omniglot's have in the median, and strokes as wide as theirs: how far away
   the camera was says nothing.
6. The network's pixels are those in the middle of each cell, as of Omniglot's drawings.

Drawings that are two-valued and of Omniglot's or the network's size already are taken as they are.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from reptile_tf.errors import UserError

SIDE = 105  # of an Omniglot drawing; the unit of the following lengths, medians of 1,500 of them
PEN = 5.5  # width of a stroke
SIZE = 68  # larger of width and height of a drawing
MIDDLE = (51.5, 51)  # of its bounding box, x and y

_LONGER = 420  # pixels of a photograph
_WIDEST = 11  # a stroke, in pixels of a photograph made a quarter of that
_FINE = 2 * SIDE  # pixels that a drawing is laid out on
_LEAST_CONTRAST = 0.12  # of ink and paper, as a share of the paper's brightness
_LEAST_SPECK = 0.02  # of the ink; what is smaller and apart is dirt


def prepared(grey: np.ndarray, size: int, name: str = "the image") -> np.ndarray:
    """One drawing as a network of Omniglot takes it.

    Args:
      grey: uint8 [height, width]. The paper should fill it.
      size: height and width of the result.
      name: of the image, for messages.

    Returns:
      uint8 [size, size], 0 ink and 1 paper.

    Raises:
      UserError: there is no drawing in it.
    """
    values = np.unique(grey)
    if len(values) == 2 and grey.shape in ((SIDE, SIDE), (size, size)):
        paper = grey == values[1]
        return _cells(paper if paper.mean() >= 0.5 else ~paper, size).astype(np.uint8)
    return 1 - _cells(_laid_out(_squared(_without_dirt(_ink(grey, name)))), size).astype(np.uint8)


def _cells(mask: np.ndarray, size: int) -> np.ndarray:
    """The pixels in the middle of size x size cells of a square."""
    rows = (2 * np.arange(size) + 1) * len(mask) // (2 * size)
    return mask[rows[:, None], rows]


def _ink(grey: np.ndarray, name: str) -> np.ndarray:
    """Where the ink is, bool [height, width]."""
    image = Image.fromarray(grey)
    image.thumbnail((_LONGER, _LONGER), Image.Resampling.BOX)
    side = max(image.size)
    if side > _LONGER / 2:  # in less, strokes are as thin as noise
        image = image.filter(ImageFilter.MedianFilter(3))
    around = np.asarray(image, np.float64) - np.asarray(image.filter(ImageFilter.BoxBlur(side / 8)))
    if (around**3).mean() > 0:  # strokes are the tail of the distribution
        image = ImageOps.invert(image)
    # At a quarter of the size, and with a margin, in which shadows at the edge go on.
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
    """Padded with paper to a square."""
    side = max(ink.shape)
    square = np.zeros((side, side), bool)
    top, left = ((side - length) // 2 for length in ink.shape)
    square[top : top + len(ink), left : left + ink.shape[1]] = ink
    return square


def _otsu(light: np.ndarray) -> float:
    """The threshold between two kinds of pixels, from 0 to 1, that varies least within each kind (Otsu 1979)."""
    counts, edges = np.histogram(light, 256, (0, 1))
    middles = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), light.size
    sums = np.cumsum(counts * middles)
    between = (sums[-1] * below / total - sums) ** 2 / np.maximum(below * (total - below), 1)
    best = np.flatnonzero(between == between.max())
    return float(edges[best[len(best) // 2] + 1])


def _without_dirt(ink: np.ndarray) -> np.ndarray:
    """The ink but for parts that lie apart and are a small share of it, or lie along the edge."""
    near = _image(ink).filter(ImageFilter.MaxFilter(5))  # joins what a thin stroke is broken into
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
    """Whether a part begins at a side of the image and ends within an eighth of it, as the edge of a table does."""
    for axis in (0, 1):
        at, length = np.flatnonzero(part.any(1 - axis)), part.shape[axis]
        if (at[0] == 0 and at[-1] < length / 8) or (at[-1] == length - 1 and at[0] > length * 7 / 8):
            return True
    return False


def _laid_out(ink: np.ndarray) -> np.ndarray:
    """The ink of a square, scaled, moved and drawn as Omniglot's is: bool [fine, fine]."""
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    extent = 1 + max(at[-1] - at[0] for at in (columns, rows))
    width = _stroke_width(ink)
    # Pixels of `ink` in a pixel of the result; a dot stays a dot.
    step = float(width / PEN if extent < 3 * width else extent / SIZE) * SIDE / _FINE
    left, top = (
        (at[0] + at[-1] + 1) / 2 - step * middle * _FINE / SIDE
        for at, middle in zip((columns, rows), MIDDLE, strict=True)
    )
    transform = (step, 0, left, 0, step, top)
    blur = _image(ink).filter(ImageFilter.GaussianBlur(step / 2))  # of which no thin stroke gets lost in between
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
    """Pixels: twice the area by the perimeter, whose steps are longer than itself by 4 / pi over all directions."""
    steps = sum(int((np.diff(np.pad(ink, 1).astype(np.int8), axis=axis) != 0).sum()) for axis in (0, 1))
    return 2 * ink.sum() / (steps * np.pi / 4)


def _image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)
