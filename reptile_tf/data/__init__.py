"""Data sets, one module each, all loaded as `ImageClasses`."""

from reptile_tf.data import arrays, decode, folder, glyphs, miniimagenet, omniglot, splits
from reptile_tf.data.arrays import from_dataset
from reptile_tf.data.image_classes import ImageClasses

__all__ = ["ImageClasses", "arrays", "decode", "folder", "from_dataset", "glyphs", "miniimagenet", "omniglot", "splits"]
