"""Tests of classes of arrays: results of a function, in memory or in a store, and data sets."""

import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import reptile_tf as rt
from reptile_tf.data import decode


def embed(images):
    """Returns the mean and standard deviation of each image, float32 [image, 2]."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return np.stack([flat.mean(1), flat.std(1)], axis=1)


def test_mapped_classes_are_what_the_function_makes_of_each(glyphs):
    turned = glyphs.subset(range(5)).with_rotations().with_flips()
    mapped = turned.map(embed, batch=3)
    assert mapped.names == turned.names
    assert (mapped.images.dtype, mapped.scale) == (np.float32, 1.0)
    for index in range(len(turned)):
        np.testing.assert_allclose(mapped.of_class(index), embed(turned.of_class(index)), rtol=1e-6)


def test_a_store_is_used_until_samples_or_function_change(glyphs, tmp_path):
    some, calls = glyphs.subset(range(4)), []

    def counted(images, factor=1):
        calls.append(len(images))
        return factor * embed(images)

    first = some.map(counted, batch=8, store=tmp_path / "embedded")
    assert calls == [8] * 5  # the first batch is computed once more, to check the store
    calls.clear()
    again = some.map(counted, batch=8, store=tmp_path / "embedded")
    assert calls == [8]
    np.testing.assert_array_equal(again.images, first.images)
    calls.clear()
    np.testing.assert_allclose(
        some.map(lambda images: counted(images, 2), batch=8, store=tmp_path / "embedded").images, 2 * first.images
    )
    assert len(calls) == 5
    calls.clear()
    glyphs.subset(range(1, 5)).map(counted, batch=8, store=tmp_path / "embedded")
    assert len(calls) == 5


def test_a_function_must_answer_for_each_sample(glyphs):
    with pytest.raises(ValueError, match=r"a result for each of 8 samples, not \(1, 2\)"):
        glyphs.map(lambda images: embed(images)[:1])


def test_a_data_set_of_pairs_gives_classes_by_label():
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    pairs = tf.data.Dataset.from_tensor_slices((x, [2, 0, 2, 0, 1, 2]))
    classes = rt.data.from_dataset(pairs)
    assert classes.names == ("0", "1", "2")
    np.testing.assert_array_equal(classes.of_class(2), x[[0, 2, 5]])
    assert rt.data.from_dataset(pairs, ["a", "b", "c"]).names == ("a", "b", "c")
    named = tf.data.Dataset.from_tensor_slices((x, list("bababa")))
    assert rt.data.from_dataset(named).names == ("a", "b")
    with pytest.raises(ValueError, match=r"call unbatch\(\) on a batched data set"):
        rt.data.from_dataset(pairs.batch(2))
    with pytest.raises(ValueError, match="the data set is empty"):
        rt.data.from_dataset(pairs.take(0))
    with pytest.raises(ValueError, match=r"of one shape, but they are of \[\(1,\), \(2,\)\]"):
        rt.data.from_dataset([(np.zeros(1), 0), (np.zeros(2), 1)])


def test_any_labelled_images_of_tensorflow_datasets_are_classes():
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=40):
        classes = rt.data.arrays.from_tfds("cifar10", 16, 1)
        assert 2 <= len(classes) <= 10  # the names are unknown without the download
        assert classes.images.shape[1:] == (16, 16, 1)
        assert classes.images.dtype == np.uint8
        assert classes.scale == 1 / 255
        with pytest.raises(rt.UserError, match="TensorFlow Datasets cannot give wiki40b as images with labels"):
            rt.data.arrays.from_tfds("wiki40b", 16, 1)
    with pytest.raises(rt.UserError, match="TensorFlow Datasets cannot give no_such_set"):
        rt.data.arrays.from_tfds("no_such_set", 16, 1)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.full((4, 3, 3, 1), 65535, np.uint16), [0, 1, 0, 1], ""),
        (np.full((4, 3, 3, 1), 1.0, np.float32), [0, 1, 0, 1], ""),
        (np.full((4, 3, 3, 3), 255, np.uint8), [-1, 1, 0, 1], "cannot be used: label -1 has no name"),
        (np.full((4, 3, 3, 3), 1.0, np.float32), [0, 1, 0, 1], "cannot be used: images of float32 with 3 channels"),
        (np.full((4, 3, 3, 1), 255.0, np.float32), [0, 1, 0, 1], "cannot be used: its numbers are not all from 0 to 1"),
    ],
)
def test_images_of_a_data_set_are_scaled_or_refused(monkeypatch, pixels, labels, message):
    tfds = pytest.importorskip("tensorflow_datasets")
    info = types.SimpleNamespace(
        features={"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["a", "b"])},
        supervised_keys=("image", "label"),
        splits=types.SimpleNamespace(total_num_examples=4),
    )
    monkeypatch.setattr(tfds, "load", lambda *_, **__: (slices(pixels, labels), info))
    if message:
        with pytest.raises(rt.UserError, match=f"the data set some {message}"):
            rt.data.arrays.from_tfds("some", 2, 1)
    else:
        classes = rt.data.arrays.from_tfds("some", 2, 3)
        assert (classes.names, classes.counts.tolist()) == (("a", "b"), [2, 2])
        np.testing.assert_array_equal(classes.images, np.full((4, 2, 2, 3), 255))


X = np.arange(24, dtype=np.float32).reshape(6, 4)
RAGGED = tf.ragged.constant([[[1.0], [2.0, 3.0]]] * 2)
SPARSE = tf.sparse.from_dense(X)


def slices(*tensors):
    return tf.data.Dataset.from_tensor_slices(tensors)


@pytest.mark.parametrize(
    ("data", "names", "message"),
    [
        (
            tf.data.Dataset.from_tensor_slices({"image": X, "label": [0, 1] * 3}),
            None,
            "must give pairs of a sample and",
        ),
        (slices(X, [0, 1] * 3, X), None, "must give pairs of a sample and its label"),
        (tf.data.Dataset.from_tensor_slices(X), None, "must give pairs of a sample and its label"),
        (slices(X, [-1, 0, 1] * 2), ["a", "b"], "label -1 has no name: names are given for labels 0 to 1"),
        (slices(X, [0, 1, 2] * 2), ["a", "b"], "label 2 has no name"),
        (slices(X, list("ababab")), ["a", "b"], "label 'a' has no name"),
        (slices(X, [0, 1, 2] * 2), ["a", "b", "a"], "two labels have the same name"),
        (slices(X, [0, np.nan, 1] * 2), None, "labels must be integers or strings, not 0.0"),
        (
            slices(X, np.eye(3)[[0, 1, 2] * 2]),
            None,
            r"one label, but this one has labels of shape \(3,\).*argmax\(\) on one",
        ),
        (slices(X, [[0], [1]] * 3), None, r"labels of shape \(1,\)"),
        ([(np.zeros(1), 0), (np.zeros(1), "a")], None, "all integers or all strings, but 'a' is among others"),
        ([(np.zeros(1), None)], None, "labels must be integers or strings, not None"),
        ([(None, 1)], None, "samples must be dense arrays"),
        (slices({"a": X}, [0, 1] * 3), None, "samples must be dense arrays"),
        (slices(SPARSE, [0, 1] * 3), None, "samples must be dense arrays"),
        (slices(RAGGED, [0, 1]), None, "dense arrays|inhomogeneous"),
        (slices(list("abcdef"), [0, 1] * 3), None, "samples must be dense arrays"),
        ([(np.array([np.nan]), 0)], None, "samples of class 0 must be finite"),
    ],
)
def test_other_data_sets_are_refused(data, names, message):
    with pytest.raises(ValueError, match=message):
        rt.data.from_dataset(data, names)


def test_no_sample_of_a_data_set_is_lost():
    labels = np.random.default_rng(0).integers(0, 9, 200)
    x = np.arange(200.0)
    for given in (labels, labels.astype(np.uint8), labels - 4, labels.astype(str), labels.astype("S"), labels > 4):
        classes = rt.data.from_dataset(slices(x, given))
        assert classes.counts.sum() == len(x)
        for index, name in enumerate(classes.names):
            same = [
                str(int(g)) if isinstance(g, np.bool_) else (g.decode() if isinstance(g, bytes) else str(g))
                for g in given
            ]
            np.testing.assert_array_equal(classes.of_class(index), x[np.array(same) == name])


@pytest.mark.parametrize("store", [False, True])
def test_results_of_a_function_must_be_alike_and_numbers(glyphs, tmp_path, store):
    some = glyphs.subset(range(2))
    place = {"store": tmp_path / "store"} if store else {}

    def later(first, others):
        """A function that gives `first` for the first batch, and `others` afterwards."""
        calls = []

        def give(images):
            calls.append(0)
            return (first if len(calls) <= 1 + store else others)(len(images))

        return give

    for others, message in (
        (lambda n: np.full(n, 0.5), r"alike: float64 \(\) comes after int64 \(\)"),
        (lambda n: np.zeros((n, 1), np.int64), r"alike: int64 \(1,\) comes after int64 \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            some.map(later(lambda n: np.zeros(n, np.int64), others), batch=8, **place)
    for dtype in ("O", "U1", "c8"):
        with pytest.raises(ValueError, match="the function's results must be real numbers"):
            some.map(lambda images: np.zeros(len(images)).astype(dtype), **place)  # noqa: B023
    with pytest.raises(ValueError, match="the function's results must be finite"):
        some.map(lambda images: np.full(len(images), np.nan), **place)
    for batch in (0, -1):
        with pytest.raises(ValueError, match=f"batch must be at least 1, not {batch}"):
            some.map(embed, batch=batch, **place)
    with pytest.raises(ValueError, match="there are no samples to map"):
        some.subset([]).map(embed, **place)

    def half():
        return some.map(lambda images: tf.cast(embed(images), tf.bfloat16).numpy(), **place)

    if store:
        with pytest.raises(ValueError, match="bfloat16 cannot be stored: let the function give float32"):
            half()
    else:
        assert half().images.dtype == "bfloat16"
    assert not list(tmp_path.glob("*.npy"))


def test_images_of_data_sets_are_converted_as_files_are(tmp_path):
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (5, 7)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray((deep / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    colours = rng.integers(0, 256, (5, 7, 4), np.uint8)
    Image.fromarray(colours).save(tmp_path / "alpha.png")
    Image.fromarray(colours[..., :3]).save(tmp_path / "colours.png")
    for name, pixels in (
        ("deep.png", deep[..., np.newaxis]),
        ("float.tif", (deep / 65535)[..., np.newaxis]),
        ("alpha.png", colours),
        ("colours.png", colours[..., :3]),
    ):
        for channels in (1, 3):
            np.testing.assert_array_equal(
                decode.of_pixels(pixels, 4, channels), decode.read(tmp_path / name, 4, channels), err_msg=name
            )
    many = rng.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    np.testing.assert_array_equal(decode.of_pixels(many, 4, 3), decode.of_pixels((many >> 8).astype(np.uint8), 4, 3))
    for pixels in (np.zeros((2, 2, 3)), np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 1), np.int64)):
        with pytest.raises(ValueError, match="cannot be converted: use uint8"):
            decode.of_pixels(pixels, 2, 3)
    with pytest.raises(ValueError, match=r"not all from 0 to 1\.0"):
        decode.of_pixels(np.full((2, 2, 1), 200.0), 2, 3)
