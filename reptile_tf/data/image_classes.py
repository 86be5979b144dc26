"""The one type that every data set gives: images grouped by class."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class ImageClasses:
    """Images grouped by class; classes may differ in size, and a subset shares the images of the whole.

    Attributes:
      images: uint8 [image, height, width, channel], the images of a class side by side; may be memory-mapped.
      starts: int64 [class], where the images of each class begin.
      counts: int64 [class], how many there are.
      names: one name per class, unique.
      scale: what a pixel is multiplied by to become the network's input (1 for 0/1 images, 1/255 for photographs).
    """

    images: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    scale: float = 1.0

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.names)

    @classmethod
    def from_groups(cls, groups: dict[str, np.ndarray], scale: float = 1.0) -> "ImageClasses":
        """Joins `{class name: uint8 [image, height, width, channel]}`, keeping the order of the dict."""
        counts = np.array([len(group) for group in groups.values()], np.int64)
        return cls(
            images=np.concatenate(list(groups.values())),
            starts=np.cumsum(counts) - counts,
            counts=counts,
            names=tuple(groups),
            scale=scale,
        )

    def of_class(self, index: int) -> np.ndarray:
        """The images of one class: uint8 [image, height, width, channel]."""
        return self.images[self.starts[index] : self.starts[index] + self.counts[index]]

    def subset(self, indices: np.ndarray) -> "ImageClasses":
        """The classes at `indices` (int [class]), in that order; the images are shared, not copied."""
        indices = np.asarray(indices, np.int64)
        names = tuple(self.names[i] for i in indices)
        return dataclasses.replace(self, starts=self.starts[indices], counts=self.counts[indices], names=names)

    def split(self, first: int, seed: int) -> tuple["ImageClasses", "ImageClasses"]:
        """Shuffles the classes by `seed` and parts them: `first` of them, and the rest.

        Raises:
          ValueError: there are not more than `first` classes.
        """
        if not 0 < first < len(self):
            raise ValueError(f"cannot take {first} of {len(self)} classes and leave some")
        order = np.random.Generator(np.random.Philox(seed)).permutation(len(self))
        return self.subset(order[:first]), self.subset(order[first:])

    def with_rotations(self) -> "ImageClasses":
        """Adds every class turned by 90, 180 and 270 degrees as classes of their own (paper, section 6.1)."""
        groups = {}
        for turns, suffix in enumerate(("", "@90", "@180", "@270")):
            for index, name in enumerate(self.names):
                groups[name + suffix] = np.rot90(self.of_class(index), turns, axes=(1, 2))
        return self.from_groups(groups, self.scale)
