"""Tests of images grouped by class: subsets, and rotated and mirrored classes."""

import numpy as np
import pytest

from reptile_tf.data import ImageClasses


def numbered(counts, side=3):
    """Makes classes c0, c1, … whose pixels are numbered from 0."""
    pixels = np.arange(sum(counts) * side * side, dtype=np.uint8).reshape(-1, side, side, 1)
    parts = np.split(pixels, np.cumsum(counts)[:-1])
    return ImageClasses.from_groups({f"c{i}": part for i, part in enumerate(parts)}, scale=0.5)


def test_a_subset_shares_the_images_and_keeps_ragged_classes_apart():
    whole = numbered([2, 1, 3])
    part = whole.subset([2, 0])
    assert part.names == ("c2", "c0")
    assert part.scale == 0.5
    np.testing.assert_array_equal(part.of_class(0).ravel(), np.arange(27, 54))
    np.testing.assert_array_equal(part.of_class(1).ravel(), np.arange(18))
    assert np.shares_memory(part.of_class(0), whole.of_class(2))


def test_classes_are_shown_by_their_numbers():
    assert repr(numbered([2, 1, 3])) == "ImageClasses(3 classes, 6 of (3, 3, 1))"


def test_split_parts_the_classes_by_seed_alone():
    whole = numbered([1] * 20)
    train, test = whole.split(15, seed=3)
    assert len(train) == 15
    assert sorted(train.names + test.names) == sorted(whole.names)
    assert train.names != whole.names[:15]
    assert whole.split(15, seed=3)[0].names == train.names
    assert whole.split(15, seed=4)[0].names != train.names
    for part in (train, test):
        for i, name in enumerate(part.names):
            np.testing.assert_array_equal(part.of_class(i), whole.of_class(int(name[1:])))


@pytest.mark.parametrize("first", [0, 3, 4])
def test_split_leaves_some_classes_on_both_sides(first):
    with pytest.raises(ValueError, match="n_train must be from 1 to 2 here"):
        numbered([1, 1, 1]).split(first, seed=0)


def test_rotations_are_counterclockwise_and_classes_of_their_own():
    whole = numbered([2, 1])
    turned = whole.with_rotations()
    assert turned.names == ("c0", "c1", "c0@90", "c1@90", "c0@180", "c1@180", "c0@270", "c1@270")
    assert turned.scale == whole.scale
    assert turned.counts.tolist() == [2, 1] * 4
    second = {name: turned.of_class(i)[-1, :, :, 0].tolist() for i, name in enumerate(turned.names)}
    assert second["c0"] == [[9, 10, 11], [12, 13, 14], [15, 16, 17]]
    assert second["c0@90"] == [[11, 14, 17], [10, 13, 16], [9, 12, 15]]
    assert second["c0@180"] == [[17, 16, 15], [14, 13, 12], [11, 10, 9]]
    assert second["c0@270"] == [[15, 12, 9], [16, 13, 10], [17, 14, 11]]


def test_rotations_of_a_subset_turn_only_its_classes():
    whole = numbered([2, 1, 1])
    turned = whole.subset([1]).with_rotations()
    assert turned.names == ("c1", "c1@90", "c1@180", "c1@270")
    assert turned.of_class(1).ravel().tolist() == [20, 23, 26, 19, 22, 25, 18, 21, 24]
    assert np.shares_memory(turned.of_class(1), whole.images)


def test_rotations_stay_with_their_classes_and_add_up():
    turned = numbered([2, 1]).with_rotations()
    part = turned.subset([2, 1])
    assert part.names == ("c0@90", "c1")
    np.testing.assert_array_equal(part.of_class(0), turned.of_class(2))
    np.testing.assert_array_equal(part.of_class(0, np.array([1])), turned.of_class(2)[1:])
    again = part.with_rotations()
    np.testing.assert_array_equal(again.of_class(2), turned.of_class(4))  # c0@90@90 is c0@180


def test_images_that_are_not_square_have_no_rotations():
    oblong = ImageClasses.from_groups({"a": np.zeros([1, 2, 3, 1], np.uint8)})
    with pytest.raises(ValueError, match=r"only square images .* can be turned, not samples of \(2, 3, 1\)"):
        oblong.with_rotations()


def test_names_are_strings():
    whole = ImageClasses.from_groups({number: np.zeros([1, 2, 2, 1], np.uint8) for number in (3, np.int64(1))})
    assert whole.names == ("3", "1")
    assert whole.with_rotations().names[2] == "3@90"
    with pytest.raises(ValueError, match="two classes have the same name"):
        ImageClasses.from_groups({1: whole.images, "1": whole.images})


@pytest.mark.parametrize("dtype", ["complex64", "U3", "S3", "O", "datetime64[s]"])
def test_samples_must_be_real_numbers(dtype):
    with pytest.raises(ValueError, match="the samples of class b must be real numbers, not "):
        ImageClasses.from_groups({"a": np.zeros((2, 3)), "b": np.zeros((2, 3)).astype(dtype)})
    with pytest.raises(ValueError, match="samples must be real numbers"):
        ImageClasses(np.zeros((2, 3)).astype(dtype), np.zeros(1, np.int64), np.array([2]), ("a",))


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_samples_must_be_finite(dtype, value):
    pytest.importorskip("ml_dtypes")  # registers bfloat16
    samples = np.zeros((2, 3)).astype(dtype)
    assert ImageClasses.from_groups({"a": samples}).images.dtype.name == samples.dtype.name
    samples[1, 2] = value
    with pytest.raises(ValueError, match="the samples of class a must be finite"):
        ImageClasses.from_groups({"a": samples})


def test_groups_must_fit_together():
    with pytest.raises(ValueError, match="there are no classes"):
        ImageClasses.from_groups({})
    with pytest.raises(ValueError, match=r"class a is an array of \(2, 3\) and class b one of \(2, 4\)"):
        ImageClasses.from_groups({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))})
    with pytest.raises(ValueError, match=r"class a is an array of \(2, 3\) and class b one of \(\)"):
        ImageClasses.from_groups({"a": np.zeros((2, 3)), "b": np.zeros(())})


def test_a_turned_class_cannot_have_the_name_of_another():
    images = np.zeros((2, 2, 2, 1), np.uint8)
    with pytest.raises(ValueError, match="end in @90, @180 or @270"):
        ImageClasses.from_groups({"x": images, "x@90": images}).with_rotations()
    with pytest.raises(ValueError, match=r"only square images .* not samples of \(5, 5\)"):
        ImageClasses.from_groups({"x": np.zeros((2, 5, 5))}).with_rotations()
