"""Tests of sampling: tasks and minibatches as in the original code, from a generator that can start at any task."""

import dataclasses

import numpy as np
import pytest

from reptile_tf import tasks
from reptile_tf.data import ImageClasses
from reptile_tf.errors import UserError

TRAINING = {"way": 5, "shots": 4, "batch": 6, "steps": 7, "seed": 3}


def numbers(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def numbered(glyphs):
    """Forty classes of eight images. Each image is one number; those of class c are 8 c to 8 c + 7."""
    return dataclasses.replace(glyphs, images=np.arange(320, dtype=np.uint16).reshape(320, 1, 1, 1))


def drawn_for(purpose, classes, count):
    """Returns class and number within it of the images of tasks, int [task, label, image] each; the query is last."""
    common = {"way": 5, "batch": 5, "steps": 2, "seed": 0, "count": count}
    if purpose == "training":
        x = tasks.training_tasks(classes, iteration=0, shots=3, query_shots=1, **common).x.reshape(count, 5, 3)
    else:
        batch = tasks.evaluation_tasks(classes, shots=2, **common)
        x = np.concatenate([batch.support.x.reshape(count, 5, 2), batch.query_x.reshape(count, 5, 1)], axis=2)
    return np.divmod(x, 8)


def test_minibatches_are_dealt_from_shuffles_and_may_straddle_them():
    dealt = tasks.deal_minibatches(5, 3, 10, False, numbers())
    for shuffle in dealt.ravel().reshape(6, 5):
        assert sorted(shuffle) == [0, 1, 2, 3, 4]
    shuffles = {tuple(shuffle) for shuffle in dealt.ravel().reshape(6, 5)}
    assert len(shuffles) > 1
    assert any(len(set(minibatch)) < 3 for minibatch in dealt)  # a minibatch across two shuffles has a sample twice


def test_with_replacement_minibatches_are_drawn_apart_but_no_sample_twice_in_one():
    dealt = tasks.deal_minibatches(5, 4, 50, True, numbers())
    assert all(len(set(minibatch)) == 4 for minibatch in dealt)
    # Dealing without replacement would use each sample exactly 40 times.
    assert len(set(np.bincount(dealt.ravel()))) > 1
    with pytest.raises(ValueError, match="minibatch of 6 cannot be drawn from 5"):
        tasks.deal_minibatches(5, 6, 1, True, numbers())


def test_a_minibatch_may_be_larger_than_the_task_without_replacement():
    dealt = tasks.deal_minibatches(2, 5, 2, False, numbers())
    assert np.bincount(dealt.ravel()).tolist() == [5, 5]


def test_a_draw_has_different_classes_and_different_images_of_each(numbered):
    for seed in range(20):
        drawn = tasks.draw_images(numbered, 5, 8, numbers(seed))[1].reshape(5, 8)
        classes = drawn // 8
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0])) == 5
        assert all(len(set(row)) == 8 for row in drawn)


def test_label_i_is_the_ith_class_drawn_and_indexes_reach_its_images(glyphs):
    batch = tasks.training_tasks(glyphs, iteration=0, count=2, **TRAINING)
    for task in range(2):
        rng = tasks.generator(3, tasks.TRAINING, 0, task)
        _, drawn = tasks.draw_images(glyphs, 5, 4, rng)
        for label in range(5):
            np.testing.assert_array_equal(batch.x[task][batch.y[task] == label], drawn[label])


@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_every_class_has_every_label_equally_often(numbered, purpose):
    """Each of 40 classes gets each of 5 labels 25 times, with a standard deviation of 5."""
    classes, _ = drawn_for(purpose, numbered, 1000)
    for label in range(5):
        counts = np.bincount(classes[:, label, 0], minlength=40)
        assert 0 < counts.min() <= counts.max() < 60


@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_every_image_of_a_class_is_the_query_equally_often(numbered, purpose):
    """Each of 8 images is the query 625 times, with a standard deviation of about 25."""
    _, images = drawn_for(purpose, numbered, 1000)
    counts = np.bincount(images[:, :, -1].ravel(), minlength=8)
    assert 500 < counts.min() <= counts.max() < 750


def test_training_looks_and_evaluation_draw_other_tasks(numbered):
    """This holds for the same seed, iteration and task number."""
    streams = tasks.TRAINING, tasks.MONITORING, tasks.EVALUATION
    assert len({tasks.generator(0, stream, 0, 0).random() for stream in streams}) == 3
    in_training, in_evaluation = (drawn_for(purpose, numbered, 20)[0] for purpose in ("training", "evaluation"))
    assert not (in_training == in_evaluation).all((1, 2)).any()


def test_images_of_rotated_classes_are_turned(glyphs):
    upright = glyphs.of_class(3)
    turned = glyphs.subset([3]).with_rotations()
    for index in range(4):
        batch = tasks.training_tasks(turned.subset([index]), iteration=0, count=1, **(TRAINING | {"way": 1}))
        for image in batch.x[0]:
            assert any(np.array_equal(image, np.rot90(one, index)) for one in upright)


def test_seeds_of_64_bits_are_told_apart():
    drawn = {tasks.generator(seed, tasks.TRAINING, 0, 0).random() for seed in (2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1)}
    assert len(drawn) == 4


def test_a_task_depends_on_seed_iteration_and_number_alone(glyphs):
    few = tasks.training_tasks(glyphs, iteration=7, count=2, **TRAINING)
    many = tasks.training_tasks(glyphs, iteration=7, count=5, **TRAINING)
    np.testing.assert_array_equal(few.x, many.x[:2])
    np.testing.assert_array_equal(few.minibatches, many.minibatches[:2])
    for other in ({"iteration": 8}, {"iteration": 7, "seed": 4}):
        assert (tasks.training_tasks(glyphs, count=2, **(TRAINING | other)).x != few.x).any()
    assert (many.x[0] != many.x[1]).any()


def test_evaluation_numbers_tasks_alike_in_any_batching(glyphs):
    arguments = {"way": 5, "shots": 2, "batch": 5, "steps": 3, "seed": 0}
    whole = tasks.evaluation_tasks(glyphs, first=0, count=6, **arguments)
    part = tasks.evaluation_tasks(glyphs, first=4, count=2, **arguments)
    np.testing.assert_array_equal(whole.query_x[4:], part.query_x)
    np.testing.assert_array_equal(whole.support.minibatches[4:], part.support.minibatches)


def test_no_query_image_is_in_the_support_set(glyphs):
    batch = tasks.evaluation_tasks(glyphs, way=5, shots=7, batch=5, steps=1, seed=0, count=10)
    support = batch.support.x.reshape(10, 5, 7, -1)
    query = batch.query_x.reshape(10, 5, 1, -1)
    assert not (support == query).all(-1).any()


def test_foml_parts_the_last_minibatch_from_the_others(glyphs):
    reptile = tasks.training_tasks(glyphs, iteration=0, count=2, **TRAINING)
    foml = tasks.training_tasks(glyphs, iteration=0, count=2, query=True, **TRAINING)
    np.testing.assert_array_equal(np.concatenate([foml.minibatches, foml.query], 1), reptile.minibatches)


def test_a_query_minibatch_of_its_own_shots_is_all_of_them_and_no_other_step_sees_them(glyphs):
    batch = tasks.training_tasks(glyphs, iteration=0, count=3, query=True, query_shots=1, **TRAINING)
    assert batch.minibatches.shape[1] == TRAINING["steps"] - 1
    for task in range(3):
        query = batch.query[task, 0]
        assert sorted(batch.y[task][query]) == [0, 1, 2, 3, 4]
        assert not set(query) & set(batch.minibatches[task].ravel())
        assert set(batch.minibatches[task].ravel()) | set(query) == set(range(20))


def test_too_few_classes_or_images_are_named(glyphs):
    with pytest.raises(UserError, match="41 ways need 41 classes for training, but there are 40; lower"):
        tasks.check_enough(glyphs, 41, 1, "training")
    with pytest.raises(UserError, match="there are 0 with the 9 images that evaluation needs .* glyph0000 has 8; low"):
        tasks.check_enough(glyphs, 5, 9, "evaluation")
    assert not len(tasks.check_enough(glyphs, 40, 8, "training"))
    assert tasks.with_enough(glyphs, 40, 8, "training") is glyphs


def test_classes_with_too_few_images_are_left_out_and_counted(glyphs, capsys):
    uneven = dataclasses.replace(glyphs, counts=np.where(np.arange(40) % 4, 8, 3))
    left = tasks.with_enough(uneven, 30, 4, "training")
    assert left.names == tuple(name for i, name in enumerate(glyphs.names) if i % 4)
    assert capsys.readouterr().out == (
        "10 of 40 classes have fewer than 4 images and are left out of training, such as glyph0000 with 3\n"
    )
    with pytest.raises(UserError, match="31 ways need 31 classes for training, but there are 30 with the 4 images"):
        tasks.with_enough(uneven, 31, 4, "training")


def test_a_task_of_an_evaluation_says_what_classes_it_is_of(glyphs):
    batch = tasks.evaluation_tasks(glyphs, way=5, shots=2, batch=5, steps=1, seed=0, count=3)
    for task in range(3):
        for label, number in enumerate(batch.classes[task]):
            of_class = {image.tobytes() for image in glyphs.of_class(number)}
            assert batch.query_x[task, label].tobytes() in of_class
            assert {image.tobytes() for image in batch.support.x[task][batch.support.y[task] == label]} <= of_class


@pytest.mark.parametrize("seed", range(40))
def test_tasks_are_drawn_as_numpy_draws_without_replacement(seed):
    """This holds for classes of any sizes, rotated and mirrored classes, and large samples."""
    rng = np.random.default_rng(seed)
    groups = {str(i): rng.integers(0, 256, (int(rng.integers(9, 90)), 4, 4, 1), np.uint8) for i in range(100)}
    classes = ImageClasses.from_groups(groups)
    classes = classes.with_rotations() if seed % 3 == 1 else classes
    classes = classes.with_flips() if seed % 5 == 1 else classes
    way, shots = 60 if seed % 4 == 3 else int(rng.integers(1, 30)), int(rng.integers(1, 10))
    ours, numpys = (tasks.generator(seed, tasks.TRAINING, 1, 2) for _ in range(2))
    chosen, images = tasks.draw_images(classes, way, shots, ours)
    expected = numpys.choice(len(classes), way, replace=False)
    np.testing.assert_array_equal(chosen, expected)
    for row, index in zip(images, expected, strict=True):
        which = numpys.choice(classes.counts[index], shots, replace=False)
        np.testing.assert_array_equal(row, classes.of_class(index, which))
    assert ours.integers(2**62) == numpys.integers(2**62)


def test_more_than_there_are_cannot_be_drawn(glyphs):
    with pytest.raises(ValueError, match="5000 cannot be drawn from|larger sample"):
        tasks.draw_images(glyphs, 5000, 1, tasks.generator(0, 0, 0, 0))
    with pytest.raises(ValueError, match="30 cannot be drawn from 8 without replacement"):
        tasks.draw_images(glyphs, 5, 30, tasks.generator(0, 0, 0, 0))
