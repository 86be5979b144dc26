"""Data sets, one module each, all loaded as `ImageClasses`."""

from reptile_tf.data import arrays, folder, glyphs, miniimagenet, omniglot, splits
from reptile_tf.data.arrays import from_dataset
from reptile_tf.data.image_classes import ImageClasses

__all__ = ["ImageClasses", "arrays", "folder", "from_dataset", "glyphs", "miniimagenet", "omniglot", "splits"]
