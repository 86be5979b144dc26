"""Tests that damaged files of a run are detected, named and skipped."""

import fcntl
import json
import shutil

import keras
import numpy as np
import pytest
from claims import claim
from tools import TINY, trained

from reptile_tf import Settings, UserError, meta_train
from reptile_tf.checkpoint import RunFolder

SETTINGS = Settings(
    classes=3, shots=1, train_shots=4, inner_batch=5, inner_iters=2, meta_batch=2, meta_iters=11, save_interval=4
)
CONFIG = {"problem": "test", "settings": {"classes": 3}, "split": {"train": ["a", "b"]}}


@pytest.fixture(scope="module")
def whole(small_model, glyphs, tmp_path_factory):
    """The folder of a finished run, with checkpoints at meta-iterations 8 and 11, and its state."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    with folder.claimed(CONFIG):
        return folder.path, meta_train(small_model(), glyphs, SETTINGS, folder=folder).state()


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the finished run's folder."""
    return RunFolder(shutil.copytree(whole[0], tmp_path / "run"))


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "two bytes short": lambda content: content[:-2],
    "emptied": lambda content: b"",
    "one bit flipped": lambda content: flipped(content, 4 * len(content)),
    "a web page": lambda content: b"<!doctype html><title>404</title>",
}


@pytest.mark.parametrize("damage", [*DAMAGE, "removed"])
def test_the_newest_whole_checkpoint_takes_over(damage, run, whole, small_model, glyphs, capsys):
    newest = run.path / "checkpoint-0000011.npz"
    newest.write_bytes(DAMAGE.get(damage, bytes)(newest.read_bytes()))
    if damage == "removed":
        newest.unlink()
    assert run.load().iteration == 8
    said = capsys.readouterr().out
    assert (f"warning: cannot read {newest}" in said) == (damage != "removed")
    with run.claimed(CONFIG):
        again = meta_train(small_model(), glyphs, SETTINGS, folder=run).state()
    for name, value in whole[1].items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    assert run.load().iteration == 11


@pytest.mark.parametrize("damage", [*DAMAGE, "removed"])
def test_the_configuration_is_read_from_a_checkpoint(damage, run, capsys):
    path = run.path / "config.json"
    before = path.read_bytes()
    path.write_bytes(DAMAGE.get(damage, bytes)(before))
    if damage == "removed":
        path.unlink()
    assert run.config() == CONFIG
    assert f"warning: cannot read {path}" in capsys.readouterr().out
    claim(run, CONFIG)  # as when the same command runs again
    assert path.read_bytes() == before


def test_checkpoints_do_not_copy_a_configuration_that_was_damaged_meanwhile(run):
    claim(run, CONFIG)
    (run.path / "config.json").write_bytes(b"\xff{")
    for iteration in (12, 13, 14):
        run.save(run.load()._replace(iteration=iteration))
    assert RunFolder(run.path).config() == CONFIG


@pytest.mark.slow
def test_no_flipped_bit_goes_unnoticed(run):
    """Flips 400 random bits of the newest checkpoint, and all bits of the configuration."""
    newest, config = run.path / "checkpoint-0000011.npz", run.path / "config.json"
    content = newest.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(content), 400):
        newest.write_bytes(flipped(content, int(bit)))
        assert run.load().iteration == 8
    newest.write_bytes(content)
    content = config.read_bytes()
    for bit in range(8 * len(content)):
        config.write_bytes(flipped(content, bit))
        assert run.config() == CONFIG


def test_with_no_whole_checkpoint_it_says_so(run, small_model, glyphs):
    for path in run.path.glob("checkpoint-*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    with run.claimed(CONFIG):
        before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
        with pytest.raises(
            UserError, match="no checkpoint can be read: .*0000011.npz .*checksum.*0000008.npz"
        ) as caught:
            meta_train(small_model(), glyphs, SETTINGS, folder=run)
        assert "\n" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before


def test_a_checkpoint_restored_from_a_copy_is_not_crowded_out_by_newer_damaged_ones(run, whole):
    checkpoint = run.load()
    for path in run.path.glob("checkpoint-*.npz"):
        path.write_bytes(b"damaged")
    with run.claimed(CONFIG):
        for iteration in (1, 2, 3):  # meta-iterations that the run has now reached again
            run.save(checkpoint._replace(iteration=iteration))
            assert run.load().iteration == iteration
    assert run.iterations() == [2, 3, 8, 11]


def test_of_two_that_claim_a_folder_at_once_one_is_refused(tmp_path, monkeypatch):
    """Both find the folder empty, and the other writes its settings before this one gets the lock."""
    ours, theirs = RunFolder(tmp_path / "run"), CONFIG | {"settings": {"classes": 4}}
    flock, calls = fcntl.flock, []

    def late(*arguments):
        calls.append(1)
        if len(calls) == 1:
            claim(RunFolder(tmp_path / "run"), theirs)
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UserError, match="classes 4 there, 3 here"):
        claim(ours, CONFIG)
    assert ours.config() == theirs


@pytest.mark.slow
def test_what_is_no_longer_read_may_be_damaged(main, tmp_path):
    """The same command rewrites damaged results, model, figures and events."""
    folder = trained(tmp_path / "run")
    others = [path for path in folder.iterdir() if path.is_file() and path.suffix not in (".npz", "")]
    others = [path for path in others if path.name != "config.json"]
    assert len(others) == 7
    for path in others:
        path.write_bytes(path.read_bytes()[:50])
    assert main(*TINY, f"--checkpoint={folder}") == (0, "")
    assert all(path.stat().st_size > 50 for path in others)
    keras.models.load_model(folder / "model.keras")
    assert json.loads((folder / "results.json").read_text())["meta_iterations"] == 40
