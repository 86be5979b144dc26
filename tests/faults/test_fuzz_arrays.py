"""Tests random arrays, data sets and functions as classes: right, or rejected in one line. What is accepted trains.

FAULTS_EXAMPLES is their number (5,000 in `make faults`), and FAULTS_SEED the random seed.
"""

import collections
import itertools
import os
import time
from functools import partial

import keras
import ml_dtypes
import numpy as np
import pytest

import reptile_tf as rt
from reptile_tf.errors import UserError

EXAMPLES = int(os.environ.get("FAULTS_EXAMPLES", "60"))
SEED = int(os.environ.get("FAULTS_SEED", time.time_ns() % 2**32))  # by default, other examples every time
TRAINED = max(2, EXAMPLES // 50)  # of those accepted; each compiles a program

NUMBERS = [np.dtype(name) for name in ("f2", "f4", "f8", ">f8", "i1", "u1", "i8", ">u2", "?", ml_dtypes.bfloat16)]
OTHERS = [np.dtype(name) for name in ("c8", "U3", "S2", "O", "datetime64[s]")]
SHAPES = [(), (3,), (2, 3), (2, 2, 1), (1, 2, 1, 2)]
NAMES = ["a", "b", 1, "1", 2.5, "größe", "a/b", np.int64(7), "", "x" * 300]


def choice(rng, options):
    """Chooses one of the options without converting it to an array."""
    return options[rng.integers(len(options))]


def samples(rng, count, shape, dtype):
    """Draws samples of a dtype, with one infinite or NaN value now and then; returns them and if they are sound."""
    numbers = rng.integers(0, 100, (count, *shape))
    given = numbers.astype(dtype)
    if dtype.kind not in "fV" or not given.size or rng.random() < 0.8:
        return given, dtype in NUMBERS
    given.reshape(-1)[rng.integers(given.size)] = choice(rng, [np.nan, np.inf, -np.inf])
    return given, False


def groups(rng):
    """Draws arguments of `from_groups`, mostly sound, and whether they are."""
    shape, dtype = choice(rng, SHAPES), choice(rng, NUMBERS * 4 + OTHERS)
    given, sound = {}, True
    for name in itertools.islice(rng.permutation(np.array(NAMES, object)), int(rng.integers(0, 7))):
        other = choice(rng, SHAPES) if rng.random() < 0.05 else shape
        given[name], of_class = samples(rng, int(rng.integers(0, 6)), other, dtype)
        sound &= of_class
    one_shape = len({group.shape[1:] for group in given.values()}) == 1
    return given, sound and one_shape and len({str(name) for name in given}) == len(given)


def pairs(rng):
    """Draws arguments of `from_dataset`, and the samples of each class, or None if they are not sound."""
    count, shape = int(rng.integers(0, 12)), choice(rng, SHAPES)
    x, sound = samples(rng, count, shape, choice(rng, NUMBERS * 4 + [dtype for dtype in OTHERS if dtype.kind != "O"]))
    numbers = rng.integers(-1 if rng.random() < 0.1 else 0, 4, count)
    labels = choice(
        rng,
        [numbers, numbers, numbers.astype(np.uint8), list(map(str, numbers)), [str(n).encode() for n in numbers],
         numbers > 1, numbers / 2, [None] * count, np.eye(6)[numbers], [int(n) if n else "none" for n in numbers]],
    )  # fmt: skip
    is_text = [isinstance(label, str | bytes) for label in labels]
    is_whole = [isinstance(label, int | np.integer | np.bool_) for label in labels]
    names = choice(rng, [None, None, None, list("abcd"), list("abc"), list("aba")])
    sound &= count > 0 and (all(is_whole) or (all(is_text) and names is None))
    if sound and names:
        sound = len(set(names)) == len(names) and min(labels) >= 0 and max(labels) < len(names)
    elements = [choice(rng, [tuple, list])(pair) for pair in zip(x, labels, strict=True)]
    if rng.random() < 0.1 and elements:
        odd = choice(rng, [{"image": x[0], "label": 0}, (x[0],), (x[0], 0, 0), x[0], None, 7])
        elements.insert(int(rng.integers(len(elements) + 1)), odd)
        sound = False
    if not sound:
        return (elements, names), None
    expected = collections.defaultdict(list)
    for sample, label in zip(x, labels, strict=True):
        text = label.decode() if isinstance(label, bytes) else label
        name = names[int(label)] if names else text if isinstance(text, str) else str(int(text))
        expected[name].append(sample)
    return (elements, names), expected


def function(rng):
    """Draws a function for `map`, and whether it gives a result for each sample, all alike."""
    dtype = choice(rng, NUMBERS)

    def plain(x):
        return (x.reshape(len(x), -1).astype(np.float64).sum(1) % 100).astype(dtype)

    def columns(x):
        return np.stack([plain(x), plain(x)], 1)

    calls = itertools.count()
    odd = [
        lambda x: plain(x)[:-1],
        lambda x: plain(x).sum(),
        lambda x: np.full(len(x), np.nan),
        lambda x: np.array([None] * len(x)),
        lambda x: plain(x).astype("c8"),
        lambda x: columns(x)[:, : 1 + next(calls) % 2],
        lambda x: plain(x).astype(("f4", "f8")[next(calls) % 2]),
        lambda x: ["a"] * len(x),
    ]
    return (choice(rng, odd), False) if rng.random() < 0.3 else (choice(rng, [plain, columns]), True)


def outcome(call):
    """Calls a function; returns its result, or None if it was rejected, which must be in one line."""
    try:
        return call()
    except (ValueError, UserError) as error:
        lines = str(error).splitlines()
    assert len(lines) == 1, lines
    return None


def trained(classes):
    """Meta-trains a small network on two classes; returns its weights."""
    keras.utils.set_random_seed(0)
    shape = classes.images.shape[1:]
    model = keras.Sequential([keras.layers.Input(shape), keras.layers.Reshape((-1,)), keras.layers.Dense(2)])
    settings = rt.Settings(classes=2, shots=1, train_shots=2, inner_batch=2, inner_iters=2, meta_batch=2, meta_iters=3)
    rt.meta_train(model, classes, settings)
    return np.concatenate([weight.numpy().ravel() for weight in model.trainable_variables])


def test_any_arrays_are_the_classes_asked_for_or_refused_in_one_line(tmp_path, record_property):
    print(f"FAULTS_SEED={SEED}")  # shown where it fails
    outcomes, began, to_train = collections.Counter(), time.monotonic(), []
    for number in range(EXAMPLES):
        rng = np.random.default_rng([SEED, 2, number])
        given, sound = groups(rng)
        classes = outcome(partial(rt.ImageClasses.from_groups, given))
        assert (classes is not None) == sound, given
        if classes:
            for index, (name, group) in enumerate(given.items()):
                assert classes.names[index] == str(name)
                np.testing.assert_array_equal(classes.of_class(index), group)
        outcomes["groups", sound] += 1

        (elements, names), expected = pairs(rng)
        from_pairs = outcome(partial(rt.data.from_dataset, elements, names))
        assert (from_pairs is not None) == (expected is not None), (elements, names)
        if from_pairs:
            assert set(from_pairs.names) == expected.keys()
            for index, name in enumerate(from_pairs.names):
                np.testing.assert_array_equal(from_pairs.of_class(index), np.stack(expected[name]))
        outcomes["pairs", bool(from_pairs)] += 1

        for whole in filter(None, (classes, from_pairs)):
            if (np.sort(whole.counts)[-2:] > 1).sum() == 2:
                to_train.append(whole)
            give, sound = function(rng)
            batch, total = int(rng.integers(0, 9)), int(whole.counts.sum())
            store = tmp_path / f"{number}" if rng.random() < 0.5 else None
            call = partial(whole.map, give, batch, store)
            mapped = outcome(call)
            if not sound and mapped:  # it may be odd only from the second batch on
                assert total <= 2 * batch
            if sound and batch and total:
                expected_dtype = give(whole.images[:1]).dtype
                assert (mapped is None) == (store is not None and expected_dtype == ml_dtypes.bfloat16)
            if mapped and sound:
                for index in range(len(whole)):
                    if whole.counts[index]:
                        np.testing.assert_array_equal(mapped.of_class(index), give(whole.of_class(index)))
                if store:
                    np.testing.assert_array_equal(call().images, mapped.images)
            outcomes["map", bool(mapped)] += 1
    for classes in to_train[:: max(1, len(to_train) // TRAINED)][:TRAINED]:
        plain = rt.ImageClasses(classes.images.astype(np.float32), classes.starts, classes.counts, classes.names)
        np.testing.assert_allclose(trained(classes), trained(plain), rtol=1e-5, atol=1e-6)
        outcomes["trained"] += 1
    counts = "; ".join(
        f"{what}: {outcomes[what, True]:,} accepted, {outcomes[what, False]:,} refused"
        for what in ("groups", "pairs", "map")
    )
    seconds = time.monotonic() - began
    record_property("counts", f"{counts}; {outcomes['trained']} trained; in {seconds:.0f} s (FAULTS_SEED={SEED})")
    assert all(
        outcomes[what, answer] > EXAMPLES // 10 for what in ("groups", "pairs", "map") for answer in (True, False)
    )


@pytest.mark.parametrize("drawn", [None, {}, 7, (), "tasks"])
def test_a_sampler_of_other_things_is_refused_in_one_line(drawn):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="the function that draws tasks must return rt.tasks.Tasks, not "):
        rt.meta_train(model, lambda **_: drawn, rt.Settings(classes=2, meta_iters=1))
    if drawn is not None:
        with pytest.raises(ValueError, match="classes must be ImageClasses, .* or a function that draws tasks, not "):
            rt.meta_train(model, drawn, rt.Settings(classes=2, meta_iters=1))
