"""Tests that the synthetic glyphs are reproducible, and as difficult and as heavy as Omniglot's characters."""

import time

import numpy as np
import pytest

from reptile_tf.data import glyphs


@pytest.fixture(scope="module")
def many():
    return glyphs.load(classes=300)


def test_the_seed_alone_decides(many):
    again = glyphs.load(classes=300)
    np.testing.assert_array_equal(again.images, many.images)
    assert (glyphs.load(classes=300, seed=1).images != many.images).any(axis=(1, 2, 3)).mean() > 0.99


def test_fewer_classes_or_drawings_are_the_first_ones_of_more(many):
    few = glyphs.load(classes=70, drawings=3)
    assert few.names == many.names[:70]
    for i in range(70):
        np.testing.assert_array_equal(few.of_class(i), many.of_class(i)[:3])


def test_pixels_are_0_for_ink_and_1_for_background(many):
    assert many.images.dtype == np.uint8
    assert np.unique(many.images).tolist() == [0, 1]
    assert many.scale == 1


def test_ink_and_margins_are_those_of_omniglot(many):
    """Omniglot at 28x28 has 8.05 % ink, and heights of 9, 16, 23 and widths of 8, 15, 22 at percentiles 5, 50, 95."""
    ink = many.images[..., 0] == 0
    share = ink.mean(axis=(1, 2))
    assert share.mean() == pytest.approx(0.0805, abs=0.008)
    assert share.min() > 0
    for axis in (1, 2):
        used = ink.any(axis=axis)
        extent = 28 - used.argmax(axis=1) - used[:, ::-1].argmax(axis=1)
        np.testing.assert_allclose(np.percentile(extent, [5, 50, 95]), [8.5, 15.5, 22.5], atol=2)


def test_pixels_alone_neither_fail_nor_suffice_to_tell_classes_apart(many):
    """Nearest neighbour, 5-way 1-shot, reaches 47 % on Omniglot (chance: 20 %); the mean of 19 shots does better."""
    rng = np.random.default_rng(0)
    by_picture, by_mean = [], []
    for _ in range(400):
        tasks = np.stack([many.of_class(i) for i in rng.choice(300, 5, replace=False)]).reshape(5, 20, -1) == 0
        query = tasks[:, 0].astype(float)
        for support, hits in ((tasks[:, 1], by_picture), (tasks[:, 1:].mean(axis=1), by_mean)):
            likeness = query @ (support / np.linalg.norm(support, axis=1, keepdims=True)).T
            hits.append(np.mean(likeness.argmax(axis=1) == np.arange(5)))
    assert 0.42 < np.mean(by_picture) < 0.65
    assert np.mean(by_mean) > 0.70


def test_all_of_them_take_seconds():
    start = time.process_time()
    everything = glyphs.load()
    assert time.process_time() - start < 10
    assert len(everything) == 1623
    assert len(np.unique(everything.images.reshape(1623, -1), axis=0)) == 1623
