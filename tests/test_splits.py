"""Tests of splits by shares, by a file of names, by folders, and by Omniglot's own parts."""

import numpy as np
import pytest

from reptile_tf import Settings, problems
from reptile_tf.data import ImageClasses, omniglot, splits
from reptile_tf.errors import UserError

NAMES = [f"c{i:03d}" for i in range(100)]
CHARACTERS = [f"{alphabet}/character{i:02d}" for alphabet in ("Greek", "Latin", "Keble", "ULOG") for i in (1, 2, 3)]


def sizes(sets):
    return {part: len(names) for part, names in sets.items()}


def counts(names, images=20):
    return dict.fromkeys(names, images)


def classes(names):
    return ImageClasses.from_groups({n: np.full((2, 3, 3, 1), i, np.uint8) for i, n in enumerate(names)})


@pytest.fixture
def named(tmp_path):
    """A function that writes a file of names."""

    def make(text, encoding="utf-8"):
        (tmp_path / "names.txt").write_text(text, encoding)
        return str(tmp_path / "names.txt")

    return make


@pytest.mark.parametrize(
    ("count", "split", "ways", "expected"),
    [
        (100, "", 5, (64, 16, 20)),
        (100, "64,16,20", 5, (64, 16, 20)),
        (50, "0.64, 0.16, 0.2", 5, (32, 8, 10)),
        (100, "80,20", 5, (80, 0, 20)),
        (100, "80,0,20", 5, (80, 0, 20)),
        (10, "", 5, (5, 0, 5)),
        (12, "", 5, (7, 0, 5)),
        (14, "", 5, (9, 0, 5)),
        (15, "", 5, (5, 5, 5)),
        (20, "", 5, (10, 5, 5)),
        (30, "1,1,98", 5, (5, 5, 20)),
        (31, "1,1,1", 2, (11, 10, 10)),
        (4, "1,1000", 2, (2, 0, 2)),
        (100, "1,1", 50, (50, 0, 50)),
    ],
)
def test_shares_are_kept_as_far_as_tasks_can_be_drawn(count, split, ways, expected):
    sets = splits.split_names(counts(NAMES[:count]), split, seed=0, ways=ways)
    assert tuple(sizes(sets).get(part, 0) for part in ("train", "val", "test")) == expected
    assert sorted(name for part in sets.values() for name in part) == NAMES[:count]
    assert list(sets) == [part for part, size in zip(("train", "val", "test"), expected, strict=True) if size]


def test_every_count_is_split_whole_and_each_set_has_enough():
    for ways in (2, 5, 7):
        for count in range(2 * ways, 60):
            sets = splits.split_names(counts(NAMES[:count]), "5,1,3", seed=1, ways=ways)
            assert sum(sizes(sets).values()) == count
            assert min(sizes(sets).values()) >= ways
            assert ("val" in sets) == (count >= 3 * ways)


def test_the_seed_and_the_names_decide_and_nothing_else():
    one = splits.split_names(counts(NAMES), "", seed=3)
    assert splits.split_names(counts(NAMES), "", seed=3) == one
    other_order = splits.split_names(counts(NAMES[::-1]), "64,16,20", seed=3)
    assert {part: sorted(names) for part, names in other_order.items()} == one
    assert splits.split_names(counts(NAMES), "", seed=4)["test"] != one["test"]
    assert one["train"] != NAMES[:64]


def test_classes_of_any_sizes_are_split_if_that_can_be_done():
    """Random sizes, compared with the existence of a split."""
    rng = np.random.default_rng(0)
    outcomes = set()
    for number in range(2000):
        ways, train_images, test_images = (int(n) for n in rng.integers(1, 5, 3))
        sizes = dict(zip(NAMES, rng.integers(0, 6, rng.integers(1, 20)).tolist(), strict=False))
        to_train_on = {name for name, count in sizes.items() if count >= train_images}
        to_test_on = {name for name, count in sizes.items() if count >= test_images}
        both = to_train_on & to_test_on
        missing = max(0, ways - len(to_train_on - both)) + max(0, ways - len(to_test_on - both))
        possible = missing <= len(both) and min(len(to_train_on), len(to_test_on)) >= ways
        split = ["", "1,1", "9,1", "1,9", "1,5,1"][number % 5]
        try:
            sets = splits.split_names(sizes, split, number, ways, train_images, test_images)
        except UserError:
            assert not possible
        else:
            assert possible
            assert set(sets["train"]) <= to_train_on
            assert set(sets["test"]) | set(sets.get("val", ())) <= to_test_on
            assert min(map(len, sets.values())) >= ways
            chosen = [name for names in sets.values() for name in names]
            assert len(chosen) == len(set(chosen))
            assert set(chosen) == to_train_on | to_test_on
        outcomes.add((possible, len(sizes) > len(both)))
    assert len(outcomes) == 4


def test_a_name_may_end_with_a_nul():
    sets = splits.split_names(counts(["a\0", "b\0\0", "c", "d"]), "", 0, 2)
    assert sorted(sets["train"] + sets["test"]) == ["a\0", "b\0\0", "c", "d"]


def test_enough_images_change_nothing_in_a_split():
    plain = splits.split_names(counts(NAMES), "", 3, 5)
    assert splits.split_names(counts(NAMES), "", 3, 5, 20, 20) == plain


def test_classes_with_too_few_images_are_counted(capsys):
    sizes = {name: 2 if i < 3 else 9 for i, name in enumerate(NAMES[:15])}
    whole = ImageClasses.from_groups({name: np.zeros((count, 1), np.uint8) for name, count in sizes.items()})
    for seed in range(20):
        sets = splits.split_classes(whole, "", seed, 5, 9, 6)
        assert {part: len(classes) for part, classes in sets.items()} == {"train": 7, "test": 5}
        assert min(classes.counts.min() for classes in sets.values()) == 9
    assert "classes left out, with too few images: 3, such as c000" in capsys.readouterr().out


def test_too_few_classes_with_enough_images_are_refused():
    sizes = counts(NAMES[:8], 20) | counts(NAMES[8:12], 3)
    with pytest.raises(UserError, match="8 classes with 6 images or more cannot be split: tasks of 5 ways need 5"):
        splits.split_names(sizes, "", 0, 5, 10, 6)
    sizes = counts(NAMES[:4], 20) | counts(NAMES[4:12], 6)
    with pytest.raises(UserError, match="5 classes of 10 images to train on and 5 others of 6 .* there are 4 and 8"):
        splits.split_names(sizes, "", 0, 5, 10, 6)


def test_too_few_classes_for_two_sets_are_refused():
    with pytest.raises(UserError, match="9 classes cannot be split: tasks of 5 ways need 5 classes to train on and 5"):
        splits.split_names(counts(NAMES[:9]), "")


@pytest.mark.parametrize(
    "split", ["1", "1,2,3,4", "0,1", "1,0", "1,1,0", "-1,2", "nan,1", "1,inf", "1e308,1e308", "9" * 400 + ",1"]
)
def test_shares_that_cannot_be_are_refused(split):
    with pytest.raises(UserError, match="shares must be two or three numbers, as in 80,20 or 64,16,20"):
        splits.split_names(counts(NAMES), split)


@pytest.mark.parametrize("split", ["nowhere.txt", "64;16;20", "64,16,x", ".", "a\0b"])
def test_what_is_neither_shares_nor_a_file_is_named(split):
    with pytest.raises(
        UserError, match=r"is neither shares, as in 64,16,20, nor a file of names that can be read \(\w"
    ):
        splits.split_names(counts(NAMES), split)


def test_classes_are_split_with_their_images(capsys):
    whole = classes(NAMES[:20])
    sets = splits.split_classes(whole, "", seed=1, ways=5)
    assert sizes(sets) == {"train": 10, "val": 5, "test": 5}
    for part in sets.values():
        for index, name in enumerate(part.names):
            assert (part.of_class(index) == int(name[1:])).all()
        assert np.shares_memory(part.images, whole.images)
    assert "10 classes to train on, 5 for validation, 5 for testing" in capsys.readouterr().out


def test_no_validation_classes_are_said(capsys):
    splits.split_classes(classes(NAMES[:10]), "", seed=1, ways=5)
    said = capsys.readouterr().out
    assert "5 classes to train on, none for validation (which would take 15 classes for 5 ways), 5 for testing" in said


def test_classes_in_sets_stay_there(capsys):
    whole = classes(["train/a", "train/b", "test/c"])
    sets = splits.split_classes(whole, ways=5)
    assert {part: each.names for part, each in sets.items()} == {"train": ("train/a", "train/b"), "test": ("test/c",)}
    assert "2 classes to train on, none for validation, 1 for testing" in capsys.readouterr().out
    with pytest.raises(UserError, match="in the sets train and test already: leave split 64,16,20 out"):
        splits.split_classes(whole, "64,16,20")


def test_a_file_names_the_classes_to_test_on(named):
    sets = splits.split_names(counts(CHARACTERS), named("# mine\n\n Keble \nLatin/character02\r\n"))
    assert list(sets) == ["train", "test"]
    assert sets["test"] == ["Latin/character02", *CHARACTERS[6:9]]
    assert sets["train"] == [name for name in CHARACTERS if name not in sets["test"]]


def test_a_file_may_begin_as_windows_writes_it(named):
    assert splits.split_names(counts(CHARACTERS), named("Keble\n", "utf-8-sig"))["test"] == CHARACTERS[6:9]


def test_a_file_may_name_other_sets(named):
    sets = splits.split_names(counts(CHARACTERS), named("val, Greek\ntest,Latin\n"))
    assert sizes(sets) == {"train": 6, "val": 3, "test": 3}
    assert sets["val"] == CHARACTERS[:3]


def test_where_a_file_names_classes_to_train_on_others_are_left_out_and_counted(named, capsys):
    sets = splits.split_classes(classes(CHARACTERS), named("train,Greek\nLatin\n"))
    assert [each.names for each in sets.values()] == [tuple(CHARACTERS[:3]), tuple(CHARACTERS[3:6])]
    assert "warning: classes left out, since" in capsys.readouterr().out


def test_a_name_with_a_comma_is_a_name(named):
    sets = splits.split_names(counts(["Doe, John", "Doe, Jane"]), named("Doe, John\n"))
    assert sets == {"train": ["Doe, Jane"], "test": ["Doe, John"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Greek\nGreak\n", r"line 2: no class or group of classes is called Greak; did you mean Greek\?"),
        ("zzzzzz\n", "line 1: no class or group of classes is called zzzzzz$"),
        ("Gree\n", "no class or group of classes is called Gree; did you mean"),
        ("val,Greek\nGreek/character02\n", "line 2: Greek/character02 is for test here and for val before"),
        ("", "leaves no classes for the set test"),
        ("val,Greek\n", "leaves no classes for the set test"),
        ("Greek\nLatin\nKeble\nULOG\n", "leaves no classes for the set train"),
    ],
)
def test_a_file_that_cannot_be_followed_is_refused(named, text, message):
    with pytest.raises(UserError, match=message):
        splits.split_names(counts(CHARACTERS), named(text))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "names").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="nor a file of names that can be read"):
        splits.split_names(counts(CHARACTERS), str(tmp_path / "names"))


def test_omniglot_is_split_as_the_paper_unless_asked_otherwise(named, monkeypatch):
    monkeypatch.setattr("reptile_tf.problems.omniglot.TRAINING_CHARACTERS", 7)
    whole, problem = classes(CHARACTERS), problems.find("omniglot")
    paper = problem.split(whole, Settings(seed=5))
    assert [each.names for each in paper.values()] == [each.names for each in whole.split(7, 5)]
    background = problem.split(whole, Settings(split="background"))
    assert [each.names for each in background.values()] == [tuple(CHARACTERS[:6]), tuple(CHARACTERS[6:])]
    chosen = problem.split(whole, Settings(split=named("Greek\n")))
    assert chosen["test"].names == tuple(CHARACTERS[:3])
    shares = problem.split(whole, Settings(split="1,1", seed=2, classes=3, shots=1))
    assert sizes(shares) == {"train": 6, "test": 6}


def test_omniglots_parts_are_none_of_glyphs():
    with pytest.raises(UserError, match="needs Omniglot's own alphabets"):
        omniglot.split_by_part(classes(["glyph0000", "glyph0001"]))
