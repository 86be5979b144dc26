"""A plugin of coverage: lines that run in AutoGraph's copies, as all of a tf.function does, count as the originals'.

AutoGraph traces rewritten copies of functions, in files of their own, and has a map of their lines to the originals'.
"""

import pathlib
import sys

from coverage import CoveragePlugin, FileTracer

PACKAGE = str(pathlib.Path(__file__).parent.parent / "reptile_tf")
COPY = "__autograph_generated_file"
_maps: dict[str, dict[int, tuple[str, int]]] = {}  # of a copy's file: line to the original's file and line


def _keep_maps() -> None:
    """Keeps the maps that AutoGraph makes, once it has been imported."""
    origin_info = sys.modules.get("tensorflow.python.autograph.pyct.origin_info")
    create = getattr(origin_info, "create_source_map", None)
    if create is None or hasattr(create, "keeps"):
        return

    def keeping(*arguments, **options):
        made = create(*arguments, **options)
        for copy, origin in made.items():
            _maps.setdefault(copy.filename, {})[copy.lineno] = origin.loc.filename, origin.loc.lineno
        return made

    keeping.keeps = True
    origin_info.create_source_map = keeping


class _Copy(FileTracer):
    def source_filename(self):
        return ""

    def has_dynamic_source_filename(self):
        return True

    def dynamic_source_filename(self, filename, frame):
        originals = (original for original, _ in _maps.get(frame.f_code.co_filename, {}).values())
        return next((original for original in originals if original.startswith(PACKAGE)), None)

    def line_number_range(self, frame):
        _, line = _maps.get(frame.f_code.co_filename, {}).get(frame.f_lineno, ("", -1))
        return line, line


class _Original(FileTracer):
    """The package's own files, as they are: all lines of a file have to come by the same plugin."""

    def __init__(self, filename):
        self._filename = filename

    def source_filename(self):
        return self._filename


class _Plugin(CoveragePlugin):
    def file_tracer(self, filename):
        _keep_maps()
        if COPY in filename:
            return _Copy()
        return _Original(filename) if filename.startswith(PACKAGE) else None

    def file_reporter(self, filename):
        return "python"


def coverage_init(registry, options):
    registry.add_file_tracer(_Plugin())
