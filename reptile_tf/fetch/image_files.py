"""Checks image files and the layout of Mini-ImageNet. The fetch script uses it, so it needs only Python."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from reptile_tf.fetch.archive import FetchError
from reptile_tf.fetch.parallel import in_parallel

SETS = ("train", "val", "test")
MAX_BYTES = 64 << 20  # limit for one image, which is held in memory; the paper's largest has 8.8 MB
SUFFIXES = (".jpeg", ".jpg", ".png")  # upper or lower case
# The SHA-256 of "SET/WNID COUNT LF" for each class of the paper's 59,981 images, in order.
_PAPERS = "67ac06ceec9d1c5ee9a8b7e0da8bd9ab6bd7cad1d03bb2c82fa2087ece576ff2"


class Image(NamedTuple):
    """An image of the data set."""

    path: str  # SET/CLASS/FILE, below the data set's folder
    size: int  # bytes
    first: int = 0  # offset of its first byte in ImageNet's tar, if it comes from there


def flaw(data: bytes, png: bool) -> str:
    """Says why `data` is neither a complete JPEG file nor (if `png`) begins like a PNG file; "" if it is one."""
    if png and data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ""
    if not data.startswith(b"\xff\xd8\xff"):
        return f"begins as no JPEG{' or PNG' * png} file does ({data[:8].hex(' ')})" if data else "is empty"
    # FF D9 must follow the last FF DA, which begins a scan. Some cameras append a few more bytes.
    if data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda"):
        return f"does not end as a JPEG file does (with FF D9, but {data[-8:].hex(' ')}): it was cut off"
    return ""


def read(path: pathlib.Path, png: bool, way_out: str) -> bytes:
    """Reads an image file.

    Args:
      path: the file.
      png: whether PNG files are accepted besides JPEG files.
      way_out: end of the error message, which says what to do.

    Raises:
      FetchError: the file cannot be read, is too large or is not an image.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FetchError(f"cannot read {path} ({error.strerror}); {way_out}") from error
    wrong = "is larger than any image should be" if len(data) > MAX_BYTES else flaw(data, png)
    if wrong:
        raise FetchError(f"{path} {wrong}; {way_out}")
    return data


def images_below(folder: pathlib.Path, way_out: str) -> list[Image]:
    """Lists `folder/{train,val,test}/CLASS/*.{jpeg,jpg,png}` in order, without hidden files.

    Raises:
      FetchError: a set is missing or has no classes, or a class has no images. The message ends with `way_out`.
    """
    images = []
    for name in SETS:
        if not (folder / name).is_dir():
            raise FetchError(f"{folder} has no folder {name}; {way_out}")
        classes = [entry for entry in visible(folder / name) if entry.is_dir()]
        if not classes:
            raise FetchError(f"{folder / name} has no class folders; {way_out}")
        for label in classes:
            # Links to files are followed, since the folder is the user's own. Pipes and the like are not files.
            files = [e for e in visible(label.path) if e.name.lower().endswith(SUFFIXES) and e.is_file()]
            if not files:
                raise FetchError(f"{label.path} has no JPEG or PNG images; {way_out}")
            images += [Image(f"{name}/{label.name}/{file.name}", file.stat().st_size) for file in files]
    return images


def visible(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Lists a folder by name, without hidden files, such as the ._NAME.png that some file managers leave behind."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)


def check(folder: pathlib.Path, way_out: str, delete: bool = False) -> None:
    """Reads every image below `folder`, and prints how many each set has and whether they are the paper's.

    Args:
      folder: the folder with train, val and test.
      way_out: end of an error message, which says what to do.
      delete: delete a file that is not an image.

    Raises:
      FetchError: a set or a class's images are missing, or a file is not an image.
    """
    images = images_below(folder, way_out)

    def check_one(image: Image) -> None:
        try:
            read(folder / image.path, True, way_out)
        except FetchError:
            if delete:
                (folder / image.path).unlink()
            raise

    in_parallel("checked", check_one, images)
    counts = collections.Counter(os.path.dirname(image.path) for image in images)
    for name in SETS:
        sizes = [count for label, count in counts.items() if label.startswith(f"{name}/")]
        print(f"{name}: {_summary(sizes)}")
    papers = "the" if is_the_papers(counts) else "not the"
    print(f"in all: {_summary(list(counts.values()))}; this is {papers} paper's Mini-ImageNet", flush=True)


def is_the_papers(counts: Mapping[str, int]) -> bool:
    """Returns whether the classes "SET/WNID" and their numbers of images are those of the paper's Mini-ImageNet."""
    text = "".join(f"{label} {counts[label]}\n" for label in sorted(counts))
    return hashlib.sha256(os.fsencode(text)).hexdigest() == _PAPERS


def _summary(sizes: list[int]) -> str:
    span = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{sizes[0]:,}"
    return f"{sum(sizes):,} images of {len(sizes):,} classes, {span} of each"
