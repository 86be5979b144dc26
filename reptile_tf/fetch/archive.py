"""Downloads and checks zip archives, and installs Omniglot; needs only Python and curl.

Python runs curl and writes the file itself, because this process also holds the lock: if it is killed, nothing
continues to write to the partial file.
"""

import contextlib
import fcntl
import functools
import hashlib
import math
import os
import pathlib
import re
import select
import shutil
import stat
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

_T = TypeVar("_T")

OMNIGLOT_URL = "https://github.com/brendenlake/omniglot/raw/master/python"
# The `content_digest` of each part's PNG files. A digest of the zip itself would reject a mirror's repacked one.
OMNIGLOT_PARTS = {
    "images_background": "7c563fb7d98dbd312c5e0ccb87230ca9d7e8a13d672e5de6186245e7905ed43e",
    "images_evaluation": "e5a69b751aa33f555bdc92febd48220b69a811b2ff01de32bf4d1bca47bd1809",
}

_ATTEMPTS = 5
_MAX_BYTES = 64 << 20  # limit for one archive, compressed or not; the real ones have 10 MB
_MAX_ENTRIES = 50_000  # limit for one archive; the real ones have 20,275
# Exit codes of curl. _PASSING may be temporary: name not found, no connection, connection lost, TLS, empty reply, and
# errors of sending and receiving.
_TOO_LARGE = 63
_PASSING = (6, 7, 16, 18, 35, 52, 55, 56, 92)


class FetchError(Exception):
    """The data could not be fetched. The message is one line that says why, and what to do."""


def content_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """Digests `(path, content)` pairs in order: the SHA-256 of `path NUL hex-sha256-of-content LF` for all of them."""
    digest = hashlib.sha256()
    for path, content in files:
        digest.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def bounded(entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Returns `entries`; raises FetchError if they are too many or their total size is too large."""
    if len(entries) > _MAX_ENTRIES or sum(entry.file_size for entry in entries) > _MAX_BYTES:
        raise FetchError("it would unpack to far more than it should")
    return entries


def check_kind(entry: zipfile.ZipInfo) -> None:
    """Raises FetchError unless `entry` is a file or a folder, not encrypted, and stored or deflated."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
        raise FetchError(f"entry {entry.filename!r} is neither a file nor a folder")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
        raise FetchError(f"entry {entry.filename!r} is encrypted or packed in an unusual way")


def checked_members(archive: zipfile.ZipFile, part: str) -> list[zipfile.ZipInfo]:
    """Lists the PNG files below the folder `part`, sorted by path, after checking that all entries are harmless.

    Raises:
      FetchError: an entry is not a plain relative path below `part`, fails `check_kind`, or clashes with another entry;
        or there are too many entries, or their total size is too large.
    """
    files: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for entry in bounded(archive.infolist()):
        name = entry.filename
        steps = name.removesuffix("/").split("/")
        if any(step in ("", ".", "..") or re.search(r"[\\:\0-\x1f]", step) for step in steps) or steps[0] != part:
            raise FetchError(f"entry {name!r} does not lie below {part}/")
        check_kind(entry)
        # Some file systems do not distinguish upper and lower case, or two encodings of an accented letter.
        plain = [unicodedata.normalize("NFC", step).casefold() for step in steps]
        folders.update("/".join(plain[:i]) for i in range(1, len(plain) + name.endswith("/")))
        if not name.endswith("/"):
            if "/".join(plain) in files:
                raise FetchError(f"entry {name!r} clashes with another")
            files["/".join(plain)] = entry
    for clash in folders & files.keys():
        raise FetchError(f"entry {files[clash].filename!r} clashes with another")
    return sorted((entry for entry in files.values() if entry.filename.endswith(".png")), key=lambda e: e.filename)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file; raises FetchError if opening or reading it, also in the with block, finds it invalid."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (FetchError, OSError):
        raise
    except Exception as error:  # zipfile raises many kinds of errors for malformed files
        with open(path, "rb") as file:
            start = file.read(24)
        raise FetchError(f"it is not a sound zip file ({error}) and begins with {start!r}") from error


def unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Returns an entry's content, never more than its declared size; raises zipfile's errors if it is not intact."""
    with archive.open(entry) as file:
        return file.read(max(1, entry.file_size))  # read() would inflate everything before it checks the size


def verify(path: pathlib.Path, part: str, digest: str) -> None:
    """Checks that the zip at `path` is harmless and holds exactly the PNG files with the `content_digest` `digest`.

    Raises:
      FetchError: the zip is damaged or harmful, or its PNG files are others.
    """
    with opened(path) as archive:
        members = checked_members(archive, part)
        found = content_digest((member.filename, unpacked(archive, member)) for member in members)
    if found != digest:
        raise FetchError(f"its {len(members)} images are not the published ones")


def unpack(path: pathlib.Path, part: str, target: pathlib.Path) -> None:
    """Unpacks the PNG files of a zip that has passed `verify` into the folder `target`."""
    with zipfile.ZipFile(path) as archive:
        for member in checked_members(archive, part):
            file = target / member.filename
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "xb") as out:
                out.write(unpacked(archive, member))


def download(url: str, path: pathlib.Path, patience: float) -> None:
    """Downloads `url` to `path`. Resumes a partial file, and retries when the connection is lost.

    Args:
      url: the address.
      path: the file to write. After a failure it keeps the bytes received so far.
      patience: seconds to wait for the next byte.

    Raises:
      FetchError: curl is not installed, the connection fails, the server has no such file, or it sends no byte for
        `patience` seconds.
    """
    if shutil.which("curl") is None:
        raise FetchError(
            f"cannot download {url}: curl is not installed; install it, or put the file at {path} yourself"
        )
    grown = time.monotonic()
    for attempt in range(1, _ATTEMPTS + 1):
        had = path.stat().st_size if path.exists() else 0
        status, reason = _curl(url, path, had, max(1, patience - (time.monotonic() - grown)))
        if status == 0:
            return
        if path.stat().st_size > had:
            grown = time.monotonic()
        if status == _TOO_LARGE:
            path.unlink()
        if had and (status in (33, 36) or "error: 416" in reason):  # the server cannot resume
            path.unlink()
            continue
        passing = status in _PASSING or re.search(r"error: (408|429|5\d\d)", reason)
        if not passing or time.monotonic() - grown + attempt >= patience:
            break
        time.sleep(attempt)
    raise FetchError(f"cannot download {url} ({reason}); check the network and the address, then run this again")


def _curl(url: str, path: pathlib.Path, had: int, patience: float) -> tuple[int, str]:
    """Runs curl once and appends its output to `path`; returns its exit status (0: complete) and error message."""
    limits = f"--connect-timeout {patience:.1f} --speed-limit 100 --speed-time {math.ceil(patience)}"
    how = f"--silent --show-error --no-buffer --fail --location --globoff --continue-at {had} {limits}"
    command = ["curl", *how.split(), "--url", url]
    with open(path, "ab") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl:
        assert curl.stdout is not None  # for type checkers: both are pipes
        assert curl.stderr is not None
        try:
            size = had
            while True:
                # curl's own limits do not cover every wait, such as that for the second server after a redirect.
                if not select.select([curl.stdout], [], [], patience + 1)[0]:
                    return 28, f"no byte for {patience:.0f} seconds"
                piece = os.read(curl.stdout.fileno(), 1 << 16)
                file.write(piece)
                file.flush()  # so that the next run can resume if this one is killed
                size += len(piece)
                if size > _MAX_BYTES:
                    return _TOO_LARGE, f"more than {_MAX_BYTES >> 20} MB came, which cannot be it"
                if sys.stderr.isatty():
                    print(f"\r{path.name}: {size / 1e6:.1f} MB", end="" if piece else "\n", file=sys.stderr, flush=True)
                if not piece:
                    break
            reason = curl.stderr.read().decode(errors="replace").strip().splitlines()
            return curl.wait(), reason[-1] if reason else ""
        finally:
            curl.kill()


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock on the file `path`. The lock is released when this process ends, for whatever reason.

    Raises:
      FetchError: another process holds it.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FetchError(f"another fetch_data.sh is at work in {path.parent.parent}; wait for it to end") from error
        yield


def fetch_omniglot(base: str, root: pathlib.Path, patience: float, parts: Mapping[str, str] = OMNIGLOT_PARTS) -> None:
    """Puts the unpacked archives at root/omniglot, completely or not at all. Does nothing if they are already there.

    Args:
      base: the address of the folder that holds the archives.
      root: the folder of all data sets, created if it is missing.
      patience: seconds to wait for the next byte.
      parts: `{archive name without .zip: content digest}`.

    Raises:
      FetchError: an archive cannot be downloaded or is not the published one, another process is at work, or
        root/omniglot exists but is not complete.
      OSError: `root` cannot be written to, or the disk is full.
    """
    target, building, downloads = root / "omniglot", root / ".omniglot.unpacking", root / ".download"
    downloads.mkdir(parents=True, exist_ok=True)
    with locked(downloads / "lock"):
        shutil.rmtree(building, ignore_errors=True)  # from a run that was killed
        if os.path.lexists(target):
            if not all(_digest_of_folder(target, part) == digest for part, digest in parts.items()):
                raise FetchError(
                    f"{target} is there but not complete; move it away and run this again to get it from {base}"
                )
            print(f"{target} is complete, nothing to do", flush=True)
            return
        archives = {part: downloads / f"{part}.zip" for part in parts}
        for part, path in archives.items():
            check = functools.partial(verify, part=part, digest=parts[part])
            obtain(f"{base.rstrip('/')}/{part}.zip", path, check, patience)
        print(f"unpacking into {target}", flush=True)
        for part, path in archives.items():
            unpack(path, part, building)
        put_in_place(building, target)
        for path in archives.values():
            path.unlink()


def put_in_place(building: pathlib.Path, target: pathlib.Path) -> None:
    """Flushes a finished folder to disk and renames it, so that `target` is complete even after a power failure."""
    os.sync()
    os.rename(building, target)


def obtain(url: str, path: pathlib.Path, check: Callable[[pathlib.Path], _T], patience: float) -> _T:
    """Downloads the zip at `url` to `path`, unless the file there already passes `check`.

    Args:
      url: the address.
      path: the file to write. After a failed download it keeps the bytes received so far.
      check: called with `path`; raises FetchError if that is not the right file.
      patience: seconds to wait for the next byte.

    Returns:
      The result of `check`.

    Raises:
      FetchError: the download fails, or the downloaded file does not pass `check`.
    """
    with contextlib.suppress(FetchError, FileNotFoundError):
        return check(path)
    print(f"downloading {url}", flush=True)
    while True:
        begun = path.exists()
        download(url, path, patience)
        try:
            return check(path)
        except FetchError as error:
            path.unlink()
            if not begun:  # a partial file may have come from another server, so it is downloaded again from the start
                raise FetchError(
                    f"{url} gave something else: {error}; deleted it, check the address and run this again"
                ) from error


def _digest_of_folder(folder: pathlib.Path, part: str) -> str:
    files = sorted((str(file.relative_to(folder)), file) for file in (folder / part).rglob("*.png"))
    return content_digest((name, file.read_bytes()) for name, file in files)
