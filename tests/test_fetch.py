"""Tests of fetch_data.sh: the files it installs, interruptions, and wrong usage. For faulty servers see faults/.

Most tests use synthetic archives. OMNIGLOT_ZIPS names a folder with the real images_background.zip and
images_evaluation.zip.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import waiting
from mirrors import EVERYTHING, PARTS, SCRIPT, fetch, run, serving, unpacked

from reptile_tf.fetch import archive

ZIPS = os.environ.get("OMNIGLOT_ZIPS")
pytestmark = [
    pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed"),
    pytest.mark.usefixtures("direct"),
]


# Installed files.


def test_the_images_and_nothing_else_are_put_in_place(mirror, root, capsys):
    fetch(f"{mirror.as_uri()}/", root)
    assert unpacked(root / "omniglot") == EVERYTHING
    assert sorted(path.name for path in root.iterdir()) == [".download", "omniglot"]
    assert [path.name for path in (root / ".download").iterdir()] == ["lock"]
    assert capsys.readouterr().err == ""


def test_a_second_run_does_nothing(mirror, root, capsys):
    fetch(mirror.as_uri(), root)
    before = {path: path.stat().st_mtime_ns for path in (root / "omniglot").rglob("*")}
    capsys.readouterr()
    fetch("file:///nowhere", root)
    assert capsys.readouterr().out == f"{root}/omniglot is complete, nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in (root / "omniglot").rglob("*")} == before


def test_what_is_there_already_but_not_complete_is_left_alone(mirror, root):
    (root / "omniglot" / "images_background").mkdir(parents=True)
    (root / "omniglot" / "images_background" / "mine.png").write_bytes(b"precious")
    with pytest.raises(archive.FetchError, match="omniglot is there but not complete; move it away and run this again"):
        fetch(mirror.as_uri(), root)
    assert unpacked(root / "omniglot") == {"images_background/mine.png": b"precious"}


@pytest.mark.slow
@pytest.mark.skipif(not ZIPS, reason="OMNIGLOT_ZIPS names no folder of Omniglot's archives")
def test_the_script_fetches_the_real_archives(root):
    done = run("omniglot", DATA_DIR=str(root), OMNIGLOT_URL=pathlib.Path(ZIPS).resolve().as_uri())
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(1 for _ in (root / "omniglot").glob("images_*/*/character*/*.png")) == 32460
    again = run("omniglot", str(root), OMNIGLOT_URL="file:///nowhere")
    assert (again.returncode, again.stdout) == (0, f"{root}/omniglot is complete, nothing to do\n")


# Interruptions.


def test_a_broken_connection_is_taken_up_where_it_broke(mirror, root):
    with serving(mirror, break_after=50_000) as (base, asked):
        fetch(base, root)
    assert asked == [None, "bytes=50000-", None, "bytes=50000-"]
    assert unpacked(root / "omniglot") == EVERYTHING


@pytest.mark.parametrize(("ranges", "asked_for"), [(True, ["bytes=7000-", None]), (False, ["bytes=7000-", None, None])])
def test_a_partial_download_is_taken_up_by_the_next_run(mirror, root, ranges, asked_for):
    (root / ".download").mkdir(parents=True)
    whole = (mirror / "images_background.zip").read_bytes()
    (root / ".download" / "images_background.zip").write_bytes(whole[:7000])
    with serving(mirror, ranges=ranges) as (base, asked):
        fetch(base, root)
    assert asked == asked_for
    assert unpacked(root / "omniglot") == EVERYTHING


@pytest.mark.parametrize("length", [7000, 200_000])
def test_a_partial_download_of_something_else_is_dropped(mirror, root, length):
    (root / ".download").mkdir(parents=True)
    (root / ".download" / "images_background.zip").write_bytes(bytes(length))
    with serving(mirror) as (base, asked):
        fetch(base, root)
    assert asked == [f"bytes={length}-", None, None]
    assert unpacked(root / "omniglot") == EVERYTHING


def test_a_whole_download_is_not_fetched_again(mirror, root):
    (root / ".download").mkdir(parents=True)
    (mirror / "images_background.zip").rename(root / ".download" / "images_background.zip")
    fetch(mirror.as_uri(), root)
    assert unpacked(root / "omniglot") == EVERYTHING


@pytest.mark.parametrize("moment", ["pathlib.Path.mkdir", "builtins.open", "os.rename"])
def test_killed_while_unpacking_it_leaves_nothing_half_done(mirror, root, moment):
    """The process sends itself SIGKILL at the tenth unpacked file or at the last rename."""
    driver = f"""
import builtins, os, pathlib, signal
from reptile_tf.fetch import archive

real = {moment}
calls = 0

def deadly(path, *arguments, **options):
    global calls
    calls += "unpacking" in str(path)
    if calls == 10 or {moment!r} == "os.rename":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, *arguments, **options)

{moment} = deadly
archive.fetch_omniglot({mirror.as_uri()!r}, pathlib.Path({str(root)!r}), 10, {PARTS!r})
"""
    command = [sys.executable, "-c", driver]
    killed = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, timeout=waiting.LIMIT)
    assert killed.returncode == -signal.SIGKILL
    assert (root / ".omniglot.unpacking").is_dir()
    assert not (root / "omniglot").exists()
    fetch(mirror.as_uri(), root)
    assert unpacked(root / "omniglot") == EVERYTHING
    assert not (root / ".omniglot.unpacking").exists()


def test_killed_while_downloading_it_frees_the_lock_and_keeps_what_came(mirror, root):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = ["bash", SCRIPT, "omniglot", root]
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environment = {**os.environ, "PYTHON": sys.executable, "OMNIGLOT_URL": base, "no_proxy": "127.0.0.1"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            connection, _ = listener.accept()
            with connection:
                whole = (mirror / "images_background.zip").read_bytes()
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(whole)}\r\n\r\n".encode()
                connection.sendall(head + whole[:5000])
                partial = root / ".download" / "images_background.zip"
                waiting.until(lambda: partial.exists() and partial.stat().st_size == 5000)
                with pytest.raises(archive.FetchError, match=r"another fetch_data.sh is at work in .*data; wait"):
                    fetch(mirror.as_uri(), root)
                process.kill()
                process.wait()
                with serving(mirror) as (base, asked):
                    fetch(base, root)
    assert asked == ["bytes=5000-", None]
    assert unpacked(root / "omniglot") == EVERYTHING


# Wrong usage.


def test_without_curl_it_says_so(root, tmp_path):
    command = [sys.executable, SCRIPT.parent / "reptile_tf" / "fetch" / "__main__.py", "omniglot", root]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=waiting.LIMIT)
    assert done.returncode == 1
    assert "curl is not installed; install it, or put the file at" in done.stderr


def test_without_python_it_says_so(root):
    done = run("omniglot", str(root), PYTHON="no-such-python")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fetch_data.sh: no-such-python is not installed; install Python 3.11 or later, or")


@pytest.mark.parametrize("arguments", [[], ["cifar"], ["omniglot", "here", "there"]])
def test_wrong_usage_ends_with_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: fetch_data.sh")


@pytest.mark.parametrize("patience", ["soon", "0", "-5", "nan", "inf"])
def test_a_patience_that_is_no_number_of_seconds_ends_with_2(root, patience):
    done = run("omniglot", str(root), FETCH_PATIENCE=patience)
    assert done.returncode == 2
    assert "FETCH_PATIENCE must be a number of seconds" in done.stderr
    assert not root.exists()


def test_a_finished_folder_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    order, rename = [], os.rename
    monkeypatch.setattr(os, "sync", lambda: order.append("sync"))
    monkeypatch.setattr(os, "rename", lambda *paths: (order.append("rename"), rename(*paths)))
    (tmp_path / "building").mkdir()
    archive.put_in_place(tmp_path / "building", tmp_path / "target")
    assert order == ["sync", "rename"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
