"""Generates synthetic handwriting: a stand-in for Omniglot in demonstrations and tests that needs no download.

A class consists of one to four pen strokes. Each drawing bends, moves, slants and scales them about as much as human
writers do. The share of ink, the margins and the difficulty for a nearest-neighbour classifier match Omniglot's at
28x28. Results on these glyphs say nothing about Omniglot and are reported under their own name.
"""

import numpy as np

from reptile_tf.data.image_classes import ImageClasses

_STROKES = 4  # maximum number of strokes per class
_KNOTS = 5  # points that each stroke passes through
_STROKE_COUNT = (0.15, 0.50, 0.80)  # cumulative shares of classes with one, two, three strokes
_CHUNK = 64  # classes drawn at a time, to stay in the processor's cache

# Standard deviations between drawings of one class. Lengths are in units of the image's side.
_KNOT_JITTER = 0.20  # relative to the distance between knots: writers draw small parts as accurately as large ones
_STROKE_SHIFT = 0.028
_SHIFT = 0.044
_LOG_SCALE = 0.11
_SLANT = 0.15
_ROTATION = 0.10  # radians

_LINE, _ARC, _WAVE = 0.35, 0.70, 0.78  # cumulative shares of the kinds of stroke; the rest are polylines
_PER_STROKE = 8 + _KNOTS - 1  # uniform random numbers per stroke
_PER_DRAWING = 2 * _STROKES * (_KNOTS + 1) + 7  # normal random numbers per drawing


def load(classes: int = 1623, drawings: int = 20, size: int = 28, seed: int = 0) -> ImageClasses:
    """Generates glyph classes, the same ones for the same seed.

    The first classes and drawings do not depend on how many are generated.

    Args:
      classes: number of classes.
      drawings: number of drawings of each class.
      size: height and width in pixels; strokes are one to two pixels wide at any size.
      seed: random seed, 0 or more.

    Returns:
      Classes "glyph0000", ...: uint8 [classes * drawings, size, size, 1], 0 ink and 1 background, scale 1.
    """
    images = np.ones((classes, drawings, size, size, 1), np.uint8)
    for first in range(0, classes, _CHUNK):
        last = min(first + _CHUNK, classes)
        # One generator per class, so that a class does not depend on the number of classes.
        streams = [np.random.Generator(np.random.Philox(key=[seed, index])) for index in range(first, last)]
        knots, smooth, used = _invent(np.stack([stream.random(2 + _STROKES * _PER_STROKE) for stream in streams]))
        noise = np.stack([stream.standard_normal((drawings, _PER_DRAWING)) for stream in streams])
        points = _trace(_vary(knots, used, noise), np.where(used, smooth, smooth[:, :1]), samples=2 * size)
        pen = 1.41 + 0.25 * np.tanh(noise[..., -1])
        images[first:last, ..., 0] -= _ink(points * size, pen, size)
    return ImageClasses(
        images=images.reshape(-1, size, size, 1),
        starts=np.arange(classes, dtype=np.int64) * drawings,
        counts=np.full(classes, drawings, np.int64),
        names=tuple(f"glyph{index:04d}" for index in range(classes)),
    )


def _invent(u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generates classes from uniform random numbers `u`, float [class, n].

    Returns:
      knots: float [class, stroke, knot, xy], centred on 0; the longer side of a glyph is 0.5 to 0.7.
      smooth: bool [class, stroke], whether the stroke is a curve rather than a polyline.
      used: bool [class, stroke], whether the class has that stroke.
    """
    used = np.arange(_STROKES) <= (u[:, :1] > np.array(_STROKE_COUNT)).sum(1)[:, None]
    strokes = u[:, 2:].reshape(len(u), _STROKES, _PER_STROKE)
    kind, length, heading, wobble, side, joint, end, apart = (strokes[..., i : i + 1] for i in range(8))
    turns = strokes[..., 8:]

    # Straight strokes, arcs that keep turning one way, waves, and polylines with a sharp corner.
    kind[:, 0] = np.where(used[:, 1:2], kind[:, 0], _LINE + (1 - _LINE) * kind[:, 0])  # a single stroke is never a line
    way = np.where(turns[..., :1] < 0.5, -1.0, 1.0)
    straight = (turns - 0.5) * 0.25
    arc = way * (0.25 + 1.0 * turns[..., 1:2]) * (0.8 + 0.4 * turns)
    wave = way * (0.6 + 0.8 * turns) * np.array([1, 1, -1, -1])
    corner = way * (1.2 + 0.9 * turns) * (np.arange(_KNOTS - 1) == 1 + (turns[..., 2:3] * (_KNOTS - 2)).astype(int))
    bends = np.select([kind < _LINE, kind < _ARC, kind < _WAVE], [straight, arc, wave], corner)

    # Strokes follow the axes more often than the diagonals. Each later stroke turns well away from the previous one.
    eighths = np.round(heading * 8)
    eighths[:, 1:] = 1 + np.round(heading[:, 1:] * 2) + 4 * (side[:, 1:] < 0.5)
    heading = (eighths * (np.pi / 4)).cumsum(1) + (wobble - 0.5) * 0.5
    bends[..., 0] = 0
    direction = heading + bends.cumsum(-1)
    steps = np.stack([np.cos(direction), np.sin(direction)], -1) * (0.5 + length)[..., None]
    knots = np.concatenate([np.zeros_like(steps[..., :1, :]), steps.cumsum(-2)], -2)

    # It joins the previous stroke's end (more often) or middle with its own start or middle, or lies beside it.
    every = np.arange(len(u))
    for i in range(1, _STROKES):
        anchor = knots[every, i - 1, np.where(joint[:, i, 0] < 0.6, _KNOTS - 1, _KNOTS // 2)]
        own = knots[every, i, np.where(end[:, i, 0] < 0.6, 0, _KNOTS // 2)]
        gap = np.where(apart[:, i] < 0.35, turns[:, i, :2] * 4 - 2, 0.0)
        knots[:, i] += (anchor + gap - own)[:, None]

    seen = np.where(used[..., None, None], knots, knots[:, :1])
    low, high = seen.min((1, 2)), seen.max((1, 2))
    longer = (high - low).max(1) / (0.5 + 0.2 * u[:, 1])
    return (knots - ((low + high) / 2)[:, None, None]) / longer[:, None, None, None], kind[..., 0] < _WAVE, used


def _vary(knots: np.ndarray, used: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Varies the knots of each class for each drawing: float [class, drawing, stroke, knot, xy], about 0 to 1."""
    lead = noise.shape[:2]
    split = 2 * _STROKES * _KNOTS
    per_knot = noise[..., :split].reshape(*lead, _STROKES, _KNOTS, 2)
    per_stroke = noise[..., split : split + 2 * _STROKES].reshape(*lead, _STROKES, 1, 2)
    shift, scale, slant, turn = noise[..., -7:-5], noise[..., -5:-3], noise[..., -3], noise[..., -2]

    step = np.linalg.norm(np.diff(knots, axis=2), axis=-1).mean(-1)[:, None, :, None, None]
    drawn = knots[:, None] + _KNOT_JITTER * step * per_knot + _STROKE_SHIFT * per_stroke
    drawn = np.where(used[:, None, :, None, None], drawn, drawn[:, :, :1])  # unused strokes repeat the first: no ink
    # Scale, then slant, then rotation, as one 2x2 matrix per drawing.
    cos, sin = np.cos(_ROTATION * turn), np.sin(_ROTATION * turn)
    rotate = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    shear = np.zeros((*lead, 2, 2)) + np.eye(2)
    shear[..., 0, 1] = _SLANT * slant
    matrix = rotate @ shear * np.exp(_LOG_SCALE * scale)[..., None, :]
    return np.einsum("cdij,cdskj->cdski", matrix, drawn) + 0.5 + _SHIFT * shift[:, :, None, None]


def _trace(knots: np.ndarray, smooth: np.ndarray, samples: int) -> np.ndarray:
    """Samples strokes densely, smooth ones as Catmull-Rom splines: float [class, drawing, stroke, sample, xy]."""
    position = np.linspace(0, _KNOTS - 1, samples)
    segment = np.minimum(position.astype(int), _KNOTS - 2)
    t = (position - segment)[:, None]
    powers = np.concatenate([t**0, t, t**2, t**3], 1)
    spline = powers @ np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    line = np.concatenate([0 * t, 1 - t, t, 0 * t], 1)
    bases = np.zeros((2, samples, _KNOTS))
    for basis, weights in zip(bases, (line, spline), strict=True):
        for offset in range(4):  # the outermost knots are repeated at the spline's ends
            np.add.at(basis, (np.arange(samples), np.clip(segment + offset - 1, 0, _KNOTS - 1)), weights[:, offset])
    return bases[smooth.astype(int)][:, None] @ knots


def _ink(points: np.ndarray, pen: np.ndarray, size: int) -> np.ndarray:
    """Marks the pixels whose centres a square pen of width `pen` covers: uint8 [class, drawing, y, x], 1 is ink."""
    classes, drawings = pen.shape
    margin = 1  # receives the ink that falls outside the image
    side = size + 2 * margin
    canvas = np.zeros((classes * drawings, side * side), np.uint8)
    points = points.reshape(classes * drawings, -1, 2)
    half = pen.reshape(-1, 1, 1) / 2
    # The pen covers one or two pixels along each axis, so the first and the last are all of them.
    low = np.clip(np.floor(points - half + 0.5).astype(np.int32) + margin, 0, side - 1)
    high = np.clip(np.floor(points + half - 0.5).astype(np.int32) + margin, 0, side - 1)
    rows = np.arange(classes * drawings)[:, None]
    for y in (low, high):
        for x in (low, high):
            canvas[rows, y[..., 1] * side + x[..., 0]] = 1
    return canvas.reshape(classes, drawings, side, side)[..., margin:-margin, margin:-margin]
