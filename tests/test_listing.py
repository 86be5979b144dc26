"""Tests of listings: class folders, nested and in sets, tables, and the warnings about other files."""

import os

import pytest

from reptile_tf.data import listing
from reptile_tf.errors import UserError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def put(root, *paths):
    """Creates empty files with the names of images, since a listing opens none."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def listed(path):
    """Returns the names of each class's files."""
    found = listing.of(path)
    return {name: [os.path.relpath(file.path, found.root) for file in files] for name, files in found.classes.items()}


@pytest.fixture
def table(root):
    """Writes a table into the folder."""

    def make(text, name="labels.csv", encoding="utf-8"):
        (root / name).write_text(text, encoding, newline="")
        return root / name

    return make


def test_classes_are_the_folders_in_the_order_of_their_names(root):
    put(root, "b/2.png", "b/10.JPG", "a/x.webp", "a/x.bmp", "a/x.tif", "a/x.gif", "a/x.jfif", "a/x.pgm")
    assert listed(root) == {
        "a": ["a/x.bmp", "a/x.gif", "a/x.jfif", "a/x.pgm", "a/x.tif", "a/x.webp"],
        "b": ["b/10.JPG", "b/2.png"],
    }


def test_classes_of_nested_folders_are_their_paths(root):
    put(root, "a/b/1.png", "a/c/d/1.png", "a-z/1.png", "e/1.png")
    assert list(listed(root)) == ["a/b", "a/c/d", "a-z", "e"]


def test_classes_in_sets(root):
    put(root, "train/b/1.png", "train/a/n/1.png", "val/c/1.png", "test/d/1.png")
    assert list(listed(root)) == ["train/a/n", "train/b", "val/c", "test/d"]


def test_validation_classes_may_be_missing(root, capsys):
    put(root, "train/a/1.png", "test/b/1.png", "valid/c/1.png")
    assert list(listed(root)) == ["train/a", "test/b"]
    assert f"left out the folder {root}/valid: beside train and test only val is a set" in capsys.readouterr().out


def test_a_class_may_have_the_name_of_a_set(root):
    put(root, "train/1.png", "plane/1.png")
    assert list(listed(root)) == ["plane", "train"]


@pytest.mark.parametrize("parts", [("train", "val"), ("train",), ("test", "other"), ("val", "test")])
def test_sets_without_training_or_test_classes_are_refused(root, parts):
    put(root, *(f"{part}/a{part}/1.png" for part in parts))
    with pytest.raises(UserError, match=r"photos has a folder \w+ of class folders, as sets have, but not both"):
        listing.of(root)


def test_a_class_in_two_sets_is_named(root):
    put(root, "train/a/b/1.png", "train/c/1.png", "val/c/1.png", "test/a/b/1.png", "test/d/1.png")
    with pytest.raises(
        UserError, match=r"class a/b is in the sets train, test \(1 of 2 such classes\); test classes must"
    ):
        listing.of(root)


def test_what_is_no_image_is_counted_in_one_line(root, capsys):
    put(root, "a/1.png", "a/1.txt", "a/2.heic", "b/1.png", "b/3.HEIC", "b/README", "index.csv", "a/notes/x.txt")
    put(root, "a/.DS_Store", "b/._1.png", ".git/config", "prepared-84x84x3.json", "prepared-84x84x3-0a.npy")
    (root / "a" / "gone.png").symlink_to(root / "nowhere")
    os.mkfifo(root / "a" / "pipe.png")
    assert listed(root) == {"a": ["a/1.png"], "b": ["b/1.png"]}
    (said,) = capsys.readouterr().out.splitlines()
    kinds = "2 .txt, 2 .heic, 2 .png, 1 .csv, 1 without suffix"
    assert said.startswith("warning: files left out, which are not images in a supported format: 8 (")
    assert sorted(said.split("(")[1].split(")")[0].split(", ")) == sorted(kinds.split(", "))


def test_nothing_is_said_where_nothing_is_left_out(root, capsys):
    put(root, "a/1.png", "b/1.png", "a/.hidden", "prepared-84x84x3.json")
    listing.of(root)
    assert not capsys.readouterr().out


def test_images_in_no_class_are_counted_in_one_line(root, capsys):
    put(root, "0.png", "train/1.png", "train/a/1.png", "test/b/1.png", "test/2.png")
    assert list(listed(root)) == ["train/a", "test/b"]
    said = capsys.readouterr().out
    assert said == f"warning: images left out, which are not in a class folder: 3, such as {root}/0.png\n"


@pytest.mark.parametrize("deep", ["a/old/2.png", "a/old/older/2.png"])
def test_a_class_with_classes_in_it_is_refused(root, deep):
    put(root, "a/1.png", deep, "b/1.png")
    with pytest.raises(UserError, match=rf"photos/a holds images, and so does the folder .*{os.path.dirname(deep)} in"):
        listing.of(root)


def test_a_class_without_images_is_named_with_what_it_has(root):
    put(root, "a/1.png", "b/1.heic", "b/2.heic", "b/notes.txt")
    with pytest.raises(
        UserError, match=r"no images in .*b, but other files: 3 \(2 \.heic, 1 \.txt\), such as .*; put some"
    ):
        listing.of(root)


@pytest.mark.parametrize("link", ["a/again", "again"])
def test_a_link_to_a_folder_above_is_refused(root, link):
    put(root, "a/b/1.png")
    (root / link).symlink_to(root if link == "again" else root / "a")
    with pytest.raises(UserError, match=f"{link} is a link to a folder that it lies in; remove it"):
        listing.of(root)


def test_a_link_to_another_folder_is_followed(root, tmp_path):
    put(tmp_path / "elsewhere", "1.png")
    put(root, "a/1.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    assert listed(root) == {"a": ["a/1.png"], "b": ["b/1.png"]}


def test_folders_that_hold_no_classes_are_named(root):
    put(root, "1.png")
    with pytest.raises(UserError, match="no class folders in .*photos; put"):
        listing.of(root)
    with pytest.raises(UserError, match=r"no folder .*nowhere; name one"):
        listing.of(root / "nowhere")
    put(root, "train/1.png", "test/a/1.png")
    with pytest.raises(UserError, match="no class folders in .*photos/train; put"):
        listing.of(root)


def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch):
    put(root, "a/1.png")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match="cannot read .*photos: Permission denied$"):
        listing.of(root)


def test_a_table_names_images_and_their_classes(root, table, tmp_path):
    put(root, "x/2.png", "x/1.png", "3.dat")
    put(tmp_path, "elsewhere/4.png")
    text = f'path,label\nx/2.png,b/c\r\n\r\nx/../x/1.png, b/c \n3.dat,a\n"{tmp_path}/elsewhere/4.png",a\n'
    assert listed(table(text)) == {"a": ["../elsewhere/4.png", "3.dat"], "b/c": ["x/1.png", "x/2.png"]}


def test_a_table_may_have_columns_in_any_order_and_others(root, table):
    put(root, "1.png", "2.png")
    text = "confidence, Label ,SET,Path\n0.3,a,train,1.png\n0.4,b,test,2.png\n"
    assert listed(table(text, encoding="utf-8-sig")) == {"train/a": ["1.png"], "test/b": ["2.png"]}


def test_the_order_of_lines_changes_nothing_but_the_note(root, table):
    put(root, "1.png", "2.png", "3.png")
    one = listed(table("path,label\n1.png,a\n2.png,b\n3.png,a\n"))
    other = listed(table("path,label\n3.png,a\n2.png,b\n1.png,a\n"))
    assert list(one.items()) == list(other.items())


def test_another_table_is_another_store(root, table):
    put(root, "1.png", "2.png")
    one, other = (listing.of(table(f"path,label\n1.png,{x}\n2.png,b\n", f"{x}.csv")) for x in "ac")
    assert one.store != other.store
    assert one.note != other.note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line of .*labels.csv must name the columns"),
        ("1.png,a\n", "must name the columns, as in path,label or path,label,set"),
        ("path;label\n1.png;a\n", "must name the columns"),
        ("path,label,label\n1.png,a,b\n", "must name the columns"),
        ("path,label\n", "names no images"),
        ("path,label\n1.png\n", "labels.csv, line 2: 1 values instead of 2; put commas in quotes"),
        ("path,label\n1.png,Doe, John\n", "labels.csv, line 2: 3 values instead of 2; put commas in quotes"),
        ("path,label\n1.png,a\n1.png, \n", "line 3: it must have a path and a label"),
        ("path,label\n,a\n", "line 2: it must have a path and a label"),
        ("path,label\nnowhere.png,a\n", "line 2: no file .*photos/nowhere.png; paths are relative to the folder of"),
        ("path,label\n.,a\n", "line 2: no file"),
        ("path,label\n1.png,a\nx/../1.png,b\n", "line 3: .*1.png is in line 2, too"),
        ("path,label,set\n1.png,a,training\n", "line 2: the set must be one of train, val, test, not 'training'"),
        ("path,label,set\n1.png,a,\n", "line 2: the set must be one of train, val, test, not ''"),
        ("path,label,set\n1.png,a,train\n2.png,a,test\n", r"class a is in the sets train, test \(1 of 1"),
        ("path,label,set\n1.png,a,train\n", "has images of train only; give both train and test some"),
        ('path,label\n"1.png,a\n', "is not a table of comma-separated values in UTF-8"),
        ('path,label\n"1.png"x,a\n', "is not a table of comma-separated values in UTF-8"),
        ("path,label\n1.png\0,a\n", "line 2: no file|is not a table"),
        ("path,label\n" + "x" * 200_000 + ",a\n", "is not a table of comma-separated values"),
    ],
)
def test_a_table_that_cannot_be_followed_is_refused(root, table, text, message):
    put(root, "1.png", "2.png", "x/y.png")
    with pytest.raises(UserError, match=message) as caught:
        listing.of(table(text))
    assert "\n" not in str(caught.value)


def test_a_table_in_another_encoding_is_refused(root):
    (root / "labels.csv").write_bytes("path,label\n1.png,größe\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not a table of comma-separated values in UTF-8"):
        listing.of(root / "labels.csv")


def test_a_file_that_is_no_table_is_refused(root):
    put(root, "photos.tar")
    with pytest.raises(UserError, match=r"photos.tar is neither a folder of class folders nor a table"):
        listing.of(root / "photos.tar")


@pytest.mark.parametrize(
    ("names", "sets"),
    [
        (["train/a", "test/b"], {"train/a": "train", "test/b": "test"}),
        (["train/a", "val/b"], {}),
        (["train/a", "test/b", "other"], {}),
        (["train", "test"], {}),
        ([], {}),
    ],
)
def test_sets_are_read_off_names(names, sets):
    assert listing.sets_of(names) == sets


def test_a_table_without_test_images_says_which_sets_it_has(root, table):
    put(root, "1.png", "2.png")
    with pytest.raises(UserError, match="has images of train, val only; give both train and test some"):
        listing.of(table("path,label,set\n1.png,a,train\n2.png,b,val\n"))


def test_a_file_named_in_two_ways_is_noticed(root, table, monkeypatch):
    put(root, "a/1.png")
    monkeypatch.chdir(root.parent)
    table(f"path,label\na/1.png,x\n{root}/a/1.png,x\n")
    with pytest.raises(UserError, match=r"line 3: .*a/1.png is in line 2, too; remove one of them"):
        listing.of("photos/labels.csv")


def test_the_folder_of_a_run_is_no_class(root, capsys):
    put(root, "a/1.png", "b/1.png", "run/confusion.png", "run/config.json", "run/checkpoint-0000100.npz", "c/1.png")
    put(root, "c/config.json", "a/begun/config.json", "a/begun/.lock", "a/begun/x.png")
    assert list(listed(root)) == ["a", "b", "c"]  # that of c is not a run's
    said = capsys.readouterr().out
    assert f"left out the folder {root}/run, which holds a run" in said
    assert f"left out the folder {root}/a/begun, which holds a run" in said


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("train", "TEST", "Validation")])
def test_sets_under_other_names_are_not_taken_for_classes(root, names):
    put(root, *(f"{name}/c{i}/1.png" for i, name in enumerate(names)))
    with pytest.raises(UserError, match=r"if they are sets, rename them to train, val and test"):
        listing.of(root)


def test_classes_may_be_called_as_sets_are(root):
    put(root, "Test/1.png", "Train/1.png", "training/deep/1.png")
    assert list(listed(root)) == ["Test", "Train", "training/deep"]


def test_a_line_break_in_a_name_does_not_break_a_line_of_the_log(root, capsys):
    put(root, "a/1.png", "b/1.png", "lo\nose.png")
    listing.of(root)
    assert "such as" in capsys.readouterr().out.splitlines()[-1]
