"""Makes a synthetic ImageNet in the real one's format: a tar of tars, the same unpacked, and lists of byte ranges."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import zipfile

import PIL.Image
import waiting
from mirrors import digest_of

from reptile_tf.fetch import imagenet

SCRIPT = pathlib.Path(__file__).parents[1] / "fetch_data.sh"
VARIABLES = ("IMAGENET_TAR", "IMAGENET_DIR", "MINIIMAGENET_DIR")
COUNTS = {"train/n00000001": 4, "train/n00000003": 2, "val/n00000002": 1, "test/n00000004": 3}


def encoded(number: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8 + number, 8), (number * 20, 99, 0)).save(file, kind)
    return file.getvalue()


class ImageNet:
    """A tar of one tar per class in `folder`, the same unpacked, and lists that omit some images.

    Attributes:
      images: the listed images, as {path below miniimagenet: content}.
      ranges: {path: (offset of the first byte, exclusive end)} in the tar.
    """

    def __init__(self, folder: pathlib.Path):
        self.images, self.ranges, self.folder = {}, {}, folder
        (folder / "unpacked").mkdir(parents=True)
        with tarfile.open(folder / "train.tar", "w") as outer:
            for label in sorted(COUNTS, key=os.path.basename):
                wnid = label[-9:]
                (folder / "unpacked" / wnid).mkdir()
                for i in range(COUNTS[label] + 1):
                    (folder / "unpacked" / wnid / f"{wnid}_{i}.JPEG").write_bytes(encoded(i))
                with tarfile.open(folder / f"{wnid}.tar", "w") as inner:
                    for file in sorted((folder / "unpacked" / wnid).iterdir()):
                        inner.add(file, file.name)
                outer.add(folder / f"{wnid}.tar", f"{wnid}.tar")
        with tarfile.open(folder / "train.tar") as outer:
            for label in COUNTS:
                start = outer.getmember(f"{label[-9:]}.tar").offset_data
                with tarfile.open(folder / f"{label[-9:]}.tar") as inner:
                    for member in inner.getmembers()[1:]:
                        path = f"{label}/{member.name}"
                        first = start + member.offset_data
                        self.images[path] = (folder / "unpacked" / label[-9:] / member.name).read_bytes()
                        self.ranges[path] = (first, first + member.size)
        self.pack()

    def pack(self, *extra: tuple[str | zipfile.ZipInfo, bytes], packing: int = zipfile.ZIP_DEFLATED) -> None:
        """Writes the zip of the lists again, followed by `extra` entries."""
        lists = {
            f"{label}.csv": "".join(
                f"{path.split('/')[2]},{first}-{last}\n"
                for path, (first, last) in self.ranges.items()
                if path.startswith(label)
            ).encode()
            for label in COUNTS
        }
        self.digest = digest_of(lists)
        with zipfile.ZipFile(self.folder / "lists.zip", "w") as file:
            file.writestr("reptile-1/README.md", "not a list")
            for path, content in lists.items():
                file.writestr(f"reptile-1/metadata/miniimagenet/{path}", content)
            for entry, content in extra:
                file.writestr(entry, content, packing)

    def environment(self, variable: str) -> dict[str, str]:
        ready = self.folder / "ready"
        if variable == "MINIIMAGENET_DIR" and not ready.exists():
            for path, content in self.images.items():
                (ready / path).parent.mkdir(parents=True, exist_ok=True)
                (ready / path).write_bytes(content)
        path = {"IMAGENET_TAR": "train.tar", "IMAGENET_DIR": "unpacked", "MINIIMAGENET_DIR": "ready"}[variable]
        return {variable: str(self.folder / path), "METADATA_URL": (self.folder / "lists.zip").as_uri()}

    def fetch(self, root: pathlib.Path, variable: str) -> None:
        imagenet.fetch_miniimagenet(self.environment(variable), root, 10, self.digest)

    def interrupted(self, root: pathlib.Path, variable: str, moment: str, call: int, how: signal.Signals):
        """Runs the script so that it sends itself a signal at the given call of os.replace or os.rename."""
        driver = f"""
import os, signal, sys, threading, time
sys.path.insert(0, {str(SCRIPT.parent)!r})
from reptile_tf.fetch import __main__ as fetch, imagenet
imagenet.fetch_miniimagenet.__defaults__ = ({self.digest!r},)
seen = threading.Event()

def handle(*arguments):
    seen.set()
    signal.default_int_handler(*arguments)

signal.signal(signal.SIGINT, handle)
os.cpu_count = lambda: 2
real, calls = os.{moment}, []

def deadly(*arguments):
    calls.append(arguments)
    if len(calls) == {call}:
        os.kill(os.getpid(), {int(how)})
    if len(calls) >= {call}:
        seen.wait()  # until the main thread has seen it
        time.sleep(0.5)  # and, nearly always, told the others to stop
    real(*arguments)

os.{moment} = deadly
sys.exit(fetch.main(["miniimagenet", {str(root)!r}]))
"""
        environment = os.environ | self.environment(variable)
        command = [sys.executable, "-c", driver]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=waiting.LIMIT)
