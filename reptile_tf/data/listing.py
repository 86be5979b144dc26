"""Lists the image files of each class, from class folders or from a table.

Each folder that holds images is a class, named by its path: CLASS in ROOT/CLASS/IMAGE, or "SET/CLASS" in
ROOT/SET/CLASS/IMAGE with the sets train, test and optionally val. Folders may be nested: the images in ROOT/a/b/ belong
to the class "a/b". Hidden files are ignored. Other files, and images outside class folders, are counted in a warning.
The folder of a run, which may have been trained on these images, is left out.
"""

import collections
import csv
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from reptile_tf.data.decode import SUFFIXES
from reptile_tf.errors import UserError
from reptile_tf.fetch.image_files import SETS, visible
from reptile_tf.progress import log

# What others call the sets.
_OTHER_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
STORE = "prepared-"  # prefix of the names of stores of decoded images, which lie beside their source


class File(NamedTuple):
    """The path of a file, with the part of the interface of `os.DirEntry` that this package uses."""

    path: str

    def stat(self) -> os.stat_result:
        """Returns the result of `os.stat` for the file."""
        return os.stat(self.path)


class Listing(NamedTuple):
    """The image files of a source.

    Attributes:
      root: the folder that holds the files, or that the paths in the table are relative to.
      classes: the files of each class. Classes and files are sorted by name, sets in the order train, val, test.
      store: prefix of the names of this source's stores.
      note: whatever the classes depend on besides the files.
    """

    root: pathlib.Path
    classes: dict[str, list[os.DirEntry | File]]
    store: str = STORE
    note: str = ""


def of(path: str | os.PathLike) -> Listing:
    """Lists a folder of class folders, with or without sets, or a table (see `of_table`).

    Raises:
      UserError: `path` does not exist, cannot be read, or is neither a folder nor a table; there are no classes, a
        class has no images, or a folder holds both images and folders of images; there are sets, but not both train and
        test; or two sets have a class of the same name.
    """
    path = pathlib.Path(path)
    try:
        if path.is_file():
            return of_table(path)
        return _of_folder(path)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error


def of_table(path: pathlib.Path) -> Listing:
    """Lists the files that a table names.

    The table is a text file of comma-separated values (.csv, UTF-8). The first line names the columns: `path`, relative
    to the table's folder or absolute; `label`, the name of the class; and optionally `set`, which is train, val or test
    in every line. Other columns and the order of the lines have no effect.

    Raises:
      UserError: the file is not such a table, or a line is invalid; the message gives the line's number.
      OSError: the file cannot be read.
    """
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path} is neither a folder of class folders nor a table, PATH.csv")
    classes: dict[str, list[os.DirEntry | File]] = collections.defaultdict(list)
    lines: dict[str, int] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        columns = [column.strip().lower() for column in next(rows, [])]
        if not {"path", "label"} <= set(columns) or len(columns) > len(set(columns)):
            raise UserError(f"the first line of {path} must name the columns, as in path,label or path,label,set")
        for row in rows:
            if row:
                where = f"{path}, line {rows.line_num}"
                if len(row) != len(columns):
                    raise UserError(f"{where}: {len(row)} values instead of {len(columns)}; put commas in quotes")
                file, label = _line(dict(zip(columns, row, strict=True)), where, path.parent)
                before = lines.setdefault(os.path.abspath(file), rows.line_num)
                if before != rows.line_num:
                    raise UserError(f"{where}: {file} is in line {before}, too; remove one of them")
                classes[label].append(File(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is not a table of comma-separated values in UTF-8 ({error}); save it as one"
        ) from error
    if not classes:
        raise UserError(f"{path} names no images; put a line with path and label there for each")
    if "set" in columns and not sets_of(list(classes)):
        given = ", ".join(sorted({name.partition("/")[0] for name in classes}, key=SETS.index))
        raise UserError(
            f"{path} has images of {given} only; give both train and test some, or leave out the column set"
        )
    for files in classes.values():
        files.sort()
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Listing(path.parent, _in_order(classes), f"{STORE}{path.stem}-", f"table {digest}")


def _line(values: dict[str, str], where: str, folder: pathlib.Path) -> tuple[str, str]:
    """Returns the path and the class that a line of a table gives."""
    label = values.get("label", "").strip()
    if not label or not values.get("path"):
        raise UserError(f"{where}: it must have a path and a label")
    file = os.path.normpath(folder / values["path"])
    if "\0" in file or not os.path.isfile(file):
        raise UserError(f"{where}: no file {file}; paths are relative to the folder of the table")
    if "set" in values:
        if values["set"].strip() not in SETS:
            raise UserError(f"{where}: the set must be one of {', '.join(SETS)}, not {values['set']!r}")
        label = f"{values['set'].strip()}/{label}"
    return file, label


def _of_folder(path: pathlib.Path) -> Listing:
    if not path.is_dir():
        raise UserError(f"no folder {path}; name one that holds a folder of images for each class")
    found = _Found()
    folders = {entry.name for entry in visible(path) if entry.is_dir()}
    if {"train", "test"} <= folders:
        found.sets_in(path)
    else:
        alike = {name: _OTHER_NAMES.get(name.lower(), name.lower()) for name in sorted(folders)}
        groups = [n for n in alike if alike[n] in SETS and any(entry.is_dir() for entry in visible(path / n))]
        if {"train", "test"} <= {alike[name] for name in groups}:
            raise UserError(
                f"{path} has the folders {', '.join(groups)}: if they are sets, rename them to train, val and test"
            )
        for name in groups:
            if name in SETS:
                raise UserError(
                    f"{path} has a folder {name} of class folders, as sets have, but not both train and test; put "
                    "the classes to train on into train and others into test, or all of them into one folder"
                )
        found.classes_in(str(path), "")
    found.tell()
    return Listing(path, _in_order(found.classes))


def _in_order(classes: dict[str, list]) -> dict[str, list]:
    """Sorts the classes by set, if there are any, and by name; raises UserError if a name occurs in two sets."""
    if not (sets := sets_of(list(classes))):
        return {name: classes[name] for name in sorted(classes, key=lambda name: name.split("/"))}
    by_label: dict[str, list[str]] = {}
    for name in classes:
        by_label.setdefault(name.partition("/")[2], []).append(sets[name])
    twice = [label for label in sorted(by_label) if len(by_label[label]) > 1]
    if twice:
        where = ", ".join(sorted(by_label[twice[0]], key=SETS.index))
        raise UserError(
            f"class {twice[0]} is in the sets {where} (1 of {len(twice)} such classes); test classes must not be "
            "trained on: remove all but one of each"
        )
    return {name: classes[name] for name in sorted(classes, key=lambda n: (SETS.index(sets[n]), n.split("/")))}


def sets_of(names: Sequence[str]) -> dict[str, str]:
    """Returns the set of each class "SET/CLASS"; empty unless all names have that form and include train and test."""
    sets = {name: name.partition("/")[0] if "/" in name else "" for name in names}
    return sets if {"train", "test"} <= set(sets.values()) <= set(SETS) else {}


class _Found:
    """The classes found in a folder, and the files that belong to none."""

    def __init__(self):
        self.classes: dict[str, list[os.DirEntry]] = {}
        self._others: list[str] = []  # files that are not images
        self._loose: list[str] = []  # images outside class folders
        self._runs: list[os.DirEntry] = []  # folders of runs

    def sets_in(self, path: pathlib.Path) -> None:
        """Adds the classes in the sets train, test and val of a folder."""
        folders, images = self._sorted_out(path)
        self._loose += [image.path for image in images]
        for folder in folders:
            if folder.name in SETS:
                self.classes_in(folder.path, f"{folder.name}/")
            else:
                log.warning(f"left out the folder {folder.path}: beside train and test only val is a set")

    def classes_in(self, path: str, prefix: str) -> None:
        """Adds the classes in the folder `path`, which is not a class itself; their names begin with `prefix`."""
        folders, images = self._sorted_out(path)
        if not folders:
            raise UserError(f"no class folders in {path}; put the images of each class into a folder of its own there")
        self._loose += [image.path for image in images]
        for folder in folders:
            self._add(folder.path, prefix + folder.name, (_identity(path),))

    def _add(self, path: str, name: str, above: tuple, owner: str = "") -> None:
        """Adds the class of a folder and those below it.

        Args:
          path: the folder.
          name: the class's name.
          above: identities of the folders that contain it, to detect links that form a cycle.
          owner: the folder above it that is a class itself, if any.
        """
        here = _identity(path)
        if here in above:
            raise UserError(f"{path} is a link to a folder that it lies in; remove it")
        folders, images = self._sorted_out(path)
        if images and owner:
            raise UserError(
                f"{owner} holds images, and so does the folder {path} in it: a class has no classes in it; move the "
                "images of one of them into another folder"
            )
        if images:
            self.classes[name] = images
        elif not folders and not owner:
            others = [entry.path for entry in visible(path)]
            there = f", but other files: {_kinds(others)}" if others else ""
            raise UserError(f"no images in {path}{there}; put some there, or move it away")
        for folder in folders:
            self._add(folder.path, f"{name}/{folder.name}", (*above, here), path if images else owner)

    def _sorted_out(self, path: str | os.PathLike) -> tuple[list[os.DirEntry], list[os.DirEntry]]:
        """Returns the folders and the images in a folder, and notes its other files."""
        folders: list[os.DirEntry] = []
        images = []
        for entry in visible(path):
            if entry.is_dir():
                (self._runs if _is_run(entry.path) else folders).append(entry)
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                images.append(entry)
            elif not entry.name.startswith(STORE):
                self._others.append(entry.path)
        return folders, images

    def tell(self) -> None:
        """Logs which files were left out."""
        for run in self._runs:
            log.info(f"left out the folder {run.path}, which holds a run")
        if self._others:
            log.warning(f"files left out, which are not images in a supported format: {_kinds(self._others)}")
        if self._loose:
            log.warning(
                f"images left out, which are not in a class folder: {len(self._loose)}, such as {self._loose[0]}"
            )


def _kinds(paths: list[str]) -> str:
    """Counts files by suffix, as in "3 (2 .txt, 1 .heic), such as a/notes.txt"."""
    counts = collections.Counter(os.path.splitext(path)[1].lower() or "without suffix" for path in paths)
    most = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(5))
    return f"{len(paths)} ({most}{', …' if len(counts) > 5 else ''}), such as {paths[0]}"


def _is_run(path: str) -> bool:
    """Returns whether a folder is that of a run (see `checkpoint.RunFolder`), whose pictures are not a class."""
    if not os.path.isfile(os.path.join(path, "config.json")):
        return False
    return any(name == ".lock" or re.fullmatch(r"checkpoint-\d+\.npz", name) for name in os.listdir(path))


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
