"""Tests random image files, folders and tables: each is read or rejected in one line, and no file is damaged.

FAULTS_EXAMPLES is their number (5,000 in `make faults`), and FAULTS_SEED the random seed.
"""

import collections
import contextlib
import io
import os
import pathlib
import re
import shutil
import signal
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from reptile_tf.data import decode, folder, listing, splits
from reptile_tf.errors import UserError

EXAMPLES = int(os.environ.get("FAULTS_EXAMPLES", "60"))
SEED = int(os.environ.get("FAULTS_SEED", time.time_ns() % 2**32))  # by default, other examples every time
SECONDS = 60  # for one example; more is a hang
# Lines of libtiff's own on standard error. Neither a traceback nor a warning of Python's or ours begins like this.
OF_LIBTIFF = re.compile(r"(?!warning:)[\w.]+[:,] ")

ORIENTED = Image.Exif()
ORIENTED[0x112] = 6
KINDS = {  # suffix, mode and options of Pillow's save
    "PNG": [
        ("png", mode, options)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
        for options in ({}, {"exif": ORIENTED}, {"save_all": True, "append_images": "one"})
        if not ("save_all" in options and mode == "I;16")
    ]
    + [("png", "P", {"transparency": bytes(range(0, 256, 2))}), ("png", "L", {"transparency": 7})],
    "JPEG": [("jpg", "L", {}), ("JPG", "RGB", {"exif": ORIENTED}), ("jfif", "CMYK", {}),
             ("jpeg", "RGB", {"progressive": True})],
    "MPO": [("jpg", "RGB", {"save_all": True, "append_images": "one"})],
    "WEBP": [("webp", "RGB", {}), ("webp", "RGBA", {"lossless": True, "exif": ORIENTED}),
             ("webp", "RGB", {"save_all": True, "append_images": "one"})],
    "BMP": [("bmp", mode, {}) for mode in ("1", "L", "P", "RGB")],
    "TIFF": [
        ("tif", mode, {"compression": compression})
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    ]
    + [("tif", mode, {"exif": ORIENTED}) for mode in ("L", "P", "I;16", "RGB")]
    + [("tiff", "RGB", {"save_all": True, "append_images": "one"}), ("tiff", "RGB", {"compression": "jpeg"})],
    "GIF": [("gif", "P", {}), ("gif", "RGBA", {}), ("gif", "P", {"save_all": True, "append_images": "one"})],
    "PPM": [("ppm", "RGB", {}), ("pgm", "L", {}), ("pgm", "I;16", {}), ("pbm", "1", {}), ("ppm", "F", {})],
}  # fmt: skip
ALIEN = [
    ("png", "EPS", "RGB"),
    ("jpg", "PDF", "RGB"),
    ("bmp", "ICO", "RGBA"),
    ("tif", "TGA", "RGB"),
    ("gif", "SGI", "RGB"),
]
EDGES = [b"\0", b"\xff", b"\x7f\xff", b"\xff\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0"]
BAD_NAMES = ["größe", "多", "a\nb", "\udcff", " ", "$a$", "-x", "x" * 200, "train", "a,b", '"', "..."]


def image(rng, mode):
    """Draws a small image of this mode."""
    height, width = rng.integers(1, 24, 2)
    if mode in ("I;16", "I", "F"):
        numbers = rng.integers(0, 65536, (height, width))
        return Image.fromarray(
            {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode](numbers / (65535 if mode == "F" else 1))
        )
    return Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8)).convert(mode)


def encoded(rng):
    """Draws a valid image file: suffix and bytes."""
    name = rng.choice(list(KINDS))
    suffix, mode, options = KINDS[name][rng.integers(len(KINDS[name]))]
    content, first = io.BytesIO(), image(rng, mode)
    if options.get("append_images"):
        options = options | {"append_images": [first.transpose(Image.Transpose.ROTATE_180)]}
    first.save(content, name, **options)
    return suffix, content.getvalue()


def alien(rng):
    """Draws a file that is not an image in a supported format, with the suffix of one."""
    if rng.random() < 0.5:
        suffix, name, mode = ALIEN[rng.integers(len(ALIEN))]
        content = io.BytesIO()
        image(rng, mode).save(content, name)
        return suffix, content.getvalue()
    texts = [
        b"",
        b"\0" * 64,
        b"<svg/>",
        b"<html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"PK\3\4",
        b"\x80\4.",
    ]
    return rng.choice(["png", "jpg", "tif"]), texts[rng.integers(len(texts))] + rng.bytes(rng.integers(0, 40))


def damaged(rng, data):
    """Returns `data` with a random change."""
    data = bytearray(data)
    place, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 30))
    kind = rng.integers(7)
    if kind == 0:
        del data[place:]
    elif kind == 1:
        del data[place : place + length]
    elif kind == 2:
        data[place:place] = data[:length] if rng.random() < 0.5 else rng.bytes(length)
    elif kind == 3:
        edge = EDGES[rng.integers(len(EDGES))]
        data[place : place + len(edge)] = edge
    elif kind == 4 and data:
        data[min(place, len(data) - 1)] ^= 1 << rng.integers(8)
    elif kind == 5:
        data += rng.bytes(length)
    elif data.startswith(b"\x89PNG"):  # with a correct checksum, which would detect other changes
        chunks, begin = [], 8
        while begin + 12 <= len(data):
            (size,) = struct.unpack_from(">I", data, begin)
            chunks.append((begin, size))
            begin += 12 + size
        begin, size = chunks[rng.integers(len(chunks))] if chunks else (0, 0)
        if 0 < size <= len(data) - begin - 12:
            data[begin + 8 + rng.integers(size)] = rng.choice([0, 1, 127, 128, 255])
            struct.pack_into(">I", data, begin + 8 + size, zlib.crc32(data[begin + 4 : begin + 8 + size]))
    return bytes(data)


def any_file(rng):
    """Draws a valid, damaged or foreign image file: suffix, bytes, and whether it is valid."""
    how = rng.integers(8)
    if how == 0:
        return *alien(rng), False
    suffix, data = encoded(rng)
    for _ in range(0 if how <= 2 else rng.integers(1, 5)):
        data = damaged(rng, data)
    return suffix, data, how <= 2


@pytest.fixture
def alarm():
    """Turns a hang into a failure."""

    def too_long(*_):
        pytest.fail(f"no end after {SECONDS} s")

    old = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def outcome(function):
    """Calls a function; returns its result, or None and the error, which must be one line."""
    try:
        return function(), None
    except UserError as error:
        lines = str(error).splitlines() + error.on_command_line.splitlines()
        refusal = error
    assert len(lines) == 2
    return None, refusal


def test_any_file_is_decoded_or_refused_in_one_line(tmp_path, alarm, capfd, record_property):
    print(f"FAULTS_SEED={SEED}")  # shown where it fails
    capfd.readouterr()
    outcomes = collections.Counter()
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(20 * EXAMPLES):
            rng = np.random.default_rng([SEED, 0, number])
            suffix, data, is_sound = any_file(rng)
            path = tmp_path / f"{SEED}-{number}.{suffix}"  # kept if the test fails
            path.write_bytes(data)
            signal.alarm(SECONDS)
            size, channels = tuple(rng.integers(1, 30, 2).tolist()), int(rng.choice([1, 3]))
            found, refusal = outcome(lambda: decode.picture(path, size, channels))  # noqa: B023
            if found:
                assert found.pixels.shape == (*size, channels)
                assert found.pixels.dtype == np.uint8
            else:
                assert str(path) in str(refusal)
                assert not is_sound, refusal
                assert not isinstance(refusal, decode.UnreadableError), refusal
            outcomes["decoded" if found else "refused"] += 1
            said = capfd.readouterr()
            assert not said.out
            assert not said.err or (data[:2] in (b"II", b"MM") and not is_sound)  # libtiff's own
            path.unlink()
    counts = f"{outcomes['decoded']:,} decoded, {outcomes['refused']:,} refused"
    record_property("counts", f"{counts}, in {time.monotonic() - began:.0f} s (FAULTS_SEED={SEED})")
    assert min(outcomes.values()) > 4 * EXAMPLES


def any_folder(rng, root):
    """Makes random class folders, mostly with something odd; returns the path to load and the number of oddities."""
    sets = [["train", "val", "test"], ["train", "test"], [""], [""]][rng.integers(4)]
    labels = [f"c{i}" for i in range(rng.integers(1, 13))]
    places = []
    for number, label in enumerate(labels):
        depth = "deep/" * int(rng.integers(4) == 0)
        places.append(root / sets[number % len(sets)] / f"{depth}{label}")
        places[-1].mkdir(parents=True, exist_ok=True)
        for file in range(rng.integers(1, 4)):
            suffix, data = encoded(rng)
            (places[-1] / f"{file}.{suffix}").write_bytes(data)
    odd = int(rng.choice([0, 0, 0, 1, 1, 1, 2, 3]))
    for _ in range(odd):
        place = places[rng.integers(len(places))]
        sound = sorted(path for path in root.rglob("*") if path.is_file())
        oddity = rng.integers(12)
        if oddity <= 2:
            suffix, data, _ = any_file(rng)
            (place / f"odd.{suffix}").write_bytes(data)
        elif oddity == 3:
            (place.parent / "loose.png").write_bytes(encoded(rng)[1])
        elif oddity == 4:
            (place / rng.choice(["notes.txt", "x.heic", "Thumbs.db", ".hidden.png"])).write_bytes(b"x")
        elif oddity == 5 and sound:
            (place / "copy.png").write_bytes(sound[rng.integers(len(sound))].read_bytes())
        elif oddity == 6:
            (place / "empty").mkdir(exist_ok=True)
        elif oddity == 7:
            link = place / "link.png"
            target = [root, place, root / "nowhere", pathlib.Path("/dev/zero"), link][rng.integers(5)]
            if not link.is_symlink():
                link.symlink_to(target)
        elif oddity == 8:
            name = BAD_NAMES[rng.integers(len(BAD_NAMES))]
            with contextlib.suppress(OSError):  # it copies everything except pipes
                shutil.copytree(place, place.parent / name, dirs_exist_ok=True, symlinks=True)
        elif oddity == 9 and not (place / "pipe.png").exists():
            os.mkfifo(place / "pipe.png")
        elif oddity == 10:
            (root / rng.choice(["train", "val", "test", "valid", "Test", "training"])).mkdir(exist_ok=True)
        elif oddity == 11:
            for name in ("config.json", ".lock", "confusion.png"):
                (place / name).write_bytes(b"{}")
    return root, odd


def any_table(rng, root):
    """Writes a table of the files in a folder, mostly with something odd."""
    files = sorted(path.relative_to(root) for path in root.rglob("*.*") if path.is_file())
    has_sets = rng.random() < 0.5
    rows = ["path,label,set" if has_sets else "path,label"]
    for path in files:
        label = os.fsencode(path.parent.name).decode("utf-8", "replace").replace('"', "'")
        part = ["train", "test", "val"][zlib.crc32(label.encode()) % 3]
        name = os.fsencode(path).decode("utf-8", "replace").replace('"', '""')
        rows.append(f'"{name}","{label}"' + (f",{part}" if has_sets else ""))
    data, odd = "\n".join(rows).encode(), int(rng.choice([0, 1, 1, 2]))
    for _ in range(odd):
        if rng.random() < 0.5:
            data = damaged(rng, data)
        else:
            line = [b"nowhere.png,a", b"../..,a", b"/dev/zero,a", b",,,", b'"', b"\xff", b"c0,a,train", b"\0"][
                rng.integers(8)
            ]
            data = data + b"\n" + line
    (root / "table.csv").write_bytes(data)
    return root / "table.csv", odd


def contents(root):
    """Returns the content of a folder, except stores."""
    paths = [path for path in root.rglob("*") if not path.name.startswith((listing.STORE, f".{listing.STORE}"))]
    return {
        path: path.read_bytes() if path.is_file() and not path.is_symlink() else path.is_symlink() for path in paths
    }


def test_any_folder_or_table_is_loaded_or_refused_in_one_line(tmp_path, alarm, capfd, record_property):
    print(f"FAULTS_SEED={SEED}")  # shown where it fails
    outcomes = collections.Counter()
    began = time.monotonic()
    for number in range(EXAMPLES):
        rng = np.random.default_rng([SEED, 1, number])
        root = tmp_path / f"{SEED}-{number}"  # kept if the test fails
        root.mkdir()
        source, odd = any_folder(rng, root)
        if rng.random() < 0.4:
            source, more = any_table(rng, root)
            odd += more
        before = contents(root)
        skip, store = bool(rng.integers(2)), bool(rng.integers(2))
        split, ways = str(rng.choice(["", "", "", "", "1,1", "2,1,1", "c0", "nosuch"])), int(rng.integers(1, 3))
        if split == "c0":
            split = str(tmp_path / "names")
            (tmp_path / "names").write_text("c0\n")
        capfd.readouterr()
        signal.alarm(SECONDS)

        def load():
            return folder.load(
                source, size=(3, 4), channels=3, skip_bad_images=skip, store=store,  # noqa: B023
                split=lambda counts: splits.split_names(counts, split, 1, ways),  # noqa: B023
            )  # fmt: skip

        loaded, _ = outcome(load)
        if loaded:
            again = load()  # from the store, if there is one
            np.testing.assert_array_equal(again.images, loaded.images)
            assert again.names == loaded.names
            assert loaded.images.shape == (loaded.counts.sum(), 3, 4, 3)
            assert {"train", "test"} <= splits.split_classes(loaded, split, 1, ways).keys()
        outcomes["loaded" if loaded else "refused"] += 1
        said = capfd.readouterr()
        assert all(map(OF_LIBTIFF.match, said.err.splitlines())), said.err
        assert len(said.out.splitlines()) < 40
        assert contents(root) == before
        shutil.rmtree(root)
    counts = f"{outcomes['loaded']:,} loaded, {outcomes['refused']:,} refused"
    record_property("counts", f"{counts}, in {time.monotonic() - began:.0f} s (FAULTS_SEED={SEED})")
    assert min(outcomes["loaded"], outcomes["refused"]) > EXAMPLES // 10
