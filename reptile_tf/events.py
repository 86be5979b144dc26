"""TensorBoard events of a run that may be killed and resumed."""

import contextlib
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from reptile_tf.errors import UserError


@contextlib.contextmanager
def writing(path: pathlib.Path | None, done: int) -> Iterator[Callable[..., None]]:
    """A function of a step and named scalars that writes them as TensorBoard events.

    A run that was killed may have written later steps, which come again: TensorBoard is told to drop the old ones. For
    that tf.summary has no function, so the events are written as the records that they are.

    Args:
      path: of the events' folder; None: nothing is written.
      done: the steps done before.

    Raises:
      UserError: they cannot be written.
    """
    if path is None:
        yield lambda step, **scalars: None
        return

    @contextlib.contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            reason = error.message.splitlines()[0].rpartition("; ")[2]
            raise UserError(f"cannot write TensorBoard events to {path}: {reason}") from error

    def put(step: int, **what: Any) -> None:
        with told():
            writer.write(tf.compat.v1.Event(wall_time=time.time(), step=step, **what).SerializeToString())
            writer.flush()  # what comes before a checkpoint does not come again

    def write(step: int, **scalars: float) -> None:
        # Not tensors, as tf.summary's: TensorBoard's EventAccumulator does not drop those.
        values = [tf.compat.v1.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        put(step, summary=tf.compat.v1.Summary(value=values))

    with told():
        tf.io.gfile.makedirs(os.fsencode(path))
        writer = tf.io.TFRecordWriter(os.fsencode(path / _name(path)))
    with contextlib.closing(writer):
        put(0, file_version="brain.Event:2")
        put(done + 1, session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START))
        yield write


def _name(path: pathlib.Path) -> str:
    """A name after those in the folder, even if the clock was set back: TensorBoard reads files in order of names."""
    found = [re.match(r"events\.out\.tfevents\.(\d{10})\.", file.name) for file in path.iterdir()]
    number = max([int(time.time()), *(int(name[1]) + 1 for name in found if name)])
    return f"events.out.tfevents.{number:010}.v2"
