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
    """Yields a function of a step and named scalars that writes them as TensorBoard events.

    A killed run may have written later steps, which the resumed run repeats. An event tells TensorBoard to drop the old
    ones. tf.summary cannot write it, so all events are written as plain records.

    Args:
      path: folder of the events; None writes nothing.
      done: number of steps already done.

    Raises:
      UserError: the events cannot be written.
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
            writer.flush()  # a resumed run does not repeat the events before a checkpoint

    def write(step: int, **scalars: float) -> None:
        # Not tensors, as tf.summary writes them: TensorBoard's EventAccumulator does not drop those.
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
    """Returns a file name that sorts after those in the folder, because TensorBoard reads files in order of names."""
    found = [re.match(r"events\.out\.tfevents\.(\d{10})\.", file.name) for file in path.iterdir()]
    number = max([int(time.time()), *(int(name[1]) + 1 for name in found if name)])
    return f"events.out.tfevents.{number:010}.v2"
