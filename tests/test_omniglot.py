"""Tests of Omniglot from both sources, its store, and the messages about missing or damaged files.

Most tests use a small synthetic set in Omniglot's layout. OMNIGLOT_ZIPS names a folder with the real archives
images_background.zip and images_evaluation.zip.
"""

import functools
import http.server
import os
import pathlib
import sys
import threading
import time
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from reptile_tf import files
from reptile_tf.data import omniglot
from reptile_tf.errors import UserError

ZIPS = os.environ.get("OMNIGLOT_ZIPS")
needs_zips = pytest.mark.skipif(not ZIPS, reason="OMNIGLOT_ZIPS names no folder of Omniglot's archives")
TABLE = {"images_background": {"Latin": 2, "Greek": 1}, "images_evaluation": {"Tengwar": 1}}


def draw(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).random((105, 105)) > 0.1)


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A folder with two parts, three alphabets and four characters of 20 noise drawings each."""
    monkeypatch.setattr(omniglot, "_ALPHABETS", TABLE)
    names = [("images_background", "Latin", 1), ("images_background", "Latin", 2)]
    names += [("images_background", "Greek", 1), ("images_evaluation", "Tengwar", 1)]
    for i, (part, alphabet, character) in enumerate(names):
        folder = tmp_path / part / alphabet / f"character{character:02d}"
        folder.mkdir(parents=True)
        for drawing in range(20):
            draw(20 * i + drawing).save(folder / f"{i + 1:04d}_{drawing + 1:02d}.png")
    return tmp_path


@pytest.mark.parametrize("size", [28, 20, 64, 105])
def test_resize_is_pillows_nearest_neighbour(data_dir, size):
    loaded = omniglot.load_raw(data_dir, size)
    assert loaded.names == ("Greek/character01", "Latin/character01", "Latin/character02", "Tengwar/character01")
    for i, first in enumerate((40, 0, 20, 60)):
        drawings = sorted((draw(first + j) for j in range(20)), key=lambda image: np.asarray(image).tobytes())
        expected = [np.asarray(image.resize((size, size), Image.Resampling.NEAREST)) for image in drawings]
        np.testing.assert_array_equal(loaded.of_class(i)[..., 0], np.stack(expected))
    assert loaded.images.dtype == np.uint8
    assert loaded.scale == 1


def test_ink_stays_0_and_background_1(data_dir):
    pixels = np.ones((105, 105), bool)
    pixels[:, :50] = False
    for file in (data_dir / "images_evaluation").rglob("*.png"):
        Image.fromarray(pixels).save(file)
    drawings = omniglot.load_raw(data_dir).of_class(3)
    assert not drawings[:, :, :13].any()
    assert drawings[:, :, 13:].all()


def test_the_numbers_of_the_drawings_do_not_matter(data_dir):
    before = omniglot.load_raw(data_dir)
    folder = data_dir / "images_background" / "Greek" / "character01"
    for file in sorted(folder.iterdir()):
        file.rename(folder / f"new_{99 - int(file.stem[-2:])}.png")
    np.testing.assert_array_equal(omniglot.load_raw(data_dir).images, before.images)


def test_the_store_spares_the_decoding_even_after_a_move(data_dir, tmp_path_factory, monkeypatch):
    before = omniglot.load_raw(data_dir)
    monkeypatch.setattr(omniglot, "_decode", None)
    after = omniglot.load_raw(data_dir.rename(tmp_path_factory.mktemp("elsewhere") / "omniglot"))
    np.testing.assert_array_equal(after.images, before.images)
    np.testing.assert_array_equal(after.starts, before.starts)
    np.testing.assert_array_equal(after.counts, before.counts)
    assert after.names == before.names
    assert all(type(name) is str for name in after.names)


def test_the_images_are_mapped_into_memory_also_those_of_rotated_parts(data_dir):
    """The processes of a machine then share them."""
    images = omniglot.load_raw(data_dir)
    assert isinstance(images.images.base, np.memmap)
    turned = images.split(2, seed=0)[0].with_rotations()
    assert len(turned) == 8
    assert all(np.shares_memory(turned.of_class(i), images.images) for i in range(8))


def test_the_store_notices_a_changed_drawing_of_the_same_length(data_dir):
    file = data_dir / "images_background" / "Greek" / "character01" / "0003_07.png"
    file.write_bytes(file.read_bytes().ljust(3000))  # bytes after a PNG's end are ignored
    before = omniglot.load_raw(data_dir)
    draw(1000).save(file)
    file.write_bytes(file.read_bytes().ljust(3000))
    after = omniglot.load_raw(data_dir)
    assert (after.of_class(0) != before.of_class(0)).any()
    np.testing.assert_array_equal(after.images[20:], before.images[20:])


def test_the_store_notices_removed_and_added_drawings(data_dir):
    omniglot.load_raw(data_dir)
    folder = data_dir / "images_background" / "Greek" / "character01"
    (folder / "0003_07.png").rename(data_dir / "aside.png")
    with pytest.raises(UserError, match="Greek has 0 of 1 characters whole and 1 others"):
        omniglot.load_raw(data_dir)
    (data_dir / "aside.png").rename(folder / "0003_07.png")
    draw(1).save(folder / "0003_21.png")
    with pytest.raises(UserError, match="Greek has 0 of 1"):
        omniglot.load_raw(data_dir)


def stored(data_dir):
    (images,) = data_dir.glob("prepared-28-*.npy")
    return {"images": images, "manifest": data_dir / "prepared-28.json"}


HARM = {
    "half of it": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "something else": lambda whole: b"not a store",
    "one bit": lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
}


@pytest.mark.parametrize("file", ["images", "manifest"])
@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_store_is_made_anew_with_a_warning(data_dir, harm, file, capsys):
    before = omniglot.load_raw(data_dir).images.copy()
    path = stored(data_dir)[file]
    path.write_bytes(HARM[harm](path.read_bytes()))
    np.testing.assert_array_equal(omniglot.load_raw(data_dir).images, before)
    assert "prepared-28.json or its images are damaged" in capsys.readouterr().out
    omniglot.load_raw(data_dir)
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_no_flipped_bit_of_the_images_header_goes_unnoticed(data_dir, capsys):
    before = omniglot.load_raw(data_dir).images.copy()
    path = stored(data_dir)["images"]
    whole = path.read_bytes()
    for bit in range(0, 8 * 128, 3):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        np.testing.assert_array_equal(omniglot.load_raw(data_dir).images, before)
    assert capsys.readouterr().out.count("are damaged") > 300


def test_a_folder_that_cannot_be_written_to_costs_one_warning(data_dir, monkeypatch, capsys):
    expected = omniglot.load_raw(data_dir).images
    for path in stored(data_dir).values():
        path.unlink()

    def refuse(path):
        raise files.WriteError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(files, "replacing", refuse)
    np.testing.assert_array_equal(omniglot.load_raw(data_dir).images, expected)
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("warning: the decoded images cannot be kept, so every start decodes them again: ")
    assert "Read-only file system" in said


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no Omniglot at .*nowhere; run: bash fetch_data.sh omniglot, or train"):
        omniglot.load_raw(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("images_background/Latin", None, "complete: Latin is missing;"),
        ("images_background/Latin/character02", None, "complete: Latin has 1 of 2 characters whole and 0 others;"),
        ("images_evaluation", None, r"complete: all of images_evaluation \(1 alphabets\) is missing;"),
        ("images_evaluation/Tengwar", "images_evaluation/Klingon", "Tengwar is missing, Klingon does not belong in"),
        ("images_background/Greek", "images_evaluation/Greek", "Greek is missing, Greek does not belong in images_ev"),
    ],
)
def test_missing_alphabets_are_named_before_anything_is_decoded(data_dir, monkeypatch, old, new, complaint):
    (data_dir / old).rename(data_dir / (new or "aside"))
    monkeypatch.setattr(omniglot, "decode_png", None)
    with pytest.raises(UserError, match=complaint) as caught:
        omniglot.load_raw(data_dir)
    assert str(caught.value).endswith(
        "move this one away and run: bash fetch_data.sh omniglot, or train without it by source glyphs"
    )


@pytest.mark.parametrize("harm", [lambda whole: whole[:80], lambda whole: b"", lambda whole: b"<html>"])
def test_a_damaged_drawing_is_named(data_dir, harm):
    file = data_dir / "images_evaluation" / "Tengwar" / "character01" / "0004_13.png"
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(UserError, match=r"cannot read .*Tengwar/character01/0004_13\.png .*fetch_data") as caught:
        omniglot.load_raw(data_dir)
    assert "\n" not in str(caught.value)


def test_a_drawing_of_another_format_is_named(data_dir, monkeypatch):
    """Pillow would start Ghostscript for this format."""
    file = data_dir / "images_evaluation" / "Tengwar" / "character01" / "0004_13.png"
    Image.new("RGB", (105, 105)).save(file, "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.EpsImageFile.load", lambda self: pytest.fail("opened as EPS"))
    with pytest.raises(UserError, match=r"cannot read .*0004_13\.png \(cannot identify"):
        omniglot.load_raw(data_dir)


def test_a_drawing_of_another_size_is_named(data_dir):
    file = data_dir / "images_evaluation" / "Tengwar" / "character01" / "0004_13.png"
    draw(0).resize((28, 28)).save(file)
    with pytest.raises(UserError, match=r"0004_13\.png \(28x28 pixels instead of 105x105\)"):
        omniglot.load_raw(data_dir)


def test_files_left_by_a_file_manager_are_ignored(data_dir):
    before = omniglot.load_raw(data_dir)
    for place in ("", "images_background", "images_background/Greek", "images_background/Greek/character01"):
        (data_dir / place / "._0003_07.png").write_bytes(b"resource fork")
    np.testing.assert_array_equal(omniglot.load_raw(data_dir).images, before.images)


def test_the_table_has_all_1623_characters():
    assert [len(part) for part in omniglot._ALPHABETS.values()] == [30, 20]
    assert [sum(part.values()) for part in omniglot._ALPHABETS.values()] == [964, 659]


@pytest.fixture(scope="module")
def real_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("omniglot")
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(pathlib.Path(ZIPS) / f"{part}.zip") as archive:
            archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def real(real_dir):
    return omniglot.load_raw(real_dir)


@pytest.fixture
def mirror(tmp_path):
    """A folder with the archives for TensorFlow Datasets. The two subsets, unused here, hold only one drawing."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for part in ("images_background", "images_evaluation"):
        (folder / f"{part}.zip").symlink_to(pathlib.Path(ZIPS or "").resolve() / f"{part}.zip")
    for part in ("images_background_small1", "images_background_small2"):
        with (
            zipfile.ZipFile(folder / f"{part}.zip", "w") as archive,
            archive.open(f"{part}/Tifinagh/character55/0964_20.png", "w") as file,
        ):
            draw(0).save(file, "png")
    return folder


@pytest.fixture
def tfds(mirror, monkeypatch):
    """TensorFlow Datasets without output, and with a local server instead of Omniglot's."""
    module = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources", reason="tensorflow_datasets needs it but does not ask for it")
    from tensorflow_datasets.image_classification import omniglot as builder

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    module.disable_progress_bar()  # it takes longer than unpacking
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=mirror)) as server:
        base = f"http://127.0.0.1:{server.server_port}"
        urls = {key: f"{base}/{url.rpartition('/')[2]}" for key, url in builder._DL_URLS.items()}
        monkeypatch.setattr(builder, "_DL_URLS", urls)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield module
        server.shutdown()
    module.enable_progress_bar()


def timed(load):
    """Returns processor time in seconds and result of the fastest of three calls, since the machine may be busy."""
    times = []
    for _ in range(3):
        start = time.process_time()
        loaded = load()
        times.append(time.process_time() - start)
    return min(times), loaded


@pytest.mark.slow
@needs_zips
def test_real_drawings_match_pillows(real, real_dir):
    name = "Japanese_(katakana)/character33"
    files = (real_dir / "images_background" / name).iterdir()
    drawings = sorted((Image.open(file) for file in files), key=lambda image: np.asarray(image).tobytes())
    expected = [np.asarray(image.resize((28, 28), Image.Resampling.NEAREST)) for image in drawings]
    np.testing.assert_array_equal(real.of_class(real.names.index(name))[..., 0], np.stack(expected))
    assert len(real) == 1623
    assert real.images.mean() == pytest.approx(0.9195, abs=1e-4)


@needs_zips
def test_the_real_store_loads_within_a_second(real, real_dir):
    seconds, again = timed(lambda: omniglot.load_raw(real_dir))
    assert seconds < 1
    np.testing.assert_array_equal(again.images, real.images)


@pytest.mark.slow
@needs_zips
def test_tensorflow_datasets_gives_the_same_arrays(real, tfds, tmp_path):
    loaded = omniglot.load_tfds(tmp_path / "tfds")
    assert loaded.names == real.names
    np.testing.assert_array_equal(loaded.images, real.images)
    np.testing.assert_array_equal(loaded.starts, real.starts)
    np.testing.assert_array_equal(loaded.counts, real.counts)

    seconds, again = timed(lambda: omniglot.load_tfds(tmp_path / "tfds"))
    assert seconds < 1
    np.testing.assert_array_equal(again.images, real.images)

    (records,) = (tmp_path / "tfds").rglob("omniglot-test.tfrecord*")
    records.write_bytes(records.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cannot read .*3\.0\.0 .*; move .*3\.0\.0 away and try again, or run: bash"):
        omniglot.load_tfds(tmp_path / "tfds")


def test_a_download_that_fails_names_the_way_out(tfds, tmp_path, monkeypatch):
    from tensorflow_datasets.image_classification import omniglot as builder

    missing = builder._DL_URLS["train"].replace("images_background", "no_such_file")
    monkeypatch.setattr(builder, "_DL_URLS", {"train": missing})
    with pytest.raises(UserError, match=r"cannot prepare Omniglot \(.*; run: bash fetch_data.sh omniglot") as caught:
        omniglot.load_tfds(tmp_path / "tfds")
    assert "\n" not in str(caught.value)


def test_processes_prepare_tensorflow_datasets_one_at_a_time(tmp_path, monkeypatch):
    """Preparation ends with a rename, which fails if another process has finished in the meantime."""
    prepared = []

    class Builder:
        data_dir = str(tmp_path / "data" / "omniglot" / "3.0.0")

        def download_and_prepare(self):
            if not os.path.exists(self.data_dir):
                time.sleep(0.2)
                os.makedirs(self.data_dir)
                prepared.append(1)

    module = types.SimpleNamespace(builder=lambda name, data_dir: Builder())
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    monkeypatch.setattr(omniglot, "_prepared", lambda folder, *_: folder)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(omniglot.load_tfds, [tmp_path / "data"] * 3))
    assert folders == [pathlib.Path(Builder.data_dir)] * 3
    assert len(prepared) == 1
