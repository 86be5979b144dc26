"""Tests of classes of arrays: results of a function, in memory or in a store, and data sets."""

import numpy as np
import pytest
import tensorflow as tf

import reptile_tf as rt


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
    with pytest.raises(ValueError, match=r"call unbatch\(\) on it"):
        rt.data.from_dataset(pairs.batch(2))
    with pytest.raises(ValueError, match="of one shape, but there are none"):
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
