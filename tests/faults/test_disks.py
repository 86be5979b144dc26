"""Tests of full and read-only disks and quotas: existing files stay, the path is named, and the exit code is 1."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess

import numpy as np
import pytest
from mirrors import run as fetch_data
from PIL import Image
from tools import TINY, Disk, contents, leftovers, limited, trained

from reptile_tf import files, learners, plots, tfjs
from reptile_tf.checkpoint import Checkpoint, RunFolder
from reptile_tf.data import miniimagenet
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Answers
from reptile_tf.network import Predictions

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture
def disk(tmp_path):
    """A separate disk of 3 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount a small disk here: {made.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)


def is_one_line(error):
    return error.startswith("run_omniglot.py: ") and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("saves", "path"), [(1, "checkpoint-0000040.npz"), (2, "results.json")])
def test_a_run_on_a_disk_that_fills_up_keeps_what_it_has_and_goes_on(main, disk, tmp_path, monkeypatch, saves, path):
    folder, save, saved = disk.path / "run", RunFolder.save, []

    def save_and_fill(self, checkpoint):
        save(self, checkpoint)
        saved.append(checkpoint)
        if len(saved) == saves:
            disk.fill()

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save_and_fill)
        code, error = main(*TINY, f"--checkpoint={folder}")
    assert code == 1
    assert f"cannot write {folder / path}: {FULL}" in error
    assert is_one_line(error)
    assert RunFolder(folder).load().iteration == 20 * saves
    assert not leftovers(folder)
    disk.free()
    for each in (folder, tmp_path / "undisturbed"):
        assert main(*TINY, f"--checkpoint={each}") == (0, "")
    ours, expected = (RunFolder(path).load().state for path in (folder, tmp_path / "undisturbed"))
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_a_disk_that_is_full_at_a_look_names_the_events(main, disk, monkeypatch):
    monkeypatch.setattr(
        "reptile_tf.evaluate.answers", lambda *_, **__: disk.fill() or Predictions(*[Answers(*np.ones([3, 2, 2]))] * 2)
    )
    flags = ["--eval-interval=1", "--meta-iters=200", "--save-interval=200"]  # some fit into the file's last block
    code, error = main(*TINY, f"--checkpoint={disk.path / 'run'}", *flags)
    assert code == 1
    assert f"cannot write TensorBoard events to {disk.path / 'run' / 'events'}: {FULL}" in error
    assert is_one_line(error)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    return trained(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="module")
def learner(finished):
    return learners.load(finished)


def save_model(folder, learner):
    with files.replacing(folder / "model.keras") as part:
        learner.model.save(part)


# Functions that write each of a run's files over the existing one.
WRITERS = {
    "checkpoint-0000040.npz": lambda folder, learner: RunFolder(folder).save(
        Checkpoint(40, 1.0, learner.state(), np.zeros([0, 3]))
    ),
    "results.json": lambda folder, _: files.write_text(folder / "results.json", "{}" * 10_000),
    "model.keras": save_model,
    "learning_curve.png": lambda folder, _: plots.learning_curve(folder / "learning_curve.png", np.ones([9, 3]), "x"),
    "model.json": lambda folder, learner: tfjs.export(learner, folder, 2),
}


def lowest_free_handle():
    handle = os.open(os.devnull, os.O_RDONLY)
    os.close(handle)
    return handle


HOW = {
    "full disk": (lambda disk: contextlib.nullcontext(disk.fill()), errno.ENOSPC),
    "read-only disk": (lambda disk: contextlib.nullcontext(disk.remount("ro")), errno.EROFS),
    "no handle left": (lambda _: limited(resource.RLIMIT_NOFILE, lowest_free_handle()), errno.EMFILE),
    "file size": (lambda _: limited(resource.RLIMIT_FSIZE, 1000), errno.EFBIG),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_leaves_the_older_files_and_names_the_path(disk, finished, learner, name, how):
    folder = shutil.copytree(finished, disk.path / "run")
    WRITERS[name](folder, learner)  # works while there is space
    before = contents(folder)
    limit, number = HOW[how]
    with limit(disk), pytest.raises(UserError) as caught:
        WRITERS[name](folder, learner)
    assert str(folder) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before
    assert not leftovers(folder)


def test_a_file_is_on_disk_before_it_takes_an_older_ones_place(tmp_path, monkeypatch):
    """Otherwise a power failure could leave an empty file with the new name."""
    fsync, replace, on_disk, placed = os.fsync, os.replace, set(), []

    def whole(file):
        return os.stat(file).st_ino, os.stat(file).st_size

    def noted_fsync(handle):
        fsync(handle)
        on_disk.add(whole(handle))

    def noted_replace(part, path):
        assert whole(part) in on_disk
        replace(part, path)
        placed.append(path.name)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    files.write_text(tmp_path / "results.json", "{}")
    RunFolder(tmp_path).save(Checkpoint(40, 1.0, {}, np.zeros([0, 3])))
    assert placed == ["results.json", "checkpoint-0000040.npz"]


@pytest.fixture
def photographs(tmp_path):
    """Three sets of four classes of ten images, which take 2.5 MB when prepared."""
    rng = np.random.default_rng(0)
    for place in range(12):
        folder = tmp_path / "photographs" / ("train", "val", "test")[place % 3] / f"n{place}"
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photographs"


def test_photographs_that_do_not_fit_prepared_leave_nothing(disk, photographs):
    """Writing to a memory map without disk space behind it would kill the process with SIGBUS."""
    expected = miniimagenet.load(photographs).images
    here = shutil.copytree(photographs, disk.path / "here", ignore=shutil.ignore_patterns("prepared*"))
    before = contents(here)
    disk.fill()
    with pytest.raises(UserError, match=f"cannot write {here}/prepared-84-.*npy: {FULL}"):
        miniimagenet.load(here)
    assert contents(here) == before
    disk.free()
    np.testing.assert_array_equal(miniimagenet.load(here).images, expected)
    disk.remount("ro")
    np.testing.assert_array_equal(miniimagenet.load(here).images, expected)


def test_a_store_that_is_made_anew_on_a_full_disk_leaves_the_old_one(disk, photographs):
    here = shutil.copytree(photographs, disk.path / "here")
    miniimagenet.load(here)
    before = contents(here)
    os.utime(here / "train" / "n0" / "0.png", ns=(1, 1))
    with pytest.raises(UserError, match=f"cannot write {here}/prepared-84-.*npy: {FULL}"):
        miniimagenet.load(here)  # there is no space for two
    assert contents(here) == before


def test_a_read_only_run_is_loaded_but_not_written_to(main, disk, finished):
    folder = shutil.copytree(finished, disk.path / "run")
    disk.remount("ro")
    np.testing.assert_array_equal(learners.load(folder).state()["phi"], learners.load(finished).state()["phi"])
    code, error = main(*TINY, "--pretrained", f"--checkpoint={folder}")
    assert code == 1
    assert f"cannot write {folder}/evaluation-1shot.json: {os.strerror(errno.EROFS)}" in error
    assert is_one_line(error)
    code, error = main(*TINY, f"--checkpoint={folder}")
    assert code == 1
    assert f"cannot use {folder} as --checkpoint" in error
    assert is_one_line(error)


@pytest.mark.slow
def test_with_few_handles_left_a_run_ends_with_one_line(main, tmp_path):
    """This holds whichever file is the first that cannot be opened."""
    codes = []
    for spare in (0, 1, 2, 4, 12):
        with limited(resource.RLIMIT_NOFILE, lowest_free_handle() + spare):
            code, error = main(*TINY, f"--checkpoint={tmp_path / str(spare)}")
        codes.append(code)
        assert code == 0 or is_one_line(error), error
        assert not leftovers(tmp_path)
    assert codes[0] == 1
    assert codes[-1] == 0


def test_a_download_to_a_full_or_read_only_disk(disk, photographs):
    source, target = {"MINIIMAGENET_DIR": str(photographs)}, disk.path / "data"
    target.mkdir()
    for hinder, reason in ((disk.fill, FULL), (lambda: disk.remount("ro"), os.strerror(errno.EROFS))):
        hinder()
        done = fetch_data("miniimagenet", target, **source)
        assert done.returncode == 1
        assert done.stderr.startswith(f"fetch_data.sh: cannot put Mini-ImageNet into {target}: ")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (target / "miniimagenet").exists()
        if reason == FULL:
            disk.free()
    disk.remount("rw")
    assert fetch_data("miniimagenet", target, **source).returncode == 0
    assert contents(target / "miniimagenet") == {k: v for k, v in contents(photographs).items() if k[:8] != "prepared"}
