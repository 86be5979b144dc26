"""Splits classes into sets for training, validation and testing."""

import difflib
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.data.listing import sets_of
from reptile_tf.errors import UserError
from reptile_tf.fetch.image_files import SETS
from reptile_tf.progress import log

SHARES = "64,16,20"  # the split of Mini-ImageNet's hundred classes


def split_classes(
    classes: ImageClasses,
    split: str = "",
    seed: int = 0,
    ways: int = 5,
    train_images: int = 1,
    test_images: int = 1,
) -> dict[str, ImageClasses]:
    """Splits classes into the sets "train", "test" and optionally "val", and logs their sizes.

    Args:
      classes: all classes, named "SET/CLASS" if they already belong to sets.
      split: shares or the path of a file of names, see `split_names`. With "" the sets in the names are used, or
        `SHARES` if the names have none.
      seed: random seed of a split by shares.
      ways: number of classes per task. By shares, each set gets at least that many.
      train_images: number of images that a training task needs of a class. A split by shares puts no smaller class into
        the training set.
      test_images: the same for validation and test tasks.

    Returns:
      The classes of each set, in their original order; the images are shared, not copied.

    Raises:
      UserError: see `split_names`.
    """
    counts = dict(zip(classes.names, classes.counts.tolist(), strict=True))
    where = {name: index for index, name in enumerate(classes.names)}
    sets = split_names(counts, split, seed, ways, train_images, test_images)
    validating = f"{len(sets['val']):,} for validation" if "val" in sets else "none for validation"
    shares = None if sets_of(classes.names) else _as_shares(split)
    if shares and shares[1] and "val" not in sets:
        validating += f" (which would take {3 * ways} classes for {ways} ways)"
    log.info(f"{len(sets['train']):,} classes to train on, {validating}, {len(sets['test']):,} for testing")
    if left_out := sorted(where.keys() - {name for names in sets.values() for name in names}, key=where.__getitem__):
        if shares:
            log.info(f"classes left out, with too few images: {len(left_out)}, such as {left_out[0]}")
        else:
            log.warning(f"classes left out, since {split} does not name them: {len(left_out):,}")
    return {part: classes.subset([where[name] for name in names]) for part, names in sets.items()}


def split_names(
    counts: Mapping[str, int],
    split: str = "",
    seed: int = 0,
    ways: int = 5,
    train_images: int = 1,
    test_images: int = 1,
) -> dict[str, list[str]]:
    """Splits like `split_classes`, but takes the number of images of each class, returns names, and logs nothing.

    Shares are two or three numbers, as in 80,20 (training and testing) or 64,16,20 (training, validation and testing),
    relative to their sum. The result depends only on the seed, the names, and which classes have too few images. Each
    set gets at least `ways` classes. With fewer than 3 * `ways` classes there is no validation set.

    A file of names is a text file (UTF-8) with one name per line: a class, or a NAME that stands for all classes
    "NAME/…", such as an alphabet of Omniglot or a folder of class folders. These classes are for testing, and all
    others for training. Lines `val,NAME` and `train,NAME` assign classes to those sets; if any line has train, classes
    that no line names are left out. Empty lines and lines that begin with # are ignored.

    Raises:
      UserError: the names already have sets, but `split` is given; `split` is neither shares nor a readable file; too
        few classes have enough images; or the file names an unknown class, puts one into two sets, or leaves a set
        empty.
    """
    names = list(counts)
    if sets := sets_of(names):
        if split:
            raise UserError(f"the classes are in the sets train and test already: leave --split {split} out")
        return {part: [n for n in names if sets[n] == part] for part in SETS if part in sets.values()}
    shares = _as_shares(split)
    return _by_shares(counts, shares, seed, ways, train_images, test_images) if shares else split_by_file(names, split)


def split_by_file(names: Sequence[str], path: str | os.PathLike) -> dict[str, list[str]]:
    """Returns the names of the classes in each set, from a file of names; see `split_names` for format and errors."""
    sets: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file.read().splitlines()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--split {path} is neither shares, as in {SHARES}, nor a file of names that can be read ({reason})"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        part, _, wanted = (text.strip() for text in line.partition(","))
        if part not in SETS or not wanted:
            part, wanted = "test", line
        of_line = [name for name in names if name == wanted or name.startswith(f"{wanted}/")]
        if not of_line:
            near = difflib.get_close_matches(wanted, {*names, *(name.rpartition("/")[0] for name in names)}, 1)
            hint = f"; did you mean {near[0]}?" if near and near[0] else ""
            raise UserError(f"{path}, line {number}: no class or group of classes is called {wanted}{hint}")
        for name in of_line:
            if sets.setdefault(name, part) != part:
                raise UserError(f"{path}, line {number}: {name} is for {part} here and for {sets[name]} before")
    rest = None if "train" in sets.values() else "train"
    split = {part: [name for name in names if sets.get(name, rest) == part] for part in SETS}
    for part in ("train", "test"):
        if not split[part]:
            raise UserError(f"{path} leaves no classes for the set {part}; name fewer for the others, or some for it")
    return {part: chosen for part, chosen in split.items() if chosen}


def _as_shares(split: str) -> tuple[float, float, float] | None:
    """Returns the shares of train, val and test; None if `split` is the name of a file."""
    texts = (split or SHARES).split(",")
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return None
    train, val, test = (numbers[0], 0.0, numbers[1]) if len(numbers) == 2 else (*numbers, 0.0, 0.0)[:3]
    if not (2 <= len(numbers) <= 3 and train > 0 and val >= 0 and test > 0 and math.isfinite(train + val + test)):
        raise UserError(
            f"--split {split}: shares must be two or three numbers, as in 80,20 or {SHARES}, of which only that of "
            "validation may be 0"
        )
    return train, val, test


def _by_shares(
    counts: Mapping[str, int],
    shares: tuple[float, float, float],
    seed: int,
    ways: int,
    train_images: int,
    test_images: int,
) -> dict[str, list[str]]:
    names = sorted(name for name, count in counts.items() if count >= min(train_images, test_images))
    if len(names) < 2 * ways:
        small = f" with {min(train_images, test_images)} images or more" if len(names) < len(counts) else ""
        raise UserError(
            f"{len(names)} classes{small} cannot be split: tasks of {ways} ways need {ways} classes to train on and "
            f"{ways} others to test on; lower --classes, or add classes"
        )
    wanted = {part: share for part, share in zip(SETS, shares, strict=True) if share}
    if len(names) < 3 * ways:
        wanted.pop("val", None)
    total = sum(wanted.values())
    sizes = {part: max(ways, round(len(names) * (share / total))) for part, share in wanted.items()}
    while sum(sizes.values()) > len(names):
        sizes[max(sizes, key=lambda part: sizes[part])] -= 1
    sizes["train"] += len(names) - sum(sizes.values())
    # An array of the names themselves would cut off NUL characters at their ends.
    shuffled = [names[i] for i in np.random.Generator(np.random.Philox(seed)).permutation(len(names))]
    # Classes that are too small to test on come first, and those too small to train on are passed over.
    to_train_on = sorted((n for n in shuffled if counts[n] >= train_images), key=lambda n: counts[n] >= test_images)
    needed = [name for name in to_train_on if counts[name] < test_images]
    train = to_train_on[: max(sizes["train"], len(needed))]
    taken = set(train)
    others = [name for name in shuffled if counts[name] >= test_images and name not in taken]
    if len(train) < ways or len(others) < ways:
        raise UserError(
            f"{ways} ways need {ways} classes of {train_images} images to train on and {ways} others of {test_images} "
            f"to test on, but there are {len(train)} and {len(others)}; lower --classes or the shots, or add images"
        )
    validating = min(sizes.get("val", 0), len(others) - ways)
    validating = validating if validating >= ways else 0
    chosen = {"train": taken, "val": set(others[:validating]), "test": set(others[validating:])}
    return {part: [name for name in counts if name in of] for part, of in chosen.items() if of}
