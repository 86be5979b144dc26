"""Builds Mini-ImageNet (Vinyals et al. 2016) from the user's own copy of ImageNet; needs only Python.

The lists published with the paper's code name its images and give their byte ranges FIRST-LAST in ImageNet's archive.
LAST is exclusive: if it is a multiple of 512, the next image's tar header can begin there.
"""

import contextlib
import os
import pathlib
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping

from reptile_tf.fetch import archive, image_files
from reptile_tf.fetch.archive import FetchError
from reptile_tf.fetch.image_files import SETS, Image
from reptile_tf.fetch.parallel import in_parallel

# A source of images: the images with their sizes in the source, and a function that reads one of them.
_Source = tuple[list[Image], Callable[[Image], bytes]]

_COMMIT = "8f2b71c67a31c1a605ced0cecb76db876b607a7a"
METADATA_URL = f"https://github.com/openai/supervised-reptile/archive/{_COMMIT}.zip"
# The `content_digest` of the lists under the names SET/WNID.csv.
LISTS_DIGEST = "cfec87ead915c4689909650ae0e92290aa633472b6979963c3d4714a482d7047"
_VARIABLES = ("IMAGENET_TAR", "IMAGENET_DIR", "MINIIMAGENET_DIR")
WAYS = (
    "set exactly one of IMAGENET_TAR=ILSVRC2012_img_train.tar (ImageNet's archive as published), IMAGENET_DIR=FOLDER "
    "(the same, unpacked: nXXXXXXXX/nXXXXXXXX_N.JPEG) and MINIIMAGENET_DIR=FOLDER (an existing Mini-ImageNet: "
    "train, val and test, each with a folder of images for every class)"
)

_TAR_BYTES = 147_897_477_120  # size of the archive as published
_BLOCK = 512  # bytes of the tar header before each file


def fetch_miniimagenet(
    environment: Mapping[str, str], root: pathlib.Path, patience: float, digest: str = LISTS_DIGEST
) -> None:
    """Puts Mini-ImageNet at root/miniimagenet, completely or not at all, and prints a summary of its images.

    If it is already there, it is only checked.

    Args:
      environment: has exactly one of IMAGENET_TAR, IMAGENET_DIR and MINIIMAGENET_DIR, see `WAYS`. METADATA_URL, if set,
        is the address of a zip with the lists.
      root: the folder of all data sets, created if it is missing.
      patience: seconds to wait for the next byte of the lists.
      digest: the `content_digest` of the lists.

    Raises:
      FetchError: the environment is invalid, the lists cannot be downloaded, an image is missing or not as published,
        or another process is at work.
      OSError: `root` cannot be written to, or the disk is full.
    """
    target, building = root / "miniimagenet", root / ".miniimagenet.building"
    if os.path.lexists(target):
        image_files.check(target, f"fix that, or move {target} away and run this again")
        print(f"{target} is there already, nothing to do; move it away to build it again", flush=True)
        return
    variable, source = _chosen(environment, building)
    downloads = root / ".download"
    downloads.mkdir(parents=True, exist_ok=True)
    with archive.locked(downloads / "miniimagenet.lock"):
        lists = downloads / "miniimagenet_lists.zip"
        if variable == "MINIIMAGENET_DIR":
            images, read = _from_miniimagenet(source)
        else:
            url = environment.get("METADATA_URL") or METADATA_URL
            listed = archive.obtain(url, lists, lambda path: read_lists(path, digest), patience)
            images, read = (_from_tar if variable == "IMAGENET_TAR" else _from_folder)(source, listed)
        _build(f"{variable}={source}", images, read, building, target)
        lists.unlink(missing_ok=True)


def _chosen(environment: Mapping[str, str], building: pathlib.Path) -> tuple[str, pathlib.Path]:
    """Returns the variable that is set and its path; raises FetchError unless exactly one is set and can be read."""
    chosen = [variable for variable in _VARIABLES if environment.get(variable)]
    if len(chosen) != 1:
        raise FetchError(f"{WAYS}; now set: {', '.join(chosen) or 'none'}")
    variable, path = chosen[0], pathlib.Path(environment[chosen[0]])
    kind, is_kind = ("file", os.path.isfile) if variable == "IMAGENET_TAR" else ("folder", os.path.isdir)
    if not is_kind(path):
        problem = f"is not a {kind}" if os.path.lexists(path) else "does not exist"
        raise FetchError(f"{variable}: {path} {problem}; set it to the {kind}'s right path")
    if not os.access(path, os.R_OK if kind == "file" else os.R_OK | os.X_OK):
        raise FetchError(f"{variable}: {path} cannot be read; allow that (chmod) or set it to another {kind}")
    path = path.resolve()
    if building.resolve() in (path, *path.parents):
        raise FetchError(f"{variable}: {path} lies in a folder that this script clears; move it away")
    return variable, path


def read_lists(path: pathlib.Path, digest: str = LISTS_DIGEST) -> list[Image]:
    """Reads the lists of the paper's images from a zip with ANY_FOLDER/metadata/miniimagenet/SET/WNID.csv.

    Args:
      path: the zip.
      digest: the `content_digest` of the lists under the names SET/WNID.csv, in order.

    Returns:
      The images, sorted by their offset in ImageNet's tar.

    Raises:
      FetchError: the zip is damaged or harmful, or its lists do not have this digest.
    """
    pattern = re.compile(rf"(?:.*/)?metadata/miniimagenet/((?:{'|'.join(SETS)})/n[0-9]{{8}}\.csv)")
    with archive.opened(path) as file:
        # Other entries and the entries' folders need no check, since nothing is written to disk.
        found = [(entry, match) for entry in file.infolist() if (match := pattern.fullmatch(entry.filename))]
        for entry in archive.bounded([entry for entry, _ in found]):
            archive.check_kind(entry)
        lists = sorted((match[1], archive.unpacked(file, entry)) for entry, match in found)
    if archive.content_digest(lists) != digest:
        raise FetchError(f"its {len(lists)} lists (metadata/miniimagenet/*/*.csv) are not the published ones")
    images = [image for name, content in lists for image in _parse(name.removesuffix(".csv"), content)]
    if len({image.path for image in images}) < len(images):
        raise FetchError("its lists name an image twice")
    return sorted(images, key=lambda image: image.first)


def _parse(folder: str, content: bytes) -> Iterator[Image]:
    """Yields the images in the list of the class SET/WNID; raises FetchError for an invalid line."""
    wnid = folder.split("/")[1]
    for line in content.decode("ascii", "replace").splitlines():
        match = re.fullmatch(rf"({wnid}_[0-9]{{1,9}}\.JPEG),([0-9]{{1,15}})-([0-9]{{1,15}})", line)
        first, last = (int(match[2]), int(match[3])) if match else (0, 0)
        if match is None or not _BLOCK <= first < last <= first + image_files.MAX_BYTES:
            raise FetchError(f"its list {folder}.csv has the line {line[:60]!r}, which names no image of {wnid}")
        yield Image(f"{folder}/{match[1]}", last - first, first)


def _from_tar(tar: pathlib.Path, images: list[Image]) -> _Source:
    size, needed = tar.stat().st_size, images[-1].first + images[-1].size
    must = f"IMAGENET_TAR must be ILSVRC2012_img_train.tar as published ({_TAR_BYTES:,} bytes)"
    if size < needed:
        raise FetchError(
            f"{tar} has {size:,} bytes, but the last image ends at {needed:,}: it is cut off, or another archive; "
            f"{must}, download the rest of it or set it to that one"
        )

    def read(image: Image) -> bytes:
        # Opened for each image: that costs little, and no file stays open.
        with open(tar, "rb", buffering=0) as file:
            try:
                data = os.pread(file.fileno(), _BLOCK + image.size, image.first - _BLOCK)
            except OSError as error:
                raise FetchError(f"cannot read {tar} ({error.strerror}); fix that and run this again") from error
        header, data = data[:_BLOCK], data[_BLOCK:]
        name = os.path.basename(image.path)
        wrong = image_files.flaw(data, png=False) or ("is not all there" if len(data) < image.size else "")
        try:  # the header shows whether this is the right image
            entry = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            if not (entry.isreg() and (os.path.basename(entry.name), entry.size) == (name, image.size)):
                wrong = wrong or f"is {entry.name!r} of {entry.size:,} bytes"
        except tarfile.HeaderError:
            wrong = wrong or "has no tar header before it"
        if wrong:
            where = f"bytes {image.first}-{image.first + image.size}"
            raise FetchError(
                f"{tar} does not fit the lists: {where} should be the JPEG file {name}, but what is there {wrong}; "
                f"{must}, and this has {size:,}; set it to that one, or use IMAGENET_DIR or MINIIMAGENET_DIR"
            )
        return data

    return images, read


def _from_folder(folder: pathlib.Path, images: list[Image]) -> _Source:
    def source(image: Image) -> pathlib.Path:
        return folder / image.path.partition("/")[2]

    way_out = "fix that, or set IMAGENET_DIR to another folder"
    missing = sorted(source(image) for image in images if not source(image).is_file())
    if missing:
        classes = {path.parent.name for path in missing if not path.parent.is_dir()}
        raise FetchError(
            f"{len(missing):,} of the {len(images):,} images are missing, and {len(classes)} of their class folders; "
            f"the first is {missing[0]}; {way_out}, one with folders such as {missing[0].parent.name} in it"
        )
    as_they_are = [image._replace(size=source(image).stat().st_size) for image in images]
    changed = sum(image != published for image, published in zip(as_they_are, images, strict=True))
    if changed:
        print(f"note: {changed:,} of {len(images):,} files differ in size from those of ImageNet's archive", flush=True)
    return as_they_are, lambda image: image_files.read(source(image), False, way_out)


def _from_miniimagenet(folder: pathlib.Path) -> _Source:
    images = image_files.images_below(folder, "fix that, or set MINIIMAGENET_DIR to another folder")
    way_out = "replace it or move it away, then run this again"
    return images, lambda image: image_files.read(folder / image.path, True, way_out)


def _build(
    origin: str, images: list[Image], read: Callable[[Image], bytes], building: pathlib.Path, target: pathlib.Path
) -> None:
    """Writes the images that an earlier run has not written into `building`, checks all, and renames the folder."""
    note, folder = building / "origin", building / "images"
    if building.exists():
        began = note.read_bytes() if note.exists() else b""
        if began != os.fsencode(origin):
            print(f"starting over: {os.fsdecode(began) or 'something else'} was begun, not {origin}", flush=True)
            shutil.rmtree(building)
    if not building.exists():
        building.mkdir()
        note.write_bytes(os.fsencode(origin))
    for part in building.glob("part-*"):
        part.unlink()
    there = _there(folder, {image.path: image.size for image in images})
    if there:
        print(f"{len(there):,} of {len(images):,} images are there already, from an earlier run", flush=True)
    for parent in sorted({os.path.dirname(image.path) for image in images}):
        (folder / parent).mkdir(parents=True, exist_ok=True)

    def write(image: Image) -> None:
        data = read(image)
        part = building / f"part-{threading.get_ident()}"
        part.write_bytes(data)
        os.replace(part, folder / image.path)

    in_parallel("images", write, [image for image in images if image.path not in there], len(there))
    image_files.check(folder, "deleted it, run this again", delete=True)
    archive.put_in_place(folder, target)
    shutil.rmtree(building)
    print(f"{target} is complete", flush=True)


def _there(folder: pathlib.Path, sizes: dict[str, int]) -> set[str]:
    """Returns which of the files `{path: size in bytes}` are complete below `folder`; deletes everything else there."""
    there = set()
    for parent, folders, files in os.walk(folder, topdown=False):
        for file in (os.path.join(parent, name) for name in files):
            path = os.path.relpath(file, folder)
            if sizes.get(path) == os.lstat(file).st_size:
                there.add(path)
            else:
                os.unlink(file)
        for name in folders:
            with contextlib.suppress(OSError):  # folders that are not empty stay
                os.rmdir(os.path.join(parent, name))
    return there
