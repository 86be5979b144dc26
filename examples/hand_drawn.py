"""Simulates photographs of hand-drawn shapes, to try the classifier on realistic images.

  python examples/hand_drawn.py --out drawn                   # drawn/shapes/CLASS/1.jpg and drawn/new/CLASS-N.jpg
  python -m reptile_tf.classify --checkpoint pretrained/omniglot-5way --support drawn/shapes --queries drawn/new

Each drawing is a shape whose strokes wobble, slant and turn slightly, in pencil or pen of random width and darkness, on
paper of random tint and grain. Its photograph is tilted and rotated, with a soft shadow and uneven light, slight blur,
noise and JPEG compression.
"""

import argparse
import itertools
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 1200  # pixels along each side of the sheet
PHOTOGRAPH = 800, 600  # width and height in pixels


def _arc(x, y, radius, begin, end, squeeze=1.0):
    at = np.linspace(begin, end, 40)
    return np.stack([x + radius * np.cos(at), y + squeeze * radius * np.sin(at)], 1)


def _lines(*corners):
    pieces = itertools.pairwise(corners)
    return np.concatenate([np.linspace(a, b, 20) for a, b in pieces])


_SPIRAL = np.linspace(0, 4.5 * np.pi, 120)
# Each stroke is a sequence of points (x to the right, y down), from 0 to 1.
SHAPES = {
    "arrow": [_lines((0.15, 0.5), (0.85, 0.5)), _lines((0.6, 0.28), (0.85, 0.5), (0.6, 0.72))],
    "circle": [_arc(0.5, 0.5, 0.33, -1.5, 4.9)],
    "cross": [_lines((0.2, 0.2), (0.8, 0.8)), _lines((0.8, 0.2), (0.2, 0.8))],
    "fish": [_arc(0.42, 0.5, 0.27, 0.0, 6.3, 0.6), _lines((0.68, 0.5), (0.88, 0.3), (0.88, 0.7), (0.68, 0.5))],
    "heart": [
        np.concatenate([_lines((0.5, 0.82), (0.19, 0.47)), _arc(0.345, 0.37, 0.17, 2.6, 6.0)]),
        np.concatenate([_arc(0.655, 0.37, 0.17, 3.4, 6.8), _lines((0.81, 0.47), (0.5, 0.82))]),
    ],
    "house": [
        _lines((0.25, 0.45), (0.25, 0.82), (0.75, 0.82), (0.75, 0.45)),
        _lines((0.15, 0.5), (0.5, 0.18), (0.85, 0.5)),
    ],
    "moon": [np.concatenate([_arc(0.5, 0.5, 0.33, 0.9, 5.4), _arc(0.68, 0.5, 0.26, 4.5, 1.8)])],
    "ladder": [_lines((0.35, 0.15), (0.35, 0.85)), _lines((0.65, 0.15), (0.65, 0.85))]
    + [_lines((0.35, y), (0.65, y)) for y in (0.32, 0.5, 0.68)],
    "spiral": [0.5 + 0.36 * (_SPIRAL / _SPIRAL[-1])[:, None] * np.stack([np.cos(_SPIRAL), np.sin(_SPIRAL)], 1)],
    "square": [_lines((0.22, 0.22), (0.78, 0.22), (0.78, 0.78), (0.22, 0.78), (0.22, 0.22))],
    "star": [_lines(*[(0.5 + 0.36 * np.sin(a), 0.5 - 0.36 * np.cos(a)) for a in 0.8 * np.pi * np.arange(6)])],
    "triangle": [_lines((0.5, 0.18), (0.83, 0.78), (0.17, 0.78), (0.5, 0.18))],
    "tree": [_lines((0.5, 0.88), (0.5, 0.5)), _arc(0.5, 0.34, 0.2, 1.6, 7.9)],
    "wave": [np.stack([np.linspace(0.12, 0.88, 80), 0.5 + 0.2 * np.sin(np.linspace(0, 4 * np.pi, 80))], 1)],
}


def drawing(shape: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a shape; returns the share of ink at each pixel of the sheet, float [SIDE, SIDE] from 0 to 1."""
    turn, slant = rng.normal(0, 0.08), rng.normal(0, 0.08)
    scale = rng.uniform(0.45, 0.75) * np.exp(rng.normal(0, 0.06, 2))
    matrix = np.array([[np.cos(turn), -np.sin(turn) + slant], [np.sin(turn), np.cos(turn)]]) * scale[:, None]
    place = 0.5 + rng.normal(0, 0.03, 2)
    width = rng.uniform(7, 22)
    sheet = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(sheet)
    for stroke in SHAPES[shape]:
        wobble = rng.normal(0, 0.018, (5, 2))  # at five places along the stroke
        along = np.linspace(0, 4, len(stroke))
        wobbled = stroke + np.stack([np.interp(along, range(5), wobble[:, d]) for d in (0, 1)], 1)
        points = SIDE * (place + (wobbled - 0.5) @ matrix.T)
        for x, y in np.concatenate([np.linspace(a, b, 8) for a, b in itertools.pairwise(points)]):
            draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], 255)
    return np.asarray(sheet.filter(ImageFilter.GaussianBlur(1.5)), np.float64) / 255


def photograph(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Photographs a sheet with the ink that `drawing` returns; returns an RGB image."""
    tint = np.array([235, 231, 222]) + rng.normal(0, 6, 3)
    darkness = rng.uniform(0.55, 0.85)  # pencil to pen
    grain = _smooth(rng, 3) * 2.5
    paper = tint - grain[..., None]
    sheet = Image.fromarray(np.clip(paper * (1 - darkness * ink[..., None]), 0, 255).astype(np.uint8))
    scene = np.asarray(_tilted(sheet, tint, rng), np.float64)
    scene *= (_light(rng) * _shadow(rng))[..., None]
    blurred = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))
    noisy = np.asarray(blurred) + rng.normal(0, rng.uniform(4, 10), (*PHOTOGRAPH[::-1], 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _tilted(sheet: Image.Image, tint: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Returns the sheet as seen by a camera that is off centre, tilted and rotated. The sheet fills the picture."""
    width, height = PHOTOGRAPH
    half = SIDE * rng.uniform(0.40, 0.46)
    angle = rng.normal(0, 0.07)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -0.75], [1, -0.75], [1, 0.75], [-1, 0.75]]) * half / 0.75
    corners = SIDE / 2 + corners @ rotation.T + rng.normal(0, 0.035 * SIDE, (4, 2))
    # The perspective transform that maps the picture's corners to these corners on the sheet.
    rows, values = [], []
    for (x, y), (u, v) in zip([(0, 0), (width, 0), (width, height), (0, height)], corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    plane = np.linalg.solve(np.array(rows), np.array(values))
    fill = tuple(int(np.clip(value, 0, 255)) for value in tint)
    return sheet.transform(
        PHOTOGRAPH, Image.Transform.PERSPECTIVE, tuple(plane), Image.Resampling.BICUBIC, fillcolor=fill
    )


def _light(rng: np.random.Generator) -> np.ndarray:
    """Returns the brightness of light that increases towards one side, float [height, width]."""
    x, y = np.meshgrid(np.linspace(-1, 1, PHOTOGRAPH[0]), np.linspace(-1, 1, PHOTOGRAPH[1]))
    angle = rng.uniform(0, 2 * np.pi)
    return rng.uniform(0.8, 1.0) + rng.uniform(0.05, 0.2) * (np.cos(angle) * x + np.sin(angle) * y)


def _shadow(rng: np.random.Generator) -> np.ndarray:
    """Returns the brightness of a shadow, darker on one side of a blurred edge, float [height, width]."""
    width, height = PHOTOGRAPH
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-0.75, 0.75, height))
    inside = Image.fromarray(((np.cos(angle) * x + np.sin(angle) * y > shift) * 255).astype(np.uint8))
    soft = np.asarray(inside.filter(ImageFilter.GaussianBlur(rng.uniform(5, 40))), np.float64) / 255
    return 1 - rng.uniform(0.15, 0.5) * soft


def _smooth(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Returns smooth noise of the sheet's size, with standard deviation 1 and a grain of a few pixels."""
    noise = Image.fromarray(rng.integers(0, 256, (SIDE // 2, SIDE // 2), np.uint8))
    grain = np.asarray(noise.filter(ImageFilter.GaussianBlur(radius / 2)).resize((SIDE, SIDE)), np.float64)
    return (grain - grain.mean()) / grain.std()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="drawn", help="folder to write to (default: drawn)")
    parser.add_argument("--classes", default="circle,cross,house,star,wave", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--shots", type=int, default=1, help="photographs of each class to learn from (default: 1)")
    parser.add_argument("--new", type=int, default=3, help="photographs of each class to classify (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    out = pathlib.Path(arguments.out)
    (out / "new").mkdir(parents=True, exist_ok=True)
    for name in arguments.classes.split(","):
        (out / "shapes" / name).mkdir(parents=True, exist_ok=True)
        for number in range(1, arguments.shots + 1):
            photograph(drawing(name, rng), rng).save(out / "shapes" / name / f"{number}.jpg", quality=75)
        for number in range(1, arguments.new + 1):
            photograph(drawing(name, rng), rng).save(out / "new" / f"{name}-{number}.jpg", quality=75)
    print(f"the photographs are in {out}")


if __name__ == "__main__":
    main()
