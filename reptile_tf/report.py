"""Renders the images and results of `classify` as one self-contained HTML page."""

import base64
import html
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from reptile_tf.data import decode
from reptile_tf.origin import TWO_VALUES

_THUMBNAIL = 200  # pixels
_MOST_BARS = 6  # classes shown for a query

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --quiet: #667085; --line: #d0d5dd; --best: #0072b2; --rest: #b6c2cf;
  --paper: #ffffff; --page: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --quiet: #98a2b3; --line: #3a4350; --best: #56b4e9;
  --rest: #4b5866; --paper: #1c2128; --page: #12161b; } }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p { color: var(--quiet); margin: .2rem 0; }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
figure { margin: 0; padding: .7rem; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
.pair { display: flex; gap: .5rem; height: 6.5rem; } .pair img { height: 100%; max-width: calc(100% - 7rem);
  object-fit: contain; border-radius: 4px; } .pair img.seen { width: 6.5rem; max-width: none;
  image-rendering: pixelated; border: 1px solid var(--line); box-sizing: border-box; margin-left: auto; }
figcaption { margin-top: .5rem; overflow-wrap: anywhere; font-weight: 600; }
figcaption small { display: block; color: var(--quiet); font-weight: 400; }
ol { list-style: none; margin: .5rem 0 0; padding: 0; }
li { display: grid; grid-template-columns: 6rem 1fr 3.4rem; gap: .5rem; align-items: center; font-size: .85rem; }
li { font-weight: 400; } li span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
li span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
i { display: block; height: .6rem; border-radius: 3px; background: var(--rest); }
li.best { font-weight: 600; } li.best i { background: var(--best); }
"""


def page(
    run: dict[str, Any],
    support: Sequence[tuple[pathlib.Path, np.ndarray, str]],
    queries: Sequence[tuple[pathlib.Path, np.ndarray, dict[str, float]]],
    white: int,
) -> str:
    """Returns the report as HTML.

    Args:
      run: the settings that `classify` reports.
      support: for each example its file, the prepared image that the network saw (uint8 [height, width, channel]), and
        its label.
      queries: for each query its file, the prepared image, and the probability of each label.
      white: the pixel value of white in the prepared images.
    """
    shots = sum(run["examples"].values())
    how = "all together (transductive)" if run["transductive"] else "each beside the examples"
    examples = [
        _figure(file, seen, white, f"{html.escape(label)}<small>{html.escape(file.name)}</small>")
        for file, seen, label in support
    ]
    asked = [_figure(file, seen, white, _answer(file, of_each)) for file, seen, of_each in queries]
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{len(queries)} images classified</title>
<style>{_STYLE}</style>
<h1>{len(queries)} images, {len(run["examples"])} classes, {shots} examples</h1>
<p>{html.escape(run["checkpoint"])}; {run["steps"]} steps on minibatches of {run["batch"]}, seed {run["seed"]}; queries
classified {how}. Beside each image is what the network sees.</p>
<h2>Examples</h2>
<div class="grid">{"".join(examples)}</div>
<h2>Queries</h2>
<div class="grid">{"".join(asked)}</div>
</html>
"""


def _figure(file: pathlib.Path, seen: np.ndarray, white: int, caption: str) -> str:
    grey = seen * (255 if white == TWO_VALUES else 1)
    prepared = Image.fromarray(grey[..., 0] if grey.shape[-1] == 1 else grey)
    pair = f'<img src="{_thumbnail(file)}" alt=""><img class="seen" src="{_uri(prepared, "PNG")}" alt="">'
    return f'<figure><div class="pair">{pair}</div><figcaption>{caption}</figcaption></figure>\n'


def _answer(file: pathlib.Path, of_each: dict[str, float]) -> str:
    ranked = sorted(of_each.items(), key=lambda pair: -pair[1])
    bars = ""
    for place, (label, probability) in enumerate(ranked[:_MOST_BARS]):
        best = " class=best" if place == 0 else ""
        width = max(probability, 0.004)  # keeps the bar visible
        bars += f'<li{best}><span>{html.escape(label)}</span><i style="width:{width:.1%}"></i>'
        bars += f"<span>{probability:.1%}</span></li>"
    return f"{html.escape(ranked[0][0])}<small>{html.escape(file.name)}</small><ol>{bars}</ol>"


def _thumbnail(file: pathlib.Path) -> str:
    """Returns a thumbnail of an image file as a data URI."""
    image = Image.fromarray(decode.read(file, None))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _uri(image, "JPEG")


def _uri(image: Image.Image, kind: str) -> str:
    data = io.BytesIO()
    image.save(data, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
