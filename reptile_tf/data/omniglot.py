"""Loads Omniglot (Lake et al. 2015): 1,623 characters of 50 alphabets, each drawn by 20 people.

The raw folders and TensorFlow Datasets give identical arrays: classes are sorted by name, and the drawings of a class
by their full-size pixels, because the two sources number them differently.
"""

import fcntl
import io
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

from reptile_tf.data import cache
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.fetch.image_files import visible

_SIDE = 105  # pixels along each side of an original drawing
_DRAWINGS = 20  # of each character
_STORE = "prepared-"  # prefix of the names of the store's files
_WAY_OUT = "run: bash fetch_data.sh omniglot, or train without it by --source glyphs"

# The number of characters of each alphabet, by part.
_ALPHABETS = {
    "images_background": {
        "Alphabet_of_the_Magi": 20,
        "Anglo-Saxon_Futhorc": 29,
        "Arcadian": 26,
        "Armenian": 41,
        "Asomtavruli_(Georgian)": 40,
        "Balinese": 24,
        "Bengali": 46,
        "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
        "Braille": 26,
        "Burmese_(Myanmar)": 34,
        "Cyrillic": 33,
        "Early_Aramaic": 22,
        "Futurama": 26,
        "Grantha": 43,
        "Greek": 24,
        "Gujarati": 48,
        "Hebrew": 22,
        "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
        "Japanese_(hiragana)": 52,
        "Japanese_(katakana)": 47,
        "Korean": 40,
        "Latin": 26,
        "Malay_(Jawi_-_Arabic)": 40,
        "Mkhedruli_(Georgian)": 41,
        "N_Ko": 33,
        "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
        "Sanskrit": 42,
        "Syriac_(Estrangelo)": 23,
        "Tagalog": 17,
        "Tifinagh": 55,
    },
    "images_evaluation": {
        "Angelic": 20,
        "Atemayar_Qelisayer": 26,
        "Atlantean": 26,
        "Aurek-Besh": 26,
        "Avesta": 26,
        "Ge_ez": 26,
        "Glagolitic": 45,
        "Gurmukhi": 45,
        "Kannada": 41,
        "Keble": 26,
        "Malayalam": 47,
        "Manipuri": 40,
        "Mongolian": 30,
        "Old_Church_Slavonic_(Cyrillic)": 45,
        "Oriya": 46,
        "Sylheti": 28,
        "Syriac_(Serto)": 23,
        "Tengwar": 25,
        "Tibetan": 42,
        "ULOG": 26,
    },
}

# Drawings by part, then class name: PNG bytes, or directory entries of PNG files.
_Parts = dict[str, dict[str, list]]


def load_raw(data_dir: str | os.PathLike, size: int = 28) -> ImageClasses:
    """Loads both parts of Omniglot from the unpacked archives, or after the first time from the store in `data_dir`.

    Args:
      data_dir: the folder with images_background/ALPHABET/characterNN/*.png and images_evaluation/... .
      size: height and width to resize to, by nearest neighbour as in the paper's code (Pillow resizes 1-bit images in
        no other way).

    Returns:
      1,623 classes "ALPHABET/characterNN" of 20 drawings each: uint8 [32460, size, size, 1], 0 ink and 1 background,
      scale 1.

    Raises:
      UserError: the folder is missing or incomplete (the message names the alphabets), or holds a damaged PNG file (the
        message names it).
    """
    data_dir = pathlib.Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(f"no Omniglot at {data_dir}; {_WAY_OUT}")
    try:
        parts = {part: _scan(data_dir / part) for part in _ALPHABETS}
        entries = (entry for classes in parts.values() for drawings in classes.values() for entry in drawings)
        key = cache.fingerprint(data_dir, entries, f"omniglot {size}")
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; fix that, or {_WAY_OUT}") from error
    way_out = f"name the folder that has all of Omniglot by --data-dir, or move this one away and {_WAY_OUT}"
    return _prepared(data_dir, key, size, lambda: parts, str(data_dir), way_out)


def split_by_part(classes: ImageClasses) -> dict[str, ImageClasses]:
    """Splits Omniglot into "train", the background alphabets' characters, and "test", the evaluation alphabets' ones.

    Raises:
      UserError: the classes are not Omniglot's characters.
    """
    sets = {
        part: [i for i, name in enumerate(classes.names) if part_of(name) == folder]
        for part, folder in (("train", "images_background"), ("test", "images_evaluation"))
    }
    if not all(sets.values()):
        raise UserError("--split background needs Omniglot's own alphabets: leave out --source glyphs, or --split")
    return {part: classes.subset(indices) for part, indices in sets.items()}


def part_of(name: str) -> str | None:
    """The part that a class "ALPHABET/…" is of: images_background or images_evaluation; None if it is of neither."""
    alphabet = name.split("/")[0]
    return next((part for part, alphabets in _ALPHABETS.items() if alphabet in alphabets), None)


def reduced(drawings: np.ndarray, size: int) -> np.ndarray:
    """Drawings at a network's size, by nearest neighbour: [..., 105, 105] to [..., size, size]."""
    rows = (2 * np.arange(size) + 1) * _SIDE // (2 * size)  # the source pixel under the centre of each target pixel
    return drawings[..., rows[:, None], rows]


def load_tfds(data_dir: str | os.PathLike | None = None, size: int = 28) -> ImageClasses:
    """Loads Omniglot from TensorFlow Datasets, which downloads it the first time.

    Args:
      data_dir: folder where TensorFlow Datasets keeps its data sets; None for its own default.
      size: height and width to resize to, by nearest neighbour.

    Returns:
      The same as `load_raw`: identical arrays, order and names.

    Raises:
      UserError: TensorFlow Datasets is not installed, cannot download or prepare Omniglot, or holds a damaged copy.
    """
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder("omniglot", data_dir=data_dir)
        if not pathlib.Path(builder.data_dir).exists():
            root = pathlib.Path(builder.data_dir).parents[1]
            root.mkdir(parents=True, exist_ok=True)
            # Without a lock, preparation fails in all but one of several processes that start at once.
            with open(root / ".omniglot.lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                builder = tfds.builder("omniglot", data_dir=data_dir)  # another process may have prepared it meanwhile
                builder.download_and_prepare()  # returns at once if one has
    except ImportError as error:  # preparation imports some packages only when it runs
        raise UserError(f"{error}; run: pip install {error.name}, or use another --source") from error
    except Exception as error:  # anything that the library's network, archive and file layers raise
        raise UserError(f"TensorFlow Datasets cannot prepare Omniglot ({_first_line(error)}); {_WAY_OUT}") from error

    folder = pathlib.Path(builder.data_dir)
    way_out = f"move {folder} away and try again, or {_WAY_OUT}"
    # The store lies in the same folder, and its key must not depend on its own files.
    files = [entry for entry in visible(folder) if not entry.name.startswith(_STORE)]
    key = cache.fingerprint(folder, files, f"omniglot {size}")

    def read() -> _Parts:
        splits = {"images_background": "train", "images_evaluation": "test"}
        try:
            return {part: _read_split(builder, split) for part, split in splits.items()}
        except Exception as error:  # both libraries raise errors of their own for unreadable records
            raise UserError(f"cannot read {folder} ({_first_line(error)}); {way_out}") from error

    return _prepared(folder, key, size, read, str(folder), way_out)


def _prepared(
    folder: pathlib.Path, key: str, size: int, read: Callable[[], _Parts], where: str, way_out: str
) -> ImageClasses:
    """Returns the decoded drawings, from the store in `folder` if its key matches."""

    def decode(images: np.ndarray) -> tuple[dict[str, int], dict]:
        return _decode(read(), size, images, where, way_out), {}

    count = _DRAWINGS * sum(sum(alphabets.values()) for alphabets in _ALPHABETS.values())
    shape = (count, size, size, 1)
    # The store is small enough to be verified at every start. It is optional, since the folder may be another user's.
    return cache.prepared(folder / f"{_STORE}{size}.json", key, shape, decode, verify=True, required=False).classes()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _scan(part: pathlib.Path) -> dict[str, list[os.DirEntry]]:
    """Lists the PNG files of one part by class name, without checking that the part is complete."""
    drawings = {}
    for alphabet in visible(part) if part.is_dir() else ():
        for character in visible(alphabet.path) if alphabet.is_dir() else ():
            if character.is_dir():
                files = [file for file in visible(character.path) if file.name.endswith(".png")]
                drawings[f"{alphabet.name}/{character.name}"] = files
    return drawings


def _read_split(builder: Any, split: str) -> dict[str, list[bytes]]:
    """Reads the original bytes of the PNG files of one split, by class name."""
    import tensorflow_datasets as tfds

    alphabets = builder.info.features["alphabet"].names
    dataset = builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()}, batch_size=512)
    drawings: dict[str, list[bytes]] = {}
    for batch in tfds.as_numpy(dataset):
        for alphabet, character, png in zip(batch["alphabet"], batch["alphabet_char_id"], batch["image"], strict=True):
            drawings.setdefault(f"{alphabets[alphabet]}/character{character + 1:02d}", []).append(png)
    return drawings


def _decode(parts: _Parts, size: int, images: np.ndarray, where: str, way_out: str) -> dict[str, int]:
    """Decodes, sorts and resizes all drawings into `images`; returns the number of drawings in each class.

    Raises:
      UserError: a drawing is missing or damaged.
    """
    gaps = [gap for part, alphabets in _ALPHABETS.items() for gap in _gaps(part, alphabets, parts[part])]
    if gaps:
        raise UserError(f"Omniglot at {where} is not complete: {', '.join(gaps)}; {way_out}")
    drawings = {name: files for classes in parts.values() for name, files in classes.items()}
    for place, name in enumerate(sorted(drawings)):
        full = sorted((decode_png(png, name, way_out) for png in drawings[name]), key=np.ndarray.tobytes)
        images[place * _DRAWINGS :][:_DRAWINGS] = reduced(np.stack(full), size)[..., None]
    return dict.fromkeys(sorted(drawings), _DRAWINGS)


def _gaps(part: str, alphabets: dict[str, int], drawings: dict[str, list]) -> Iterable[str]:
    """Describes what is missing from one part or does not belong there, by alphabet; empty if it is as published."""
    if not drawings:
        yield f"all of {part} ({len(alphabets)} alphabets) is missing"
        return
    found: dict[str, dict[str, int]] = {}
    for name, files in drawings.items():
        alphabet, character = name.split("/")
        found.setdefault(alphabet, {})[character] = len(files)
    for alphabet, count in alphabets.items():
        characters = found.pop(alphabet, {})
        full = sum(characters.get(f"character{i:02d}") == _DRAWINGS for i in range(1, count + 1))
        if not characters:
            yield f"{alphabet} is missing"
        elif full < count or len(characters) > count:
            yield f"{alphabet} has {full} of {count} characters whole and {len(characters) - full} others"
    for alphabet in sorted(found):
        yield f"{alphabet} does not belong in {part}"


def decode_png(png: bytes | os.DirEntry, name: str, way_out: str) -> np.ndarray:
    """One original drawing from a PNG file or its content: bool [105, 105], False for ink.

    Args:
      png: the file, or its content.
      name: of the class, for the message about a content.
      way_out: what to do about a damaged file, for the message.

    Raises:
      UserError: it cannot be read, or is no PNG of 105x105 pixels.
    """
    try:
        with Image.open(io.BytesIO(png) if isinstance(png, bytes) else png.path, formats=["PNG"]) as image:
            if image.size != (_SIDE, _SIDE):
                raise ValueError(f"{image.width}x{image.height} pixels instead of {_SIDE}x{_SIDE}")
            return np.asarray(image.convert("1"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        file = f"a drawing of {name}" if isinstance(png, bytes) else png.path
        if isinstance(error, OSError) and error.errno:  # a system error, which says nothing about the drawing
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        raise UserError(f"cannot read {file} ({error}); {way_out}") from error
