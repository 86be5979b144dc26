"""Tests of photographs in three sets: the store and its renewal, bad files, and the run script."""

import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from reptile_tf import cli, device, problems
from reptile_tf.data import cache, folder, listing, miniimagenet
from reptile_tf.errors import UserError

CLASSES = {"train": 5, "val": 4, "test": 4}
PREFIX = {"train": "n", "val": "v", "test": "t"}  # so that no class is in two sets
TINY = [
    "--classes=3", "--shots=1", "--train-shots=4", "--filters=4", "--inner-batch=6", "--inner-iters=2",
    "--meta-batch=2", "--meta-iters=6", "--eval-interval=3", "--eval-tasks=2", "--eval-iters=1", "--eval-samples=3",
]  # fmt: skip


@pytest.fixture
def photographs(tmp_path):
    """A folder of photographs, with five images in most classes and seven in one."""
    rng = np.random.default_rng(0)
    for part, count in CLASSES.items():
        for label in range(count):
            (tmp_path / "photos" / part / f"{PREFIX[part]}{label}").mkdir(parents=True)
            for number in range(7 if (part, label) == ("val", 1) else 5):
                pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / f"{PREFIX[part]}{label}" / f"{number}.JPEG")
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch):
    """Records the number of files in each call of `folder.decode`."""
    calls = []
    original = folder.decode
    monkeypatch.setattr(
        folder, "decode", lambda files, *rest, **more: calls.append(len(files)) or original(files, *rest, **more)
    )
    return calls


def stores(photographs):
    return sorted(path.name for path in photographs.glob("*.npy"))


def test_the_store_holds_what_the_folders_hold(photographs):
    loaded = miniimagenet.load(photographs)
    assert loaded.names == tuple(
        f"{part}/{PREFIX[part]}{label}" for part, count in CLASSES.items() for label in range(count)
    )
    assert loaded.counts.tolist() == [5] * 6 + [7] + [5] * 6
    assert loaded.scale == 1 / 255
    for part in CLASSES:
        expected = folder.load(photographs / part, size=84)
        for index, label in enumerate(expected.names):
            found = loaded.of_class(loaded.names.index(f"{part}/{label}"))
            np.testing.assert_array_equal(found, expected.of_class(index))


def test_a_later_start_decodes_nothing_and_maps_the_store(photographs, decoded):
    first = miniimagenet.load(photographs)
    again = miniimagenet.load(photographs)
    assert decoded == [67]
    np.testing.assert_array_equal(again.images, first.images)
    assert type(again.images) is np.ndarray
    assert isinstance(again.images.base, np.memmap)
    assert not again.images.flags.writeable


def add(photographs):
    (photographs / "val" / "v0" / "9.png").write_bytes((photographs / "val" / "v1" / "6.JPEG").read_bytes())


def remove(photographs):
    (photographs / "test" / "t3" / "0.JPEG").unlink()


def touch(photographs):
    os.utime(photographs / "train" / "n0" / "0.JPEG", ns=(1, 1))


def cut_the_store(photographs):
    (store,) = photographs.glob("*.npy")
    os.truncate(store, 1000)


def drop_the_store(photographs):
    next(photographs.glob("*.npy")).unlink()


def spoil_the_manifest(photographs):
    (photographs / "prepared-84.json").write_text('{"key": ')


@pytest.mark.parametrize("change", [add, remove, touch, cut_the_store, drop_the_store, spoil_the_manifest])
def test_a_changed_source_or_a_damaged_store_is_prepared_again(photographs, decoded, change):
    miniimagenet.load(photographs)
    change(photographs)
    loaded = miniimagenet.load(photographs)
    assert len(decoded) == 2
    for part in CLASSES:
        expected = folder.load(photographs / part)
        for index, label in enumerate(expected.names):
            found = loaded.of_class(loaded.names.index(f"{part}/{label}"))
            np.testing.assert_array_equal(found, expected.of_class(index))
    assert len(stores(photographs)) == 1


def test_a_file_that_is_no_image_is_named_and_nothing_is_left(photographs):
    (photographs / "train" / "n1" / "2.JPEG").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"cannot read .*train/n1/2\.JPEG as an image"):
        miniimagenet.load(photographs)
    assert sorted(p.name for p in photographs.iterdir() if p.suffix != ".lock") == ["test", "train", "val"]


def test_skipped_files_are_named_and_leave_no_gap(photographs, capsys):
    expected = miniimagenet.load(photographs)
    for name in ("train/n0/0.JPEG", "train/n1/2.JPEG", "test/t3/4.JPEG"):
        (photographs / name).write_bytes(b"")
    for _ in range(2):  # from the photographs, then from the store
        loaded = miniimagenet.load(photographs, skip_bad_images=True)
        said = capsys.readouterr().out
        assert all(name in said for name in ("train/n0/0.JPEG", "train/n1/2.JPEG", "test/t3/4.JPEG"))
        assert loaded.counts.tolist() == [4, 4] + [5] * 4 + [7] + [5] * 5 + [4]
        np.testing.assert_array_equal(loaded.of_class(0), expected.of_class(0)[1:])
        np.testing.assert_array_equal(loaded.of_class(1), np.delete(expected.of_class(1), 2, axis=0))
        np.testing.assert_array_equal(loaded.of_class(12), expected.of_class(12)[:4])
    with pytest.raises(UserError, match="cannot read"):  # the store depends on the flag
        miniimagenet.load(photographs)


def test_sixty_thousand_files_are_looked_over_in_under_two_seconds(photographs):
    for part in CLASSES:
        for label in range(30):
            name = f"more-{PREFIX[part]}{label}"
            (photographs / part / name).mkdir()
            for number in range(667):
                os.link(photographs / "train" / "n0" / "0.JPEG", photographs / part / name / f"{number}.JPEG")
    every = [entry for files in listing.of(photographs).classes.values() for entry in files]
    assert len(every) > 60_000
    began = time.process_time()  # excludes other work on the machine
    listing.of(photographs)
    cache.fingerprint(photographs, every, "")
    assert time.process_time() - began < 2


def test_other_photographs_are_not_the_papers(photographs):
    assert not miniimagenet.is_the_papers(miniimagenet.load(photographs))


@pytest.mark.parametrize(
    ("missing", "message"), [("", "no photographs at .*fetch_data.sh"), ("val", "no folder .*val")]
)
def test_a_missing_folder_is_named(tmp_path, photographs, missing, message):
    if missing:
        (photographs / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=message):
        miniimagenet.load(photographs if missing else tmp_path / "nowhere")


@pytest.fixture
def run(capsys, tmp_path, photographs, monkeypatch):
    """A function that runs the run script in this process, with its threads; returns exit code, output and errors."""
    monkeypatch.setattr(device, "configure", lambda *_: device.Placement(False, {}, "device: none"))

    def call(*arguments):
        flags = [*TINY, f"--checkpoint={tmp_path / 'run'}", f"--data-dir={photographs}", *arguments]
        code = cli.main(["run_miniimagenet.py", *flags], "What it does.", problems.find("miniimagenet"))
        return code, *capsys.readouterr()

    return call


def test_a_run_trains_looks_at_validation_classes_and_evaluates_all_three(run, tmp_path, photographs, monkeypatch):
    from reptile_tf import run as runner
    from reptile_tf import train

    looked_at = []
    original = train.meta_train
    monkeypatch.setattr(
        runner.train,
        "meta_train",
        lambda *a, held_out, **k: looked_at.append(held_out) or original(*a, held_out=held_out, **k),
    )
    code, said, _ = run()
    assert code == 0
    assert [set(classes.names) for classes in looked_at] == [{f"val/v{i}" for i in range(4)}]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [part for part in results if part in CLASSES] == ["train", "val", "test"]
    # These photographs are not Mini-ImageNet, and must not be called that.
    assert results["task"] == f"photographs of {photographs}, 1-shot 3-way"
    assert f"photographs of {photographs}: 13 classes, 67 images" in said
    code, said, _ = run("--pretrained", "--transductive")
    assert code == 0
    assert "trained for 6 meta-iterations" in said
    assert "val" in json.loads((tmp_path / "run" / "evaluation-1shot-transductive.json").read_text())


@pytest.mark.slow
def test_a_bad_photograph_stops_a_run_with_one_line(run, tmp_path, photographs):
    (photographs / "val" / "v1" / "2.JPEG").write_bytes(b"\xff\xd8\xff")
    code, _, error = run()
    assert code == 1
    assert error.count("\n") == 1
    assert "val/v1/2.JPEG" in error
    assert not (tmp_path / "run").exists()
    assert run("--skip-bad-images")[0] == 0


def test_omniglots_flags_are_unknown_here(run):
    code, _, error = run("--source=glyphs")
    assert code == 2
    assert "source" in error


def test_the_folder_of_all_data_sets_is_not_the_one_of_photographs(photographs):
    (photographs.parent / "miniimagenet").mkdir()
    with pytest.raises(UserError, match=r"did you mean data_dir .*/miniimagenet\?"):
        miniimagenet.load(photographs.parent)


def test_the_papers_images_are_decoded_as_its_code_does_it_and_all_others_as_viewers_show_them(
    photographs, monkeypatch, capsys
):
    """The paper's code ignores EXIF orientation. An image in two sets of the paper's only causes a warning."""
    exif = Image.Exif()
    exif[0x112] = 6
    ramp = Image.fromarray(np.tile(np.arange(84, dtype=np.uint8)[:, None, None], (1, 84, 3)))
    ramp.save(photographs / "train" / "n0" / "0.JPEG", "PNG", exif=exif)
    shown = miniimagenet.load(photographs).of_class(0)[0]
    np.testing.assert_array_equal(shown, np.rot90(ramp, -1))
    monkeypatch.setattr("reptile_tf.fetch.image_files.is_the_papers", lambda counts: True)
    stored = miniimagenet.load(photographs).of_class(0)[0]
    np.testing.assert_array_equal(stored, np.asarray(ramp))
    copy = photographs / "test" / "t0" / "9.JPEG"
    copy.write_bytes((photographs / "train" / "n0" / "0.JPEG").read_bytes())
    miniimagenet.load(photographs)
    assert (
        "warning: images in several classes: 1, such as train/n0/0.JPEG and test/t0/9.JPEG" in capsys.readouterr().out
    )
    monkeypatch.undo()
    with pytest.raises(UserError, match="the same image is in the sets train, test: train/n0/0.JPEG, test/t0/9.JPEG"):
        miniimagenet.load(photographs)
