"""The type of every data set: images grouped by class."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def check_dtype(dtype: np.dtype, what: str) -> None:
    """Raises ValueError unless a dtype is one of real numbers; `what` names the array in the message."""
    if dtype.kind not in "biuf" and dtype.name != "bfloat16":  # which NumPy takes for a structure, kind V
        raise ValueError(f"{what} must be real numbers, not {dtype}")


def check_numbers(samples: np.ndarray, what: str) -> None:
    """Raises ValueError unless an array holds finite real numbers."""
    check_dtype(samples.dtype, what)
    if samples.dtype.kind in "fV" and not np.isfinite(samples).all():
        raise ValueError(f"{what} must be finite, but some are infinite or NaN")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # arrays have no single truth value to compare by
class ImageClasses:
    """Images grouped by class. Classes may differ in size. Derived objects share the images and do not copy them.

    Attributes:
      images: uint8 [image, height, width, channel]; the images of a class are adjacent. May be memory-mapped.
      starts: int64 [class], index of the first image of each class.
      counts: int64 [class], number of images of each class.
      names: one unique name per class.
      scale: factor by which pixels are multiplied for the network (1 for 0/1 images, 1/255 for photographs).
      turns: quarter turns counterclockwise by which each class's images are rotated when read, so that rotated classes
        need no memory; () for none.
      flips: whether each class also has its images mirrored, which are made when read, as the second half of the class;
        `counts` includes them.
    """

    images: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    scale: float = 1.0
    turns: tuple[int, ...] = ()
    flips: bool = False

    def __post_init__(self):
        """Raises ValueError if the samples are not real numbers."""
        check_dtype(self.images.dtype, "samples")

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.names)

    def __repr__(self) -> str:
        """The numbers of classes and samples, and the shape of a sample."""
        return f"{type(self).__name__}({len(self):,} classes, {self.counts.sum():,} of {self.images.shape[1:]})"

    @classmethod
    def from_groups(cls, groups: dict[Any, np.ndarray], scale: float = 1.0) -> "ImageClasses":
        """Joins `{class name: uint8 [image, height, width, channel]}` in the order of the dict.

        Samples may also be other arrays of finite numbers, [sample, ...]. Names are converted to strings.

        Raises:
          ValueError: there are no classes; two names are equal as strings; or the samples are not finite real numbers,
            or of different shapes.
        """
        names = tuple(str(name) for name in groups)
        if not names or len(set(names)) < len(names):
            raise ValueError("two classes have the same name" if names else "there are no classes")
        groups = {name: np.asarray(group) for name, group in zip(names, groups.values(), strict=True)}
        first = groups[names[0]]
        for name, group in groups.items():
            check_numbers(group, f"the samples of class {name}")
            if not group.ndim or group.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"all samples must have one shape, but class {names[0]} is an array of {first.shape} and class "
                    f"{name} one of {group.shape}"
                )
        counts = np.array([len(group) for group in groups.values()], np.int64)
        return cls(
            images=np.concatenate(list(groups.values())),
            starts=np.cumsum(counts) - counts,
            counts=counts,
            names=names,
            scale=scale,
        )

    def of_class(self, index: int, which: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Returns the images of one class, or those at the indices `which`: uint8 [image, height, width, channel]."""
        count = int(self.counts[index]) // (2 if self.flips else 1)
        images = self.images[self.starts[index] : self.starts[index] + count]
        if self.flips:
            which = np.arange(2 * count)[which]
            images = images[which % count]
            images[which >= count] = images[which >= count][:, :, ::-1]
        else:
            images = images[which]
        return np.rot90(images, self.turns[index], axes=(1, 2)) if self.turns else images

    def of_classes(self, indices: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Returns a copy of the images `which`, int [class, image], of the classes `indices`: [class, image, ...]."""
        if self.flips:
            return np.stack([self.of_class(*each) for each in zip(indices, which, strict=True)])
        images = self.images[self.starts[indices][:, np.newaxis] + which]
        for row, index in enumerate(indices if self.turns else ()):
            if turns := self.turns[index]:  # np.rot90 written out, which would add a third to the time of a draw
                half = images[row, :, ::-1, ::-1] if turns > 1 else images[row]
                images[row] = half.swapaxes(1, 2)[:, ::-1] if turns % 2 else half
        return images

    def numbered(self) -> tuple[np.ndarray, "ImageClasses"]:
        """Separates the images from the classes, so that tasks can be drawn as indices of images.

        Returns:
          All images, rotated and mirrored, uint8 [image, height, width, channel]; and the classes, whose `images` are
          their indices, int32 [image].
        """
        images = np.concatenate([self.of_class(index) for index in range(len(self))])
        numbers, starts = np.arange(len(images), dtype=np.int32), np.cumsum(self.counts) - self.counts
        return images, dataclasses.replace(self, images=numbers, starts=starts, turns=(), flips=False)

    def without_variety(self) -> list[str]:
        """The names of classes of several images that are all the same; of a class and its rotations, the class's."""

        def alike(index: int) -> bool:
            images = self.of_class(index)
            # The second first: nearly always it differs, and images that are mapped need not be read.
            return len(images) > 1 and np.array_equal(images[0], images[1]) and bool((images == images[0]).all())

        upright = [index for index in range(len(self)) if not (self.turns and self.turns[index])]
        return [self.names[index] for index in upright if alike(index)]

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageClasses":
        """Returns the classes at `indices` (int [class]), in that order. The images are shared, not copied.

        Raises:
          ValueError: the indices are not integers.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.dtype.kind not in "iu" and indices.size):
            raise ValueError(f"indices must be integers [class], not {indices.dtype} {list(indices.shape)}")
        indices = indices.astype(np.int64)
        names = tuple(self.names[i] for i in indices)
        turns = tuple(self.turns[i] for i in indices) if self.turns else ()
        return dataclasses.replace(
            self, starts=self.starts[indices], counts=self.counts[indices], names=names, turns=turns
        )

    def split(self, n_train: int, seed: int) -> tuple["ImageClasses", "ImageClasses"]:
        """Shuffles the classes by `seed` and splits them: `n_train` of them, and the rest.

        Raises:
          ValueError: there are not more than `n_train` classes, or some are rotations of others.
        """
        if any(self.turns):
            raise ValueError("a class and its rotations would be in both parts: split first, then add rotations")
        if not 0 < n_train < len(self):
            raise ValueError(f"n_train must be from 1 to {len(self) - 1} here, not {n_train}")
        order = np.random.Generator(np.random.Philox(seed)).permutation(len(self))
        return self.subset(order[:n_train]), self.subset(order[n_train:])

    def map(
        self, function: Callable[[np.ndarray], Any], batch: int = 256, store: str | os.PathLike | None = None
    ) -> "ImageClasses":
        """Returns classes of a function's results for the samples, computed once; see `arrays.mapped`."""
        from reptile_tf.data import arrays

        return arrays.mapped(self, function, batch, store)

    def with_rotations(self) -> "ImageClasses":
        """Adds every class turned by 90, 180 and 270 degrees as classes of their own (paper, section 6.1).

        Raises:
          ValueError: the samples are not square images, or a class has the name of another one turned.
        """
        if self.images.ndim != 4 or self.images.shape[1] != self.images.shape[2]:
            raise ValueError(
                "only square images [image, height, width, channel] can be turned, not samples of "
                f"{self.images.shape[1:]}"
            )
        upright = self.turns or (0,) * len(self)
        names = tuple(name + suffix for suffix in ("", "@90", "@180", "@270") for name in self.names)
        if len(set(names)) < len(names):
            raise ValueError("classes that end in @90, @180 or @270 beside the class without it cannot be turned")
        return dataclasses.replace(
            self,
            starts=np.tile(self.starts, 4),
            counts=np.tile(self.counts, 4),
            names=names,
            turns=tuple((before + more) % 4 for more in range(4) for before in upright),
        )

    def with_flips(self) -> "ImageClasses":
        """Adds to every class its images mirrored left to right.

        Raises:
          ValueError: the samples are not images.
        """
        if self.images.ndim != 4:
            raise ValueError(
                f"only images [image, height, width, channel] can be mirrored, not samples of {self.images.shape[1:]}"
            )
        return self if self.flips else dataclasses.replace(self, counts=2 * self.counts, flips=True)
