"""Makes synthetic archives in Omniglot's layout, and serves them locally."""

import contextlib
import hashlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading
import zipfile

import waiting

from reptile_tf.fetch import archive

SCRIPT = pathlib.Path(__file__).parents[1] / "fetch_data.sh"
# Contents that do not compress, so that a download can break off in the middle of one.
FILES = {
    part: {f"{part}/Latin/character01/{i:04d}_01.png": hashlib.sha256(bytes([i])).digest() * 300 for i in range(9)}
    for part in ("images_background", "images_evaluation")
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs fetch_data.sh with these arguments and environment variables."""
    environment = {**os.environ, "PYTHON": sys.executable, "no_proxy": "127.0.0.1", **environment}
    command = ["bash", SCRIPT, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=waiting.LIMIT)


def digest_of(files: dict[str, bytes]) -> str:
    lines = [f"{path}\0{hashlib.sha256(files[path]).hexdigest()}\n" for path in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


PARTS = {part: digest_of(files) for part, files in FILES.items()}


def unpacked(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


EVERYTHING = FILES["images_background"] | FILES["images_evaluation"]


def make_mirror(folder: pathlib.Path) -> pathlib.Path:
    """Makes a folder with synthetic archives, whose digests are PARTS."""
    folder.mkdir()
    for part, files in FILES.items():
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as file:
            file.mkdir(part)
            for path, content in files.items():
                file.writestr(path, content)
            file.writestr(f"{part}/README", "not an image")
    return folder


def fetch(base: str, root: pathlib.Path, patience: float = 10) -> None:
    archive.fetch_omniglot(base, root, patience, PARTS)


@contextlib.contextmanager
def serving(folder, break_after=None, ranges=True, page=None):
    """Serves `folder` on the loopback interface; yields its address and the list of the Range headers received.

    Args:
      folder: the folder to serve.
      break_after: number of bytes after which a connection breaks, unless the request has a Range header.
      ranges: whether the server supports ranges.
      page: a page with which the server answers every request instead.
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range"))
            body = page or (folder / self.path.lstrip("/")).read_bytes()
            first = int(asked[-1].removeprefix("bytes=").rstrip("-")) if asked[-1] and ranges else 0
            if first >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - first))
            self.end_headers()
            self.wfile.write(body[first : break_after if not first else None])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
