"""Data sets, one module each, all loaded as `ImageClasses`."""

from reptile_tf.data import folder, glyphs, miniimagenet, omniglot, splits
from reptile_tf.data.image_classes import ImageClasses

__all__ = ["ImageClasses", "folder", "glyphs", "miniimagenet", "omniglot", "splits"]
